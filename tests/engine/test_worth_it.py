"""`a2mim worth-it` on tiny images: its look at the data, and the whole, killed in the middle and gone on with."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest

from a2mim.data import open_dataset
from a2mim.engine.config import load_config
from a2mim.engine.worth import answer, cells
from a2mim.engine.worth.budget import CURVE_POINTS, SHARES, Schedule
from a2mim.engine.worth.cells import (
    SAVED,
    Arm,
    Bench,
    arms_of,
    curve_steps,
    encoder_options,
    recipe_for,
    saved_epochs,
)
from a2mim.engine.worth.comparison import Comparison
from a2mim.engine.worth.planning import time_line, time_taken
from a2mim.engine.worth.survey import look_at
from a2mim.engine.worth.verdict import decide
from a2mim.engine.worth.worth_it import worth_it
from a2mim.report.analyses import plots_of

# two seeds and one point of the curve, so that the whole takes seconds
COMMAND = (
    "import sys; from a2mim.engine.worth import budget, cells, planning;"
    "planning.SEEDS = (2,); budget.CURVE_POINTS = cells.CURVE_POINTS = 1;"
    "from a2mim.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Three classes of 30 images, told apart by their mean colour, roughly; the first is there three times."""
    folder, generator = tmp_path_factory.mktemp("worth") / "abc", np.random.default_rng(1)
    for i in range(90):
        image = mmcv.imresize(generator.integers(0, 150, (6, 6, 3), np.uint8), (44, 40))
        image[..., i % 3] += 60
        mmcv.imwrite(image, str(folder / "abc"[i % 3] / f"{i:03d}.png"))
    first = (folder / "a" / "000.png").read_bytes()
    for name in ("copy1", "copy2"):
        (folder / "a" / f"{name}.png").write_bytes(first)
    (folder / "b" / "bad.png").write_bytes(b"junk")
    return folder


def test_the_splits_share_no_image_and_keep_copies_of_test_images_out(classes, tmp_path):
    said = []
    survey = look_at(classes, None, tmp_path, say=said.append)
    assert "1 cannot be read" in said[0] and "bad.png" in said[0]
    names = {}
    for part in ("train", "test", "pretrain"):
        names[part] = [line.split("\t")[2] for line in (tmp_path / f"{part}.tsv").read_text().splitlines()]
    tested = set(names["test"])
    assert not tested & set(names["train"]) and not tested & set(names["pretrain"])
    same = {str(name) for name in names["test"] if "copy" in name or name.endswith("a/000.png")}
    others = {name for part in ("train", "pretrain") for name in names[part] if "copy" in name or "a/000.png" in name}
    assert not (same and others)
    counts = np.bincount(survey.test.labels)
    assert counts.max() - counts.min() <= 1
    assert survey.facts["copies_left_out"]["labelled"] == 92 - len(names["train"]) - len(names["test"])


def test_copies_in_the_test_part_of_a_folder_are_left_out_of_training(tmp_path):
    generator = np.random.default_rng(0)
    for split, number in (("train", 20), ("test", 6)):
        for i in range(number):
            image = generator.integers(0, 256, (6, 6, 3), np.uint8)
            mmcv.imwrite(mmcv.imresize(image, (40, 40)), str(tmp_path / "d" / split / "ab"[i % 2] / f"{i}.png"))
    image = mmcv.imread(str(tmp_path / "d/test/a/0.png"))
    mmcv.imwrite(mmcv.imresize(image, (48, 48)), str(tmp_path / "d/train/a/near.png"))
    survey = look_at(tmp_path / "d", None, tmp_path / "lists", say=lambda _: None)
    assert survey.facts["copies_left_out"] == {"labelled": 1, "pretrain": 1}
    assert len(survey.test) == 6 and len(survey.train) == len(survey.pool) == 20
    assert survey.notes


def test_each_seed_has_a_small_share_of_its_own_with_every_class(classes, tmp_path):
    survey = look_at(classes, None, tmp_path, say=lambda _: None)
    first, second = (survey.labelled(SHARES[0], seed) for seed in (0, 1))
    assert set(first.labels) == set(second.labels) == {0, 1, 2}
    assert list(first.keys) != list(second.keys)
    assert list(first.keys) == list(survey.labelled(SHARES[0], 0).keys)


def test_labels_in_a_list_beside_unlabelled_images(classes, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = []
    for path in sorted(classes.glob("*/0*.png")):
        (flat / path.name).write_bytes(path.read_bytes())
        lines.append(f"{path.name} {path.parent.name}")
    (flat / "labels.txt").write_text("\n".join(lines[:60]) + "\n")
    survey = look_at(flat, str(flat / "labels.txt"), tmp_path / "lists", say=lambda _: None)
    assert survey.facts["labelled"] + survey.facts["test_images"] == 60
    assert survey.facts["pretrain_images"] == 90 - survey.facts["test_images"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"minutes": 0}, "minutes=0 must be a number above 0"),
        ({"worth": 0}, "worth=0"),
        ({"sources": ["test_resnet"]}, "has no weights, only a name"),
        ({"data": "/nowhere/images"}, "no such folder"),
    ],
)
def test_bad_requests_are_one_sentence(classes, tmp_path, change, told):
    arguments = {"data": classes, "out": tmp_path / "out"} | change
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        worth_it(**arguments)


