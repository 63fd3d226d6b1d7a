"""Refinement end to end: on the loop of the other tasks, from a pre-trained encoder, judged as it says."""

import shutil

import numpy as np
import pytest
import timm
import torch
from resumed_runs import assert_same_run, assert_same_state, kill_after, log_of, states_after_a_kill

import a2mim
from a2mim.checkpoints import list_checkpoints
from a2mim.cli import main
from a2mim.data import TrainLoader, open_dataset, open_stream
from a2mim.engine.config import load_config
from a2mim.engine.recipes import shipped_recipes
from a2mim.engine.refine.refine_data import sizes_for
from a2mim.engine.refine.refining import pairs_of
from a2mim.engine.refine_settings import Heads, RefineSettings
from a2mim.report.records import read_run
from a2mim.report.verdicts import headline
from a2mim.weights.loading import load_encoder

RECIPE = """
heads = dict(hidden=16, predicted=16, width=8, alone_epochs=1, k=3)
data = dict(img_size=32)
global_batch_size = 8
optimizer = dict(base_lr=0.02)
schedule = dict(epochs=3, warmup_epochs=1)
clip_grad = 5.0
checkpoint = dict(every_steps=1, keep=100)
log = dict(every_steps=1)
judge = dict(every_epochs=None)
export = []
laptop = {"schedule.epochs": 2, "schedule.warmup_epochs": 0}
"""


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """name(size) -> "NAME:FILE", with weights that random initialisation does not give again."""
    folder = tmp_path_factory.mktemp("encoders")

    def weights(name):
        path = folder / f"{name}.pth"
        if not path.is_file():
            torch.manual_seed(123)
            torch.save(timm.create_model(name, num_classes=0).state_dict(), path)
        return f"{name}:{path}"

    return weights


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs draw neither their page nor pictures of their features, which take longer than they do."""
    monkeypatch.setattr("a2mim.engine.run.write_page", lambda folder: None)
    monkeypatch.setattr("a2mim.engine.refine.refining.draw_portrait", lambda *_: None)


@pytest.fixture
def run(images, tmp_path, encoders):
    """run("folder", "network", **overrides): refines in tmp_path/folder and returns (its folder, its summary)."""
    recipe = tmp_path / "small.py"
    recipe.write_text(RECIPE)

    def start(name, network="test_resnet", **arguments):
        arguments = {"data": images, "device": "cpu", "num_workers": 0, "config": recipe} | arguments
        source = None if network is None else encoders(network)
        return tmp_path / name, a2mim.refine(source, work_dir=tmp_path / name, **arguments)

    return start


@pytest.mark.parametrize(
    ("network", "step", "overrides", "again"),
    [
        ("test_resnet", 2, {}, {}),  # while the heads train alone
        ("test_vit", 5, {"ema": 0.1, "accumulate": 2, "heads.momentum": 0.0}, {"num_workers": 2}),
    ],
    ids=["heads alone", "both, ema, accumulate, then workers"],
)
def test_a_killed_run_goes_on_bit_for_bit(no_pictures, run, tmp_path, network, step, overrides, again):
    whole, summary = run("whole", network, **overrides)
    kill_after(whole, step, tmp_path / "resumed")
    resumed, other = run("resumed", None, resume=True, **again)
    assert_same_run(whole, resumed)
    state = torch.load(list_checkpoints(resumed / "checkpoints")[-1], weights_only=True)["state_dict"]
    assert {"heads.0.queue.embeddings", "heads.0.queue.ids", "heads.0.queue.pointer"} <= set(state)
    assert (state["heads.0.queue.ids"] >= 0).all()  # nine steps of eight images filled the queue of six
    assert other["loss"] == summary["loss"]


@pytest.mark.slow
def test_a_run_that_gets_sigkill_goes_on_bit_for_bit(images, encoders, tmp_path):
    recipe = tmp_path / "small.py"
    recipe.write_text(RECIPE)
    call = f"a2mim.refine({encoders('test_resnet')!r}, data={str(images)!r}, config={str(recipe)!r}"
    states = states_after_a_kill(call, {"ema": 0.1}, tmp_path)
    assert_same_state(*states)
    assert any("queue/embeddings" in key or "queue.embeddings" in key for key in states[0])


def test_the_encoder_waits_for_the_heads_then_its_second_half_learns_and_is_handed_over(run, encoders, labelled):
    folder, summary = run("whole", export=["timm"], data=labelled)
    source = timm.create_model("test_resnet", num_classes=0)
    source.load_state_dict(torch.load(encoders("test_resnet").partition(":")[2], weights_only=True))
    before = dict(source.named_parameters())

    def changed(step):
        state = torch.load(list_checkpoints(folder / "checkpoints")[step - 1], weights_only=True)["state_dict"]
        return {key for key, value in before.items() if not torch.equal(value, state[f"encoder.model.{key}"])}

    assert changed(3) == set()
    late = changed(9)
    assert late and not any(key.startswith(("conv1", "bn1", "layer1")) for key in late)
    assert {key for key in before if key.startswith("layer4")} <= late
    lines = log_of(folder)
    assert lines[0]["baseline"] == pytest.approx(2 * 2.0794, abs=1e-3)
    assert set(summary["judged"]) >= {"before", "after", "verdicts", "colours"}
    assert summary["judged"]["colours"] > 80  # the classes of these images are their colours
    encoder, pixels = load_encoder(folder)
    final = torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)["state_dict"]
    assert all(torch.equal(v, final[f"encoder.model.{k}"]) for k, v in encoder.named_parameters())
    assert pixels["img_size"] == [32, 32]
    assert summary["heads"] == {"maps": ["layer3", "layer4"], "queue": 6, "k": 3}
    assert summary["command"] == "refine" and summary["encoder"]["name"] == "test_resnet"
    record = read_run(folder)
    assert record.command == "refine" and " was refined on 24 images" in headline(record)
    assert (folder / "report.html").is_file()


def test_a_vit_hands_on_the_mean_of_its_patches(no_pictures, run):
    folder, _ = run("vit", "test_vit", **{"export": ["timm"], "schedule.epochs": 2})
    model = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True)
    assert model.global_pool == "avg" and not isinstance(model.norm, torch.nn.Identity)


@pytest.mark.parametrize("report", [True, False])
def test_a_run_without_a_page_draws_no_features_either(report, run, labelled):
    settings = {"schedule.epochs": 2, "log.report": report, "activation_checkpointing": True}
    folder, _ = run("quiet", "test_vit", data=labelled, **settings)
    drawn = [(folder / name).exists() for name in ("representation", "report.html")]
    assert drawn == [report, report]


def test_an_image_s_views_stand_side_by_side_on_each_process(labelled):
    dataset = open_dataset(labelled, "train")
    first = next(iter(TrainLoader(dataset, 16, 8, views=2)))
    images, ids = pairs_of(first, len(dataset))
    plain = next(iter(TrainLoader(dataset, 16, 8)))
    assert images.shape == (8, 2, 3, 16, 16) and torch.equal(ids, plain["ids"])
    assert torch.equal(images[:, 0], plain["images"]) and not torch.equal(images[:, 0], images[:, 1])
    halves = [next(iter(TrainLoader(dataset, 16, 8, views=2, rank=r, world_size=2))) for r in (0, 1)]
    for rank, half in enumerate(halves):
        part, samples = pairs_of(half, len(dataset))
        assert torch.equal(samples, ids[rank::2]) and torch.equal(part, images[rank::2])


def test_a_view_that_could_not_be_read_is_replaced_by_the_other_one():
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    found, ids = pairs_of({"images": images, "ids": torch.tensor([3, 13, 4, 17])}, 10)
    assert ids.tolist() == [3, 4] and found.flatten().tolist() == [0, 1, 2, 2]


def test_a_view_of_16_bits_is_replaced_too():
    images = torch.tensor([0, 1, 2, 60000], dtype=torch.int32).to(torch.uint16).view(4, 1, 1, 1)
    found, ids = pairs_of({"images": images, "ids": torch.tensor([3, 13, 4, 17])}, 10)
    assert found.dtype == torch.uint16 and found.int().flatten().tolist() == [0, 1, 2, 2] and ids.tolist() == [3, 4]


def test_a_pipeline_of_the_user_s_own_gives_two_crops_of_each_image(labelled):
    dataset = open_dataset(labelled, "train")
    stream = open_stream([dataset.read(i) for i in range(8)])
    from a2mim.data import StreamLoader

    batch = next(iter(StreamLoader(stream, 16, 4, views=2)))
    images, ids = pairs_of(batch, None)
    assert ids.tolist() == [0, 1, 2, 3] and not torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], next(iter(StreamLoader(stream, 16, 4)))["images"])


def test_the_queue_holds_a_quarter_of_the_images_and_k_is_half_a_class_at_most(labelled):
    assert sizes_for(open_dataset(labelled, "train"), Heads()) == (6, 4)
    assert sizes_for(open_dataset(labelled, "train"), Heads(queue=3, k=2)) == (3, 2)


@pytest.mark.parametrize(("counts", "k"), [((4, 100, 100), 2), ((100, 0, 30), 15), ((1, 50), 1), ((60, 60), 20)])
def test_k_follows_the_smallest_class_that_has_images(counts, k):
    labels = np.concatenate([np.repeat(np.arange(len(counts)), counts), [-1] * 40])

    class Images(list):
        stream = None

    dataset = Images(labels)
    dataset.labels = labels
    assert sizes_for(dataset, Heads()) == (len(labels) // 4, k)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"heads.alone_epochs": 3}, "heads.alone_epochs=3 must be less than schedule.epochs=3"),
        ({"export": ["onnx"]}, "a2mim export does the rest"),
        ({"accumulate": 8}, "global_batch_size=8 in accumulate=8 parts is one image at a time"),
        ({"global_batch_size": 1}, "global_batch_size=1 in accumulate=1 parts is one image at a time"),
        ({"heads.maps": ["layer5"]}, "layer5"),
        ({"heads.temperature": 0}, "heads.temperature=0 must be a number above 0"),
        ({"data.in_chans": 2, "data.mean": (0.5,)}, "data.mean has 1 values, data.in_chans=2"),
    ],
)
def test_wrong_settings_are_one_sentence_and_nothing_is_written(run, tmp_path, overrides, words):
    with pytest.raises(ValueError, match=words):
        run("wrong", **overrides)
    assert not (tmp_path / "wrong").exists()


def test_the_command_says_what_it_needs_and_warns_of_random_weights(no_pictures, images, tmp_path, capsys):
    assert main(["refine", "--data", str(images)]) == 1
    assert "refinement needs a SOURCE" in capsys.readouterr().err
    assert main(["refine", "configs/refine/mae_ct.py", "--data", str(images)]) == 1
    assert "a2mim refine SOURCE --recipe configs/refine/mae_ct.py" in capsys.readouterr().err
    recipe = tmp_path / "small.py"
    recipe.write_text(RECIPE)
    folder = tmp_path / "run"
    words = ["--recipe", str(recipe), "--data", str(images), "--work-dir", str(folder), "--device", "cpu"]
    with pytest.warns(UserWarning, match="a name with random weights"):
        assert main(["refine", "test_resnet", *words, "--cfg-options", "schedule.epochs=2"]) == 0
    captured = capsys.readouterr()
    assert "judged   not compared" in captured.out
    shutil.rmtree(folder)


def test_a_resumed_run_whose_source_is_gone_says_that_it_is_not_compared(no_pictures, run, tmp_path, encoders, images):
    weights = tmp_path / "mine.pth"
    shutil.copy(encoders("test_resnet").partition(":")[2], weights)
    recipe = tmp_path / "small.py"
    short = {"schedule.epochs": 2, "device": "cpu", "num_workers": 0, "config": recipe, "data": images}
    a2mim.refine(f"test_resnet:{weights}", work_dir=tmp_path / "whole", **short)
    kill_after(tmp_path / "whole", 4, tmp_path / "resumed")
    weights.unlink()
    with pytest.warns(UserWarning, match="cannot be judged"):
        summary = a2mim.refine(None, work_dir=tmp_path / "resumed", resume=True, device="cpu", config=recipe)
    assert summary["judged"] is None and summary["status"] == "finished"


@pytest.mark.parametrize("name", [r.name for r in shipped_recipes() if r.name.startswith("refine/")])
def test_a_recipe_has_a_laptop_scale_and_says_how_it_is_run(name):
    (found,) = [recipe for recipe in shipped_recipes() if recipe.name == name]
    settings = load_config(found.path, laptop=True, kind=RefineSettings)
    assert settings.schedule.epochs <= 12 and settings.data.img_size is None
    text = found.path.read_text()
    assert len(text.splitlines()) <= 60 and "python tools/refine.py SOURCE --data" in text
    published = load_config(found.path, kind=RefineSettings)
    assert (published.optimizer.base_lr, published.optimizer.layer_decay, published.frozen) == (1e-4, 0.65, 0.5)
    assert (published.heads.queue, published.heads.k, published.heads.temperature) == (65536, 20, 0.15)
