"""What a run's folder may bring when the run is resumed: numbers, plain words, and names in closed tables.

Invariant: code is imported, an address opened and a file named only where the user typed it: in the recipe on the
command line, as an option, or from Python. So a run folder of a stranger cannot choose what is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from a2mim.data.transforms import is_registered_transform
from a2mim.engine.config import own_settings
from a2mim.engine.recipes import find_recipe
from a2mim.engine.setting_groups import Settings
from a2mim.registry import MODELS, find_registered
from a2mim.wiring.plain_arguments import fault_of_argument, fault_of_own_argument, is_phrases, shorten
from a2mim.wiring.timm_models import is_registered

_MODULES = ("site", "maps")  # arguments that name modules inside the network
_DEEPEST = 32  # dicts and lists inside one another


class Typed:
    """The values that the user typed: those of the recipe and of options. The recipe is executed when first needed.

    Args:
        recipe: as the command line names it.
        options: dotted key -> value.
        source: of fine-tuning, as the command line names it.
    """

    def __init__(self, recipe: str, options: dict[str, Any], source: object = None):
        self.recipe, self.options, self.source = recipe, options, source

    @cached_property
    def values(self) -> set[str]:
        """Every number, word and dict, as Python writes them."""
        try:
            find_recipe(self.recipe)
        except FileNotFoundError:  # a resumed run needs its folder alone
            recipe: dict[str, Any] = {}
        else:
            recipe = own_settings(self.recipe)
        return set(_leaves([recipe, self.options, self.source]))

    def has(self, value: Any) -> bool:
        """Whether the user typed every number and word of this value."""
        return set(_leaves(value)) <= self.values


def refuse_code(settings: Settings, source: object, where: Path, typed: Typed) -> None:
    """Checks what a folder brings: settings, and the source of fine-tuning.

    Args:
        settings: those in force.
        source: the encoder to fine-tune; None: the run no longer needs one.
        where: the run's folder, for the message.
        typed: what the user typed, and may therefore name code, addresses and files.

    Raises:
        ValueError: names the first setting that a folder may not bring.
    """
    plain = settings.model_dump()
    faults = [
        *_faults_of_part(plain.get("model"), "model", _is_part),
        *_faults_of_part(plain["data"]["transforms"], "data.transforms", is_registered_transform),
        *((key, value) for key, value in (("init_from", plain.get("init_from")), ("source", source)) if _opens(value)),
    ]
    for dotted, value in faults:
        if not typed.has(value):
            raise ValueError(
                f"{where} holds {dotted}={shorten(value)}, and a run's folder may not choose code to import, an address"
                " to open or a file to read: if you trust it, name the recipe that says so on the command line, or"
                f" type {'the SOURCE' if dotted == 'source' else f'--cfg-options {dotted}=…'} again"
            )


def _faults_of_part(value: Any, dotted: str, known: Callable[[str], bool], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is neither a number, a plain word nor a known name."""
    if depth > _DEEPEST:
        yield dotted, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            place = f"{dotted}.{key}"
            if key == "type":
                if not (isinstance(inner, str) and known(inner)):
                    yield place, inner
            elif key == "name":
                if not is_registered(inner):
                    yield place, inner
            elif key == "model_args":
                if not isinstance(inner, dict | None):
                    yield place, inner
                    continue
                judge = fault_of_argument if is_registered(value.get("name")) else fault_of_own_argument
                yield from ((f"{place}.{k}", v) for k, v in (inner or {}).items() if judge(k, v))
            elif key == "source":
                if _opens(inner):
                    yield place, inner
            elif key == "pretrained":
                if inner:
                    yield place, inner
            elif key not in _MODULES:
                yield from _faults_of_part(inner, place, known, depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _faults_of_part(inner, f"{dotted}.{number}", known, depth + 1)
    elif isinstance(value, str) and not is_phrases(value):
        yield dotted, value


def _is_part(name: str) -> bool:
    return find_registered(name, MODELS) is not None


def _opens(source: Any) -> bool:
    """Whether a source is more than a path of this machine or a name of timm's: code, or an address.

    An absolute path counts as a path even if the file is gone: nothing else starts with a slash.
    """
    if source is None or is_registered(source):
        return False
    name, colon, file = str(source).partition(":")
    return not (_is_path(str(source)) or (colon and is_registered(name) and _is_path(file)))


def _is_path(text: str) -> bool:
    path = Path(text)
    return path.is_absolute() or path.exists()


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield repr(value)
