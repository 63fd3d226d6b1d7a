"""Turns what a user writes after --data into a data set."""

import glob
import itertools
import os
import re

import numpy as np

from a2mim.data.access import DEFAULT, Access
from a2mim.data.dataset import ImageDataset
from a2mim.data.image_lists import is_list_of_images, open_image_list
from a2mim.data.names import cut
from a2mim.data.plain_files import read_lines
from a2mim.data.remote.addresses import is_remote, local_path, public_name, scheme_of

_LISTS = (".txt", ".urls", ".list")  # files with one shard per line
_OWN = re.compile(r"(\.index\.npz|\.idx|(^|/)(classes\.txt|files\.txt|manifest\.json|written\.json))$")  # not shards
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")
_LETTERS = re.compile(r"\{([A-Za-z])\.\.([A-Za-z])(?:\.\.-?\d+)?\}")
_DIGITS = 18  # most digits of a number in a brace pattern
_DEEPEST = 16  # lists that name lists
_LONGEST, _MOST_FOLDERS = 4096, 200  # of a glob: characters, and nested folders
_SHOWN = 120  # characters of a source in a message
MOST = 1_000_000  # shards of a set
_PLAIN = (str, os.PathLike)


def open_dataset(
    source,
    split: str = "train",
    in_chans: int = 3,
    access: Access | None = None,
    bits: int | None = None,
    exif: bool = False,
    value_range: tuple[float, float] | None = None,
    nodata: float | str | None = None,
    fill: float | None = None,
) -> ImageDataset:
    """Opens images by number.

    Args:
        source: one of

            - "photos" (built in), a folder of images, or a text file with one image path per line, optionally with a
              label (see data/image_lists.py);
            - tar shards: a path, a brace pattern ("shard-{0000..0009}.tar"), a glob, a URL (http, https, or an object
              store that fsspec knows: s3, gs, hf, az, …), "pipe:COMMAND" if `access` allows it, a text file with one
              of these per line, or a list of them; a list of one source is that source;
            - an ImageDataset, which is returned unchanged;
            - any torch data set, or a pipeline such as `webdataset.WebDataset`; data/own_data.py says which guarantees
              these lack.
        split: "train" or "test", for sources that have both: the built-in photographs, and folders that contain train/
            and test/ (or val/, validation/). Any other source is one set and is returned whole.
        in_chans: channels, see data/pixel_format.py.
        access: how remote shards are reached, and whether bad ones are skipped; None: the defaults of `Access`.
        bits: bits per value in the batches, 8 or 16; None: 16 if one of the images that are tried has 16.
        exif: apply the EXIF orientation.
        value_range: (least, greatest) value of arrays that are neither uint8 nor uint16.
        nodata, fill: the value of pixels without a measurement (NaN or "nan" for NaN), and its replacement. The
            arguments from `bits` on are the fields of `Reading` (data/reading.py).

    Raises:
        FileNotFoundError: names what is missing.
        ShardError: a shard cannot be used.
        ValueError: an argument must be changed.

    Examples:
        >>> photographs = a2mim.open_dataset("photographs")
        >>> len(photographs), photographs.class_names
        (16, ['cats', 'dogs'])
    """
    dataset = _opened(source, split, access or DEFAULT)
    if dataset is source and dataset.has_pixel_format:
        if dataset.pixel_format.in_chans != in_chans:
            raise ValueError(
                f"{dataset.title} was opened with in_chans={dataset.pixel_format.in_chans}, but in_chans={in_chans} is"
                " needed; open it with that, or change data.in_chans"
            )
        return dataset
    dataset.set_pixel_format(in_chans, bits, bool(exif), value_range, nodata, fill)
    return dataset


def labels_of(source, access: Access | None = None) -> np.ndarray:
    """(N,) int64 labels of the training images, -1 = none; no image is read."""
    return _opened(source, "train", access or DEFAULT).labels


