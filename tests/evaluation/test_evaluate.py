"""Protocols by name, end to end: one pass for all, lists, warnings, sets of every size, and what the result says."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from a2mim.cli import main
from a2mim.data import open_dataset
from a2mim.evaluation import context, encoder, evaluate, read_results
from a2mim.evaluation.cache import Cache
from a2mim.evaluation.evaluate import sensible_protocols
from a2mim.evaluation.results import unpack
from a2mim.pixels import Preprocessing
from a2mim.protocols import read_protocol
from a2mim.weights.records import LoadReport

SIZE = 32
FAST = {
    **{"linear-cached.epochs": 3, "grid-cached.epochs": 2, "dino-linear.epochs": 1, "mae-linear.epochs": 2},
    **{"dinov2-linear.epochs": 2, "dinov2-linear.epoch_length": 2, "mae-linear.warmup_epochs": 1},
    **{"efficient-probe.epochs": 2, "efficient-probe.least_steps": 2, "efficient-probe-published.epochs": 2},
    **{"efficient-probe-published.warmup_epochs": 1},
    **{"low-shot.subsets": ["20%", "3"]},
    **{"dinov2-linear.batch_size": 8, "logreg.c_values": 3, "k": 3, "also_k": [1]},
}


def write_set(root, counts, seed=0):
    """One folder a class of noise images, each class with its own brightness."""
    generator = np.random.default_rng(seed)
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        low = 200 * number // max(1, len(counts) - 1)
        for i in range(count):
            noise = generator.integers(low, low + 55, (40, 40, 3), np.uint8)
            Image.fromarray(noise).save(root / name / f"{i:02d}.png")
    return str(root)


@pytest.fixture
def sets(tmp_path):
    counts = {"cat": 10, "dog": 10, "fox": 10}
    train = write_set(tmp_path / "train", counts)
    return train, write_set(tmp_path / "test", dict.fromkeys(counts, 4), seed=1)


def run(protocols, sets, source="resnet18", **options):
    overrides = {key: value for key, value in FAST.items() if _has(key, protocols)}
    options = {"device": "cpu", "img_size": SIZE, "overrides": overrides} | options
    return evaluate(source, protocols, *sets, **options)


def _has(key, protocols):
    name, dot, _ = key.partition(".")
    return name in protocols if dot else any(key in read_protocol(p).constants for p in protocols)


FAST_CAPI = {"epochs": 1, "epoch_length": 2, "batch_size": 8}
ATTENTIVE = ["efficient-probe", "efficient-probe-published"]
LINEAR = ["linear-cached", "grid-cached", "dino-linear", "dinov2-linear", "mae-linear"]
ALL = ["dino-knn", *LINEAR, *ATTENTIVE, "logreg"]


def test_all_protocols_share_one_pass_and_say_everything(sets, tmp_path, monkeypatch):
    views = []
    original = context.EvalContext.view
    monkeypatch.setattr(context.EvalContext, "view", lambda self, *a, **k: views.append(1) or original(self, *a, **k))
    results = run([*ALL, "low-shot"], sets, "vit_tiny_patch16_224", out=tmp_path / "out", cache=Cache(tmp_path / "c"))
    assert len(views) == 2  # one of the training set, one of the test set
    assert [r["protocol"] for r in results[: len(ALL)]] == ALL and len(results) == len(ALL) + 4
    for result in results:
        protocol = read_protocol(result["protocol"])
        wanted = {"subset", "subset_seed", "classifier"} if protocol.kind == "low-shot" else set(protocol.constants)
        assert set(result["constants"]) >= wanted
        low, high = result["interval"]
        assert 0 <= low <= result["top1_last"] <= high <= 100 and result["n_test"] == 12
        assert result["top1_last"] == pytest.approx(100 * (result["correct"] == 1).double().mean().item())
        assert result["overlap"] == {"exact": 0, "near": 0} and result["balance"]["train"]["classes"] == 3
        if "held_out" in result:
            assert (result["held_out"], result["n_train"]) == ((0, 30) if "mae" in protocol.name else (3, 27))
            assert (result["held_out_top1"] is None) == (result["held_out"] == 0)
    best = {r["protocol"]: r["top1_best"] for r in results}
    assert best["dino-linear"] is not None and best["dinov2-linear"] is None  # tested once
    assert {r["n_heads"] for r in results if r["protocol"] in ("dinov2-linear", "grid-cached")} == {52}
    written = read_results(tmp_path / "out")
    assert [r["top1_last"] for r in written] == [r["top1_last"] for r in results]
    assert (unpack(written[0]["correct"]) == results[0]["correct"]).all()
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == len(ALL) + 5


def test_an_attentive_probe_reads_the_last_map_or_a_named_one_of_any_network(sets, tmp_path):
    (last,) = run(["efficient-probe"], sets, img_size=64)
    assert (last["head"], last["constants"]["map"]) == ("2×2 cells of the last map", "auto")
    (named,) = run(["attentive-capi"], sets, img_size=64, overrides=FAST_CAPI | {"map": "layer3"})
    assert named["head"] == "4×4 cells of layer3" and named["n_heads"] == 30
    with pytest.raises(ValueError, match="layer9"):
        run(["efficient-probe"], sets, overrides={"map": "layer9"})


def test_cells_are_kept_as_float16_and_their_size_is_told_before(sets, tmp_path):
    told = []
    run(["efficient-probe"], sets, img_size=64, cache=Cache(tmp_path / "c"), say=told.append)
    files = list((tmp_path / "c").glob("*/cells.npy"))
    assert len(files) == 2 and all(np.load(path).dtype == np.float16 for path in files)
    size = sum(path.stat().st_size for path in (tmp_path / "c").rglob("*.npy"))
    announced = float(re.search(r"once \(.*\), ([\d.]+) MB of features on disk", told[0])[1])
    assert announced == pytest.approx(size / 1e6, rel=0.02)
    with pytest.raises(ValueError, match="raise --feature-cache-gb"):
        run(["efficient-probe"], sets, img_size=64, cache=Cache(tmp_path / "d", most_bytes=1e5))


def test_a_second_call_reads_the_cache_and_gives_the_same_numbers(sets, tmp_path, monkeypatch):
    first = run(["dino-knn", "grid-cached"], sets, cache=Cache(tmp_path / "c"))
    monkeypatch.setattr(context.Encoder, "taps", None)  # whoever takes features again fails
    again = run(["dino-knn", "grid-cached"], sets, cache=Cache(tmp_path / "c"))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.pop("correct"), b.pop("correct"))
        assert a == b


def test_a_replaced_image_other_weights_and_another_size_are_not_served_from_the_cache(sets, tmp_path):
    cache = Cache(tmp_path / "c")

    def entries(**options):
        run(["dino-knn"], sets, cache=cache, **options)
        return len(list((tmp_path / "c").iterdir()))

    assert entries() == 2 and entries() == 2
    assert entries(seed=1) == 4 and entries(img_size=40) == 6
    path = tmp_path / "test" / "dog" / "01.png"
    Image.fromarray(np.full((40, 41, 3), 9, np.uint8)).save(path)
    assert entries() == 7


def test_low_shot_lists_are_class_balanced_seeded_and_written(sets, tmp_path):
    overrides = {"subsets": ["20%", "3"], "classifiers": ["dino-knn"], "tries": 2, "k": 2}
    results = run(["low-shot"], sets, overrides=overrides, out=tmp_path / "out")
    assert [(r["subset"], r["subset_seed"], r["n_train"]) for r in results] == [
        *(("20%", 0, 6), ("20%", 1, 6)),
        *(("3", 0, 9), ("3", 1, 9)),
    ]
    assert len({r["protocol_hash"] for r in results}) == 4 and {r["k"] for r in results} == {2}
    dataset = open_dataset(sets[0], "train")
    for result in results:
        rows = [line.split("\t") for line in Path(result["list"]).read_text().splitlines()]
        assert [int(label) for _, label, _ in rows] == dataset.labels[[int(row) for row, _, _ in rows]].tolist()
        assert len({label for _, label, _ in rows}) == 3 and rows[0][2].endswith(".png")
    assert len({Path(r["list"]).read_text() for r in results}) == 4
    again = run(["low-shot"], sets, overrides=overrides, out=tmp_path / "again")
    assert Path(again[1]["list"]).read_text() == Path(results[1]["list"]).read_text()


def test_test_images_that_training_has_are_counted_and_named(sets, tmp_path):
    copied = (tmp_path / "train" / "cat" / "02.png").read_bytes()
    (tmp_path / "test" / "cat" / "00.png").write_bytes(copied)
    with pytest.warns(UserWarning, match=r"1 test images are also in the training set .*cat/00\.png = .*cat/02\.png"):
        (result,) = run(["dino-knn"], sets)
    assert result["overlap"] == {"exact": 1, "near": 0}


def test_imbalance_is_reported_with_the_mean_over_classes(tmp_path):
    train = write_set(tmp_path / "train", {"cat": 22, "dog": 2})
    test = write_set(tmp_path / "test", {"cat": 8, "dog": 2}, seed=1)
    with pytest.warns(UserWarning, match="from 2 to 22 images a class"):
        (result,) = run(["dino-knn"], (train, test))
    right = result["correct"] == 1
    assert result["top1_class_mean"] == pytest.approx(
        50 * (right[:8].double().mean() + right[8:].double().mean()).item()
    )
    assert result["balance"]["train"] == {"classes": 2, "least": 2, "most": 22}


@pytest.mark.filterwarnings("ignore:low-shot leaves out")
def test_every_protocol_takes_small_sets_two_classes_and_a_class_without_test_images(tmp_path):
    train = write_set(tmp_path / "train", {"cat": 3, "dog": 2, "fox": 1})
    test = write_set(tmp_path / "test", {"dog": 2, "fox": 1}, seed=1)
    for result in run(
        [*ALL, "low-shot"], (train, test), overrides={"k": 20, **{k: v for k, v in FAST.items() if "." in k}}
    ):
        assert result["n_test"] == 3 and result["balance"]["classes_without_test_images"] == 1
    pair = write_set(tmp_path / "two", {"cat": 1, "dog": 1}), write_set(tmp_path / "tested", {"cat": 1, "dog": 1}, 1)
    for result in run(ALL, pair):
        assert result["n_test"] == 2


def test_five_channels_are_no_matter(tmp_path):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, low in (("cat", 0), ("dog", 150)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                pixels = generator.integers(low, low + 100, (40, 40, 5), np.uint8)
                np.save(tmp_path / split / name / f"{split}{i}.npy", pixels)
    import timm

    from a2mim.export.timm_folder import write_timm_folder

    model = timm.create_model("resnet18", num_classes=0, in_chans=5)
    arguments = {
        "name": "resnet18",
        "in_chans": 5,
        "img_size": [SIZE, SIZE],
        "model_args": {"in_chans": 5},
        "frozen": [],
    }
    pixels = {"mean": [0.5] * 5, "std": [0.2] * 5, "interpolation": "bilinear", "img_size": [SIZE, SIZE]}
    (tmp_path / "encoder").mkdir()
    write_timm_folder(model, arguments, pixels, tmp_path / "encoder", "mit")
    data = str(tmp_path / "train"), str(tmp_path / "test")
    for result in run(["dino-knn", "dino-linear"], data, str(tmp_path / "encoder")):
        assert result["n_test"] == 8


def test_the_commands_print_a_table_write_results_and_compare_them(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    common = ["--data", sets[0], "--test-data", sets[1], "--img-size", str(SIZE), "--device", "cpu"]
    for seed in ("0", "1"):
        arguments = ["evaluate", "resnet18", "--protocol", "dino-knn,linear-cached", "--set", "k=3", "epochs=2"]
        assert main([*arguments, "--seed", seed, "--out", str(tmp_path / seed), *common]) == 0
    printed = capsys.readouterr().out
    assert "dino-knn *" in printed and "95 % interval" in printed and "with k=3" in printed
    assert (tmp_path / "home" / "a2mim" / "features").is_dir()
    assert main(["compare", str(tmp_path / "0"), str(tmp_path / "1" / "results.json")]) == 0
    told = capsys.readouterr().out.strip().splitlines()
    assert len(told) == 2 and "no difference that 12 test images can show" in told[0]
    assert main(["compare", str(tmp_path / "0"), str(tmp_path / "1"), "--protocol", "logreg"]) == 1
    assert main(["evaluate", "--list"]) == 0
    assert "dinov2-linear" in capsys.readouterr().out


def test_the_old_commands_give_the_old_numbers_and_keys(sets, tmp_path, capsys):
    common = ["resnet18", "--data", sets[0], "--test-data", sets[1], "--img-size", str(SIZE), "--device", "cpu"]
    assert main(["knn", *common, "--k", "3", "--out", str(tmp_path / "knn.json")]) == 0
    assert (
        main(["linear-probe", *common, "--protocol", "linear-cached", "--epochs", "2", "--out", str(tmp_path / "l")])
        == 0
    )
    assert main(["linear-probe", *common, "--protocol", "linear-cached", "--n-last-blocks", "1"]) == 1
    printed, errors = capsys.readouterr()
    assert "--n-last-blocks is for dino-linear" in errors
    assert "dino-knn: top-1" in printed and "linear-cached: top-1" in printed
    assert sum(line.startswith("protocol  ") for line in printed.splitlines()) == 2  # a table each
    found = json.loads((tmp_path / "knn.json").read_text())
    assert {"top1", "top5", "k", "temperature", "interval", "pooling", "n_train", "n_test", "unreadable"} <= set(found)


@pytest.mark.parametrize(
    ("protocols", "options", "words"),
    [
        (["mae-finetune"], {}, "run a2mim finetune"),
        (["dino-knn"], {"overrides": {"temprature": 1}}, "did you mean temperature"),
        (["dino-knn"], {"overrides": {"logreg.c_values": 3}}, "logreg is not among the protocols"),
        (["low-shot"], {"overrides": {"classifiers": ["dino-linear"], "subsets": ["5"]}}, "dino-linear is not"),
        ([], {}, "no protocol was named"),
    ],
)
def test_mistakes_are_one_sentence(sets, protocols, options, words):
    with pytest.raises(ValueError, match=words) as caught:
        evaluate("resnet18", protocols, *sets, device="cpu", img_size=SIZE, **options)
    assert "\n" not in str(caught.value)


def test_encoders_that_have_diverged_or_collapsed_are_refused_in_one_sentence(sets, tmp_path, monkeypatch):
    import timm

    nothing = LoadReport(source="made", recognised="made here", architecture="vit_tiny_patch16_224")
    for value, words in ((float("nan"), "not finite"), (0.0, "same features")):
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIZE, depth=1)
        model.norm.weight.data.fill_(value)
        model.norm.bias.data.fill_(value)
        monkeypatch.setattr(encoder, "build_reported", lambda *_, made=model, **__: (made, PIXELS, nothing))
        for protocol in ALL:
            with pytest.raises(ValueError, match=words):
                run([protocol], sets)


def test_a_partly_loaded_encoder_is_refused_unless_asked_for_and_then_told(sets, tmp_path):
    import timm

    state = timm.create_model("resnet18", num_classes=0).state_dict()
    del state["layer4.1.bn2.weight"]
    torch.save(state, tmp_path / "weights.pth")
    source = f"resnet18:{tmp_path / 'weights.pth'}"
    with pytest.raises(ValueError, match=r"1 missing \(layer4\.1\.bn2\.weight\)"):
        run(["dino-knn"], sets, source)
    with pytest.warns(UserWarning, match="only a part was loaded"):
        (result,) = run(["dino-knn"], sets, source, allow_partial=True)
    assert result["loading"]["missing"] == ["layer4.1.bn2.weight"] and "1 missing" in result["loaded"]


PIXELS = Preprocessing((0.5,) * 3, (0.2,) * 3, (SIZE, SIZE))


def test_identical_images_with_other_labels_are_an_error_that_names_them(sets, tmp_path):
    copied = (tmp_path / "train" / "cat" / "02.png").read_bytes()
    (tmp_path / "test" / "fox" / "00.png").write_bytes(copied)
    words = r"1 test images are training images with another label, first .*fox/00\.png \(fox\) = .*cat/02\.png \(cat\)"
    with pytest.raises(ValueError, match=words):
        run(["dino-knn"], sets)
    with pytest.warns(UserWarning, match="also in the training set|with another label") as caught:
        run(["dino-knn"], sets, allow_contradictions=True)
    assert len(caught) == 2


def test_an_image_that_training_has_twice_contradicts_only_where_no_copy_agrees(sets, tmp_path):
    copied = (tmp_path / "train" / "cat" / "02.png").read_bytes()
    for path in ("train/fox/07.png", "test/fox/00.png"):
        (tmp_path / path).write_bytes(copied)
    with pytest.warns(UserWarning, match="also in the training set"):
        assert run(["dino-knn"], sets)[0]["overlap"]["exact"] == 1


def test_a_test_class_that_training_lacks_is_counted_and_never_right(sets, tmp_path):
    shutil.move(tmp_path / "train" / "fox", tmp_path / "gone")
    protocols = ["dino-knn", "linear-cached", "logreg"]
    with pytest.warns(UserWarning, match="does not have: fox; their images are counted and never right"):
        results = run(protocols, sets)
    for result in results:
        assert result["n_test"] == 12 and result["correct"][8:].tolist() == [0] * 4
        assert result["top1"] == pytest.approx(100 * 8 / 12)


def test_the_cost_is_said_before_the_first_image_and_names_what_is_cached(sets, tmp_path, monkeypatch):
    said, read = [], []
    original = context.EvalContext.view
    monkeypatch.setattr(
        context.EvalContext, "view", lambda self, *a, **k: read.append(len(said)) or original(self, *a, **k)
    )
    cache = Cache(tmp_path / "c")
    run(["dino-knn", "dino-linear"], sets, cache=cache, say=said.append)
    assert len(said) == 1 and set(read) == {1}
    assert "42 images, once" in said[0] and "dino-linear: 30 random crops" in said[0]
    run(["dino-knn"], sets, cache=cache, say=said.append)
    assert "all features are cached" in said[1]


@pytest.mark.parametrize("view", ["center", "crops"])
def test_the_least_steps_of_a_probe_raise_its_epochs_and_what_it_is_said_to_cost(sets, view):
    said: list[str] = []
    overrides = {"epochs": 2, "least_steps": 6, "train_view": view, "base_lrs": [0.01]}
    (result,) = run(["efficient-probe"], sets, overrides=overrides, say=said.append)
    assert result["epochs"] == 6  # one step each
    assert ("efficient-probe: 180 random crops" in said[0]) == (view == "crops")  # of 30 images


def test_too_small_a_cache_is_refused_before_the_first_image(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(context.ImageDataset, "read", None)  # whoever looks at an image fails
    with pytest.raises(ValueError, match=r"these features take .* raise --feature-cache-gb to"):
        run(["dino-knn"], sets, cache=Cache(tmp_path / "c", most_bytes=1000))


def test_a_share_of_labels_that_is_one_image_a_class_is_left_out_with_a_word(sets):
    overrides = {"subsets": ["10%", "20%", "1"], "classifiers": ["dino-knn"], "tries": 1, "k": 1}
    with pytest.warns(UserWarning, match="leaves out 10% of labels: that is one image a class, which tells nothing"):
        results = run(["low-shot"], sets, overrides=overrides)
    assert [result["subset"] for result in results] == ["20%", "1"]
    with (
        pytest.warns(UserWarning, match="leaves out"),
        pytest.raises(ValueError, match="no subset of labels has more than one image a class"),
    ):
        run(["low-shot"], sets, overrides=overrides | {"subsets": ["10%"]})


def test_source_and_data_are_enough_with_labels(sets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "test_resnet", sets[0], "--img-size", "32", "--device", "cpu", "--no-feature-cache"]
    assert main([*arguments, "--set", "k=3", "linear-cached.epochs=2", "efficient-probe.least_steps=2"]) == 0
    told = capsys.readouterr().out
    for name in ("dino-knn", "linear-cached", "efficient-probe"):
        assert re.search(rf"^{name} .*\d–\d", told, re.MULTILINE)
    (path,) = tmp_path.glob("test-split-*.tsv")
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert path.name in told and sorted(label for _, label, _ in rows) == list("001122")
    dataset = open_dataset(sets[0], "train")
    assert all(dataset.name(int(row)) == name for row, _, name in rows)


def test_source_and_data_are_enough_without_labels_and_with_masks(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / f"{i}.png")
    arguments = ["--img-size", "64", "--device", "cpu"]
    assert main(["evaluate", "test_resnet", str(tmp_path), *arguments, "--set", "lidar_images=4"]) == 0
    told = capsys.readouterr().out
    assert "24 of 24 images have no label" in told and "label-free/effective-rank" in told
    assert sensible_protocols("textures")[0] == ["seg-knn", "seg-linear"]


def test_the_test_part_of_a_folder_is_taken_and_nothing_is_split_off(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (result,) = run(["dino-knn"], (str(tmp_path),))
    assert result["n_test"] == 12 and not list(tmp_path.glob("*.tsv"))


def test_a_set_of_single_images_cannot_be_split(tmp_path):
    train = write_set(tmp_path / "one", {"cat": 1, "dog": 1})
    with pytest.raises(ValueError, match="give --test-data"):
        run(["dino-knn"], (train,))
