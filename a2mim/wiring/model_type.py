"""The type of a network with timm's contract: `forward_features`, `forward_head`, `pretrained_cfg` and the rest."""

from typing import Any, TypeAlias

# timm has no type for its contract, and torch says of every attribute of a module that it is a tensor or a module.
TimmModel: TypeAlias = Any
