"""From what a user writes after --data to a data set."""

import glob
import os
import re

from a2mim.data.access import DEFAULT, Access
from a2mim.data.dataset import ImageDataset
from a2mim.data.remote.addresses import is_remote, local_path, public_name, scheme_of

_LISTS = (".txt", ".urls", ".list")  # files with a shard a line
_OWN = re.compile(r"(\.index\.npz|\.idx|(^|/)(classes\.txt|files\.txt|manifest\.json|written\.json))$")  # beside shards
_PLAIN = (str, os.PathLike)


def open_dataset(
    source,
    split: str = "train",
    in_chans: int = 3,
    access: Access | None = None,
    bits: int | None = None,
    exif: bool = False,
    value_range: tuple[float, float] | None = None,
    nodata: float | None = None,
    fill: float | None = None,
) -> ImageDataset:
    """Opens images by number.

    Args:
        source: one of

            - "photos" (built in) or a folder of images;
            - tar shards: a path, a brace pattern ("shard-{0000..0009}.tar"), a glob, a URL (http, https, or of an
              object store that fsspec knows: s3, gs, hf, az, …), "pipe:COMMAND" where `access` allows it, a text file
              with one of these a line, or a list of them; a list of one source is that source;
            - an ImageDataset, which is returned as it is;
            - any torch data set, or pipeline such as `webdataset.WebDataset`: see data/own_data.py for how much less
              is promised for these.
        split: "train" or "test", for sources that have both: the built-in photographs, and folders with train/ and
            test/ (or val/, validation/) in them. Any other source is one set and is returned whole.
        in_chans: channels, see data/pixel_format.py.
        access: how remote shards are reached, and what is done about bad ones; None: the defaults of `Access`.
        bits: 8 or 16 a value in the batches; None: 16 where an image that is looked at has 16.
        exif: turn images as their EXIF orientation says.
        value_range: (least, greatest) value of arrays that are neither uint8 nor uint16.
        nodata, fill: the value where nothing was measured, and what takes its place. From `bits` on these are the
            fields of data/reading.py's `Reading`.

    Errors: FileNotFoundError naming what is missing, ShardError for shards that cannot be used, ValueError for
    everything that has to be written differently.
    """
    dataset = _opened(source, split, access or DEFAULT)
    if dataset is source and dataset.has_form:
        if dataset.form.in_chans != in_chans:
            raise ValueError(
                f"{dataset.title} was opened with in_chans={dataset.form.in_chans} and is wanted with {in_chans};"
                " open it so, or change data.in_chans"
            )
        return dataset
    dataset.take_form(in_chans, bits, bool(exif), value_range, nodata, fill)
    return dataset


def _opened(source, split: str, access: Access) -> ImageDataset:
    if isinstance(source, ImageDataset):
        return source
    if not isinstance(source, (*_PLAIN, list, tuple)):
        from a2mim.data.own_data import open_own

        return open_own(source)
    if not isinstance(source, _PLAIN):
        source = source[0] if len(source) == 1 else _only_shards(source)
    if isinstance(source, _PLAIN):
        source = os.fspath(source)
        if source == "photos":
            from a2mim.data.photos import open_photos

            return open_photos(split)
        if os.path.isdir(source):
            from a2mim.data.folder import open_folder

            return open_folder(source, split)
    from a2mim.data.shards.tar_shards import open_shards

    return open_shards(expand(source, access), source if isinstance(source, str) else f"{len(source)} sources", access)


def _only_shards(sources: list) -> list:
    for source in sources:
        if not isinstance(source, _PLAIN):
            raise ValueError(f"a list is of tar shards, one entry is {type(source).__name__}; give it alone")
        if source == "photos" or os.path.isdir(source):
            raise ValueError(
                f"{public_name(str(source))} cannot be joined with others; a list is of tar shards, give it alone"
            )
    return sources


def expand(source, access: Access = DEFAULT) -> list[str]:
    """Patterns, text files and lists of them to shard paths and URLs, in order."""
    if not isinstance(source, _PLAIN):
        return [shard for part in source for shard in expand(part, access)]
    source = os.fspath(source)
    if source.endswith(" given from Python>"):
        raise ValueError(f"the data was a {source[1:-1]}; give it again, with data=, to go on")
    if source.lower().endswith(_LISTS) and not is_remote(source):
        return _listed(source, access)
    shards = []
    for shard in _braces(source):
        shard = os.path.expanduser(local_path(shard))
        if not glob.has_magic(shard) or shard.startswith("pipe:") or os.path.exists(shard):
            shards.append(shard)
            continue
        matches = _matches(shard, access)
        if not matches:
            raise FileNotFoundError(
                f"nothing matches {public_name(shard)!r}; give a folder, tar shards, a URL or 'photos'"
            )
        shards += matches
    return shards


def _braces(source: str) -> list[str]:
    """Brace patterns, several of them joined by "::" as webdataset has it; a command is left as it is."""
    if source.startswith("pipe:") and not re.search(r"\{\d+\.\.\d+\}", source):
        return [source]
    if "${" in source and not source.startswith("pipe:"):
        source = _with_variables(source)
    from braceexpand import braceexpand

    return [shard for part in source.split("::") for shard in braceexpand(part)]


def _with_variables(source: str) -> str:
    """webdataset's rule: ${NAME} is the variable WDS_NAME of the environment."""

    def value(match: re.Match) -> str:
        name = f"WDS_{match.group(1)}"
        if name not in os.environ:
            raise ValueError(f"{public_name(source)}: there is no variable {name} in the environment")
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, source)


def _listed(path: str, access: Access) -> list[str]:
    """A shard or pattern a line, '#' before a remark; relative paths count from the list's folder."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text file; a list has one shard a line") from None
    shards = []
    for line in lines:
        if line and not line.startswith("#"):
            plain = is_remote(line) or scheme_of(line) or os.path.isabs(os.path.expanduser(line))
            shards += expand(line if plain else os.path.join(os.path.dirname(path), line), access)
    if not shards:
        raise ValueError(f"{path} lists no shard; write one a line")
    return shards


def _matches(pattern: str, access: Access) -> list[str]:
    if scheme_of(pattern) in ("http", "https"):
        return [pattern]  # '?' begins a query there, and servers list nothing
    if is_remote(pattern):
        from a2mim.data.remote.object_stores import glob as glob_remote

        found = glob_remote(pattern, access)
    else:
        found = sorted(glob.glob(pattern))
    return [path for path in found if not _OWN.search(path)]
