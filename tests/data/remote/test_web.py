import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from loopback import LoopbackServer, _Handler, quick
from small_images import encoded, picture, write_tar

from a2mim.data import open_dataset
from a2mim.data.errors import ShardError
from a2mim.data.remote.origins import origin_of
from a2mim.data.remote.retry import PassingFault
from a2mim.data.remote.transfer import Stat
from a2mim.data.shards import cache as shard_cache
from a2mim.data.shards.cache import ShardCache
from a2mim.data.shards.tarfiles import TarError


@pytest.fixture
def server(shards, tmp_path):
    server = LoopbackServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def access(tmp_path):
    return quick(tmp_path / "cache")


def copies(access) -> list[str]:
    """Names of what the cache holds, locks and notes left out."""
    found = (access.folder / "shards").rglob("*")
    return sorted(path.name for path in found if path.is_file() and path.suffix not in (".lock", ".json"))


def test_remote_shards_are_the_local_ones_and_fetched_once(server, shards, access, tmp_path):
    local, pattern = open_dataset(shards), server.url + "/part-{0..3}.tar"
    for index in tmp_path.glob("*.npz"):
        index.unlink()
    for _ in range(2):
        away = open_dataset(pattern, access=access)
        assert away.fingerprint == local.fingerprint and np.array_equal(away.read(25), local.read(25))
    assert sorted(server.gets()) == [f"/part-{k}.tar" for k in range(4)]


@pytest.mark.parametrize("fault", [503, 429, "short", "reset", "stall", "trickle"])
def test_a_passing_fault_is_tried_again(server, access, fault):
    server.faults["/part-0.tar"] = [fault, fault]
    assert len(open_dataset(server.url + "/part-0.tar", access=access)) == 12


def test_a_broken_transfer_goes_on_where_it_broke(server, access, tmp_path):
    size = (tmp_path / "part-0.tar").stat().st_size
    server.faults["/part-0.tar"] = ["short"]
    open_dataset(server.url + "/part-0.tar", access=access)
    assert [asked for method, path, asked in server.asked if path == "/part-0.tar"] == [
        *(None, None),
        f"bytes={size // 2}-",
    ]


def test_two_versions_are_never_joined(server, access, tmp_path):
    origin = origin_of(server.url + "/part-0.tar", access)
    server.faults["/part-0.tar"] = ["short"]
    with open(tmp_path / "copy", "wb") as file:
        with pytest.raises(PassingFault, match="bytes came"):
            origin.download(file)
        new = (tmp_path / "part-1.tar").read_bytes()
        (tmp_path / "part-0.tar").write_bytes(new)
        origin.download(file)
    assert (tmp_path / "copy").read_bytes() == new


def test_a_server_without_ranges_or_head_is_read_from_the_start(server, access):
    server.ranges = server.head = False
    server.faults["/part-0.tar"] = ["short"]
    assert len(open_dataset(server.url + "/part-0.tar", access=access)) == 12


def test_missing_remote_shards_are_named_at_once(server, access):
    with pytest.raises(FileNotFoundError, match=r"2 of 6 shards missing: http.*/part-4\.tar, http.*/part-5\.tar"):
        open_dataset(server.url + "/part-{0..5}.tar", access=access)
    assert not server.gets()


@pytest.mark.parametrize(
    "fault, error, message",
    [
        (403, ShardError, r"part-0\.tar: the server answered 403 Forbidden$"),
        (503, ShardError, r"part-0\.tar: the server answered 503 Service Unavailable, after 3 attempts$"),
        (404, ShardError, r"part-0\.tar: the server answered 404"),
        ("short", ShardError, r"part-0\.tar: \d+ of \d+ bytes came, after 3 attempts"),
        ("reset", ShardError, r"part-0\.tar: .*(reset|bytes came).*, after 3 attempts"),
        ("stall", ShardError, r"part-0\.tar: no byte in time, after 3 attempts"),
        ("trickle", ShardError, r"part-0\.tar: stalled, \d+ bytes in 0\.\d s, after 3 attempts"),
        ("page", ShardError, r"part-0\.tar: a web page of 2700 bytes came in its place"),
        ("page as long", TarError, r"http://.*part-0\.tar: byte 0: .*not a tar file"),
    ],
)
def test_a_lasting_fault_is_one_sentence_and_leaves_nothing_behind(server, access, fault, error, message):
    if fault in ("short", "reset", "stall", "trickle"):
        server.ranges = False  # with ranges each attempt would get half of the rest
    server.only["/part-0.tar"] = fault
    began = time.monotonic()
    with pytest.raises(error, match=message):
        open_dataset(server.url + "/part-0.tar", access=access)
    assert time.monotonic() - began < 6 and not copies(access)
    server.only.clear()
    assert len(open_dataset(server.url + "/part-0.tar", access=access)) == 12


