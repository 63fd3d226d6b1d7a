"""The help of every command: options in groups, each default, one example.

It is applied to the whole parser, so no command is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

EXAMPLES = {  # command -> a line that can be typed
    "pretrain": "a2mim pretrain a2mim_resnet18 --data photographs --laptop",
    "finetune": "a2mim finetune finetune/mae_finetune runs/a2mim_resnet18 --data photographs --laptop",
    "refine": "a2mim refine runs/a2mim_resnet18 --data photographs --laptop",
    "evaluate": "a2mim evaluate runs/a2mim_resnet18 photographs --out results",
    "compare": "a2mim compare runs/first runs/second",
    "knn": "a2mim knn runs/a2mim_resnet18 --data photographs --test-data photographs",
    "linear-probe": "a2mim linear-probe runs/a2mim_resnet18 --data photographs --test-data photographs",
    "export": "a2mim export runs/a2mim_resnet18 --to timm,onnx --out exported",
    "verify": "a2mim verify exported/timm",
    "embed": "a2mim embed runs/a2mim_resnet18 photographs --out embeddings.npz",
    "shards make": "a2mim shards make photographs shards",
    "shards check": "a2mim shards check 'shards/*.tar' --all",
    "shards ls": "a2mim shards ls 'shards/*.tar'",
    "shards index": "a2mim shards index 'shards/*.tar'",
    "shards reshard": "a2mim shards reshard 'shards/*.tar' smaller --short-side 256",
    "measure-stats": "a2mim measure-stats photographs",
    "bench-data": "a2mim bench-data photographs --workers 4",
    "check-model": "a2mim check-model convnext_atto --img-size 192 384",
    "report": "a2mim report runs/first runs/second --out both.html",
    "analyze": "a2mim analyze runs/a2mim_resnet18 --data photographs --what fourier,rank",
    "recipes": "a2mim recipes --copy a2mim_resnet18",
    "settings": "a2mim settings optimizer",
    "worth-it": "a2mim worth-it photographs --minutes 30",
}
GROUPS = {  # title -> flags that belong there
    "images": "--data --test-data --split --img-size --in-chans --labels --images --interpolation",
    "the run": "--model --keep --init-from --allow-partial --laptop --cfg-options --seed"
    " --work-dir --resume --next-epoch",
    "the machine": "--device --num-workers --batch-size --workers --processes --python",
    "what is written": "--out --overwrite --json --debug --feature-cache --feature-cache-gb --no-feature-cache",
}
_JSON = "print the result on standard output as JSON, and everything else on standard error"


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default to each option that has one and does not tell it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return help_of(action)


def help_of(action: argparse.Action) -> str:
    """What an option means, with its default."""
    text, default = action.help or "", action.default
    if not action.option_strings or default is None or isinstance(default, bool) or default in ([], argparse.SUPPRESS):
        return text
    shown = ", ".join(map(str, default)) if isinstance(default, list) else str(default)
    shown = f"{default:g}" if isinstance(default, float) else shown
    told = "(default" in text or f"({shown})" in text
    return text if told else f"{text} (default: {shown.replace('%', '%%')})".strip()


def commands_of(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(name, parser) of every command that does something; `shards` alone does not, `shards make` does."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                below = list(commands_of(inner, f"{prefix}{name} "))
                yield from below or [(f"{prefix}{name}", inner)]


def dress(parser: argparse.ArgumentParser) -> None:
    """Gives every command its groups, defaults, example, and --json."""
    for name, command in commands_of(parser):
        command.add_argument("--json", action="store_true", help=_JSON)
        command.formatter_class = Formatter
        command.epilog = f"example:\n  {EXAMPLES[name]}"
        options = command._optionals
        for title, flags in GROUPS.items():
            wanted = set(flags.split())
            moved = [a for a in options._group_actions if not wanted.isdisjoint(a.option_strings)]
            if moved:
                group = command.add_argument_group(title)
                group._group_actions.extend(moved)
                options._group_actions[:] = [a for a in options._group_actions if a not in moved]
