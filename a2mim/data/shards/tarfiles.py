"""What stands where in a tar archive, from its headers alone.

Python's tarfile ends silently where an archive was cut; here a cut, a bad checksum and a missing end are errors that
name the byte. Reads ustar, GNU (long names, base-256 sizes) and PAX (path, size) headers.

Source: POSIX.1-2008 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import os
from collections.abc import Iterator

from a2mim.data.errors import ShardError

BLOCK = 512
_LONGEST_END = 128 * BLOCK  # writers pad the end marker to a record, 20 blocks by default
_REGULAR = (b"0", b"\0", b"7")


class TarError(ShardError):
    """A damaged or unusable archive; the message has path and byte."""


def members(path: str, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yields (name, offset of the content, size in bytes) of every regular file; raises TarError.

    Args:
        start: where to begin, the first header of a member in bytes.
    """
    with open(path, "rb") as file:
        yield from _Headers(path, file.fileno(), start)


class _Headers:
    """Walks the headers of one open archive."""

    def __init__(self, path: str, descriptor: int, start: int):
        self.path, self.descriptor, self.start = path, descriptor, start
        self.length = os.fstat(descriptor).st_size

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        offset, name, size = self.start, None, None  # name, size: announced by an extension header for the next member
        while (header := self._header(offset)) is not None:
            length = _number(header[124:136]) if size is None else size
            start = offset + BLOCK
            offset = start + -(-length // BLOCK) * BLOCK
            if start + length > self.length:
                self._fail(
                    start - BLOCK, f"cut short: a member needs {start + length} bytes, the file has {self.length}"
                )
            kind = header[156:157]
            if kind == b"L":
                name = _text(self._read(start, length))
            elif kind == b"x":
                fields = _pax(self._read(start, length))
                name = fields.get("path", name)
                size = int(fields["size"]) if fields.get("size", "").isdecimal() else None
            elif kind not in (b"g", b"K"):
                if kind in _REGULAR:
                    yield name or _name(header), start, length
                name = size = None

    def _header(self, offset: int) -> bytes | None:
        """The header block at an offset, checked; None at the end of the archive."""
        header = self._read(offset, BLOCK)
        if offset == 0 and header[:2] == b"\x1f\x8b":
            self._fail(0, "compressed with gzip; unpack it with gunzip: members cannot be read at random")
        if len(header) < BLOCK:
            self._fail(offset, "no end-of-archive marker: cut short" if offset else "empty or cut short")
        if not any(header):
            self._check_end(offset)
            return None
        if not _checksum_holds(header):
            self._fail(offset, "bad header checksum: damaged, or not a tar file")
        try:
            _number(header[124:136])
        except ValueError:
            self._fail(offset, f"a size that is no number: {header[124:136]!r}")
        return header

    def _check_end(self, offset: int) -> None:
        """After the first empty block an archive has nothing but the padding of its last record."""
        if any(self._read(offset, _LONGEST_END)):
            self._fail(offset, "members follow an end-of-archive marker: joined archives, or zeros in the middle")
        if self.length - offset > _LONGEST_END:
            self._fail(offset, f"{self.length - offset} bytes of zeros to the end of the file: not written to the end")

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def _fail(self, offset: int, what: str) -> None:
        raise TarError(f"{self.path}: byte {offset}: {what}")


def _number(field: bytes) -> int:
    """Octal digits, or base 256 when the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    digits = _text(field).strip()
    return int(digits, 8) if digits else 0


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _checksum_holds(header: bytes) -> bool:
    try:
        return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def _name(header: bytes) -> str:
    """POSIX archives may keep the front of a long name in `prefix`; GNU's use these bytes for other things."""
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _pax(content: bytes) -> dict[str, str]:
    """Records "<length> <key>=<value>\\n", the length counting itself."""
    fields = {}
    while content:
        digits = content.split(b" ", 1)[0]
        if not digits.isdigit() or int(digits) <= len(digits):
            break
        key, _, value = content[len(digits) + 1 : int(digits) - 1].partition(b"=")
        fields[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        content = content[int(digits) :]
    return fields
