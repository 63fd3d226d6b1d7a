"""The learned mask token at the hidden cells of a feature map."""

import torch
from torch import Tensor

TOKEN_MODES = ("add", "replace", "scaled")


def insert_token(
    features: Tensor, token: Tensor, mask: Tensor, mode: str = "add", gamma: Tensor | None = None
) -> Tensor:
    """Inserts the mask token at the hidden cells of a feature map.

    Args:
        features: (B, D, h, w).
        token: (D,) or (1, D, 1, 1).
        mask: (B, h, w) bool, True = hidden; or float, the hidden fraction of each cell in [0, 1], which blends the two.
        mode: "add": z + token; "replace": token (SimMIM); "scaled": gamma * z + token (A²MIM's CNNs).
        gamma: as `token`; "scaled" only.

    Source: A²MIM, https://arxiv.org/abs/2205.13943.
    """
    check_mode(mode)
    if mode == "scaled" and gamma is None:
        raise ValueError('token mode "scaled" needs gamma, one factor per channel (A²MIM starts it at 1e-6).')
    factor = None if gamma is None else gamma.reshape(1, -1, 1, 1)
    return mix_token(features, token.reshape(1, -1, 1, 1), mask[:, None], mode, factor)


def mix_token(features: Tensor, token: Tensor, hidden: Tensor, mode: str, gamma: Tensor | None) -> Tensor:
    """`insert_token` in any layout. token, hidden and gamma broadcast over `features`; the result has its dtype."""
    inside = token.to(features.dtype)
    if mode == "add":
        inside = features + inside
    elif mode == "scaled":
        assert gamma is not None
        inside = features * gamma.to(features.dtype) + inside
    if hidden.dtype == torch.bool:
        return torch.where(hidden, inside, features)
    return torch.lerp(features, inside.expand_as(features), hidden.to(features.dtype))


def check_mode(mode: str) -> None:
    if mode not in TOKEN_MODES:
        raise ValueError(f"token {mode!r} is not a mode of the mask token; choose one of {', '.join(TOKEN_MODES)}.")