def _opened(source, split: str, access: Access) -> ImageDataset:
    if isinstance(source, ImageDataset):
        return source
    if not isinstance(source, (*_PLAIN, list, tuple)):
        from a2mim.data.own_data import open_own

        return open_own(source)
    if not isinstance(source, _PLAIN):
        source = source[0] if len(source) == 1 else _only_shards(list(source))
    if isinstance(source, _PLAIN):
        source = os.fspath(source)
        if source.startswith("~"):
            source = os.path.expanduser(source)
        if source == "photos":
            from a2mim.data.photos import open_photos

            return open_photos(split)
        if os.path.isdir(source):
            from a2mim.data.folder import open_folder

            return open_folder(source, split)
        if is_list_of_images(source):
            return open_image_list(source)
        _refuse_absent(source)
    from a2mim.data.shards.tar_shards import open_shards

    return open_shards(expand(source, access), source if isinstance(source, str) else f"{len(source)} sources", access)


def _refuse_absent(source: str) -> None:
    """FileNotFoundError for a plain path that does not exist and has no suffix: most likely a folder was meant."""
    plain = not (is_remote(source) or scheme_of(source) or glob.has_magic(source) or "{" in source or "::" in source)
    if plain and not os.path.exists(source) and not os.path.splitext(source)[1] and not source.endswith(">"):
        raise FileNotFoundError(
            f"no such folder: {os.path.abspath(source)}; give a folder, tar shards, a URL or 'photos'"
        )


def _only_shards(sources: list) -> list:
    for source in sources:
        if not isinstance(source, _PLAIN):
            raise ValueError(f"a list holds tar shards, but one entry is {type(source).__name__}; give that one alone")
        if source == "photos" or os.path.isdir(source):
            raise ValueError(
                f"{public_name(str(source))} cannot be joined with others; a list holds tar shards, give it alone"
            )
    return sources


def expand(source, access: Access = DEFAULT, inside: tuple[str, ...] = ()) -> list[str]:
    """Expands patterns, text files and lists of them to shard paths and URLs, in order; at most MOST of them.

    Args:
        inside: the text files that are being read, outermost first.
    """
    if not isinstance(source, _PLAIN):
        shards = []
        for part in source:
            shards += expand(part, access, inside)
            _refuse_too_many(len(shards), "the list of sources")
        return shards
    source = os.fspath(source)
    if "\0" in source:
        raise ValueError(f"{source.partition(chr(0))[0]!r}: a path cannot hold a zero byte")
    if source.endswith(" given from Python>"):
        raise ValueError(f"the data was a {source[1:-1]}; give it again, with data=, to go on")
    if source.lower().endswith(_LISTS) and not is_remote(source):
        return _listed(source, access, inside)
    shards = []
    for shard in _braces(source):
        shard = os.path.expanduser(local_path(shard))
        if not glob.has_magic(shard) or shard.startswith("pipe:") or os.path.exists(shard):
            shards.append(shard)
            continue
        matches = _matches(shard, access)
        if not matches:
            raise FileNotFoundError(f"nothing matches {_short(shard)!r}; give a folder, tar shards, a URL or 'photos'")
        shards += matches
        _refuse_too_many(len(shards), source)
    return shards


def address_in(source, inside: tuple[str, ...] = ()) -> str | None:
    """The first address beyond this machine's files that a source leads to, or a command; found without opening it.

    Args:
        source: as in `open_dataset`.
        inside: the text files that are being read, outermost first.

    Returns:
        None for files of this machine, and for data sets from Python.
    """
    if isinstance(source, list | tuple):
        return next(filter(None, (address_in(part, inside) for part in source)), None)
    if not isinstance(source, _PLAIN) or not source:
        return None
    source = os.fspath(source)
    if source.lower().endswith(_LISTS) and not is_remote(source) and os.path.isfile(source):
        here = os.path.realpath(source)
        if here in inside or len(inside) == _DEEPEST:
            return None  # `expand` refuses it
        return next(filter(None, (address_in(entry, (*inside, here)) for entry in _entries(source))), None)
    return next((shard for shard in _braces(source) if is_remote(shard)), None)


