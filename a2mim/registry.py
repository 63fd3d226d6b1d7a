"""The mmengine scope "a2mim": parts that a config names by `type`, looked up and checked in one place."""

import importlib
import inspect
import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeGuard

from mmengine import registry as roots
from mmengine.registry import Registry

from a2mim.text import nearest

SCOPE = "a2mim"


def build_part(cfg: dict, registry: Registry, default_args: dict | None = None):
    """Builds `cfg["type"]` with the other keys as arguments; a wrong one is one sentence with the nearest right
    ones.

    Args:
        cfg: of a recipe or from Python. A dotted `type` is imported, so what a file brings has to pass
            `a2mim.engine.recalled.refuse_code` first.
        registry: the table of parts.
        default_args: below those of `cfg`.
    """
    arguments = {**(default_args or {}), **cfg}
    name = arguments.pop("type", None)
    if name is None:
        raise ValueError(f"a part needs the name of its kind under 'type', such as dict(type='BlockMask'); given {cfg}")
    part = find_part(name, registry)
    if part is None:
        raise ValueError(f"type={name!r} is not a part of a2mim{nearest(name, registry.module_dict)}")
    signature = inspect.signature(part)
    for key in arguments:
        if key not in signature.parameters:
            known = nearest(key, signature.parameters) if signature.parameters else "; it takes none"
            raise ValueError(f"{name} has no argument {key!r}{known}")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{name} in the recipe: {error}") from error
    return part(**arguments)


def takes(function: Callable, name: str) -> bool:
    """Whether a function, an object that is called, or a class's constructor has an argument of that name."""
    if not inspect.isclass(function):
        function = getattr(function, "forward", function)  # a module's own call tells nothing
    return name in inspect.signature(function).parameters


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite int or float; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number of at least `least`; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_whole(part: str, least: int = 1, **given: object) -> None:
    """Raises ValueError for an argument of a part that is no whole number of at least `least`."""
    for name, value in given.items():
        if not is_whole(value, least):
            raise ValueError(f"{part}: {name}={value!r} must be a whole number of at least {least}")


def check_number(part: str, least: float = 0, most: float = math.inf, above: bool = False, **given: object) -> None:
    """Raises ValueError for an argument of a part that is no number from `least` to `most`.

    Args:
        above: whether `least` itself is refused.
    """
    for name, value in given.items():
        if not is_number(value) or not least <= value <= most or (above and value == least):
            bound = f"above {least:g}" if above else f"of at least {least:g}"
            limit = f" and at most {most:g}" if most < math.inf else ""
            raise ValueError(f"{part}: {name}={value!r} must be a number {bound}{limit}")


def check_size(part: str, img_size: object) -> None:
    """Raises ValueError for an image's size that is neither None, a whole number of pixels, nor (height, width)."""
    pair = isinstance(img_size, list | tuple) and len(img_size) == 2 and all(map(is_whole, img_size))
    if not (img_size is None or is_whole(img_size) or pair):
        raise ValueError(f"{part}: img_size={img_size!r} must be a number of pixels, or (height, width)")


def check_names(part: str, **given: object) -> None:
    """Raises ValueError for an argument of a part that is neither a name nor a list of names."""
    for name, value in given.items():
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(one, str) for one in names):
            raise ValueError(f"{part}: {name}={value!r} must be the name of a module, several of them, or 'auto'")


def lookup(name: str, table: dict, what: str):
    """table[name], or ValueError with the nearest names. what: the argument that held the name."""
    if name not in table:
        raise ValueError(f"{what}={name!r} is not known{nearest(name, table)}")
    return table[name]


def find_registered(name: object, registry: Registry) -> Any:
    """The part of that name in a registry or its parents, or None. Nothing is imported but a2mim's own parts."""
    registry.import_from_location()
    place: Registry | None = registry
    while place is not None:
        if isinstance(name, str) and name.removeprefix(f"{place.scope}.") in place.module_dict:
            return place.module_dict[name.removeprefix(f"{place.scope}.")]
        place = place.parent
    return None


def find_part(name: object, registry: Registry) -> Any:
    """The part of that name: a registered one, or else what a dotted path names, which is imported. A class or function
    in place of a name is the part itself.

    mmengine's own look-up imports any name, with or without a dot, and for "a.b" the module "a.registry".
    """
    found = name if callable(name) else find_registered(name, registry)
    if found is not None or not (isinstance(name, str) and "." in name):
        return found
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):  # a class may stand inside another
        module = ".".join(parts[:cut])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if f"{module}.".startswith(f"{error.name}."):
                continue
            raise ValueError(f"type={name!r} cannot be imported: {error}") from error  # something that it needs
        for part in parts[cut:]:
            found = getattr(found, part, None)
        return found
    return None


# the modules that register parts, imported when a part is first asked for
_PARTS = [f"a2mim.{module}" for module in ("decoders", "losses", "masking", "mim", "targets")]
MODELS = Registry("model", build_func=build_part, parent=roots.MODELS, scope=SCOPE, locations=_PARTS)

# mmengine's Runner asks every root registry for a child in the current scope, and warns if there is none.
_OTHERS = {
    name: Registry(root.name, parent=root, scope=SCOPE)
    for name, root in vars(roots).items()
    if isinstance(root, Registry) and name != "MODELS"
}
