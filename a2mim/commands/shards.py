"""`a2mim shards`: tar shards written, checked, listed, indexed and written anew."""

from __future__ import annotations

from pathlib import Path

from a2mim.commands.arguments import access_of, add_access, add_debug, one_or_list
from a2mim.data.remote.addresses import public_name

_SHOWN = 20  # class names
_SHARDS = "brace pattern, glob, URL, text file of them, or several"


def add_shards(commands) -> None:
    shards = commands.add_parser("shards", help="write, check, list, index and re-encode tar shards")
    shards = shards.add_subparsers(metavar="command", required=True)
    make = shards.add_parser("make", help="write shards from a folder of images", allow_abbrev=False)
    make.add_argument("folder", help="images; one folder a class where they have labels")
    _add_out(make)
    make.add_argument("--seed", type=int, default=0, help="of the shuffle (0)")
    make.set_defaults(run=run_make_shards)
    check = shards.add_parser(
        "check", help="read every sample; exit status 1 when anything is wrong", allow_abbrev=False
    )
    check.add_argument("--all", action="store_true", help="name everything that is wrong, not only the first")
    check.set_defaults(run=run_check_shards)
    listing = shards.add_parser("ls", help="what is in them", allow_abbrev=False)
    listing.add_argument("--samples", action="store_true", help="a line for each image: shard, key, label, bytes")
    listing.set_defaults(run=run_list_shards)
    index = shards.add_parser("index", help="make the indices ahead of a run", allow_abbrev=False)
    index.add_argument(
        "--dali",
        choices=("export", "import"),
        help="write DALI's .idx beside each shard, or take the index from it, which leaves most headers unchecked",
    )
    index.set_defaults(run=run_index_shards)
    again = shards.add_parser("reshard", help="shuffle and re-encode shards into new ones", allow_abbrev=False)
    for parser in (check, listing, index, again):
        parser.add_argument("shards", nargs="+", help=_SHARDS)
    _add_out(again)
    again.add_argument("--short-side", type=int, default=384, help="pixels; larger images are made smaller (384)")
    again.add_argument("--quality", type=int, default=90, help="of their JPEG (90)")
    again.add_argument("--as-is", action="store_true", help="keep the images' bytes; only pack and shuffle")
    again.add_argument("--seed", type=int, default=0, help="of the shuffle (0)")
    again.add_argument("--keep-order", action="store_true", help="do not shuffle")
    again.set_defaults(run=run_reshard)
    for parser in (make, check, again):  # the first and the last check what they wrote
        parser.add_argument("--in-chans", type=int, default=3, help="channels, to check the images by (3)")
        parser.add_argument("--value-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of arrays of floats")
        parser.add_argument("--nodata", type=float, metavar="VALUE", help="where nothing was measured; nan for NaN")
        parser.add_argument("--fill", type=float, metavar="VALUE", help="in its place")
    for parser in (make, check, listing, index, again):
        add_access(parser)
        parser.add_argument("--processes", type=int, help="(default: one for each core)")
        add_debug(parser)


def _add_out(parser) -> None:
    parser.add_argument("out", help="folder for the shards; a second call goes on where the first was stopped")
    parser.add_argument("--samples-per-shard", type=int, default=1000, help="at most (1000)")
    parser.add_argument("--max-bytes", type=int, default=1 << 30, help="of a shard, at most (1 GiB)")


def run_make_shards(chosen) -> int:
    from a2mim.data import make_shards

    chosen.result = made = make_shards(
        chosen.folder, chosen.out, chosen.samples_per_shard, chosen.max_bytes, chosen.seed
    )
    print(f"{made['images']:,} images in {made['shards']} shards ({made['kept']} of them were there already)")
    print(_described_classes(chosen.out, made["classes"]))
    status = report_shards(chosen, made["pattern"])
    if "test_pattern" in made:
        status = max(status, report_shards(chosen, made["test_pattern"], flag="--test-data"))
    return status


def _described_classes(out: str, count: int) -> str:
    """The names of the classes that were written: a part of a set that passes for a class shows itself here."""
    from a2mim.data.plain_files import read_class_list

    if not count:
        return "no classes: a folder has them when every image lies in one of two or more first-level folders"
    names = read_class_list(Path(out) / "classes.txt")
    more = f" and {count - _SHOWN} more, all in {Path(out) / 'classes.txt'}" if count > _SHOWN else ""
    return f"{count} classes: {', '.join(names[:_SHOWN])}{more}"


def run_check_shards(chosen) -> int:
    return report_shards(chosen, one_or_list(chosen.shards), chosen.all)


def report_shards(chosen, pattern, everything: bool = False, flag: str = "--data") -> int:
    """Checks shards, prints what was found, and returns the exit status.

    Args:
        everything: name all that is wrong.
        flag: what the shards are given by.
    """
    from a2mim.data import check_shards

    found = check_shards(pattern, access_of(chosen), chosen.in_chans, chosen.value_range, chosen.nodata, chosen.fill)
    shown = f"'{pattern}'" if isinstance(pattern, str) else " ".join(f"'{part}'" for part in pattern)
    chosen.result = getattr(chosen, "result", None) or {"ok": found.ok, "faults": found.lines(), "summary": str(found)}
    print(f"{found}: {flag} {public_name(shown)}")
    if everything:
        print("\n".join(found.lines()))
    return 0 if found.ok else 1


def run_list_shards(chosen) -> int:
    from a2mim.data.prepare.listing import describe_sample, describe_shards, facts_of, indexed, samples_of

    access = access_of(chosen)
    shards = indexed(chosen.shards, access)
    if chosen.samples:
        chosen.result = []
        for facts in samples_of(shards, access):
            print(describe_sample(facts))
            if chosen.json:  # a list of a million dicts is made for those alone who ask for it
                chosen.result.append(facts)
    else:
        chosen.result = [facts_of(shard) for shard in shards]
        print("\n".join(describe_shards(shards)))
    return int(any(shard.fault is not None for shard in shards))


def run_index_shards(chosen) -> int:
    from a2mim.data.prepare.listing import describe_shards, export_dali, facts_of, import_dali, indexed

    access = access_of(chosen)
    if chosen.dali == "export":
        chosen.result = list(export_dali(chosen.shards, access))
        print("\n".join(chosen.result))
        return 0
    shards = import_dali(chosen.shards, access) if chosen.dali else indexed(chosen.shards, access)
    chosen.result = [facts_of(shard) for shard in shards]
    print("\n".join(describe_shards(shards)))
    if chosen.dali:
        print(
            "Taken from DALI's word: headers between the first and the last sample, and members that it does not list,"
        )
        print("were not checked. `a2mim shards check` does so; without .index.npz beside a shard, so does every start.")
    return int(any(shard.fault is not None for shard in shards))


def run_reshard(chosen) -> int:
    from a2mim.data.prepare.reshard import Encoding, reshard

    chosen.result = made = reshard(
        chosen.shards,
        chosen.out,
        Encoding(None if chosen.as_is else chosen.short_side, chosen.quality),
        chosen.samples_per_shard,
        chosen.max_bytes,
        None if chosen.keep_order else chosen.seed,
        access_of(chosen),
    )
    print(f"{made['images']:,} images in {made['shards']} shards ({made['kept']} of them were there already)")
    print(f"{', '.join(f'{count:,} {kind}' for kind, count in made['done'].items())}")
    print(f"{made['bytes_before'] / 1e6:,.1f} MB of images became {made['bytes_after'] / 1e6:,.1f} MB of shards")
    return report_shards(chosen, made["pattern"])
