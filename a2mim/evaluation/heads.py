"""Many linear classifiers, one learning rate each, trained in one pass over the same features."""

import torch
from einops import einsum
from torch import Tensor

MOMENTUM = 0.9


class LinearHeads:
    """H softmax classifiers under SGD, momentum 0.9, no weight decay; weights start N(0, 0.01), alike in all, biases 0.

    The gradient of softmax regression is written out: H heads are three batched products a step, without autograd.

    Args:
        lrs: (H,) peak learning rates.
        dim, n_classes: of the features and the targets.
        seed: of the initial weights.
        device: where the features are.
    """

    def __init__(self, lrs, dim: int, n_classes: int, seed: int = 0, device="cpu"):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(dim, n_classes, generator=generator) * 0.01
        self.lrs = torch.as_tensor(lrs, dtype=torch.float32, device=device)[:, None, None]
        self.weight = start.to(device).repeat(len(self.lrs), 1, 1)
        self.bias = torch.zeros(len(self.lrs), 1, n_classes, device=device)
        self._velocity = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    def step(self, features: Tensor, targets: Tensor, factor: float) -> None:
        """One SGD step of every head on features (B, D), targets (B,) in 0..C-1, at `factor` times its peak rate."""
        error = self.logits(features).softmax(dim=-1)
        error[:, torch.arange(len(targets)), targets] -= 1
        error /= len(targets)
        gradients = einsum(features, error, "b d, h b c -> h d c"), error.sum(dim=1, keepdim=True)
        for value, velocity, gradient in zip((self.weight, self.bias), self._velocity, gradients, strict=True):
            velocity.mul_(MOMENTUM).add_(gradient)
            value.addcmul_(self.lrs, velocity, value=-factor)

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (H, B, C)."""
        return einsum(features, self.weight, "b d, h d c -> h b c") + self.bias

    def ranks(self, features: Tensor, targets: Tensor) -> Tensor:
        """(H, B) int64: how many classes score above the true one; targets outside 0..C-1 are never reached."""
        logits = self.logits(features)
        known = (targets >= 0) & (targets < logits.shape[-1])
        own = logits[:, torch.arange(len(targets)), torch.where(known, targets, 0)][..., None]
        rank = (logits > own).sum(dim=-1)
        return torch.where(known, rank, logits.shape[-1] + 5)

    def losses(self, features: Tensor, targets: Tensor) -> Tensor:
        """(H,) mean cross-entropies."""
        picked = self.logits(features).log_softmax(dim=-1)[:, torch.arange(len(targets)), targets]
        return -picked.mean(dim=1)
