"""One mmengine scope, "a2mim", with a child of every root registry.

A root without a child in our scope makes mmengine warn once for each of them.
"""

from mmengine import registry as roots
from mmengine.registry import Registry

SCOPE = "a2mim"


def _child(name: str, location: str) -> Registry:
    return Registry(name.lower(), parent=getattr(roots, name), scope=SCOPE, locations=[location])
