"""How a file is damaged: bytes anywhere, or one value of a structure whose checksums are then made right again.

Every function takes a file's bytes and a source of random numbers, and returns other bytes.
"""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import torch

Damage = Callable[[bytes, random.Random], bytes]

MARK = "fuzz_mark"  # of a file in the working folder: it would appear if a payload were run
PAYLOAD = f"__import__('os').system('touch {MARK}')"
WORDS = [
    b"\x00" * 8,
    b"\xff" * 8,
    b"-1",
    b"1e400",
    b"9" * 5000,
    b"[" * 2000,
    b'{"a":' * 100_000,
    b"../..",
    b"\n",
    b'"',
    b"\xf0\x28",
    b"NaN",
    PAYLOAD.encode(),
    b'{"type": "os.system"}',
]
VALUES: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, -0.5, float("nan"), float("inf")),
    *("", "x" * 100_000, "../../x", "/etc/passwd", "a\nerror: b", "\x1b[2J", "\udce9", "\u202e", "<script>", "`\n# x"),
    *("os.system", PAYLOAD, "hf-hub:a/b", "http://127.0.0.1:9/x", "pipe:touch x", "resnet18:pretrained", "nan"),
    *([], {}, [[]], [None], {"type": "os.system", "command": f"touch {MARK}"}, {"type": "Loss"}, ["os", "system"]),
    *([10**9] * 4, {"": {"": {}}}, [[[[[[[[]]]]]]]], {"name": "os.system"}, {"checkpoint_path": "/etc/passwd"}),
]


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Bits flipped, parts cut, repeated, inserted or overwritten; half of them near the beginning or the end."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = _place(len(damaged), draw)
        match draw.randrange(6):
            case 0 | 1:
                if at < len(damaged):
                    damaged[at] ^= 1 << draw.randrange(8)
            case 2:
                del damaged[at : at + draw.choice((1, 16, 512, len(damaged)))]
            case 3:
                damaged[at:at] = damaged[at : at + draw.choice((1, 64, 512))]
            case 4:
                damaged[at:at] = draw.choice(WORDS)
            case _:
                word = draw.choice(WORDS)
                damaged[at : at + len(word)] = word
    return bytes(damaged)


def one_bit(content: bytes, draw: random.Random) -> bytes:
    """What a failing disk does."""
    damaged = bytearray(content)
    damaged[_place(len(damaged) - 1, draw)] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def _place(length: int, draw: random.Random) -> int:
    near = min(length, 2048)
    return draw.choice((draw.randrange(length + 1), draw.randrange(near + 1), length - draw.randrange(near + 1)))


def one_of(*ways: Damage) -> Damage:
    return lambda content, draw: draw.choice(ways)(content, draw)


def in_json(content: bytes, draw: random.Random) -> bytes:
    """One value of a JSON file is another one, or is gone, or stands under another key."""
    changed = other_value(json.loads(content), draw)
    return json.dumps(changed, indent=draw.choice((None, 2))).encode("utf-8", "surrogatepass")


def in_lines(content: bytes, draw: random.Random) -> bytes:
    """One line of a file of JSON lines is damaged."""
    lines = content.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    way = draw.choice((lambda line, draw: in_json(line, draw).replace(b"\n", b"") + b"\n", flipped))
    return b"".join([*lines[:at], way(lines[at], draw), *lines[at + 1 :]])


def other_value(content: Any, draw: random.Random) -> Any:
    """The same dicts and lists with one change in them."""
    places = list(_places(content))
    if not places:
        return draw.choice(VALUES)
    *path, last = draw.choice(places)
    whole = _copied(content)
    inside = whole
    for key in path:
        inside = inside[key]
    if draw.random() < 0.15:
        del inside[last]
    elif isinstance(inside, dict) and draw.random() < 0.1:
        inside[draw.choice(("type", "name", "x\ny", PAYLOAD))] = inside.pop(last)
    else:
        inside[last] = draw.choice(VALUES)
    return whole


