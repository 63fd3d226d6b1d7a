"""A web server on the loopback that can go wrong on demand, and patience that suits a test."""

import base64
import hashlib
import socket
import struct
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from a2mim.data.access import Access

PAGE = b"<html>please sign in</html>" * 100


def quick(folder: Path, **choices) -> Access:
    """Gives up within a second."""
    return Access(**{"cache_dir": folder, "timeout": 0.25, "tries": 3, "first_wait": 0.01} | choices)


class LoopbackServer:
    """Serves the files of a folder, with ETag and byte ranges.

    `faults` maps a path to what goes wrong with its next GET requests, one after the other: a status; "short" (the
    connection closes half way), "reset" (it breaks half way), "stall" (half, then silence), "trickle" (a byte at a
    time), "page" (a web page in its place), "page as long", "flip" (a changed byte). `only` maps a path to what goes
    wrong always. `asked` lists (method, path, Range). `ranges`, `head` and `md5` switch what the server can do; `tags`
    overrides ETags.
    """

    def __init__(self, folder: Path):
        self.folder, self.faults, self.only, self.asked, self.tags = folder, {}, {}, [], {}
        self.ranges, self.head, self.md5 = True, True, False
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def gets(self) -> list[str]:
        """Paths of shards that were fetched or read, without the questions for what may lie beside them."""
        return [path for method, path, _ in self.asked if method == "GET" and not path.endswith((".npz", ".txt"))]

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, server: LoopbackServer, *args):
        self.here = server
        super().__init__(*args)

    def do_HEAD(self):
        self.answer(None)

    def do_GET(self):
        waiting = self.here.faults.get(self.path)
        self.answer(waiting.pop(0) if waiting else self.here.only.get(self.path))

    def answer(self, fault):
        self.here.asked.append((self.command, self.path, self.headers.get("Range")))
        if self.command == "HEAD" and not self.here.head:
            return self.refuse(405)
        file = self.here.folder / self.path.lstrip("/").split("?")[0]
        if isinstance(fault, int) or not file.is_file():
            return self.refuse(fault or 404)
        data = file.read_bytes()
        if fault == "page":
            data = PAGE
        elif fault == "page as long":
            data = (PAGE * len(data))[: len(data)]
        elif fault == "flip":
            data = data[:700] + bytes([data[700] ^ 1]) + data[701:]
        first, last = 0, len(data) - 1
        tag = self.here.tags.get(self.path, f'"{file.stat().st_mtime_ns}"')
        asked = self.headers.get("Range") if self.here.ranges else None
        asked = asked if self.headers.get("If-Range", tag) == tag else None
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("ETag", tag)
        if self.here.md5:
            self.send_header("Content-MD5", base64.b64encode(hashlib.md5(file.read_bytes()).digest()).decode())
        body = data[first : last + 1]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.send(body, fault)

    def send(self, body: bytes, fault) -> None:
        if fault not in ("short", "reset", "stall", "trickle"):
            self.wfile.write(body)
            return
        self.close_connection = True
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        rest = body[len(body) // 2 :]
        for k in range(100 if fault == "trickle" else 0):
            time.sleep(0.02)
            self.wfile.write(rest[k : k + 1])
        if fault == "stall":
            time.sleep(1)
        if fault == "reset":
            time.sleep(0.05)  # so that what was sent is read before the connection breaks
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except ConnectionError:  # the reader gave up, as it should
            self.close_connection = True

    def log_message(self, *args):
        pass
