"""Results as files: nothing is lost, nothing is counted twice, and answers can be paired again."""

import csv
import json

import pytest
import torch

from a2mim.evaluation.results import REQUIRED, pack, read_results, unpack, write_result


def result(**changes):
    return {
        "protocol": "dino-knn",
        "protocol_hash": "aa",
        "constants": {"k": 20},
        "encoder": "resnet18",
        "encoder_hash": "ee",
        "data": "photos",
        "data_fingerprint": "dd",
        "top1_last": 50.0,
        "top1_best": None,
        "interval": (40.0, 60.0),
        "n_test": 2,
        "correct": torch.tensor([True, False]),
    } | changes


def test_answers_survive_packing():
    correct = torch.tensor([1, 0, -1, 1])
    assert pack(correct) == "10-1" == pack("10-1") == pack([True, False, -1, 1])
    assert unpack("10-1").tolist() == [1, 0, -1, 1]
    assert pack(torch.tensor([True, False])) == "10"


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    path = write_result(result(note="kept"), tmp_path / "new" / "folder")
    (found,) = read_results(path)
    assert found == json.loads(json.dumps(result(note="kept", correct="10", metric="top-1 %")))
    assert read_results(path.parent) == [found]


def test_a_second_protocol_is_added_and_the_same_run_replaces_itself(tmp_path):
    write_result(result(), tmp_path)
    write_result(result(protocol="logreg"), tmp_path)
    write_result(result(top1_last=51.0), tmp_path)
    found = {r["protocol"]: r["top1_last"] for r in read_results(tmp_path)}
    assert found == {"dino-knn": 51.0, "logreg": 50.0}
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["protocol"], row["top1_last"], row["low"]) for row in rows] == [
        ("dino-knn", "50.0", "40.0"),
        ("logreg", "50.0", "40.0"),
        ("dino-knn", "51.0", "40.0"),
    ]
    assert json.loads(rows[0]["constants"]) == {"k": 20}


def test_what_is_no_result_is_refused_and_leaves_the_file_alone(tmp_path):
    write_result(result(), tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    incomplete = result()
    del incomplete["interval"]
    with pytest.raises(ValueError, match="has no interval"):
        write_result(incomplete, tmp_path)
    with pytest.raises(ValueError, match="more than plain values"):
        write_result(result(protocol="logreg", extra=torch.zeros(2)), tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before


def test_reading_what_is_not_there_or_something_else_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no results\.json"):
        read_results(tmp_path)
    for content, words in (("{", "not JSON"), ("[{}]", "not a results file"), ("{}", "not a results file")):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            read_results(tmp_path)


def test_a_run_without_results_is_told_what_makes_them_and_a_missing_folder_is_named(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match=r"run holds no results\.json"):
        read_results(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"the run .*run has no results.json.* a2mim evaluate"):
        read_results(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"no such folder or file: .*gone"):
        read_results(tmp_path / "gone")


@pytest.mark.parametrize(
    "changes",
    [{"correct": "10x"}, {"correct": 7}, {"constants": []}, {"scores": {"a": "1"}}, {"scores": {"a": float("nan")}}],
    ids=str,
)
def test_a_file_with_values_of_another_form_is_one_sentence(tmp_path, changes):
    found = dict.fromkeys(REQUIRED, "x") | {"correct": "101", "constants": {}, "interval": [1, 2]}
    (tmp_path / "results.json").write_text(json.dumps([found]))
    assert read_results(tmp_path) == [found]
    (tmp_path / "results.json").write_text(json.dumps([found | changes]))
    with pytest.raises(ValueError, match="is not a results file of a2mim"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON"):
        read_results(tmp_path)
