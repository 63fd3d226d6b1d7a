import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from a2mim.data import open_dataset, remote
from a2mim.data.tarfiles import TarError


class Handler(BaseHTTPRequestHandler):
    """Serves files of a folder; `faults` maps a path to a list of what goes wrong, once each."""

    def __init__(self, server, *args):
        self.shared = server
        super().__init__(*args)

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool):
        self.shared["asked"].append((self.command, self.path))
        faults = self.shared["faults"].get(self.path, []) if body else []
        fault = faults.pop(0) if faults else None
        file = self.shared["folder"] / self.path.lstrip("/").split("?")[0]
        if isinstance(fault, int) or not file.exists():
            self.send_error(fault or 404)
            return
        data = b"<html>sign in</html>" * 100 if fault == "page" else file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[:3000] if fault == "short" else data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    shared = {"folder": tmp_path, "faults": {}, "asked": []}
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, shared))
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    shared["url"] = f"http://127.0.0.1:{http.server_port}"
    yield shared
    http.shutdown()
    http.server_close()


def test_remote_shards_are_the_local_ones_and_fetched_once(server, shards):
    local, pattern = open_dataset(shards), server["url"] + "/part-{0..3}.tar"
    for _ in range(2):
        away = open_dataset(pattern)
        assert away.fingerprint == local.fingerprint and np.array_equal(away.read(25), local.read(25))
    assert [path for command, path in server["asked"] if command == "GET"] == [f"/part-{k}.tar" for k in range(4)]


def test_a_passing_fault_is_tried_again(server):
    server["faults"]["/part-0.tar"] = [503, "short"]
    assert len(open_dataset(server["url"] + "/part-0.tar")) == 12


def test_missing_remote_shards_are_named_at_once(server):
    with pytest.raises(FileNotFoundError, match=r"2 of 6 shards missing: http.*/part-4\.tar, http.*/part-5\.tar"):
        open_dataset(server["url"] + "/part-{0..5}.tar")
    assert not any(command == "GET" for command, _ in server["asked"])


@pytest.mark.parametrize(
    "fault, error, message",
    [
        (403, OSError, r"part-0\.tar: the server answered 403"),
        (503, OSError, r"part-0\.tar: the server answered 503"),
        ("short", OSError, r"part-0\.tar: 3000 of \d+ bytes came, after 4 attempts"),
        ("page", TarError, r"http://.*part-0\.tar: byte 0: .*not a tar file"),
    ],
)
def test_a_lasting_fault_is_one_sentence_and_leaves_nothing_behind(server, tmp_path, fault, error, message):
    server["faults"]["/part-0.tar"] = [fault] * 20
    with pytest.raises(error, match=message):
        open_dataset(server["url"] + "/part-0.tar")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    server["faults"].clear()
    assert len(open_dataset(server["url"] + "/part-0.tar")) == 12


def test_a_server_that_is_not_there_is_one_sentence(server):
    with pytest.raises(OSError, match=r"http://127\.0\.0\.1:9/part-0\.tar: .*refused"):
        open_dataset("http://127.0.0.1:9/part-0.tar")


def test_equal_names_of_different_places_stay_apart(server, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "part-0.tar").write_bytes((tmp_path / "part-1.tar").read_bytes())
    sizes = [len(open_dataset(server["url"] + place)) for place in ("/part-0.tar", "/other/part-0.tar")]
    assert sizes == [12, 9]
