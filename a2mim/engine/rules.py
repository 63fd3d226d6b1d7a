"""What a recipe may say: the settings that there are, and what each of them must be.

A rule is a pair: does the value hold, and the words for what it must be.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schema:
    """One kind of recipe.

    Args:
        command: the command that runs it.
        defaults: every setting with its default; groups are dicts.
        rules: dotted setting -> rule.
        check: raises ValueError for what single rules cannot see; given all settings.
        open_groups: settings below which new keys are allowed, because parts check their arguments when they are built.
        required: settings without a default.
        example: a recipe that has them.
        read: a path -> the recipe's own settings; None: as a config file.
        under: (the recipe's own settings, options) -> dotted settings that lie between the defaults and the recipe.
    """

    command: str
    defaults: dict
    rules: dict
    check: Callable[[dict], None]
    open_groups: tuple = ("laptop",)
    required: tuple = ()
    example: str = ""
    read: Callable | None = None
    under: Callable[[dict, dict], dict] = lambda given, options: {}


# settings that only one command has: a recipe that is given to the other is recognised
COMMAND_OF = {"model": "pretrain", "judge": "pretrain"} | dict.fromkeys(
    ("classifier", "augment", "mix", "loss", "evaluate", "labels"), "finetune"
)


def whole(least):
    return lambda v: type(v) is int and v >= least, f"a whole number of at least {least}"


def number(least=0.0, most=float("inf"), above=False):
    def holds(v):
        return (
            isinstance(v, int | float)
            and not isinstance(v, bool)
            and (least < v if above else least <= v)
            and v <= most
        )

    bound = f"above {least:g}" if above else f"of at least {least:g}"
    return holds, f"a number {bound}" + (f" and at most {most:g}" if most < float("inf") else "")


def pair(most, what):
    holds, _ = number(0, most)
    return lambda v: isinstance(v, list | tuple) and len(v) == 2 and all(map(holds, v)), what


def one_of(*allowed):
    return lambda v: v in allowed, f"one of {', '.join(map(repr, allowed))}"


def list_of(kind, what):
    return lambda v: isinstance(v, list | tuple) and all(isinstance(x, kind) for x in v), f"a list of {what}"


def or_none(rule):
    holds, what = rule
    return lambda v: v is None or holds(v), f"None or {what}"


FLAG = one_of(True, False)
DICT = lambda v: isinstance(v, dict), "a dict"
