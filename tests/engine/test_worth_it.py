"""`a2mim worth-it` on tiny images: its look at the data, and the whole, killed in the middle and gone on with."""

import json
import signal
import subprocess
import sys
import time

import mmcv
import numpy as np
import pytest

from a2mim.engine.worth import answer
from a2mim.engine.worth.budget import SHARES
from a2mim.engine.worth.cells import Arm, arms_of, recipe_for
from a2mim.engine.worth.survey import look_at
from a2mim.engine.worth.verdict import decide
from a2mim.engine.worth.worth_it import worth_it
from a2mim.report.analyses import plots_of

# two seeds and one point of the curve, so that the whole takes seconds
COMMAND = (
    "import sys; from a2mim.engine.worth import budget; budget.SEEDS = (2,); budget.CURVE_POINTS = 1;"
    "from a2mim.engine.worth import cells, worth_it; cells.CURVE_POINTS = 1; worth_it.SEEDS = (2,);"
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


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_repeats_its_answer(classes, tmp_path):
    out = tmp_path / "out"
    arguments = ["worth-it", classes, "--network", "test_resnet", "--img-size", "32", "--minutes", "0.1"]
    arguments += ["--out", out, "--num-workers", "0", "--device", "cpu"]
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        while process.poll() is None and len(list(out.glob("cells/*.json"))) < 6:
            time.sleep(0.05)
    assert process.poll() is None, (tmp_path / "said.txt").read_text()[-2000:]
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.read_bytes() for path in out.glob("cells/*.json")}
    plan = (out / "plan.json").read_bytes()
    assert 6 <= len(before) < 18 and not (out / "results.json").exists()

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.read_bytes() for path in before} == before
    assert (out / "plan.json").read_bytes() == plan
    result = json.loads((out / "results.json").read_text())
    assert result["sentence"] in done.stdout and result["status"] == "finished"
    assert len(result["table"]) == 8 and all(len(row["seeds"]) == 2 for row in result["table"])
    curve = result["curves"]["pre-trained here"]
    assert curve[0]["steps"] == 0 and [point["minutes"] for point in curve] == sorted(p["minutes"] for p in curve)
    run = next(out.glob("runs/seed0-*-pretrain"))
    figures = json.loads((run / "analysis" / "worth-it.json").read_text())
    assert len(plots_of(figures)) == len(figures["figures"]) == 2
    assert "Frozen features over minutes" in (run / "report.html").read_text()

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and json.loads((out / "results.json").read_text()) == result
    other = subprocess.run([*command, "--seed", "7"], capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "another request (seed differ)" in other.stderr
