"""The first sentence says whether it helped; every line of verdicts follows its rule."""

import json

import pytest
from report_runs import judged, make_run

from a2mim.report import read_run
from a2mim.report.verdicts import headline, verdicts

NOT_YET = "Whether it helped is not known: that is measured at the end of a run."


def levels(folder) -> dict[str, str]:
    return {verdict.about: verdict.level for verdict in verdicts(read_run(folder))}


@pytest.mark.parametrize(
    ("word", "points", "says"),
    [
        ("gain", 10.0, "Pre-training helped: the linear probe went from 50.0 to 60.0 % (+10.0 points"),
        ("loss", -10.0, "Pre-training made the features worse"),
        ("none", 1.0, "Pre-training showed no difference that these test images can prove"),
    ],
)
def test_the_first_sentence_says_whether_it_helped(tmp_path, word, points, says):
    run = read_run(make_run(tmp_path / "a", judged=judged(50.0, 60.0, word, points)))
    assert says in headline(run) and headline(run).startswith("xcit_nano was pre-trained on 4,096 images")


def test_without_labels_the_sentence_says_so(tmp_path):
    assert "was not measured" in headline(read_run(make_run(tmp_path / "a")))


def test_a_killed_run_is_called_killed(tmp_path):
    told = headline(read_run(make_run(tmp_path / "a", status="running", of_steps=100)))
    assert "did not finish" in told and "60 of 100 steps" in told and told.endswith(NOT_YET)


def test_a_killed_run_claims_no_more_of_its_data_than_it_has_read(tmp_path):
    folder = make_run(tmp_path / "a", status="running", data={"source": "photos", "images": 4096})
    assert verdicts(read_run(folder))[0].says == "No image that was read so far was damaged or unreadable."
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 60, "loss": 0.01, "baseline": 0.5, "faults": {"truncated": 3}}) + "\n")
    found = verdicts(read_run(folder))[0]
    assert found.level == "look here" and found.says == "Images with faults so far: truncated (3)."


def test_one_hard_batch_at_the_end_is_no_verdict(tmp_path):
    folder = make_run(tmp_path / "a")
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 61, "loss": 0.51, "baseline": 0.5}) + "\n")
    assert levels(folder)["learning"] == "good"


def test_a_log_of_one_line_has_a_verdict(tmp_path):
    assert levels(make_run(tmp_path / "a", steps=1))["learning"] == "bad"


def test_an_unfinished_run_may_still_learn(tmp_path):
    assert levels(make_run(tmp_path / "a", steps=1, status="running"))["learning"] == "look here"


def test_a_probe_that_contradicts_is_told(tmp_path):
    found = judged()
    found["differences"][1]["word"] = "loss"
    assert "But k-NN shows a loss" in headline(read_run(make_run(tmp_path / "a", judged=found)))


def test_a_healthy_run_is_good_throughout(tmp_path):
    found = levels(make_run(tmp_path / "a", judged=judged()))
    assert found == dict.fromkeys(("data", "learning", "representation", "speed", "export"), "good")


@pytest.mark.parametrize(
    ("changed", "about", "level"),
    [
        ({"data": {"images": 1000, "unreadable": {"damaged": 5}}}, "data", "look here"),
        ({"data": {"images": 1000, "unreadable": {"damaged": 50}}}, "data", "bad"),
        ({"data": {"images": 1000, "unreadable": {}, "skipped_shards": ["a.tar"]}}, "data", "bad"),
        ({"baseline": 0.0176}, "learning", "look here"),
        ({"baseline": 0.0100}, "learning", "bad"),
        ({"judged": judged(word="none")}, "representation", "look here"),
        ({"judged": judged(word="loss")}, "representation", "bad"),
    ],
)
def test_each_fault_turns_its_own_line(tmp_path, changed, about, level):
    assert levels(make_run(tmp_path / "a", **changed))[about] == level


def test_a_fine_tuned_run_is_told_by_its_test_images(tmp_path):
    result = {"top1_last": 81.25, "interval": [79.0, 83.0], "n_test": 1024}
    told = headline(read_run(make_run(tmp_path / "a", command="finetune", result=result)))
    assert "was fine-tuned on 4,096 images" in told
    assert "81.2 % of 1,024 images rightly (95 % interval 79.0 to 83.0)" in told


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts(tmp_path):
    run = make_run(tmp_path / "a", seconds=9.0)
    (run / "settings.json").write_text('{"global_batch_size": 250}')
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 40, "event": "resume", "says": "The run was resumed after step 40."}\n')
    assert "for 3 min" not in headline(read_run(run)) and "for 2 min" in headline(read_run(run))  # 60 x 250 / 100 s


def test_without_a_paired_interval_nothing_is_claimed(tmp_path):
    found = judged(59.1, 68.1)
    del found["differences"]
    told = headline(read_run(make_run(tmp_path / "a", judged=found)))
    assert "went from 59.1 to 68.1 %" in told and "more than chance is not known" in told
    assert "helped" not in told and "no difference" not in told
