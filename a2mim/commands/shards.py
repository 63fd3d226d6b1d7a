"""`a2mim shards`: tar shards written and checked."""

from __future__ import annotations

from a2mim.commands.arguments import add_debug


def add_shards(commands) -> None:
    shards = commands.add_parser("shards", help="write and check tar shards").add_subparsers(required=True)
    make = shards.add_parser("make", help="write shards from a folder of images", allow_abbrev=False)
    make.add_argument("folder", help="images; one folder a class where they have labels")
    make.add_argument("out", help="folder for the shards; a second call goes on where the first was stopped")
    make.add_argument("--samples-per-shard", type=int, default=1000, help="at most (1000)")
    make.add_argument("--max-bytes", type=int, default=1 << 30, help="of a shard, at most (1 GiB)")
    make.add_argument("--seed", type=int, default=0, help="of the shuffle (0)")
    make.set_defaults(run=run_make_shards)
    check = shards.add_parser("check", help="read every sample of shards", allow_abbrev=False)
    check.add_argument("pattern", help="brace pattern, glob or file")
    check.set_defaults(run=run_check_shards)
    for parser in (make, check):
        add_debug(parser)


def run_make_shards(chosen) -> int:
    from a2mim.data import make_shards

    made = make_shards(chosen.folder, chosen.out, chosen.samples_per_shard, chosen.max_bytes, chosen.seed)
    print(f"{made['images']:,} images in {made['shards']} shards ({made['kept']} of them were there already)")
    return report_shards(made["pattern"])


def run_check_shards(chosen) -> int:
    return report_shards(chosen.pattern)


def report_shards(pattern: str) -> int:
    from a2mim.data import check_shards

    found = check_shards(pattern)
    print(f"{found}: --data '{pattern}'")
    return 0 if found.ok else 1