def _refuse_too_many(number: int, source: str) -> None:
    if number > MOST:
        raise ValueError(f"{_short(source)} stands for {number:,} shards or more, and {MOST:,} are allowed: give fewer")


def _short(source: str) -> str:
    return cut(public_name(source), _SHOWN)


def _number_of(source: str) -> int:
    """Greatest number of strings that a brace pattern stands for, computed without making them."""
    total = 1
    for first, last in _RANGE.findall(source):
        total *= MOST + 1 if max(len(first), len(last)) > _DIGITS else abs(int(last) - int(first)) + 1
    for first, last in _LETTERS.findall(source):
        total *= abs(ord(last) - ord(first)) + 1
    for choices in re.findall(r"\{([^{}]*,[^{}]*)\}", source):
        total *= choices.count(",") + 1
    return total


def _braces(source: str) -> list[str]:
    """Expands brace patterns, which webdataset joins with "::". A command is not expanded."""
    if source.startswith("pipe:") and not re.search(r"\{\d+\.\.\d+\}", source):
        return [source]
    if "${" in source and not source.startswith("pipe:"):
        source = _with_variables(source)
    from braceexpand import (  # type: ignore[attr-defined]  # its stub lacks the error
        UnbalancedBracesError,
        braceexpand,
    )

    _refuse_too_many(sum(map(_number_of, source.split("::"))), source)
    try:
        shards = list(itertools.islice((s for part in source.split("::") for s in braceexpand(part)), MOST + 1))
    except (UnbalancedBracesError, RecursionError):
        raise ValueError(f"{_short(source)}: the braces do not fit together; write {{0000..0009}} or {{a,b}}") from None
    _refuse_too_many(len(shards), source)
    return shards


def _with_variables(source: str) -> str:
    """Replaces ${NAME} by the environment variable WDS_NAME, as webdataset does."""

    def value(match: re.Match) -> str:
        name = f"WDS_{match.group(1)}"
        if name not in os.environ:
            raise ValueError(f"{public_name(source)}: there is no variable {name} in the environment")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, source)


def _listed(path: str, access: Access, inside: tuple[str, ...]) -> list[str]:
    """The shards of all entries of a list."""
    here = os.path.realpath(path)
    if here in inside:
        raise ValueError(f"{path} names itself, through {' -> '.join((*inside, here))}; remove that line")
    if len(inside) == _DEEPEST:
        raise ValueError(f"{path}: lists that name lists, {_DEEPEST} deep; write the shards into one list")
    shards: list[str] = []
    for entry in _entries(path):
        shards += expand(entry, access, (*inside, here))
        _refuse_too_many(len(shards), path)
    if not shards:
        raise ValueError(f"{path} lists no shard; write one a line")
    return shards


def _entries(path: str) -> list[str]:
    """One shard or pattern per line of a list; '#' starts a comment line; paths are relative to the list's folder."""
    folder = os.path.dirname(path)
    lines = [line for line in read_lines(path, "a list has one shard a line") if line and not line.startswith("#")]
    return [line if _stands_alone(line) else os.path.join(folder, line) for line in lines]


def _stands_alone(line: str) -> bool:
    return bool(is_remote(line) or scheme_of(line)) or os.path.isabs(os.path.expanduser(line))


def _matches(pattern: str, access: Access) -> list[str]:
    if scheme_of(pattern) in ("http", "https"):
        return [pattern]  # '?' begins a query in a URL, and these servers cannot list files
    if is_remote(pattern):
        from a2mim.data.remote.object_stores import glob as glob_remote

        paths = glob_remote(pattern, access)
    else:
        if len(pattern) > _LONGEST or pattern.count("/") > _MOST_FOLDERS:
            raise ValueError(f"{_short(pattern)}: a pattern of {len(pattern):,} characters; give a shorter one")
        paths = sorted(itertools.islice(glob.iglob(pattern), MOST + 1))
    return [path for path in paths if not _OWN.search(path)]