def test_a_server_that_is_not_there_is_one_sentence(access):
    with pytest.raises(ShardError, match=r"http://127\.0\.0\.1:9/part-0\.tar: .*refused.*, after 3 attempts"):
        open_dataset("http://127.0.0.1:9/part-0.tar", access=access)


def test_a_server_that_cannot_be_reached_is_waited_for_once(tmp_path):
    access, began = quick(tmp_path / "cache", tries=4, first_wait=0.1, timeout=5), time.monotonic()
    with pytest.raises(ShardError, match=r"100 of 100 shards cannot be used .*refused.*; and 97 more"):
        open_dataset("http://127.0.0.1:11/part-{0..99}.tar", access=access)
    assert time.monotonic() - began < 3  # 16 at a time and 0.7 s for each would be 5 s
    with pytest.raises(
        ShardError, match=r"not requested, because http://127\.0\.0\.1:11 was given up a moment ago: .*refused"
    ):
        open_dataset("http://127.0.0.1:11/part-3.tar", access=access)


def test_a_checksum_that_the_server_gives_is_held(server, access):
    server.md5 = True
    server.faults["/part-0.tar"] = ["flip"]
    assert len(open_dataset(server.url + "/part-0.tar", access=access)) == 12 and len(server.gets()) == 2
    server.only["/part-1.tar"] = "flip"
    with pytest.raises(ShardError, match=r"part-1\.tar: the md5 is \w+, the server says \w+, after 3 attempts"):
        open_dataset(server.url + "/part-1.tar", access=access)
    assert copies(access) == ["part-0.tar"]


def test_a_shard_that_changed_on_the_server_is_fetched_anew(server, access, tmp_path):
    address = server.url + "/part-0.tar"
    open_dataset(address, access=access)
    write_tar(tmp_path / "part-0.tar", [("new.jpg", encoded(picture(9)))])
    assert len(open_dataset(address, access=access)) == 1
    server.tags["/part-0.tar"] = '"another, of the same size"'
    fetched = len(server.gets())
    assert len(open_dataset(address, access=access)) == 1 and len(server.gets()) == fetched + 1


def test_a_copy_never_passes_for_another_version(server, access, monkeypatch):
    """Killed between the note of the new copy and the copy, both of one size."""
    address, folder = server.url + "/part-0.tar", access.folder / "shards"
    open_dataset(address, access=access)
    server.tags["/part-0.tar"] = '"new"'
    monkeypatch.setattr(shard_cache.os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ShardCache(access).fetch(address, Stat((folder.parent.parent / "part-0.tar").stat().st_size, '"new"'))
    assert ShardCache(access).find(address, None) is None


def test_a_copy_answers_for_a_server_that_is_gone(server, access):
    address = server.url + "/part-0.tar"
    before = open_dataset(address, access=access)
    server.head, server.only = False, {"/part-0.tar": 503}
    with pytest.warns(UserWarning, match=r"part-0\.tar: .*; the copy in .* is used as it is"):
        after = open_dataset(address, access=access)
    assert after.fingerprint == before.fingerprint and np.array_equal(after.read(3), before.read(3))


def test_those_who_want_one_shard_at_once_fetch_it_once(server, access):
    """Each with a cache of its own, as processes have; the lock is the kernel's."""
    address = server.url + "/part-0.tar"
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: ShardCache(access).fetch(address, Stat()), range(8)))
    assert len(paths) == 1 and server.gets() == ["/part-0.tar"] and len(open_dataset(paths.pop())) == 12


def test_class_names_lie_beside_remote_shards_too(server, access, tmp_path):
    address = server.url + "/part-0.tar"
    assert open_dataset(address, access=access).class_names is None
    (tmp_path / "classes.txt").write_text("ant\nbee\ncow\n")
    assert open_dataset(address, access=access).class_names == ["ant", "bee", "cow"]
    server.only["/classes.txt"] = 503
    assert open_dataset(address, access=access).class_names == ["ant", "bee", "cow"]
    server.only.clear()
    (tmp_path / "classes.txt").unlink()
    assert open_dataset(address, access=access).class_names is None


def test_equal_names_of_different_places_stay_apart(server, tmp_path, access):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "part-0.tar").write_bytes((tmp_path / "part-1.tar").read_bytes())
    sizes = [len(open_dataset(server.url + place, access=access)) for place in ("/part-0.tar", "/other/part-0.tar")]
    assert sizes == [12, 9]


