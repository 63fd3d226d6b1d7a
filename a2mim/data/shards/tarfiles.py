"""The members of a tar archive and their offsets, from its headers alone.

Python's tarfile ends without an error where an archive was cut. Here a cut, a bad checksum and a missing end are errors
that name the byte. ustar, GNU (long names, base-256 sizes) and PAX (path, size) headers are read. Sizes in headers are
compared with the length of the file before they are used.

Source: POSIX.1-2008 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import os
import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from a2mim.data.errors import ShardError

BLOCK = 512
LONGEST_NAME = 64 << 10  # bytes; systems allow 4,096
LONGEST_PAX = 1 << 20  # bytes of one PAX extension header; tar keeps names, sizes and attributes there
_PLAIN_END = 128 * BLOCK  # writers pad the end to a whole record, by default 20 blocks
_LONGEST_RECORD = 16 << 20  # bytes, `tar -b 32768`
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = b"123456"  # links, devices, folders, pipes: their size field says nothing about the archive
_LINKS = (b"1", b"2")  # hard and symbolic
_MOST_LINKS = 40  # greatest length of a chain of links, as in Linux
_OTHER_FORMATS = (
    (b"\x1f\x8b", "compressed with gzip; unpack it with gunzip"),
    (b"BZh", "compressed with bzip2; unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it with unzstd"),
    (b"\x04\x22\x4d\x18", "compressed with lz4; unpack it with unlz4"),
    (b"LZIP", "compressed with lzip; unpack it with lzip -d"),
    (b"\x89LZO", "compressed with lzop; unpack it with lzop -d"),
    (b"\x5d\0\0", "compressed with lzma; unpack it with unlzma"),
    (b"\x1f\x9d", "compressed with compress; unpack it with uncompress"),
    (b"PK\x03\x04", "a zip archive and no tar file; unzip it and give the folder"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive and no tar file; unpack it with 7z x and give the folder"),
    (b"Rar!", "a rar archive and no tar file; unpack it with unrar and give the folder"),
    (b"PAR1", "a Parquet file and no tar file; give its rows as a data set from Python"),
    (b"\x89HDF", "an HDF5 file and no tar file; give its images as a data set from Python"),
)


class TarError(ShardError):
    """A damaged or unusable archive; the message has the path and the byte."""


class Link(NamedTuple):
    """A member that is a link to a file, or a sparse file, whose content is in fragments (target "").

    Args:
        name, target: as in the archive; the target of a symbolic link is relative to the link's folder.
        hard: a hard link; its target is relative to the root of the archive.
    """

    name: str
    target: str
    hard: bool


def members(path: str, start: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yields (name, offset of the content, size in bytes) of every regular file, links left out; raises TarError.

    Args:
        start: offset in bytes of the first header to read.
    """
    with open(path, "rb") as file:
        for member in _Headers(path, file.fileno(), start):
            if not isinstance(member, Link):
                yield member


def files(path: str, lost: list[str] | None = None) -> Iterator[tuple[str, int, int]]:
    """Yields the same as `members`, and then each link under its own name with the content of its target.

    Args:
        lost: receives the names of broken links and of sparse files (in fragments).
    """
    links = []
    with open(path, "rb") as file:
        for member in _Headers(path, file.fileno(), 0):
            if isinstance(member, Link):
                links.append(member)
            else:
                yield member
    if links:
        yield from _resolved(path, links, [] if lost is None else lost)


