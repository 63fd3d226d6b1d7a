"""The `a2mim` command; tools/*.py are its thin doors. Nothing heavy is imported before the arguments are understood."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings

# OpenMP's threads spin while they wait for one another. Long spinning is fastest on an idle machine and ruinous beside
# any other busy process, sleeping at once is slow on both; this short spin is near the best of each
# (docs/performance.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

USER_ERRORS = (ValueError, OSError, FloatingPointError)
SOURCE_HELP = "a run folder, an exported folder, a checkpoint, or a timm name"
DATA_HELP = "folder, tar shards (brace pattern, glob, URL, several), or photos"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for bad input in one sentence, 128 + n after signal n."""
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    if not chosen.debug:
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        return chosen.run(chosen) or 0
    except USER_ERRORS as error:
        if chosen.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted outside training; checkpoints that were written are whole", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="a2mim", description="Masked-image-modelling pre-training for any architecture."
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for add in (add_pretrain, add_knn, add_linear_probe, add_export, add_shards):
        add(commands)
    return parser


def add_pretrain(commands) -> None:
    p = commands.add_parser("pretrain", help="pre-train an encoder from a recipe", allow_abbrev=False)
    p.add_argument("config", help="a recipe, e.g. configs/a2mim_xcit.py")
    p.add_argument("--data", nargs="+", help=f"{DATA_HELP}; none: laptop scale, on built-in photographs")
    p.add_argument("--test-data", nargs="+", help="labelled images to judge the encoder on, before and after")
    p.add_argument("--laptop", action="store_true", default=None, help="the recipe's laptop scale, also with --data")
    p.add_argument("--work-dir", help="the run's folder (default: the first free runs/<recipe>)")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    p.add_argument(
        "--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings to change, dotted"
    )
    p.add_argument("--seed", type=int, help="of every random number (default: the recipe's)")
    add_machine(p, num_workers=None)
    p.set_defaults(run=run_pretrain)


def add_knn(commands) -> None:
    p = commands.add_parser("knn", help="judge an encoder by DINO's k-NN", allow_abbrev=False)
    add_judged(p)
    p.add_argument("--k", type=int, default=20, help="neighbours (20)")
    p.add_argument("--temperature", type=float, default=0.07, help="of the votes (0.07)")
    p.add_argument("--pooling", default="default", choices=("default", "cls", "avg"), help="default: timm's own")
    p.set_defaults(run=run_knn)


def add_linear_probe(commands) -> None:
    p = commands.add_parser("linear-probe", help="judge an encoder by a linear classifier", allow_abbrev=False)
    add_judged(p)
    p.add_argument("--protocol", default="dino-linear", choices=("dino-linear", "linear-cached"))
    p.add_argument("--epochs", type=int, default=100, help="(100)")
    p.add_argument(
        "--n-last-blocks", type=int, help="class tokens to join, dino-linear on ViT (default: DINO's choice)"
    )
    p.add_argument("--seed", type=int, default=0, help="of every random number (0)")
    p.set_defaults(run=run_linear_probe)


def add_judged(parser) -> None:
    """What k-NN and linear probe share."""
    parser.add_argument("source", help=SOURCE_HELP)
    parser.add_argument("--data", required=True, nargs="+", help=f"labelled training images: {DATA_HELP}")
    parser.add_argument("--test-data", required=True, nargs="+", help="labelled test images")
    parser.add_argument("--img-size", type=int, help="pixels (default: the encoder's)")
    parser.add_argument("--batch-size", type=int, default=64, help="images a forward pass (64)")
    parser.add_argument("--out", help="write the result to this JSON file")
    add_machine(parser, num_workers=0)


def add_export(commands) -> None:
    p = commands.add_parser("export", help="hand an encoder to another toolkit, proven equal", allow_abbrev=False)
    p.add_argument("source", help=SOURCE_HELP)
    p.add_argument("--to", default="timm", help="targets, separated by commas: timm")
    p.add_argument("--out", help="folder (default: export/ in the run)")
    p.add_argument("--data", nargs="+", help="images that BatchNorm is calibrated on (default: the run's own)")
    add_machine(p, num_workers=0)
    p.set_defaults(run=run_export)


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


def add_machine(parser, num_workers: int | None) -> None:
    parser.add_argument("--num-workers", type=int, default=num_workers, help="data processes")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    add_debug(parser)


def add_debug(parser) -> None:
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")


def run_pretrain(chosen) -> int:
    from a2mim.engine.config import load_config, parse_options

    options = parse_options(chosen.cfg_options)
    if chosen.seed is not None:
        options["seed"] = chosen.seed
    if not chosen.resume:  # mistakes are answered before torch is imported
        load_config(chosen.config, options, chosen.laptop or chosen.data is None)

    from a2mim.engine.run import pretrain

    summary = pretrain(
        chosen.config,
        one_or_list(chosen.data),
        chosen.work_dir,
        test_data=one_or_list(chosen.test_data),
        laptop=chosen.laptop,
        resume=chosen.resume,
        num_workers=chosen.num_workers,
        device=chosen.device,
        **options,
    )
    return 128 + summary["signal"] if summary["status"] == "stopped" else 0


def one_or_list(sources: list[str] | None):
    return sources[0] if sources and len(sources) == 1 else sources


def bench(chosen):
    from a2mim.evaluation.protocols import Bench

    return Bench(
        chosen.source,
        one_or_list(chosen.data),
        one_or_list(chosen.test_data),
        device=chosen.device,
        img_size=chosen.img_size,
        batch_size=chosen.batch_size,
        num_workers=chosen.num_workers,
    )


def run_knn(chosen) -> None:
    from a2mim.evaluation import protocols

    show(protocols.run_knn(bench(chosen), chosen.k, chosen.temperature, chosen.pooling), chosen.out)


def run_linear_probe(chosen) -> None:
    from a2mim.evaluation import protocols

    found = protocols.run_linear(bench(chosen), chosen.protocol, chosen.epochs, chosen.n_last_blocks, chosen.seed)
    show(found, chosen.out)


def show(result: dict, out: str | None) -> None:
    """The number first, then every constant that decides it."""
    low, high = result["interval"]
    interval = f"95 % interval {low:.2f}–{high:.2f}"
    print(f"{result['protocol']}: top-1 {result['top1']:.2f} % ({interval}), top-5 {result['top5']:.2f} %")
    rest = {key: value for key, value in result.items() if key not in ("protocol", "top1", "top5", "interval")}
    print(", ".join(f"{key} {value}" for key, value in rest.items()))
    if out:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


def run_export(chosen) -> None:
    from a2mim.export.command import export_calibrated

    data = one_or_list(chosen.data)
    for receipt in export_calibrated(chosen.source, chosen.to.split(","), chosen.out, data, chosen.num_workers):
        difference = f"largest difference {receipt['largest_difference']:.1e}"
        print(f"{receipt['folder']}: {receipt['target']} computes the same features ({difference}, see receipt.json)")


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


if __name__ == "__main__":
    sys.exit(main())
