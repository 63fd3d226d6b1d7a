"""From what a user writes after --data to a data set."""

import glob
import os

from a2mim.data.dataset import ImageDataset
from a2mim.data.remote import is_remote


def open_dataset(source, split: str = "train", in_chans: int = 3) -> ImageDataset:
    """Opens images by number.

    Args:
        source: "photos" (built in), a folder of images, a tar shard, a brace pattern ("shard-{0000..0009}.tar"), a
            glob, an http(s) URL, or a list of shards; a list of one source is that source.
        split: "train" or "test", for sources that have both: the built-in photographs, and folders with train/ and
            test/ (or val/, validation/) in them. Any other source is one set and is returned whole.
        in_chans: 3.

    Errors: FileNotFoundError naming what is missing, ValueError for everything that has to be written differently.
    """
    if in_chans != 3:
        raise ValueError(f"in_chans={in_chans}: images are read as RGB, in_chans must be 3")
    if not isinstance(source, (str, os.PathLike)):
        source = list(source)
        source = source[0] if len(source) == 1 else _only_shards(source)
    if isinstance(source, (str, os.PathLike)):
        source = os.fspath(source)
        if source == "photos":
            from a2mim.data.photos import open_photos

            return open_photos(split)
        if os.path.isdir(source):
            from a2mim.data.folder import open_folder

            return open_folder(source, split)
    from a2mim.data.shards import open_shards

    return open_shards(expand(source), title=source if isinstance(source, str) else f"{len(source)} sources")


def _only_shards(sources: list) -> list:
    for source in sources:
        if source == "photos" or os.path.isdir(source):
            raise ValueError(f"{source} cannot be joined with others; a list is of tar shards, give it alone")
    return sources


def expand(source) -> list[str]:
    """Brace patterns, globs and lists of them to shard paths and URLs, in order."""
    from webdataset.shardlists import expand_urls

    if not isinstance(source, (str, os.PathLike)):
        return [shard for part in source for shard in expand(part)]
    shards = []
    for shard in expand_urls(os.path.expanduser(os.fspath(source))):
        if is_remote(shard) or os.path.exists(shard) or not glob.has_magic(shard):
            shards.append(shard)
            continue
        matches = sorted(glob.glob(shard))
        if not matches:
            raise FileNotFoundError(f"nothing matches {shard!r}; give a folder, tar shards, a URL or 'photos'")
        shards += matches
    return shards
