"""Attentive probes: learned queries pool the cells of a frozen map, then a linear layer names the class.

Masked pre-training spreads what it knows over the cells, and a mean over cells hides it. An attentive probe learns
where to look. Many heads (rates, weight decays) are trained at once on the same batches, like those of `heads`.

Invariant: attention weights sum to 1, so a value projection may follow the weighted mean of the cells instead of
preceding it. The result is the same and costs N times fewer products for N cells.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn

CAPI_HEAD_DIM = 64  # channels of one attention head of CAPI's probe
_NUMBERS_AT_ONCE = 2**25  # float32 numbers of one intermediate result, in memory at once


def attend(cells: Tensor, queries: Tensor) -> Tensor:
    """Soft-max over the cells of each query's product with them: (B, N, D) and (H, Q, D), scaled -> (H, B, Q, N)."""
    scores = torch.einsum("bnd,kd->bkn", cells, queries.flatten(0, 1))
    return scores.softmax(dim=-1).unflatten(1, queries.shape[:2]).transpose(0, 1)


def pool_blocks(cells: Tensor, queries: Tensor, values: Tensor) -> Tensor:
    """Each query pools its own block of channels of the projected cells.

    Args:
        cells: (B, N, D).
        queries: (H, Q, D), already divided by the temperature.
        values: (H, E, D), E a multiple of Q: query i reads rows i·E/Q … (i+1)·E/Q - 1.

    Returns:
        (H, B, E).
    """
    means = torch.einsum("hbqn,bnd->hbqd", attend(cells, queries), cells)
    blocks = values.unflatten(1, (queries.shape[1], -1))
    return torch.einsum("hbqd,hqed->hbqe", means, blocks).flatten(2)


