"""docs/settings.md and what `a2mim settings` prints, both derived from the definitions of the settings.

Writes the page again: python -m a2mim.engine.settings_page
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from a2mim.engine.config import KINDS
from a2mim.engine.setting_groups import Settings
from a2mim.engine.setting_types import words_of
from a2mim.text import nearest

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
OPENING = """# Settings

<!-- Written by `python -m a2mim.engine.settings_page`; change the definitions in a2mim/engine, not this page. -->

Every key that a recipe can set, with its default and what it must be. `a2mim settings` prints the same list,
`a2mim settings optimizer` one group, `a2mim settings optimizer.base_lr` one key. A group is a dict in the recipe and a
dotted name on the command line: `--cfg-options optimizer.base_lr=1e-3`. An unknown key is an error with the nearest
right name.
"""


@dataclass(frozen=True)
class Line:
    """One setting: its dotted key, its default as Python writes it, what it must be and what it means."""

    key: str
    default: str
    must: str
    meaning: str


def lines_of(kind: type[Settings]) -> Iterator[Line]:
    """Every setting of a kind of recipe; those that only this kind has come first."""
    own = [key for key in kind.model_fields if key not in Settings.model_fields]
    groups = kind.groups()
    for key in [*own, *(key for key in kind.model_fields if key not in own)]:
        field = kind.model_fields[key]
        for inner, each in groups[key].model_fields.items() if key in groups else [("", field)]:
            default = "required" if each.is_required() else _short(each.get_default())
            yield Line(f"{key}.{inner}" if inner else key, default, words_of(each), each.description or "")


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_short(part) for part in value)})"
    return f"{value:.4g}" if isinstance(value, float) and len(repr(value)) > 8 else repr(value)


def page() -> str:
    """The text of docs/settings.md."""
    text = OPENING
    for kind in KINDS:
        text += f"\n## `a2mim {kind.command}`\n\n{(kind.__doc__ or '').strip()}\n"
        text += "\n| key | default | must be | meaning |\n|---|---|---|---|\n"
        for line in lines_of(kind):
            must, meaning = (part.replace("|", "\\|") for part in (line.must, line.meaning))
            text += f"| `{line.key}` | `{line.default}` | {must} | {meaning} |\n"
    return text


def listing(key: str | None = None) -> str:
    """All settings, those of one group, or one setting, of every kind of recipe that has it.

    Raises:
        ValueError: there is no such key; names the nearest ones.
    """
    blocks, known = [], []
    for kind in KINDS:
        lines = list(lines_of(kind))
        known += [line.key for line in lines] + list(kind.groups())
        chosen = [line for line in lines if key is None or line.key == key or line.key.startswith(f"{key}.")]
        if chosen:
            blocks.append("\n".join([f"a2mim {kind.command}", *(_printed(line) for line in chosen)]))
    if not blocks:
        raise ValueError(f"there is no setting {key!r}{nearest(key, dict.fromkeys(known))}")
    return "\n\n".join(blocks)


def entries(key: str | None = None) -> dict[str, list[Line]]:
    """The same as records: command -> its settings."""
    wanted = {kind.command: list(lines_of(kind)) for kind in KINDS}
    return {
        command: [line for line in lines if key is None or line.key == key or line.key.startswith(f"{key}.")]
        for command, lines in wanted.items()
    }


def _printed(line: Line) -> str:
    meaning = textwrap.fill(line.meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    default = line.default if line.default == "required" else f"default {line.default}"
    return f"  {line.key}  ({default}; {line.must})\n{meaning}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
