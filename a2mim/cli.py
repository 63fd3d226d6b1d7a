"""The `a2mim` command; tools/*.py are its thin doors. Nothing heavy is imported before the arguments are understood."""

from __future__ import annotations

import argparse
import os
import sys

# OpenMP's threads spin while they wait for one another: beside any other busy process that costs a multiple of the work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

USER_ERRORS = (ValueError, OSError, FloatingPointError)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 1 for bad input in one sentence, 128 + n after signal n."""
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    try:
        return chosen.run(chosen) or 0
    except USER_ERRORS as error:
        if chosen.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted before the first step: nothing to save", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="a2mim", description="Masked-image-modelling pre-training for any architecture."
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    add_pretrain(commands)
    return parser


def add_pretrain(commands) -> None:
    p = commands.add_parser("pretrain", help="pre-train an encoder from a recipe")
    p.add_argument("config", help="a recipe, e.g. configs/a2mim_xcit.py")
    p.add_argument(
        "--data",
        help="folder, tar shards (brace pattern, glob, URL) or photos; none: laptop scale, built-in photographs",
    )
    p.add_argument("--test-data", help="labelled images to judge the encoder on, before and after")
    p.add_argument("--laptop", action="store_true", default=None, help="the recipe's laptop scale, also with --data")
    p.add_argument("--work-dir", help="the run's folder (default: the first free runs/<recipe>)")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    p.add_argument("--num-workers", type=int, help="data processes (default: chosen by the machine)")
    add_common(p)
    p.set_defaults(run=run_pretrain)


def add_common(parser) -> None:
    """The flags that are alike everywhere."""
    parser.add_argument("--seed", type=int, help="of every random number")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings to change, dotted")
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")


def run_pretrain(chosen) -> int:
    from a2mim.engine.config import load_config, parse_options

    options = parse_options(chosen.cfg_options)
    if chosen.seed is not None:
        options["seed"] = chosen.seed
    laptop = chosen.laptop or chosen.data is None
    load_config(chosen.config, options, laptop)  # a mistake is answered before torch is imported

    from a2mim.engine.run import pretrain

    summary = pretrain(
        chosen.config,
        chosen.data,
        chosen.work_dir,
        test_data=chosen.test_data,
        laptop=chosen.laptop,
        resume=chosen.resume,
        num_workers=chosen.num_workers,
        device=chosen.device,
        **options,
    )
    return 128 + summary["signal"] if summary["status"] == "stopped" else 0


if __name__ == "__main__":
    sys.exit(main())