def test_too_few_labels_are_refused(tmp_path):
    for i in range(6):
        image = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
        mmcv.imwrite(image, str(tmp_path / "d" / "ab"[i % 2] / f"{i}.png"))
    with pytest.raises(ValueError, match="at least 8 of two classes are needed"):
        worth_it(tmp_path / "d", out=tmp_path / "out")


def test_too_few_images_without_labels_are_refused_before_anything_is_trained(classes, tmp_path):
    for path in sorted((classes / "b").glob("0*.png"))[:19]:
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="has 19 readable images and no labels: at least 20 are needed"):
        worth_it(tmp_path / "flat", out=tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


def test_arms_without_weights_and_recipes_by_network():
    arms = arms_of([], None)
    assert [(arm.network, arm.pretrained, arm.baseline) for arm in arms] == [
        ("resnet18", False, ""),
        ("resnet18", True, "from scratch"),
    ]
    assert recipe_for("vit_small_patch16_224") == "a2mim_vit_small"
    assert recipe_for("xcit_nano_12_p16_224") == "a2mim_xcit" and recipe_for("resnet50") == "a2mim_resnet18"


@pytest.mark.parametrize("gain", [0.0, 0.4, -0.4])
def test_the_sentence_says_how_much_how_sure_at_what_cost_and_what_would_change_it(gain):
    rng = np.random.default_rng(0)
    pairs = {
        name: ((rng.random((3, 300)) < 0.5).astype(float), (rng.random((3, 300)) < 0.5 + gain).astype(float))
        for name in ("frozen", "tuned")
    }
    after = Arm("pre-trained here", "resnet18", None, True, "from scratch")
    before = Arm("from scratch", "resnet18", None, False, "")
    facts = {"commonest": 33.0, "labelled": 100}
    said = answer.sentence(decide(pairs, 33.0), before, after, 2.5, facts, 3.0)
    assert ("helps:" in said) == (gain > 0) and ("harms:" in said) == (gain < 0)
    assert said.startswith("Cannot tell") == (gain == 0)
    for part in ("95 % interval", "3 seeds and 300 test images", "2.5 minutes of pre-training", " change this:"):
        assert part in said


@pytest.mark.parametrize("network", ["resnet18", "vit_tiny_patch16_224", "vit_small_patch16_224", "convnext_atto"])
def test_every_arm_has_the_same_network_whatever_the_recipe_says_of_its_own(network):
    recipe = recipe_for(network)
    encoder = load_config(recipe, encoder_options(recipe, network), laptop=True).model["encoder"]
    assert encoder["name"] == network and not encoder.get("model_args")


def test_fine_tuning_trains_and_tests_at_one_size(tmp_path, monkeypatch):
    """The protocol's own test size is 224 px."""
    taken = {}

    def record(protocol, source, data, **options):
        taken.update(options)
        return {"status": "finished", "steps": 1}

    monkeypatch.setattr(cells, "finetune", record)
    monkeypatch.setattr(cells, "read_results", lambda folder: [{"top1_last": 1.0, "interval": [0, 2], "correct": "1"}])
    Bench(tmp_path, 32).finetune("x", "resnet18", [1, 2], [3], Schedule(2, 2, 1), 0)
    assert taken["data.img_size"] == taken["data.test_size"] == 32


def test_points_of_the_curve_have_checkpoints_and_lie_inside_the_run():
    for epochs in (1, 5, 9, 40):
        schedule = Schedule(96, 32, epochs)
        saved = set(range(3 * saved_epochs(schedule), schedule.steps + 1, 3 * saved_epochs(schedule)))
        found = curve_steps(schedule)
        assert set(found) <= saved and all(0 < steps < schedule.steps for steps in found)
        assert len(saved) <= SAVED * CURVE_POINTS + 2


def test_a_damaged_cell_is_computed_again_and_a_whole_one_never(tmp_path):
    made, bench = [], Bench(tmp_path, 32, say=lambda _: None)

    def compute():
        made.append(1)
        return {"top1": 1.0}

    first = bench.once("a", "frozen", compute)
    assert bench.once("a", "frozen", compute) == first and len(made) == 1
    bench.path("a").write_text('{"cell": "a", "top')
    assert not bench.has("a") and bench.once("a", "frozen", compute)["top1"] == 1.0 and len(made) == 2
    bench.forget("a")
    assert bench.cell_seconds("a") == 0.0 and not bench.path("a").exists()


def test_what_it_took_stands_beside_what_was_announced():
    budget = {"seeds": 2, "pretrain": {"images": 9, "batch": 3, "epochs": 1}, "finetune": {}}
    budget["costs"] = {"measuring": 0.5, "frozen": 1.0, "curve": 0.0, "pretrain": 2.0, "finetune": 0.0}
    plan = {"budget": budget, "asked": {"minutes": 4.0}, "measured_seconds": {"spent": 30.0}}
    cells = {name: {"kind": name[:-1], "seconds": 90.0} for name in ("frozen1", "pretrain1", "pretrain2")}
    taken = time_taken(plan, cells)
    assert (taken["announced"], taken["took"], taken["kinds"]["pretrain"]) == (3.5, 5.0, [2.0, 3.0])
    assert "5.0 minutes; announced were 3.5" in time_line(taken)


def test_without_labels_every_rank_is_told_with_its_number_of_images(classes, tmp_path, monkeypatch):
    monkeypatch.setattr(Comparison, "_pretrain", lambda self, arm, seed: {"loss": {"last": 0.2, "mean_colour": 0.4}})
    monkeypatch.setattr(Comparison, "_write", lambda self, result, lines, curves: result | {"lines": lines})
    monkeypatch.setattr(Bench, "run_folder", lambda self, name: "test_vit")  # what was pre-trained
    budget = {"seeds": 1, "pretrain": {"images": 9, "batch": 3, "epochs": 1}, "finetune": {}, "costs": {}}
    bench = Bench(tmp_path, 32, device="cpu", num_workers=0, say=lambda line: None)
    pool = SimpleNamespace(pool=open_dataset(classes / "c"))
    arms = [Arm("pre-trained here", "test_resnet", None, True, "")]
    found = Comparison(bench, pool, arms, {"budget": budget, "asked": {"seed": 0}}).label_free()
    assert "50 % less error" in found["sentence"] and "cannot be answered" in found["sentence"]
    assert {row["when"] for row in found["measures"]} == {"before", "after"}
    assert {"label-free/effective-rank", "label-free/alpha-req"} <= {row["protocol"] for row in found["measures"]}
    assert all(row["images"] == 30 and row["channels"] > 1 for row in found["measures"])
    assert any("30 images" in line and "compare" in line for line in found["lines"])


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_computes_nothing_twice_and_repeats_its_answer(classes, tmp_path):
    out, said = tmp_path / "out", []
    arguments = ["worth-it", classes, "--network", "test_convnext", "--img-size", "32", "--minutes", "0.1"]
    arguments += ["--out", out, "--num-workers", "0", "--device", "cpu"]
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    before: dict = {}
    for number in (1, 7):  # cells that are there: while it measures, and in the midst of the comparison
        with (tmp_path / "said.txt").open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
            while process.poll() is None and len(list(out.glob("cells/*.json"))) < number:
                time.sleep(0.05)
        assert process.poll() is None, (tmp_path / "said.txt").read_text()[-2000:]
        process.send_signal(signal.SIGKILL)
        process.wait()
        said += cells_of((tmp_path / "said.txt").read_text())
        assert {path: path.read_bytes() for path in before} == before
        before = {path: path.read_bytes() for path in out.glob("cells/*.json")}
        assert not (out / "results.json").exists()
    plan = (out / "plan.json").read_bytes()

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.read_bytes() for path in before} == before
    assert (out / "plan.json").read_bytes() == plan
    begun = Counter([*said, *cells_of(done.stdout)])
    assert set(begun) == {path.stem for path in out.glob("cells/*.json")}
    assert sum(begun.values()) - len(begun) <= 2  # at most the cell that each kill interrupted was begun again
    result = json.loads((out / "results.json").read_text())
    assert result["sentence"] in done.stdout and result["status"] == "finished"
    assert len(result["table"]) == 8 and all(len(row["seeds"]) == 2 for row in result["table"])
    assert result["time"]["took"] > 0 and result["time"]["announced"] == pytest.approx(
        result["plan"]["expected_minutes"], abs=0.01
    )
    curve = result["curves"]["pre-trained here"]
    assert curve[0]["steps"] == 0 and [point["minutes"] for point in curve] == sorted(p["minutes"] for p in curve)
    run = next(out.glob("runs/seed0-*-pretrain"))
    figures = json.loads((run / "analysis" / "worth-it.json").read_text())
    assert len(plots_of(figures)) == len(figures["figures"]) == 2
    assert "Frozen features over minutes" in (run / "report.html").read_text()
    assert len(list(out.glob("runs/*/checkpoints/*.pth"))) == 1  # of the first pre-training: the encoder to keep

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and json.loads((out / "results.json").read_text()) == result
    assert cells_of(again.stdout) == []
    other = subprocess.run([*command, "--seed", "7"], capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "another request (seed differ)" in other.stderr


def cells_of(output: str) -> list[str]:
    """The cells that were begun, as the command names them."""
    return re.findall(r"^  (seed\d+-\S+)$", output, re.MULTILINE)


def test_several_processes_are_refused_from_python_as_from_the_command_line(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="worth_it runs in one process, and 2 were started: start it without torchrun"):
        worth_it(tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
