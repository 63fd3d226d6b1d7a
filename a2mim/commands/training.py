"""What `a2mim pretrain` and `a2mim finetune` have in common: their flags, and what these come to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from a2mim.commands.arguments import add_machine, exit_status, machine_of, one_or_list


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run: its folder, how it goes on, its settings, its machine."""
    parser.add_argument(
        "--laptop", action="store_true", default=None, help="the recipe's laptop scale, also with --data"
    )
    parser.add_argument("--work-dir", help="the run's folder (default: the first free runs/<recipe>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        type=_resume,
        metavar="auto",
        help="go on from the newest checkpoint; auto: if --work-dir holds this very run, else start there",
    )
    parser.add_argument(
        "--next-epoch", action="store_true", help="with --resume: where the data changed, start the next epoch with it"
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings to change, dotted"
    )
    parser.add_argument("--seed", type=int, help="of every random number (default: the recipe's)")
    add_machine(parser, num_workers=None)


def _resume(word: str) -> bool | str:
    """The value of --resume: "auto", or True for "newest", which `join_resume` writes."""
    if word not in ("auto", "newest"):
        raise argparse.ArgumentTypeError(f"--resume takes nothing or auto, not {word!r}")
    return "auto" if word == "auto" else True


def join_resume(words: list[str]) -> list[str]:
    """The command line with the value of --resume joined to it, so that no recipe behind it passes for its value."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--resume":
            joined[-1] = "--resume=auto" if word == "auto" else "--resume=newest"
            if word == "auto":
                continue
        joined.append(word)
    return joined


def options_of(chosen: argparse.Namespace) -> dict[str, Any]:
    """The dotted settings that the command line changes."""
    from a2mim.engine.config import parse_options

    options = parse_options(chosen.cfg_options)
    return options if chosen.seed is None else options | {"seed": chosen.seed}


def launch(run: Callable[..., dict], chosen: argparse.Namespace, options: dict[str, Any], *what: Any) -> int:
    """Calls `a2mim.pretrain` or `a2mim.finetune` and returns the exit status: 0, or 128 + n after signal n.

    Args:
        options: dotted setting -> value.
        what: the recipe, and the source where the command takes one.
    """
    summary = run(
        *what,
        one_or_list(chosen.data),
        chosen.work_dir,
        test_data=one_or_list(chosen.test_data),
        laptop=chosen.laptop,
        resume=chosen.resume,
        next_epoch=chosen.next_epoch,
        **machine_of(chosen),
        **options,
    )
    chosen.result = summary
    return exit_status(summary)
