"""Settings from a recipe: read, laid over the defaults, overridden and checked, without importing torch.

The settings themselves are defined in pretrain_settings.py, finetune_settings.py, refine_settings.py and
setting_groups.py. Parts (dicts with `type`) are checked against their class when they are built.
"""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, TypeVar

from pydantic import ValidationError

from a2mim.engine.finetune_protocol import protocol_settings
from a2mim.engine.finetune_settings import FinetuneSettings
from a2mim.engine.origins import dotted_keys, origins_of
from a2mim.engine.pretrain_settings import PretrainSettings
from a2mim.engine.recipe import import_modules, read
from a2mim.engine.recipes import tell_of_namesake
from a2mim.engine.refine_settings import RefineSettings
from a2mim.engine.setting_groups import Settings
from a2mim.engine.setting_types import words_of
from a2mim.text import nearest, quoted

KINDS: tuple[type[Settings], ...] = (PretrainSettings, FinetuneSettings, RefineSettings)
Kind = TypeVar("Kind", bound=Settings)


def load_config(
    path: str | PathLike | Mapping,
    options: dict | None = None,
    laptop: bool = False,
    kind: type[Kind] = PretrainSettings,  # type: ignore[assignment]
    note: Callable[[str], object] | None = None,
) -> Kind:
    """Reads a recipe and returns every setting. The recipe is executed, and so are the modules that it imports.

    Args:
        path: a recipe, the name of one that ships with a2mim, the name of a fine-tuning protocol, or the settings
            themselves, as a nested dictionary.
        options: dotted key -> value, applied last.
        laptop: apply the recipe's `laptop` block first.
        kind: the kind of recipe.
        note: takes a sentence about each option that changes nothing.

    Raises:
        FileNotFoundError, ValueError: in one sentence.
    """
    return load_with_origins(path, options, laptop, kind, note)[0]


def load_with_origins(
    path: str | PathLike | Mapping,
    options: dict | None,
    laptop: bool,
    kind: type[Kind],
    note: Callable[[str], object] | None = None,
) -> tuple[Kind, dict[str, str]]:
    """What `load_config` returns, and the origin of each dotted setting."""
    given = own_settings(path)
    if note and not isinstance(path, Mapping):
        tell_of_namesake(path)
    where = "the recipe" if isinstance(path, Mapping) else path
    settings = settle(given, where, options, laptop, kind, note)
    import_modules(settings.custom_imports, where)
    layers = [("protocol", settings_below(given, options or {}, kind)), ("recipe", dotted_keys(given))]
    layers += [("recipe, laptop scale", settings.laptop if laptop else ()), ("command line", options or ())]
    return settings, origins_of(settings.model_dump(), layers)


def own_settings(path: str | PathLike | Mapping) -> dict:
    """What a recipe and its bases say themselves; the recipe is executed, the modules that it imports are not."""
    if isinstance(path, Mapping):
        return copy.deepcopy(dict(path))
    return read(path, {key for kind in KINDS for key in kind.model_fields})


def settle(
    given: dict,
    where: object,
    options: dict | None,
    laptop: bool,
    kind: type[Kind],
    note: Callable[[str], object] | None = None,
) -> Kind:
    """The settings that follow from a recipe's own ones; arguments as in `load_config`, `where` for messages."""
    options = options or {}
    config = complete(given, where, kind, settings_below(given, options, kind))
    if laptop:
        if not config["laptop"]:
            raise ValueError(f"{where} has no laptop block; give it one, or give --data to run the recipe as written")
        for key, value in config["laptop"].items():
            assign(config, key, value, kind)
    for key, value in options.items():
        before = assign(config, key, value, kind)
        if note and before == value and not key.endswith("seed"):  # loops over seeds start somewhere
            note(f"{key}={value!r} changes nothing: it is the recipe's own value")
    return check(config, kind)


def settings_below(given: dict, options: dict, kind: type[Settings]) -> dict:
    """Dotted settings that lie between the defaults and the recipe: the constants of its fine-tuning protocol."""
    if kind is not FinetuneSettings:
        return {}
    name, variant = (options.get(key, given.get(key)) for key in ("protocol", "variant"))
    return {} if name is None else protocol_settings(name, variant)


def complete(given: dict, where: object, kind: type[Settings], below: dict | None = None) -> dict:
    """Lays the given settings over the defaults, with `below` (dotted) between them; unknown keys are errors."""
    config, groups = kind.defaults(), kind.groups()
    for key, value in (below or {}).items():
        assign(config, key, value, kind)
    for key, value in given.items():
        if key not in config:
            raise ValueError(_unknown(key, where, kind))
        if key not in groups:
            config[key] = copy.deepcopy(value)
            continue
        known = list(groups[key].model_fields)
        if not isinstance(value, dict):
            raise ValueError(f"{where}: {key} must be a dict of {', '.join(known)}, not {quoted(value)}")
        for inner in value:
            if inner not in known:
                raise ValueError(f"{where}: {key}: unknown setting {quoted(inner)}{nearest(inner, known, 2)}")
        config[key].update(copy.deepcopy(value))
    for key in kind.required:
        if config[key] is None:
            raise ValueError(f"{where} sets no {key}; see {kind.example} for one")
    return config