def _resolved(path: str, links: list[Link], lost: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yields the targets of links. It reads the archive a second time, so that only targets are held in memory."""
    target_of = {normal(link.name): _target(link) for link in links}
    wanted = set(target_of.values())
    spans = {normal(name): (offset, size) for name, offset, size in members(path) if normal(name) in wanted}
    for link in links:
        target = normal(link.name)
        for _ in range(_MOST_LINKS):
            target = target_of.get(target, "")
            if target in spans or not target:
                break
        if target in spans:
            yield link.name, *spans[target]
        else:
            lost.append(link.name)


def _target(link: Link) -> str:
    """Normalised name of a link's target; "" if the target cannot be in the archive."""
    if not link.target or (not link.hard and link.target.startswith("/")):
        return ""
    folder = "" if link.hard else posixpath.dirname(normal(link.name))
    target = normal(posixpath.join(folder, link.target))
    return "" if target == ".." or target.startswith("../") else target


def normal(name: str) -> str:
    """A member's name without "./", "//" and a leading slash, so that all names of one file are equal."""
    return posixpath.normpath(name.lstrip("/")) if name else name


class _Headers:
    """Walks the headers of one open archive."""

    def __init__(self, path: str, descriptor: int, start: int):
        self.path, self.descriptor, self.start = path, descriptor, start
        self.length = os.fstat(descriptor).st_size

    def __iter__(self) -> Iterator[tuple[str, int, int] | Link]:
        offset = self.start
        name = target = size = None  # from extension headers; they belong to the next member
        sparse = False
        while (header := self._header(offset)) is not None:
            kind = header[156:157]
            length = _number(header[124:136]) if size is None else size
            if kind in _WITHOUT_CONTENT:
                length = 0
            start = self._content_start(offset, kind, header)
            offset = start + -(-length // BLOCK) * BLOCK
            if start + length > self.length:
                self._fail(
                    start - BLOCK, f"cut short: a member needs {start + length} bytes, the file has {self.length}"
                )
            if kind in (b"L", b"K"):
                text = _text(self._extension(start, length, LONGEST_NAME))
                name, target = (text, target) if kind == b"L" else (name, text)
            elif kind == b"x":
                fields = self._pax(start, length)
                name, target = fields.get("path", name), fields.get("linkpath", target)
                size = self._pax_size(start, fields)
                sparse = any(key.startswith("GNU.sparse.") for key in fields)
                name = fields.get("GNU.sparse.name", name)
            elif kind != b"g":
                full_name = name or _name(header)
                if kind in _LINKS:
                    yield Link(full_name, target or _text(header[157:257]), kind == b"1")
                elif kind == b"S" or (sparse and kind in _REGULAR):
                    yield Link(full_name, "", True)
                elif kind in _REGULAR:
                    yield full_name, start, length
                name = target = size = None
                sparse = False

    def _header(self, offset: int) -> bytes | None:
        """The header block at an offset, checked; None at the end of the archive."""
        header = self._read(offset, BLOCK)
        if offset == 0:
            for beginning, said in _OTHER_FORMATS:
                if header.startswith(beginning) and not _checksum_holds(header):
                    why = ": its members cannot be read at random" if said.startswith("compressed") else ""
                    self._fail(0, said + why)
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

    def _content_start(self, offset: int, kind: bytes, header: bytes) -> int:
        """Offset of the content: after the header and, in a GNU sparse file, after the blocks that continue its map."""
        start = offset + BLOCK
        more = kind == b"S" and header[482] == 1
        while more:
            block = self._read(start, BLOCK)
            if len(block) < BLOCK:
                self._fail(start, "cut short in the map of a sparse file")
            more = block[504] == 1
            start += BLOCK
        return start

    def _check_end(self, offset: int) -> None:
        """After the first empty block, an archive has only the padding of its last record."""
        if any(self._read(offset, _PLAIN_END)):
            self._fail(offset, "members follow an end-of-archive marker: joined archives, or zeros in the middle")
        padding = self.length - offset
        if padding > _PLAIN_END and not self._is_record_end(padding):
            self._fail(offset, f"{padding} bytes of zeros to the end of the file: not written to the end")
        for start in range(offset + _PLAIN_END, self.length, _PLAIN_END):
            if any(self._read(start, _PLAIN_END)):
                self._fail(start, "data follow an end-of-archive marker: joined archives, or zeros in the middle")

    def _is_record_end(self, padding: int) -> bool:
        """True if zeros of this length may pad a record of `tar -b N`; the archive is a whole number of such records.

        N is assumed to be a power of two, or 5, 25 or 125 times one. Other numbers would accept most cut archives.
        """
        for odd in (1, 5, 25, 125):
            record = odd * BLOCK
            while record <= _LONGEST_RECORD:
                if padding < record + 2 * BLOCK and self.length % record == 0:
                    return True
                record *= 2
        return False

    def _extension(self, start: int, length: int, most: int) -> bytes:
        if length > most:
            self._fail(start - BLOCK, f"an extension header of {length} bytes; at most {most} are read")
        return self._read(start, length)

    def _pax(self, start: int, length: int) -> dict[str, str]:
        content = self._extension(start, length, LONGEST_PAX)
        try:
            return _pax(content)
        except ValueError:
            self._fail(start - BLOCK, "a PAX header that cannot be read: damaged")

    def _pax_size(self, start: int, fields: dict[str, str]) -> int | None:
        size = fields.get("size")
        if size is not None and not re.fullmatch(r"[0-9]{1,19}", size):
            self._fail(start - BLOCK, f"a size that is no number: {size[:40]!r}")
        return None if size is None else int(size)

    def _read(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)

    def _fail(self, offset: int, what: str) -> NoReturn:
        raise TarError(f"{self.path}: byte {offset}: {what}")


def _number(field: bytes) -> int:
    """Octal digits, or base 256 if the first bit is set; ValueError for anything else, such as a sign."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if digits and not re.fullmatch(rb"[0-7]+", digits):
        raise ValueError(f"not an octal number: {field!r}")
    return int(digits, 8) if digits else 0


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _checksum_holds(header: bytes) -> bool:
    if len(header) < BLOCK:
        return False
    try:
        return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def _name(header: bytes) -> str:
    """The name. POSIX archives may store the start of a long name in `prefix`; GNU uses these bytes differently."""
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name


def _pax(content: bytes) -> dict[str, str]:
    """Parses records "<length> <key>=<value>\\n", whose length includes itself; ValueError for anything else."""
    fields, start = {}, 0
    while start < len(content) and content[start]:  # padding begins with a zero
        blank = content.find(b" ", start, start + 20)
        digits = content[start:blank] if blank >= 0 else b""
        stop = start + int(digits) if digits.isdigit() else 0
        if not start < blank < stop <= len(content):
            raise ValueError("a PAX record of a wrong length")
        key, equals, value = content[blank + 1 : stop - 1].partition(b"=")
        if not equals:
            raise ValueError("a PAX record without '='")
        fields[_text(key)] = _text(value)
        start = stop
    return fields
