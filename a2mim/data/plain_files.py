"""Reads files safely: only regular files, and never more bytes than the caller allows.

Reading a named pipe or a device could wait forever, and a sparse file could fill the memory.
"""

import os
import stat

from a2mim.data.names import class_name

LONGEST_TEXT = 64 << 20  # bytes of a list of shards, images or classes
MAX_BYTES = 1 << 30  # bytes of one encoded image


class NotPlain(OSError):
    """The path is no regular file, or it is longer than allowed."""


def read_file(path: str | os.PathLike, most: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes; raises NotPlain, or OSError like `open`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotPlain(0, "it is no regular file", os.fspath(path))
        if status.st_size > most:
            raise NotPlain(0, f"it has {status.st_size:,} bytes, at most {most:,} are read", os.fspath(path))
        return file.read(most)


def read_lines(path: str | os.PathLike, what: str) -> list[str]:
    """The lines of a text file in UTF-8, stripped. A byte order mark is allowed.

    Args:
        what: the file's format, for the message: "a list has one shard a line".

    Raises:
        ValueError: the file is not text, is no regular file, or is longer than 64 MiB.
    """
    try:
        text = read_file(path, LONGEST_TEXT).decode("utf-8-sig")
        if "\0" in text:
            raise ValueError(f"{os.fspath(path)} is no text file: it holds zero bytes; {what}")
        return [line.strip() for line in text.splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{os.fspath(path)} is no text file in UTF-8; {what}") from None
    except NotPlain as error:
        raise ValueError(f"{os.fspath(path)} cannot be read: {error.strerror}; {what}") from None


def read_class_list(path: str | os.PathLike) -> list[str]:
    """The class names of a classes.txt: line k names class k - 1. Empty lines at the end are ignored."""
    lines = read_lines(path, "classes.txt has the name of one class a line")
    while lines and not lines[-1]:
        lines.pop()
    return [class_name(line) for line in lines]
