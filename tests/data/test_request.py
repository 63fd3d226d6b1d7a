import json

import pytest

from a2mim.data.request import PRIVATE, keep_private, public_request, recall
from a2mim.files import write_json

SECRET = "https://user:hunter2@host/x-{0..3}.tar?sig=hunter2"


@pytest.mark.parametrize(
    "data", [SECRET, ["a.tar", SECRET], "pipe:curl -H 'Authorization: Bearer hunter2' https://h/x.tar"]
)
def test_what_a_resume_needs_is_kept_for_the_owner_alone(tmp_path, data):
    asked = {"config": "a.py", "data": data, "test_data": None, "laptop": False}
    keep_private(tmp_path, asked)
    write_json(tmp_path / "summary.json", {"asked": public_request(asked)})
    assert "hunter2" not in (tmp_path / "summary.json").read_text()
    assert (tmp_path / PRIVATE).stat().st_mode & 0o777 == 0o600
    assert recall(tmp_path) == asked


def test_without_secrets_there_is_no_second_file_and_an_old_one_goes(tmp_path):
    keep_private(tmp_path, {"data": SECRET})
    asked = {"config": "a.py", "data": "folder", "test_data": object()}
    keep_private(tmp_path, asked)
    assert not (tmp_path / PRIVATE).exists()
    assert public_request(asked)["test_data"] == "<object given from Python>"


def test_another_summary_is_believed_more_than_an_old_private_file(tmp_path):
    keep_private(tmp_path, {"data": SECRET})
    write_json(tmp_path / "summary.json", {"asked": {"data": "https://host/other.tar"}})
    assert recall(tmp_path) == {"data": "https://host/other.tar"}


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[]", json.dumps({"asked": 3})])
def test_a_damaged_record_says_nothing(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    (tmp_path / PRIVATE).write_text(content)
    assert recall(tmp_path) == {}
