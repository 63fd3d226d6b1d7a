"""`a2mim settings`: what a recipe can say."""

from __future__ import annotations

import argparse

from a2mim.commands.arguments import add_debug


def add_settings(commands: argparse._SubParsersAction) -> None:
    p = commands.add_parser("settings", help="list what a recipe can set", allow_abbrev=False)
    p.add_argument("key", nargs="?", metavar="KEY", help="a setting or a group, e.g. schedule.epochs or optimizer")
    add_debug(p)
    p.set_defaults(several="print", run=run_settings)


def run_settings(chosen: argparse.Namespace) -> int:
    from a2mim.engine.settings_page import entries, listing

    chosen.result = entries(chosen.key)
    print(listing(chosen.key))
    return 0
