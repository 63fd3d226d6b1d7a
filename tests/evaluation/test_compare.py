"""Comparing results: paired by test image, a plain sentence, and a refusal where the pairing would mean nothing."""

import json

import mmcv
import numpy as np
import pytest
from tiny_project import TINY

import a2mim
from a2mim.cli import main
from a2mim.evaluation.compare import compare, compare_all


def result(correct, **changes):
    return {
        "protocol": "dino-knn",
        "protocol_hash": "aa",
        "constants": {"k": 20},
        "encoder": "before",
        "data_fingerprint": "dd",
        "test_fingerprint": "tt",
        "correct": correct,
    } | changes


BEFORE = result("0" * 60 + "1" * 40)
AFTER = result("0" * 30 + "1" * 70, encoder="after")


def test_a_gain_is_told_with_its_paired_interval():
    sentence = compare(BEFORE, AFTER)
    assert sentence.startswith("dino-knn of after against dino-knn of before: a gain (+30.0 points, 95 % interval +")
    assert "a loss (-30.0 points" in compare(AFTER, BEFORE)
    assert "no difference that 100 test images can show" in compare(BEFORE, BEFORE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol_hash": "bb", "constants": {"k": 10}}, r"constants \(k 20 and 10\)"),
        ({"data_fingerprint": "ee"}, "in their data"),
        ({"protocol": "logreg", "protocol_hash": "bb"}, "protocols and constants"),
    ],
)
def test_what_differs_is_refused_unless_asked_for_and_then_told(changes, words):
    other = AFTER | changes
    with pytest.raises(ValueError, match=words):
        compare(BEFORE, other)
    sentence = compare(BEFORE, other, anyway=True)
    assert "a gain" in sentence and "They differ" in sentence


def test_other_test_images_are_never_paired():
    for other in (AFTER | {"test_fingerprint": "uu"}, AFTER | {"correct": "01"}):
        with pytest.raises(ValueError, match="not tested on the same images"):
            compare(BEFORE, other, anyway=True)


def test_images_that_one_did_not_judge_are_left_out_of_both():
    other = AFTER | {"correct": "-" * 30 + AFTER["correct"][30:]}
    with pytest.warns(UserWarning, match="30 of 100 test images were not judged by both"):
        sentence = compare(BEFORE, other)
    assert f"(+{100 * 30 / 70:.1f} points" in sentence
    with pytest.raises(ValueError, match="no judged test image in common"):
        compare(BEFORE, AFTER | {"correct": "-" * 100})


def test_dense_scores_are_paired_by_name():
    before = result("", scores={f"v/{i}": 50.0 + i for i in range(10)})
    after = result("", scores={f"v/{i}": 55.0 + i for i in range(10)}, encoder="after")
    assert "a gain (+5.0 points, 95 % interval +5.0 to +5.0)" in compare(before, after)
    with pytest.raises(ValueError, match="no object or query in common"):
        compare(before, after | {"scores": {"w/1": 1.0}})


def test_every_later_result_is_held_against_the_first_of_its_protocol():
    logreg = {"protocol": "logreg", "protocol_hash": "cc"}
    found = compare_all([BEFORE, BEFORE | logreg, AFTER, AFTER | logreg])
    assert [s.split(" of")[0] for s in found] == ["dino-knn", "logreg"]
    subset = {"constants": {"k": 20, "subset": "1%"}, "protocol_hash": "dd"}
    assert len(compare_all([BEFORE | subset, AFTER, AFTER | subset])) == 1
    with pytest.raises(ValueError, match="nothing can be paired"):
        compare_all([BEFORE, AFTER | logreg])
    assert len(compare_all([BEFORE, AFTER | logreg], anyway=True)) == 1
    assert found == compare_all([BEFORE, BEFORE | logreg, AFTER, AFTER | logreg], anyway=True)


def test_a_sentence_says_which_labels_and_which_classifier():
    few = {"protocol": "low-shot", "constants": {"subset": "1%", "subset_seed": 2, "classifier": "logreg"}}
    sentence = compare(BEFORE | few, AFTER | few)
    assert sentence.startswith(
        "low-shot (1% of labels, seed 2, logreg) of after against low-shot (1% of labels, seed 2"
    )
    few["constants"] |= {"subset": "5"}
    assert "low-shot (5 labels a class, seed 2, logreg) of after" in compare(BEFORE | few, AFTER | few)


def test_numbers_without_single_answers_do_not_stop_the_others():
    rank = result("", protocol="label-free/effective-rank")
    assert len(compare_all([rank, BEFORE, rank | {"encoder": "after"}, AFTER])) == 1
    with pytest.raises(ValueError, match="nothing can be paired"):
        compare_all([rank, rank])


RECIPE = TINY + "global_batch_size = 6\nexport = []\n"


def test_two_real_runs_are_judged_and_compared_by_the_commands(tmp_path, capsys):
    """Pre-trained with two seeds, each judged on the same labelled images, from the runs' folders as they are."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(6):
            image = generator.integers(0, 160, (32, 32, 3), np.uint8)
            image[..., i % 2] += 80
            mmcv.imwrite(image, str(tmp_path / "data" / split / "ab"[i % 2] / f"{i}.png"))
    (tmp_path / "tiny.py").write_text(RECIPE)
    for seed in (0, 1):
        folder = tmp_path / f"run{seed}"
        a2mim.pretrain(
            tmp_path / "tiny.py", tmp_path / "data" / "train", folder, device="cpu", num_workers=0, seed=seed
        )
        judging = ["--data", str(tmp_path / "data"), "--protocol", "dino-knn", "--set", "k=3", "--device", "cpu"]
        assert main(["evaluate", str(folder), *judging, "--no-feature-cache", "--out", str(folder)]) == 0
    results = [json.loads((tmp_path / f"run{seed}" / "results.json").read_text()) for seed in (0, 1)]
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "run0"), str(tmp_path / "run1")]) == 0
    told = capsys.readouterr().out.strip().splitlines()
    assert len(told) == 1 and told[0].startswith("dino-knn of ") and "run1" in told[0] and "run0" in told[0]
    assert results[0] != results[1] and ("points" in told[0])