class EfficientProbe(nn.Module):
    """Efficient probing (EP): the cells are the keys, and each of Q queries pools one block of projected channels.

    Args:
        dim: D, channels of a cell.
        n_classes: of the output.
        n_queries: Q; must divide dim / reduction.
        reduction: d; the pooled feature has dim / d channels.

    Parameters: `query` (Q, D) ~ 0.02·N(0, 1); `value` D → D/d without bias; `norm` batch normalisation without affine
    parameters; `head` D/d → classes with bias.

    Raises:
        ValueError: Q does not divide dim / reduction.

    Source: efficient probing (https://arxiv.org/abs/2506.10178).
    """

    def __init__(self, dim: int, n_classes: int, n_queries: int = 32, reduction: int = 1):
        super().__init__()
        check_queries(dim, n_queries, reduction)
        self.query = nn.Parameter(0.02 * torch.randn(n_queries, dim))
        self.value = nn.Linear(dim, dim // reduction, bias=False)
        self.norm = nn.BatchNorm1d(dim // reduction, affine=False, eps=1e-6)
        self.head = nn.Linear(dim // reduction, n_classes)

    def attention(self, cells: Tensor) -> Tensor:
        """(B, N, D) -> (B, Q, N); every row sums to 1."""
        return attend(cells, self._queries())[0]

    def pool(self, cells: Tensor) -> Tensor:
        """(B, N, D) -> (B, D/d)."""
        return pool_blocks(cells, self._queries(), self.value.weight[None])[0]

    def forward(self, cells: Tensor) -> Tensor:
        """(B, N, D) -> (B, classes)."""
        return self.head(self.norm(self.pool(cells)))

    def _queries(self) -> Tensor:
        return self.query[None] / math.sqrt(self.query.shape[1])


class CapiProbe(nn.Module):
    """CAPI's attentive probe: one query, multi-head attention of 64 channels a head, no output projection, then linear.

    Args:
        dim: D, channels of a cell; a multiple of 64.
        n_classes: of the output.

    Parameters: `query` (D,) and all weights truncated-normal, std 0.02; biases 0. `kv` is D → 2D with bias.

    Raises:
        ValueError: dim is not a multiple of 64.

    Source: CAPI (https://arxiv.org/abs/2502.08769).
    """

    def __init__(self, dim: int, n_classes: int):
        super().__init__()
        if dim % CAPI_HEAD_DIM:
            raise ValueError(
                f"attentive-capi takes cells whose channels are a multiple of {CAPI_HEAD_DIM}, these have {dim}: choose"
                " efficient-probe"
            )
        self.n_heads = dim // CAPI_HEAD_DIM
        self.query = nn.Parameter(torch.empty(dim))
        self.kv, self.head = nn.Linear(dim, 2 * dim), nn.Linear(dim, n_classes)
        nn.init.trunc_normal_(self.query, std=0.02)
        for linear in (self.kv, self.head):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def pool(self, cells: Tensor) -> Tensor:
        """(B, N, D) -> (B, D). The keys' bias adds the same to every score of a head, so soft-max cancels it."""
        keys, values = self.kv.weight.chunk(2)
        own = self.query.view(self.n_heads, -1, 1) * keys.view(self.n_heads, -1, keys.shape[1])
        queries = own.sum(dim=1)[None] / math.sqrt(CAPI_HEAD_DIM)
        return pool_blocks(cells, queries, values[None])[0] + self.kv.bias.chunk(2)[1]

    def forward(self, cells: Tensor) -> Tensor:
        """(B, N, D) -> (B, classes)."""
        return self.head(self.pool(cells))


class AttentiveHeads:
    """Several attentive probes trained on the same batches; they start alike. Answers to `step` and `logits`.

    Args:
        lrs: (H,) peak learning rates.
        dim: D; features come as (B, N·D), cell after cell.
        n_classes: C.
        constants: of the protocol: "probe" ("efficient" or "capi"), "optimizer" ("lars" or "adamw"), "queries" and
            "reduction" of EP, "momentum" and "trust_coefficient" of LARS, "betas" and "weight_decays" of AdamW.
        seed: of the initial weights.
        device: where the heads are trained.

    With several weight decays there are H × len(weight_decays) heads, all rates of the first decay first.
    """

    def __init__(self, lrs: Sequence[float], dim: int, n_classes: int, constants: dict, seed: int = 0, device="cpu"):
        self.n_classes, self.dim = n_classes, dim
        decays = constants["weight_decays"] if constants["optimizer"] == "adamw" else [0.0]
        self.lrs = [lr for _ in decays for lr in lrs]
        self.decays = [decay for decay in decays for _ in lrs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if constants["probe"] == "efficient":
                first: nn.Module = EfficientProbe(dim, n_classes, constants["queries"], constants["reduction"])
            else:
                first = CapiProbe(dim, n_classes)
        self.probes = [copy.deepcopy(first).to(device) for _ in self.lrs]
        self.efficient, self.device = constants["probe"] == "efficient", device
        groups = [g for probe, decay in zip(self.probes, self.decays, strict=True) for g in _groups(probe, decay)]
        if constants["optimizer"] == "lars":
            options = {"momentum": constants["momentum"], "trust_coeff": constants["trust_coefficient"]}
            self.optimizer: torch.optim.Optimizer = Lars(groups, lr=0.0, eps=0.0, **options)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=tuple(constants["betas"]))

    @torch.enable_grad()
    def step(self, features: Tensor, targets: Tensor, factor: float) -> None:
        """One step of every head on features (B, N·D), targets (B,) in 0..C-1, at `factor` times its peak rate."""
        if len(features) < 2:  # batch normalisation has no deviation of one image
            return
        for group, lr in zip(self.optimizer.param_groups, [lr for lr in self.lrs for _ in range(2)], strict=True):
            group["lr"] = factor * lr
        self.optimizer.zero_grad()
        cells = self._cells(features)
        for probes in self._groups_of_probes(cells):
            log_likelihood = self._forward(cells, probes, train=True).log_softmax(dim=2)
            wanted = targets.to(self.device).expand(len(probes), -1)[:, :, None]
            (-log_likelihood.gather(2, wanted).mean(dim=(1, 2)).sum()).backward()
        self.optimizer.step()

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """(B, N·D) -> (H, C, B)."""
        rows, blocks = max(1, _NUMBERS_AT_ONCE // features.shape[1]), []
        for some in features.split(rows):
            cells = self._cells(some)
            groups = self._groups_of_probes(cells)
            blocks.append(torch.cat([self._forward(cells, probes, train=False) for probes in groups]))
        return torch.cat(blocks, dim=1).transpose(1, 2)

    @property
    def rows_at_once(self) -> int:
        """Images that are handed over together when heads are tested: their cells are large."""
        return 1024

    def _cells(self, features: Tensor) -> Tensor:
        return features.to(self.device).float().unflatten(1, (-1, self.dim))

    def _groups_of_probes(self, cells: Tensor) -> list[list]:
        """All probes, in groups whose attention weights fit into memory together."""
        probe: Any = self.probes[0]
        n_queries = probe.query.shape[0] if self.efficient else self.dim // CAPI_HEAD_DIM
        size = len(cells) * n_queries * max(cells.shape[1], self.dim)
        number = max(1, _NUMBERS_AT_ONCE // size)
        return [self.probes[i : i + number] for i in range(0, len(self.probes), number)]

    def _forward(self, cells: Tensor, probes: list, train: bool) -> Tensor:
        """(H, B, C) scores of H probes."""
        if not self.efficient:
            return torch.stack([probe.train(train)(cells) for probe in probes])
        queries = torch.stack([probe.query for probe in probes]) / math.sqrt(self.dim)
        values = torch.stack([probe.value.weight for probe in probes])
        pooled = pool_blocks(cells, queries, values)  # of these heads in the same matrix products
        return torch.stack([probe.head(probe.norm.train(train)(z)) for probe, z in zip(probes, pooled, strict=True)])


def check_queries(dim: int, n_queries: int, reduction: int) -> None:
    """Raises ValueError where EP cannot give each query its own block of channels."""
    if min(dim, n_queries, reduction) < 1 or dim % reduction or (dim // reduction) % n_queries:
        raise ValueError(
            f"{n_queries} queries do not divide {dim} channels / {reduction}: choose queries and reduction so that"
            " queries × reduction divides the channels"
        )


def fitting_queries(dim: int, wanted: int, reduction: int = 1) -> int:
    """The largest number of queries up to `wanted` that divides dim / reduction."""
    return max(q for q in range(1, wanted + 1) if (dim // reduction) % q == 0)


def _groups(probe: nn.Module, decay: float) -> list[dict]:
    """Weights, then biases: only weights decay and are adapted by their norm."""
    weights = [p for p in probe.parameters() if p.ndim > 1 or p is getattr(probe, "query", None)]
    biases = [p for p in probe.parameters() if not any(p is w for w in weights)]
    return [
        {"params": weights, "weight_decay": decay, "always_adapt": True},
        {"params": biases, "weight_decay": 0.0, "always_adapt": False},
    ]
