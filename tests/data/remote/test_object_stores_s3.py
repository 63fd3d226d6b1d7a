"""S3 as it is spoken on the wire: s3fs against moto's server on the loopback, which can be told to fail."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from loopback import quick

from a2mim.data import TrainLoader, open_dataset
from a2mim.data.errors import ShardError

pytest.importorskip("s3fs")
pytest.importorskip("moto")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of moto's and botocore's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # aiobotocore's sessions end with the process
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
EXPIRED = b"<?xml version='1.0'?><Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>"
TRUSTED = "AKIATRUSTED"


class S3Server:
    """moto's S3. `answers` are (status, body) given in place of the next requests for objects; `closed`, where set, is
    given to all of them; `asked` counts requests."""

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.moto = DomainDispatcherApplication(create_backend_app)
        self.answers, self.closed, self.asked = [], None, 0
        self.http = make_server("127.0.0.1", 0, self.answer, threaded=True)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, environ, start_response):
        self.asked += 1
        fault = self.answers.pop(0) if self.answers else self.closed
        if TRUSTED not in environ.get("HTTP_AUTHORIZATION", ""):
            fault = 403, b"<?xml version='1.0'?><Error><Code>InvalidAccessKeyId</Code><Message>who?</Message></Error>"
        if fault is None:
            return self.moto(environ, start_response)
        start_response(f"{fault[0]} told so", [("Content-Type", "application/xml"), ("Connection", "close")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [fault[1]]

    def close(self):
        self.http.shutdown()


@pytest.fixture(scope="module")
def started():
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(started, shards, tmp_path):
    """The server with four shards in s3://bucket; and the access that it trusts."""
    import s3fs

    started.answers, started.closed = [], None
    options = {"key": TRUSTED, "secret": "hunter2", "endpoint_url": started.url}
    options |= {"client_kwargs": {"region_name": "us-east-1"}, "config_kwargs": {"retries": {"max_attempts": 1}}}
    s3fs.S3FileSystem.retries = 1  # ours are counted
    files = s3fs.S3FileSystem(**options, use_listings_cache=False, skip_instance_cache=True)
    if not files.exists("bucket"):
        files.call_s3("create_bucket", Bucket="bucket")
    for k in range(4):
        files.pipe(f"bucket/part-{k}.tar", (tmp_path / f"part-{k}.tar").read_bytes())
    started.access = quick(tmp_path / "cache", timeout=10.0, storage_options=options)
    started.files = files
    return started


def test_shards_are_indexed_streamed_and_resumed(s3, shards):
    local = open_dataset(shards)
    for pattern in ("s3://bucket/part-{0..3}.tar", "s3://bucket/part-*.tar"):
        away = open_dataset(pattern, access=s3.access)
        assert away.fingerprint == local.fingerprint
    here, there = TrainLoader(local, 16, 8), TrainLoader(away, 16, 8, num_workers=1)
    whole = [batch.ids.tolist() for batch in here]
    first = [batch.ids.tolist() for _, batch in zip(range(2), there, strict=False)]
    again = TrainLoader(open_dataset(pattern, access=s3.access), 16, 8)
    again.load_state_dict(there.state_dict())
    assert first + [batch.ids.tolist() for batch in again] == whole
    assert np.array_equal(away.read(25), local.read(25))


def test_single_images_are_read_by_ranges(s3, shards):
    away = open_dataset("s3://bucket/part-{0..3}.tar", access=replace(s3.access, remote="ranges"))
    assert all(np.array_equal(away.read(i), open_dataset(shards).read(i)) for i in (0, 15, 39))


def test_wrong_credentials_are_one_sentence_without_them(s3):
    options = s3.access.storage_options | {"key": "AKIASTRANGER"}
    with pytest.raises((ShardError, OSError)) as error:
        open_dataset("s3://bucket/part-0.tar", access=replace(s3.access, storage_options=options))
    assert "part-0.tar" in str(error.value) and "hunter2" not in str(error.value)


def test_a_throttled_server_is_asked_again(s3):
    s3.answers = [(503, SLOW_DOWN)] * 2
    assert len(open_dataset("s3://bucket/part-0.tar", access=s3.access)) == 12


def test_a_failing_server_is_given_up_in_one_sentence(s3):
    s3.closed = 500, b""
    began = time.monotonic()
    with pytest.raises(ShardError, match=r"part-0\.tar: .*after 3 attempts"):
        open_dataset("s3://bucket/part-0.tar", access=s3.access)
    assert time.monotonic() - began < 30


def test_a_token_that_expires_in_the_middle_is_told(s3):
    """With the cache empty again, the next image has to be asked for."""
    away = open_dataset("s3://bucket/part-{0..3}.tar", access=replace(s3.access, remote="ranges"))
    away.read(0)
    s3.closed = 400, EXPIRED
    with pytest.raises(ShardError, match=r"part-\d\.tar: .*(expired|ExpiredToken)"):
        away.read(39)


def test_an_object_that_is_replaced_is_fetched_anew_and_noticed_within_a_run(s3, tmp_path):
    access = replace(s3.access, remote="ranges")
    open_dataset("s3://bucket/part-0.tar", access=access)
    s3.files.pipe("bucket/part-0.tar", (tmp_path / "part-3.tar").read_bytes())
    assert len(open_dataset("s3://bucket/part-0.tar", access=access)) == 8


def test_two_thousand_shards_are_listed(s3):
    """More than the thousand keys that one answer of S3 holds."""
    from a2mim.data.sources import expand

    (backend,) = [backend for backend in _backends() if "bucket" in backend.buckets]
    for k in range(2000):
        backend.put_object("bucket", f"many/{k:06d}.tar", b"")  # over the wire this would take 20 s
    found = expand("s3://bucket/many/*.tar", s3.access)
    assert len(found) == 2000 and found[-1] == "s3://bucket/many/001999.tar"


def _backends() -> list:
    from moto.s3.models import s3_backends

    return [backend for account in s3_backends.values() for backend in account.values()]
