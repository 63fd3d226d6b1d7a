"""Arguments that several commands share, spelt and explained alike everywhere."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from a2mim.data.access import Access
from a2mim.data.reading import DEFAULT, Reading

SOURCE_HELP = (
    "a run folder, an exported or transformers folder, a checkpoint, NAME:FILE (a timm name and another toolkit's"
    " weights), NAME:pretrained (timm's), or a timm name (random weights)"
)
DATA_HELP = "folder, tar shards (brace pattern, glob, URL, several, a .txt of them), or photos"


class CommaList(argparse.Action):
    """Names with commas between them; a repeated flag adds to the list. The default is a list too."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        names = [name.strip() for name in str(values).split(",") if name.strip()]
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, names if before is self.default else [*before, *names])


def add_judged(parser) -> None:
    """What k-NN and linear probe share."""
    parser.add_argument("source", help=SOURCE_HELP)
    parser.add_argument(
        "--data", required=True, nargs="+", action="extend", help=f"labelled training images: {DATA_HELP}"
    )
    parser.add_argument("--test-data", required=True, nargs="+", action="extend", help="labelled test images")
    add_img_size(parser, "the encoder's")
    parser.add_argument("--batch-size", type=int, default=64, help="images a forward pass (64)")
    parser.add_argument("--out", help="write the result to this JSON file")
    add_contradictions(parser)
    add_reading(parser)
    add_machine(parser, num_workers=0)


def add_img_size(parser, default: str) -> None:
    """The flag that `size_of` reads. default: in words, where the command decides later."""
    what = f"pixels, or height and width as 192 384 (default: {default})"
    parser.add_argument("--img-size", type=_sides, metavar="PIXELS", help=what)


def _sides(text: str) -> list[int]:
    try:
        return [int(side) for side in text.split("x")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of pixels; give one, or height and width as 192 384 or 192x384"
        ) from None


def size_of(chosen: argparse.Namespace) -> int | tuple[int, int] | None:
    """The value of --img-size: pixels, (height, width), or None where it was not given."""
    sides = chosen.img_size
    if sides is None:
        return None
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(f"--img-size {' '.join(map(str, sides))}: give one number of at least 1, or height and width.")
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def join_sizes(words: list[str]) -> list[str]:
    """The command line with `--img-size 192 384` as `--img-size 192x384`, so that the flag takes exactly one word."""
    joined: list[str] = []
    for word in words:
        inside = len(joined) > 1 and joined[-2] == "--img-size" and joined[-1].replace("x", "").isdigit()
        if inside and word.isdigit():
            joined[-1] += f"x{word}"
        else:
            joined.append(word)
    return joined


def add_contradictions(parser) -> None:
    parser.add_argument(
        "--allow-contradictions",
        action="store_true",
        help="go on where the same image has one label in the training set and another in the test set",
    )


def add_machine(parser, num_workers: int | None) -> None:
    chosen = " (beside a GPU one for each core but one, up to 16; beside a CPU one at laptop scale, else none)"
    told = "data processes" + (chosen if num_workers is None else "")
    parser.add_argument("--num-workers", type=int, default=num_workers, help=told)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    add_access(parser)
    add_debug(parser)


def machine_of(chosen) -> dict[str, Any]:
    """What `add_machine`'s flags say, as arguments of the functions behind the commands."""
    return {"num_workers": chosen.num_workers, "device": chosen.device, "access": access_of(chosen)}


def exit_status(summary: dict) -> int:
    """0, or 128 + n where signal n ended the work."""
    return 128 + summary["signal"] if summary["status"] == "stopped" else 0


def add_access(parser) -> None:
    """How data is reached; see `a2mim.data.access.Access`."""
    group = parser.add_argument_group("how data is reached")
    group.add_argument("--allow-pipe", action="store_true", help="run the commands of pipe: sources in a shell")
    group.add_argument("--skip-bad-shards", action="store_true", help="go on without missing or damaged shards, named")
    group.add_argument("--shard-cache", metavar="DIR", help="copies of remote shards (default: in ~/.cache/a2mim)")
    group.add_argument("--shard-cache-gb", type=float, default=100.0, help="what it may hold (100)")


def add_reading(parser) -> None:
    """How pixels are read; see `a2mim.data.reading.Reading`. A pre-training recipe says this under `data`."""
    group = parser.add_argument_group("how pixels are read")
    group.add_argument("--bits", type=int, choices=(8, 16), help="a value (default: what the images have)")
    turned = argparse.BooleanOptionalAction
    group.add_argument("--exif", action=turned, default=None, help="turn images as their EXIF orientation says")
    group.add_argument("--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of arrays of floats")
    group.add_argument("--nodata", type=float, metavar="VALUE", help="where nothing was measured; nan for NaN")
    group.add_argument("--fill", type=float, metavar="VALUE", help="in its place (default: the least of the range)")


def reading_of(chosen) -> Reading:
    """How images are read: as `add_reading`'s flags say, else as the encoder's run read its own, else the defaults."""
    if not hasattr(chosen, "exif"):
        return DEFAULT
    run = _reading_of_source(getattr(chosen, "source", None))
    if run != DEFAULT:
        print(f"where the command says nothing, images are read as the run read its own: {run}", file=sys.stderr)
    exif = run.exif if chosen.exif is None else chosen.exif
    value_range = tuple(chosen.value_range or run.value_range or ()) or None
    nodata = run.nodata if chosen.nodata is None else chosen.nodata
    fill = run.fill if chosen.fill is None else chosen.fill
    return Reading(chosen.bits or run.bits, exif, value_range, nodata, fill)


def _reading_of_source(source):
    if source is None:
        return DEFAULT
    from a2mim.engine.folder import reading_of_run

    return reading_of_run(source) or DEFAULT


def access_of(chosen) -> Access:
    """How data are reached: as `add_access`'s flags say; the defaults for a command that reads no data."""
    if not hasattr(chosen, "shard_cache_gb"):
        return Access()
    return Access(
        allow_pipe=chosen.allow_pipe,
        skip_bad_shards=chosen.skip_bad_shards,
        cache_dir=chosen.shard_cache,
        cache_bytes=int(chosen.shard_cache_gb * 1e9),
        processes=getattr(chosen, "processes", None),
    )


def add_debug(parser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")


def one_or_list(sources: list[str] | None):
    return sources[0] if sources and len(sources) == 1 else sources
