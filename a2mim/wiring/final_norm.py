"""The final norm of transformers that timm builds with average pooling, for the tokens of a masked image.

Such a network norms what it has pooled (`fc_norm`), and its `norm` is an Identity. So its tokens leave the last block
without a norm, and no loss on the map would reach `fc_norm`. Pre-training wants the tokens normed: MAE, BEiT and SimMIM
have a LayerNorm there.
"""

from torch import Tensor, nn

from a2mim.wiring.layout import leaves, replace_leaves
from a2mim.wiring.networks import OwnNetwork
from a2mim.wiring.sites import FeatureMaps

NAME, PLACES = "fc_norm", ("", "norm")  # the norm after the pooling; the modules whose output is that of `norm`


def lack_norm(model: nn.Module, maps: list[FeatureMaps]) -> tuple[bool, ...]:
    """For each module whose output is decoded, whether its tokens lack a norm that the network has: timm's `norm` is an
    Identity, the output is what it hands on, and there is an `fc_norm`.
    """
    norm, pooled = (getattr(model, name, None) for name in ("norm", NAME))
    missing = isinstance(norm, nn.Identity) and isinstance(pooled, nn.Module) and not isinstance(pooled, nn.Identity)
    lacks = missing and not isinstance(model, OwnNetwork)
    return tuple(lacks and one.module in PLACES and _are_tokens(one) for one in maps)


def _are_tokens(maps: FeatureMaps) -> bool:
    return all(layout.channel == 2 and len(layout.positions) == 1 for layout in maps.layouts.values())


def normed(output, norm: nn.Module, maps: FeatureMaps):
    """The output of a module, in which the tokens (B, N, D) of its maps, class and register tokens included, are
    normed.
    """
    tokens: dict[tuple, Tensor] = dict(leaves(output))
    return replace_leaves(output, {path: norm(tokens[path]) for path in maps.layouts})
