"""A run's folder chooses no address, unless this account began the run with it."""

import json
import os
import shutil

import pytest

from a2mim.data.ownership import KEY, MARK, mark_own, refuse_foreign_addresses
from a2mim.data.request import keep_private, public_request, recall
from a2mim.data.sources import address_in
from a2mim.files import write_json

URL = "https://host/train-{0000..0003}.tar"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "a2mim"


def began(folder, **sources):
    """A run's folder, as a run on these sources leaves it."""
    folder.mkdir()
    request = {"config": "a.py", "data": None, "test_data": None} | sources
    keep_private(folder, request)
    mark_own(folder, request)
    write_json(folder / "summary.json", {"asked": public_request(request)})
    return folder


def check(folder, **typed):
    refuse_foreign_addresses(folder, recall(folder), typed)


@pytest.mark.parametrize(
    "data", [URL, ["a.tar", URL], "https://me:secret@host/a.tar?sig=x", "pipe:cat a.tar", "s3://b/*"]
)
def test_ones_own_run_goes_on_without_retyping(tmp_path, home, data):
    folder = began(tmp_path / "run", data=data, test_data="photos")
    check(folder)
    assert all((path.stat().st_mode & 0o777) == 0o600 for path in (folder / MARK, home / KEY))
    shutil.move(folder, tmp_path / "moved")
    check(tmp_path / "moved")


def test_the_run_of_another_account_contacts_what_is_typed_and_nothing_else(tmp_path, home):
    folder = began(tmp_path / "run", data=URL)
    (home / KEY).unlink()
    for _ in range(2):  # without a key, and with another one
        with pytest.raises(ValueError, match=r"takes its data from https://host/train-0000\.tar.*--data$"):
            check(folder)
        began(tmp_path / "other", data=URL)
        shutil.rmtree(tmp_path / "other")
    check(folder, data=URL)


@pytest.mark.parametrize("key", ["data", "test_data"])
def test_a_mark_fits_no_other_address(tmp_path, key):
    folder = began(tmp_path / "run", data=URL, test_data="photos")
    summary = json.loads((folder / "summary.json").read_text())
    summary["asked"][key] = "https://other/train.tar"
    write_json(folder / "summary.json", summary)
    with pytest.raises(ValueError, match=f"did not begin.*--{key.replace('_', '-')}"):
        check(folder)


def test_an_address_in_a_list_is_one_too(tmp_path):
    (tmp_path / "inner.txt").write_text(f"# shards\n{URL}\n")
    (tmp_path / "list.txt").write_text("a.tar\ninner.txt\nlist.txt\n")
    assert address_in(str(tmp_path / "list.txt")) == "https://host/train-0000.tar"
    folder = tmp_path / "run"
    folder.mkdir()
    write_json(folder / "summary.json", {"asked": {"data": str(tmp_path / "list.txt")}})
    with pytest.raises(ValueError, match="did not begin"):
        check(folder)


@pytest.mark.parametrize("data", [None, "photos", "folder", "a-{0..3}.tar", ["a.tar", "b.tar"], "file:///a.tar", 3, {}])
def test_files_of_this_machine_need_no_mark(tmp_path, home, data):
    assert address_in(data) is None
    folder = began(tmp_path / "run", data=data)
    check(folder)
    assert not (folder / MARK).exists() and not home.exists()


@pytest.mark.parametrize("data", ["{http,https}://host/a.tar", "a.tar::gs://b/c.tar", "HTTP://host/a.tar"])
def test_an_address_is_found_however_it_is_written(data):
    assert address_in(data).partition("://")[0].lower() in ("http", "gs")


def test_a_key_that_others_can_read_is_none(tmp_path, home):
    folder = began(tmp_path / "run", data=URL)
    os.chmod(home / KEY, 0o644)
    with pytest.raises(ValueError, match="did not begin"):
        check(folder)
