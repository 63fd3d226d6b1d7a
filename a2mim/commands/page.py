"""The text of docs/commands.md, derived from the parser. `python tools/write_pages.py` writes it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from a2mim.commands.help import help_of

_START = """# Commands

This page is written from the parser by `python tools/write_pages.py`. `a2mim COMMAND --help` prints the same. Each
command is also a script in `tools/`.

With `--json`, standard output holds the result of the command as one JSON document and nothing else; what is said on
the way goes to standard error.

A command ends with status 0 when it did its work, 1 for bad input or a failed check (one sentence on standard error), 2
for a command line that cannot be understood, and 128 + n after signal n (what was saved is whole).
"""


def page(parser: argparse.ArgumentParser) -> str:
    """The page: a section for each command of the parser, a row for each argument."""
    parts = [_START]
    for name, inner, about in _commands(parser):
        example = (inner.epilog or "").removeprefix("example:\n").strip()
        parts.append(f"## a2mim {name}\n\n{_sentence(about)}\n\n```bash\n{example}\n```\n\n" + "\n".join(_rows(inner)))
    return "\n".join(parts).rstrip() + "\n"


def _commands(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """(name, parser, help) of every command, inner ones too, in the order in which they were added."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for name, inner in action.choices.items():
                if any(isinstance(a, argparse._SubParsersAction) for a in inner._actions):
                    yield from _commands(inner, f"{prefix}{name} ")
                else:
                    yield f"{prefix}{name}", inner, helps.get(name) or ""


def _rows(parser: argparse.ArgumentParser) -> list[str]:
    rows = ["| argument | meaning |", "|---|---|"]
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        rows.append(f"| {_name(action)} | {_cell(_help(action))} |")
    return [*rows, ""]


def _name(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar or ())
    if not action.option_strings:
        return f"`{value or action.dest.upper()}`"
    takes = "" if action.nargs == 0 else value or action.dest.upper()
    if action.choices:
        takes = ",".join(map(str, action.choices))
    more = " …" if action.nargs in ("+", "*") else ""
    return ", ".join(f"`{option}`" for option in action.option_strings) + (f" `{takes}{more}`" if takes else "")


def _help(action: argparse.Action) -> str:
    return help_of(action).replace("%%", "%")


def _sentence(text: str) -> str:
    text = _cell(text)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