def test_the_cache_keeps_its_bound_and_drops_what_was_unused_for_longest(server, tmp_path):
    size = (tmp_path / "part-0.tar").stat().st_size
    access = quick(tmp_path / "cache", cache_bytes=3 * size, remote="shards")
    dataset = open_dataset(server.url + "/part-{0..2}.tar", access=access)
    time.sleep(0.01)
    ShardCache(access).find(server.url + "/part-0.tar", None)  # used last of the three
    time.sleep(0.01)
    more = open_dataset(server.url + "/part-3.tar", access=access)
    assert len(copies(access)) <= 3 and {"part-0.tar", "part-3.tar"} <= set(copies(access))
    pixels = [dataset.read(i) for i in range(len(dataset))]  # what was dropped is fetched again, within the bound
    assert len(pixels) == 32 and len(copies(access)) <= 3 and len(more) == 8
    with pytest.raises(ValueError, match=r"has \d+,?\d* bytes and the cache may hold 10; raise --shard-cache-gb"):
        open_dataset(server.url + "/part-1.tar", access=quick(tmp_path / "small", cache_bytes=10))


def test_what_is_under_way_counts_and_what_was_left_behind_does_not(server, tmp_path):
    size = (tmp_path / "part-0.tar").stat().st_size
    access = quick(tmp_path / "cache", cache_bytes=3 * size, remote="shards")
    open_dataset(server.url + "/part-{0..1}.tar", access=access)
    (access.folder / "shards" / "x").mkdir()
    under_way = access.folder / "shards" / "x" / f"{2 * size}-tmp.part"
    under_way.write_bytes(b"")
    open_dataset(server.url + "/part-2.tar", access=access)
    assert copies(access) == [under_way.name, "part-2.tar"]
    os.utime(under_way, (0, 0))
    open_dataset(server.url + "/part-0.tar", access=access)
    assert copies(access) == ["part-0.tar", "part-2.tar"]


def test_sets_larger_than_the_cache_are_read_by_ranges(server, shards, tmp_path):
    size = (tmp_path / "part-0.tar").stat().st_size
    access, local = quick(tmp_path / "cache", cache_bytes=size), open_dataset(shards)
    away = open_dataset(server.url + "/part-{0..3}.tar", access=access)
    server.asked.clear()
    away.will_need(np.array([30, 2, 17]))
    for i in (2, 30, 17, 39):
        assert np.array_equal(away.read(i), local.read(i))
    assert len(server.asked) == 4 and all(asked for _, _, asked in server.asked)
    server.faults["/part-0.tar"] = ["short", 503]
    assert np.array_equal(pickle.loads(pickle.dumps(away)).read(5), local.read(5))


def test_an_index_beside_the_remote_shard_saves_the_transfer(server, shards, access):
    local = open_dataset(shards)  # leaves an index beside each
    away = open_dataset(server.url + "/part-{0..3}.tar", access=access)
    assert away.fingerprint == local.fingerprint and set(server.gets()) <= {"/part-0.tar"}  # its depth is looked at
    assert away.name(12) == server.url + "/part-1.tar/00012"
    away.will_need(np.arange(40))
    assert np.array_equal(away.read(25), local.read(25)) and "/part-2.tar" in server.gets()


@pytest.mark.parametrize("remote", ["shards", "ranges"])
def test_a_shard_that_is_lost_in_the_middle_is_a_shards_fault(server, shards, tmp_path, remote):
    open_dataset(shards)
    access = quick(tmp_path / "cache", remote=remote)
    away = open_dataset(server.url + "/part-{0..1}.tar", access=access)
    (tmp_path / "part-1.tar").unlink()
    away.read(0)
    counts = []
    for i in range(12, 21):
        with pytest.raises(ShardError, match=r"part-1\.tar: the server answered 404"):
            away.read(i)
        counts.append(len(server.asked))
    assert len(set(counts)) == 1  # what is gone is not asked for again


@pytest.mark.parametrize("remote", ["shards", "ranges"])
def test_a_shard_that_changes_in_the_middle_is_not_read_by_the_old_index(server, shards, tmp_path, remote):
    open_dataset(shards)
    away = open_dataset(server.url + "/part-{0..1}.tar", access=quick(tmp_path / "cache", remote=remote))
    server.tags["/part-1.tar"] = '"of the same size"'
    with pytest.raises(ShardError, match=r"part-1\.tar: changed since it was indexed; start anew"):
        away.read(15)
    assert away.read(3).shape == (40, 56, 3)


