"""Two runs side by side: which is better and by how much on the same test images, or why that cannot be said."""

import json

import numpy as np
import pytest
from report_runs import make_run

from a2mim.cli import main
from a2mim.protocols.intervals import difference
from a2mim.report import read_run, render
from a2mim.report.pairs import comparison

RIGHT = np.random.default_rng(0).random(400) < 0.6


def result(correct: np.ndarray | str, protocol: str = "run-linear", **more) -> dict:
    answers = correct if isinstance(correct, str) else "".join("01"[int(one)] for one in correct)
    known = {"protocol": protocol, "protocol_hash": "p", "constants": {"img_size": 64}, "test_fingerprint": "t"}
    return known | {"data_fingerprint": "d", "correct": answers} | more


def runs(tmp_path, first, second, **summary):
    """Records of the runs "first" and "second" with these lists of results; None: the run was not judged."""
    for name, results in (("first", first), ("second", second)):
        folder = make_run(tmp_path / name, **summary)
        if results is not None:
            (folder / "results.json").write_text(json.dumps(results))
    return read_run(tmp_path / "first"), read_run(tmp_path / "second")


def better(share: float) -> np.ndarray:
    """Answers of which this share of the wrong ones has become right."""
    return RIGHT | (np.random.default_rng(1).random(400) < share)


@pytest.mark.parametrize(("swapped", "says"), [(False, "second is better than first"), (True, "first is better than")])
def test_the_better_run_comes_first_with_its_paired_interval(tmp_path, swapped, says):
    answers = [better(0.3), RIGHT] if swapped else [RIGHT, better(0.3)]
    (told,) = comparison(*runs(tmp_path, *([result(one)] for one in answers)))
    expected = difference("linear probe", *answers)
    sign = -1 if swapped else 1
    low, high = sorted((sign * expected.low, sign * expected.high))
    assert told.startswith(f"{says}") and "linear probe" in told and "400 test images" in told
    assert low > 0
    assert f"{sign * expected.points:+.1f} points, paired 95 % interval {low:+.1f} to {high:+.1f}" in told


def test_a_difference_within_chance_is_none(tmp_path):
    changed = RIGHT.copy()
    changed[:7] = ~changed[:7]
    (told,) = comparison(*runs(tmp_path, [result(RIGHT)], [result(changed)]))
    assert told.startswith("Neither is shown to be better: second against first, linear probe")


def test_the_attentive_probe_leads_and_the_others_follow(tmp_path):
    first = [result(RIGHT, name) for name in ("run-knn", "run-linear", "run-attentive")]
    second = [result(better(0.3), name) for name in ("run-knn", "run-linear", "run-attentive")]
    told = comparison(*runs(tmp_path, first, second))
    assert "attentive probe" in told[0] and told[1].startswith("linear probe: second is better (second minus first: +")
    assert told[2].startswith("k-NN: ") and len(told) == 3


def test_images_that_one_run_did_not_judge_are_left_out(tmp_path):
    unread = "-" * 200 + "".join("01"[int(one)] for one in better(0.3)[200:])
    (told,) = comparison(*runs(tmp_path, [result(RIGHT)], [result(unread)]))
    assert "200 test images" in told


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ([result(RIGHT)], None, "second was not judged on labelled test images"),
        ([result(RIGHT)], [result(RIGHT, test_fingerprint="u")], "not judged on the same test images"),
        ([result(RIGHT)], [result(RIGHT[:100])], "not judged on the same test images"),
        ([result(RIGHT)], [result("-" * 400)], "no test image was judged in both"),
        ([result(RIGHT)], [result(RIGHT, "dino-knn")], "different protocols (run-linear; dino-knn)"),
        ([result(RIGHT)], [{"correct": 5}, "x", result("012")], "second was not judged"),
    ],
)
def test_what_cannot_be_paired_says_why(tmp_path, first, second, why):
    (told,) = comparison(*runs(tmp_path, first, second))
    assert told.startswith("Whether first or second is better cannot be said: ") and why in told


def test_a_run_that_did_not_finish_says_that(tmp_path):
    (told,) = comparison(*runs(tmp_path, [result(RIGHT)], None, status="running"))
    assert told.endswith("second was not judged on labelled test images, because it did not finish.")


def test_other_constants_and_training_images_are_told(tmp_path):
    other = result(better(0.3), protocol_hash="q", constants={"img_size": 96}, data_fingerprint="e")
    (told,) = comparison(*runs(tmp_path, [result(RIGHT)], [other]))
    assert told.endswith("Their judgements differ in img_size (64 and 96), the training images.")


def test_fine_tuned_runs_of_different_recipes_are_paired(tmp_path):
    first, second = (result(one, name, best_epoch=3) for one, name in ((RIGHT, "a"), (better(0.3), "b")))
    (told,) = comparison(*runs(tmp_path, [first], [second]))
    assert told.startswith("second is better than first: accuracy after fine-tuning +")


def test_the_first_sentence_of_a_page_of_two_says_which_is_better(tmp_path, capsys):
    one, two = runs(tmp_path, [result(RIGHT)], [result(better(0.3))])
    text = render([one, two])
    assert text.index("second is better than first") < text.index("was pre-trained on")
    assert "is better" not in render([one])
    assert main(["report", str(one.folder), str(two.folder), "--out", str(tmp_path / "r.html")]) == 0
    assert "second is better than first" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "second is better than first" in capsys.readouterr().out
