"""Walks through a folder of images: each real folder once, and everything left out is reported.

Links to files and folders are followed. If several paths lead to one folder, its own path is used, or else the first
path in order. A link to a folder above would form a cycle and is passed over. A folder that cannot be listed is an
error, because its images would be missing.
"""

import errno
import os
from collections import Counter
from dataclasses import dataclass, field

PICTURES = (
    *("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"),
    *("jpe", "jfif", "ppm", "pgm", "pbm", "pnm", "jp2", "avif"),
)
ARRAYS = ("npy",)  # images only if the folder has no picture: beside pictures they are embeddings or masks
_SYSTEM_FOLDERS = {  # thumbnails, recycle bins and snapshots, in lower case
    *("@eadir", "#recycle", "@recycle", "@recently-snapshot", "#snapshot", "@sharebin", "@tmp", "@__thumb"),
    *("$recycle.bin", "recycler", "system volume information", "__macosx", "lost+found", "found.000"),
    *("__pycache__", "node_modules", "thumbnails.cache"),
}
_OF_A_RUN = {"config.py", "config.json", "settings.json", "log.jsonl", "summary.json", "checkpoints", "reconstructions"}
_SHOWN = 4  # kinds of passed-over files in a phrase


@dataclass
class Walk:
    """The result of a walk.

    Args:
        pictures, arrays: relative paths, "/" between folders, sorted.
        passed: counts of what was passed over, by kind.
        dangling: relative paths of broken links.
    """

    pictures: list[str] = field(default_factory=list)
    arrays: list[str] = field(default_factory=list)
    passed: Counter = field(default_factory=Counter)
    dangling: list[str] = field(default_factory=list)

    @property
    def images(self) -> list[str]:
        return self.pictures or self.arrays

    def passed_over(self) -> str:
        """One phrase for the first lines of a command; "" if everything was an image."""
        kinds = self.passed.most_common()
        said = [f"{count} {kind}" for kind, count in kinds[:_SHOWN]]
        rest = sum(count for _, count in kinds[_SHOWN:])
        said += [f"{rest} others"] if rest else []
        if self.dangling:
            more = f" and {len(self.dangling) - 1} more" if len(self.dangling) > 1 else ""
            said.insert(0, f"links that lead nowhere ({self.dangling[0]}{more})")
        return ", ".join(said)


def walk(root: str | os.PathLike) -> Walk:
    """All images under a folder. Hidden files, system folders and folders of a2mim's own runs are left out.

    Raises:
        OSError: a folder cannot be listed; the message names it.
    """
    return _Walker(os.fspath(root)).run()


class _Walker:
    """The folders that are still to be listed, and those that were listed."""

    def __init__(self, root: str):
        self.root, self.result = root, Walk()
        self.seen: set[tuple[int, int]] = set()
        self.links: list[str] = []  # to folders; they are listed after all real folders

    def run(self) -> Walk:
        self._list("")
        while self.links:
            self._follow(self.links.pop(0))
        if self.result.pictures and self.result.arrays:
            self.result.passed[".npy"] += len(self.result.arrays)
        self.result.pictures.sort()
        self.result.arrays.sort()
        self.result.dangling.sort()
        return self.result

    def _list(self, inside: str) -> None:
        """Lists one real folder and those below it. Links to folders are not followed yet."""
        todo = [inside]
        while todo:
            inside = todo.pop()
            path = os.path.join(self.root, inside)
            entries = list_folder(path)
            self.seen.add(_identity(path))
            if inside and len(_OF_A_RUN.intersection(entry.name for entry in entries)) > 1:
                self.result.passed["folders of runs"] += 1
                continue
            folders = [name for entry in entries if (name := self._take(entry, inside)) is not None]
            todo += reversed(folders)

    def _take(self, entry: os.DirEntry, inside: str) -> str | None:
        """Records a file or a link; returns the path if it is a real folder."""
        name = os.path.join(inside, entry.name)
        if entry.name.startswith("."):
            return None
        if entry.is_symlink() and not _leads_somewhere(os.path.join(self.root, name)):
            self.result.dangling.append(name)
        elif entry.is_dir():
            if entry.name.lower() in _SYSTEM_FOLDERS:
                self.result.passed["folders of the system"] += 1
            elif entry.is_symlink():
                self.links.append(name)
            else:
                return name
        elif entry.is_file():
            self._take_file(name)
        else:
            self.result.passed["pipes and devices"] += 1
        return None

    def _take_file(self, name: str) -> None:
        suffix = suffix_of(name)
        if suffix in PICTURES:
            self.result.pictures.append(name.replace(os.sep, "/"))
        elif suffix in ARRAYS:
            self.result.arrays.append(name.replace(os.sep, "/"))
        else:
            self.result.passed[f".{suffix}" if suffix else "without a suffix"] += 1

    def _follow(self, link: str) -> None:
        path = os.path.join(self.root, link)
        identity = _identity(path)
        if identity in self.seen:
            self.result.passed["links to folders that are here already"] += 1
        elif _is_above(path, self.root):
            self.result.passed["links to a folder above"] += 1
        else:
            self._list(link)


def list_folder(path: str | os.PathLike) -> list[os.DirEntry]:
    """The entries of a folder, sorted by name; OSError names the folder if it cannot be listed."""
    try:
        with os.scandir(os.fspath(path)) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise OSError(
            f"the folder {os.fspath(path)} cannot be listed ({error.strerror}): its images would be missing; make it"
            " readable, or move it away"
        ) from error


def _leads_somewhere(link: str) -> bool:
    """True if a link leads to a file or folder that can be reached; a target in a forbidden folder cannot."""
    try:
        os.stat(link)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG):
            return False
        raise OSError(f"{link} cannot be looked at ({error.strerror})") from error
    return True


def suffix_of(name: str) -> str:
    """The suffix of a name in lower case, without the dot; "" if there is none."""
    _, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot and "/" not in suffix else ""


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_above(path: str, root: str) -> bool:
    """True if the folder that a link leads to contains the root."""
    above, below = os.path.realpath(path), os.path.realpath(root)
    return os.path.commonpath([above, below]) == above