def _places(content: Any, path: tuple = ()) -> Any:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _copied(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    return [_copied(value) for value in content] if isinstance(content, list) else content


def in_checkpoint(content: bytes, draw: random.Random) -> bytes:
    """A checkpoint with right checksums and one other value; "settings" and "request" in it are JSON."""
    checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    meta = checkpoint.get("meta", {})
    inner = [key for key in ("settings", "request") if isinstance(meta.get(key), str)]
    if inner and draw.random() < 0.5:
        key = draw.choice(inner)
        meta[key] = in_json(meta[key].encode(), draw).decode("utf-8", "surrogatepass")
    else:
        checkpoint = other_value(checkpoint, draw)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


FIELDS = [(0, 100), (100, 108), (124, 136), (124, 136), (136, 148), (156, 157), (157, 257), (257, 265), (345, 500)]
CONTENTS = [
    *(b"-0000000001\0", b"-7", b"77777777777\0", b"0" * 12, b"\x80" + b"\x00" * 3 + b"\xff" * 8, b"\xff" * 12),
    *(b"\x80" + b"\xff" * 11, b"9" * 12, b" " * 12, b"x", b"L", b"K", b"S", b"g", b"1", b"2", b"5", b"", b"../../etc"),
    *(b"/etc/passwd", b"\xff\xfe/a.jpg", b"a" * 155, b"ustar\x0000", b"\n", b"00000000000\0"),
]


def in_tar(content: bytes, draw: random.Random) -> bytes:
    """Another field in a header, whose checksum then fits, or another block of an extension."""
    damaged, headers = bytearray(content), _headers(content)
    at, kind = draw.choice(headers)
    if kind in b"xgLK" and draw.random() < 0.6:  # its content: records of PAX, or a long name
        length = int(content[at + 124 : at + 135], 8)
        body = flipped(content[at + 512 : at + 512 + length], draw)[:length].ljust(length, b"\0")
        damaged[at + 512 : at + 512 + length] = body
        return bytes(damaged)
    start, end = draw.choice(FIELDS)
    new = draw.choice(CONTENTS)[: end - start]
    damaged[at + start : at + end] = new.ljust(end - start, b"\0")
    damaged[at + 148 : at + 156] = b" " * 8
    damaged[at + 148 : at + 156] = b"%06o\0 " % sum(damaged[at : at + 512])
    return bytes(damaged)


def _headers(content: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + 512 <= len(content) and content[at]:
        found.append((at, content[at + 156 : at + 157]))
        size = int(content[at + 124 : at + 135], 8)
        at += 512 + (size + 511) // 512 * 512
    return found


def in_png(content: bytes, draw: random.Random) -> bytes:
    """A chunk of a PNG is damaged, and its checksum fits."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    number = draw.randrange(len(chunks))
    kind, body = chunks[number]
    chunks[number] = (kind, flipped(body or b"\0", draw)[: 1 << 20])
    if draw.random() < 0.2:
        chunks.insert(draw.randrange(len(chunks)), (draw.choice((b"acTL", b"iCCP", b"tRNS", b"zTXt", b"eXIf")), body))
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return content[:8] + b"".join(parts)


def in_npy(content: bytes, draw: random.Random) -> bytes:
    """The header of an array says something else."""
    length = int.from_bytes(content[8:10], "little")
    header = content[10 : 10 + length].decode("latin-1")
    values = ["-1", "10**9", "9" * 300, "1 + 1", PAYLOAD, "(" * 5000, "None", "'|O'", "'<U1000000'", "'<f2'", "True"]
    words = ["'<f8'", "'|u1'", "False", "40", "56", "3", "(40, 56, 3)", "'shape'", "'descr'"]
    word = draw.choice([word for word in words if word in header])
    new = header.replace(word, draw.choice(values)).encode("latin-1")[:65000]
    return content[:8] + len(new).to_bytes(2, "little") + new + content[10 + length :]
