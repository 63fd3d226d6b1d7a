"""The mmengine scope "a2mim": parts that a config names by `type`, looked up and checked in one place."""

import inspect

from mmengine import registry as roots
from mmengine.registry import Registry

from a2mim.names import nearest

SCOPE = "a2mim"


def build_part(cfg: dict, registry: Registry, default_args: dict | None = None):
    """Builds `cfg["type"]` with the other keys as arguments. ValueError, with the nearest names, for a wrong one."""
    arguments = {**(default_args or {}), **cfg}
    name = arguments.pop("type", None)
    part = registry.get(name) if name else None
    if part is None:
        raise ValueError(f"type={name!r} is not a part of a2mim{nearest(name, registry.module_dict)}")
    signature = inspect.signature(part)
    for key in arguments:
        if key not in signature.parameters:
            raise ValueError(f"{name} has no argument {key!r}{nearest(key, signature.parameters)}")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{name} in the recipe: {error}") from error
    return part(**arguments)


# modules that register parts; they are imported when a part is first needed
_PARTS = [f"a2mim.{module}" for module in ("decoders", "losses", "masking", "mim", "targets")]
MODELS = Registry("model", build_func=build_part, parent=roots.MODELS, scope=SCOPE, locations=_PARTS)

# mmengine's Runner asks every root registry for a child in the current scope, and warns if there is none.
_OTHERS = {
    name: Registry(root.name, parent=root, scope=SCOPE)
    for name, root in vars(roots).items()
    if isinstance(root, Registry) and name != "MODELS"
}