def test_a_copy_dropped_before_its_use_is_fetched_again(server, shards, access):
    open_dataset(shards)
    away = open_dataset(server.url + "/part-{0..3}.tar", access=access)
    away.will_need(np.array([30]))
    copy = away.store._copies._waiting[2]
    copy.ready.wait(5)
    os.unlink(copy.value)
    assert np.array_equal(away.read(30), open_dataset(shards).read(30))


def test_a_password_in_a_url_is_used_and_not_shown(server, access):
    origin = origin_of(server.url.replace("//", "//me:secret@") + "/none.tar", access)
    assert origin.headers["authorization"].startswith("Basic ")
    with pytest.raises(FileNotFoundError) as error:
        origin.stat()
    assert "secret" not in str(error.value) and "/none.tar" in str(error.value)


def test_no_password_reaches_a_run_folder_its_log_or_its_export(shards, server, tmp_path, capsys):
    """The server asks for none; the run is resumed from what its folder keeps."""
    import a2mim

    recipe = tmp_path / "tiny.py"
    recipe.write_text(
        'model = dict(encoder=dict(name="resnet10t"), masking=dict(type="BlockMask", mask_patch_size=16,'
        ' mask_ratio=0.5), losses=[dict(type="MaskedL1")])\n'
        "data = dict(img_size=32)\nglobal_batch_size = 8\nexport = ['timm']\n"
        "schedule = dict(epochs=1, warmup_epochs=0)\ncheckpoint = dict(every_steps=1)\n"
    )
    address = server.url.replace("://", "://someone:hunter2@") + "/part-{0..3}.tar?sig=hunter2"
    access, run = quick(tmp_path / "cache"), tmp_path / "run"
    a2mim.pretrain(recipe, address, run, device="cpu", num_workers=0, access=access)
    a2mim.pretrain(
        recipe, work_dir=run, resume=True, device="cpu", num_workers=0, access=access, **{"schedule.epochs": 2}
    )
    said = capsys.readouterr()
    assert "hunter2" not in said.out + said.err
    for folder in (run, tmp_path / "cache"):
        for path in folder.rglob("*"):
            if path.is_file() and path.name != ".asked.json":
                assert b"hunter2" not in path.read_bytes(), path


def test_no_password_reaches_an_error(server, tmp_path):
    address = server.url.replace("://", "://someone:hunter2@")
    for name in ("/nothing.tar?sig=hunter2", "/part-{7..9}.tar?hunter2=1", "/no[thing.tar?hunter2"):
        with pytest.raises((OSError, ValueError)) as error:
            open_dataset(address + name, access=quick(tmp_path / "cache"))
        assert "hunter2" not in str(error.value)


@pytest.fixture
def elsewhere(server):
    """A second server, to which the first one sends its readers with a token in the address; notes headers."""
    other = LoopbackServer(server.folder)
    headers, answer = [], _Handler.answer

    def noted(handler, fault):
        headers.append((handler.here is other, dict(handler.headers), handler.path))
        if handler.here is other:
            return answer(handler, fault)
        handler.send_response(302)
        handler.send_header("Set-Cookie", "session=hunter2")
        handler.send_header("Location", other.url.replace("127.0.0.1", "localhost") + handler.path.partition("?")[0])
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Handler, "answer", noted)
        yield headers
    other.close()


def test_a_redirect_to_another_host_is_said_and_carries_no_secret_along(server, elsewhere, access):
    address = server.url.replace("://", "://someone:hunter2@") + "/part-0.tar?sig=hunter2"
    with pytest.warns(UserWarning, match="redirects to localhost") as said:
        assert len(open_dataset(address, access=access)) == 12
    assert all("hunter2" not in str(warning.message) for warning in said)
    away = [(headers, path) for there, headers, path in elsewhere if there]
    first = [str(headers).lower() for there, headers, _ in elsewhere if not there]
    assert away and any("authorization" in headers for headers in first)
    for headers, path in away:
        assert not {"authorization", "cookie", "referer"} & {name.lower() for name in headers}
        assert "hunter2" not in path and "hunter2" not in str(headers)


def test_a_shard_without_a_length_that_never_ends_is_given_up_at_the_bound(server, tmp_path, monkeypatch):
    sent = []

    def endless(handler, fault):
        handler.close_connection = True
        handler.send_response(200)
        handler.end_headers()
        while handler.command == "GET" and len(sent) < 4000:
            handler.wfile.write(b"x" * 65536)
            sent.append(1)

    monkeypatch.setattr(_Handler, "answer", endless)
    with pytest.raises(ShardError, match=r"more than 1,000,000 bytes came; given up"):
        open_dataset(server.url + "/part-0.tar", access=quick(tmp_path / "cache", cache_bytes=1_000_000))
    assert len(sent) < 1000 and not copies(quick(tmp_path / "cache"))
