"""Many linear classifiers, one learning rate each, trained in one pass over the same features.

Both kinds answer to `step` and `logits`.
"""

import torch
from timm.optim import Lars
from torch import Tensor, nn

MOMENTUM = 0.9


def ranks_of(logits: Tensor, targets: Tensor) -> Tensor:
    """(H, C, B) scores and (B,) targets -> (B, H) int64, on the CPU: how many classes score above the true one.

    A target of -1 (a class that training did not have) ranks after all of them; so does every target of a head whose
    scores are not finite.
    """
    targets = targets.to(logits.device).expand(len(logits), 1, -1)
    above = (~(logits <= logits.gather(1, targets.clamp(min=0)))).sum(dim=1)
    return torch.where(targets[:, 0] >= 0, above, logits.shape[1] + 5).T.cpu()


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """(H, C, B) scores and (B,) targets -> (H,) mean cross-entropies, on the CPU; infinite where a head has
    diverged.
    """
    log_likelihood = logits.log_softmax(dim=1)
    targets = targets.to(log_likelihood.device).expand(len(log_likelihood), 1, -1)
    return -log_likelihood.gather(1, targets).mean(dim=(1, 2)).nan_to_num(-torch.inf).cpu()


class LinearHeads:
    """H softmax classifiers under SGD, momentum 0.9, no weight decay; weights start N(0, 0.01), alike in all, biases 0.

    The heads are stacked into one tall matrix, and the gradient of softmax regression is written out: a step of all is
    two matrix products, without autograd. Images come last in every product: a softmax over few classes is five times
    faster when it runs down the columns.

    Args:
        lrs: (H,) peak learning rates.
        dim, n_classes: of the features and the targets.
        seed: of the initial weights.
        device: where the features are.
    """

    def __init__(self, lrs, dim: int, n_classes: int, seed: int = 0, device="cpu"):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(n_classes, dim, generator=generator) * 0.01
        self.n_classes = n_classes
        self.lrs = torch.as_tensor(lrs, dtype=torch.float32, device=device)[:, None, None]
        self.weight = start.to(device).repeat(len(self.lrs), 1, 1)  # (H, C, D)
        self.bias = torch.zeros(len(self.lrs), n_classes, 1, device=device)
        self._velocity = [torch.zeros_like(self.weight), torch.zeros_like(self.bias)]

    def step(self, features: Tensor, targets: Tensor, factor: float) -> None:
        """One SGD step of every head on features (B, D), targets (B,) in 0..C-1, at `factor` times its peak rate."""
        error = self.logits(features).softmax(dim=1)
        error[:, targets, torch.arange(len(targets), device=targets.device)] -= 1
        error /= len(targets)
        gradients = (error.flatten(0, 1) @ features).view_as(self.weight), error.sum(dim=2, keepdim=True)
        for value, velocity, gradient in zip((self.weight, self.bias), self._velocity, gradients, strict=True):
            velocity.mul_(MOMENTUM).add_(gradient)
            value.addcmul_(velocity, self.lrs, value=-factor)

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (H, C, B)."""
        products = self.weight.flatten(0, 1) @ features.to(self.weight.device).T
        return products.view(*self.weight.shape[:2], -1) + self.bias

    def ranks(self, features: Tensor, targets: Tensor) -> Tensor:
        """See `ranks_of`."""
        return ranks_of(self.logits(features), targets)

    def losses(self, features: Tensor, targets: Tensor) -> Tensor:
        """See `losses_of`."""
        return losses_of(self.logits(features), targets)


class LarsHeads:
    """H softmax classifiers on batch-normalised features (no affine parameters), under LARS: MAE's linear probe.

    Weights start from a truncated normal, alike in all, biases 0. Only weights are adapted by their norm.

    Args:
        lrs: (H,) peak learning rates.
        dim, n_classes: of the features and the targets.
        constants: "trust_coefficient", "momentum", "batchnorm_eps" and "init_std" of the protocol.
        seed: of the initial weights.

    Source: https://github.com/facebookresearch/mae, main_linprobe.py and util/lars.py; the optimiser is timm's.
    """

    def __init__(self, lrs, dim: int, n_classes: int, constants: dict, seed: int = 0, device="cpu"):
        generator = torch.Generator().manual_seed(seed)
        start = nn.init.trunc_normal_(torch.empty(n_classes, dim), std=constants["init_std"], generator=generator)
        self.lrs, self.n_classes = list(lrs), n_classes
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=constants["batchnorm_eps"]).to(device)
        self.weights = [nn.Parameter(start.to(device).clone()) for _ in self.lrs]
        self.biases = [nn.Parameter(torch.zeros(n_classes, device=device)) for _ in self.lrs]
        groups = [{"params": [p], "always_adapt": True} for p in self.weights]
        groups += [{"params": [p], "always_adapt": False} for p in self.biases]
        trust, momentum = constants["trust_coefficient"], constants["momentum"]
        self.optimizer = Lars(groups, lr=0.0, momentum=momentum, trust_coeff=trust, eps=0.0)

    @torch.enable_grad()
    def step(self, features: Tensor, targets: Tensor, factor: float) -> None:
        """One step of every head on features (B, D), targets (B,) in 0..C-1, at `factor` times its peak rate."""
        if len(features) < 2:  # one image, left over by a pass, has no deviation; the original drops a short batch
            return
        for group, lr in zip(self.optimizer.param_groups, [*self.lrs, *self.lrs], strict=True):
            group["lr"] = factor * lr
        self.optimizer.zero_grad()
        normal = self.norm.train()(features)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            nn.functional.cross_entropy(nn.functional.linear(normal, weight, bias), targets).backward()
        self.optimizer.step()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (H, C, B)."""
        normal = self.norm.eval()(features.to(self.weights[0].device))
        heads = zip(self.weights, self.biases, strict=True)
        return torch.stack([nn.functional.linear(normal, weight, bias).T for weight, bias in heads])