def _unknown(key: str, where: object, kind: type[Settings]) -> str:
    for other in KINDS:
        if other is not kind and key in other.model_fields:
            return f"{where} sets {quoted(key)}: it is a recipe for a2mim {other.command}, not {kind.command}"
    return (
        f"{where}: unknown setting {quoted(key)}{nearest(key, kind.model_fields, 2)}"
        " (a variable that only helps others is read further below, and its name is not close to a setting's)"
    )


def assign(config: dict, dotted: str, value: Any, kind: type[Settings]) -> Any:
    """Sets config[a][b]... for the key "a.b..." (numbers index lists) and returns what stood there before.

    A new key is allowed only inside `model`, whose parts check their arguments when they are built.
    """
    *path, last = dotted.split(".")
    place: Any = config
    index: Any = None
    for depth, name in enumerate([*path, last]):
        keys: Any = range(len(place)) if isinstance(place, list) else place
        index = int(name) if isinstance(place, list) and name.isdigit() else name
        argument_of_part = isinstance(place, dict) and path[:1] == ["model"] and depth == len(path)
        if index not in keys and not argument_of_part:
            known = [".".join([*path[:depth], str(k)]) for k in keys] if isinstance(place, dict | list) else []
            raise ValueError(f"there is no setting {quoted(dotted)}{nearest(dotted, known, 2)}")
        if depth < len(path):
            place = place[index]
            if not isinstance(place, dict | list):
                raise ValueError(f"there is no setting {dotted!r}: {'.'.join(path[: depth + 1])} is {place!r}")
    if dotted in kind.groups():
        inside = ", ".join(f"{dotted}.{key}" for key in kind.groups()[dotted].model_fields)
        raise ValueError(f"{dotted} is a group; set what is in it: {inside}")
    before = place.get(index, _MISSING) if isinstance(place, dict) else place[index]
    place[index] = value
    return before


_MISSING = object()


def check(config: dict, kind: type[Kind]) -> Kind:
    """The settings as one object; ValueError with one sentence about the first that is wrong."""
    try:
        settings = kind.model_validate(config)
    except ValidationError as error:
        raise ValueError(_sentence(error, config, kind)) from None
    for key, value in config.items():
        _check_plain(value, key)
    return settings


def _check_plain(value: Any, dotted: str) -> None:
    """ValueError where a value is nothing that a run's settings.json can keep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{dotted} has the key {_shown(key)}; the keys of a dict must be texts")
            _check_plain(inner, f"{dotted}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_plain(inner, f"{dotted}.{number}")
    elif isinstance(value, float) and not math.isfinite(value) and dotted.startswith("model"):
        raise ValueError(f"{dotted}={value} must be a finite number")
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise ValueError(
            f"{dotted} holds an object of {type(value).__name__}, which a run's settings cannot keep;"
            " give numbers, texts, lists and dicts"
        )


def _sentence(error: ValidationError, config: dict, kind: type[Settings]) -> str:
    first = error.errors()[0]
    key, *rest = first["loc"] or ("",)
    value: Any = config.get(str(key))
    fields = kind.model_fields
    if key in kind.groups() and rest:
        fields, value = kind.groups()[str(key)].model_fields, value[rest[0]]
        field, dotted = fields[str(rest[0])], f"{key}.{rest[0]}"
    elif key in kind.groups() or not key:  # a check of several settings says its own sentence
        return str(first["ctx"]["error"])
    else:
        field, dotted = fields[str(key)], str(key)
    return f"{dotted}={_shown(value)} must be {words_of(field)}"


def _shown(value: Any) -> str:
    """The value as Python writes it, on one line of bearable length."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of thousands of digits, a list that holds itself
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 120 else f"{text[:100]}…"


def changed(settings: Kind, options: dict) -> Kind:
    """The same settings with dotted ones replaced, and checked again."""
    config = settings.model_dump()
    for key, value in options.items():
        assign(config, key, value, type(settings))
    return check(config, type(settings))


def parse_options(pairs: list[str], flag: str = "--cfg-options") -> dict:
    """["a.b=1", …] -> {"a.b": 1}: Python literals, true/false/none in any case, anything else a string."""
    options = {}
    for option in pairs:
        key, separator, text = option.partition("=")
        if not separator or not key:
            raise ValueError(f"{flag} takes key=value, not {option!r}")
        options[key] = _literal(text)
    return options


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    """["a.b: 1 -> 2", …]: where two dicts of settings differ."""
    lines = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old!r} -> {new!r}")
    return lines
