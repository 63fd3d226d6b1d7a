"""MAE and SimMIM of this project beside others' steps of the same methods: LightlySSL's, else a plain loop in torch.

Both take turns on the same batch in bf16, eager. The plain models are made of timm's blocks and do what the methods'
papers ask for and no more: https://arxiv.org/abs/2111.06377 and https://arxiv.org/abs/2111.09886.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD
from a2mim.text import first_line

from .isolation import Findings
from .scale import Scale
from .steps import Step, alternate, forget, host_batch, recipe_of, warm, whole_step

HIDDEN = {"mae": 0.75, "simmim": 0.6}


def run(scale: Scale, findings: Findings) -> None:
    """Each method beside LightlySSL's where that is installed and works, else beside the plain loop."""
    torch.set_float32_matmul_precision("high")
    for method in HIDDEN:
        makers: dict[str, Callable[[str, Scale], nn.Module]] = {"plain torch": plain}
        if find_spec("lightly"):
            makers = {"LightlySSL": lightly} | makers
        for rival, maker in makers.items():
            try:
                findings.add(f"{method} beside {rival}", **compare(method, maker, scale))
                break
            except Exception as error:
                said = f"{type(error).__name__}: {first_line(error)}"
                findings.add(f"{method} beside {rival}", error=said, good=rival == "LightlySSL")
            forget(scale.where)


def compare(method: str, maker: Callable[[str, Scale], nn.Module], scale: Scale) -> dict:
    """Images per second of both, and how much longer our step takes."""
    device, batch = scale.where, scale.batch // 2 or 1
    forget(device)
    small: dict[str, Any] = {"embed_dim": 32, "depth": 1, "num_heads": 2} if scale.dry else {}
    changes = {f"model.decoder.{key}": value for key, value in small.items()} if method == "mae" else {}
    changes |= {"model.masking.mask_ratio": HIDDEN[method]}
    network = replace(scale.rival, recipe=f"{method}_vit_base")
    cell = 16 if method == "mae" else scale.cell
    settings = recipe_of(network, scale.px, cell, **changes)
    ours, _ = whole_step(settings, scale, batch, "bf16", torch.contiguous_format, "eager")
    theirs = rival_step(maker(method, scale).to(device).train(), method, scale, batch)
    for step in (ours, theirs):
        warm(step, device)
    our_s, their_s, ratio = alternate(ours, theirs, scale.steps, device)
    return {
        "batch": batch,
        "images_per_s": round(batch / our_s, 1),
        "their_images_per_s": round(batch / their_s, 1),
        "ours_over_theirs": round(ratio, 3),
    }


def rival_step(model: nn.Module, method: str, scale: Scale, batch: int) -> Step:
    """The usual loop: images to the device, normalised; forward, backward and fused AdamW."""
    device = scale.where
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-4, weight_decay=0.05, fused=True)
    host = host_batch(batch, scale.px, device)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    loss_of = functional.mse_loss if method == "mae" else functional.l1_loss

    def step() -> None:
        images = (host.to(device, non_blocking=True).float() / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16):
            guess, truth = model(images)
            loss = loss_of(guess.float(), truth)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def backbone(scale: Scale) -> nn.Module:
    """The ViT of both sides."""
    return timm.create_model(scale.rival.name, num_classes=0, **scale.rival.bare_arguments(scale.px))


def decoder_sizes(scale: Scale) -> dict[str, int]:
    """MAE's decoder: width, blocks and heads."""
    return {"width": 32, "depth": 1, "heads": 2} if scale.dry else {"width": 512, "depth": 8, "heads": 16}


def plain(method: str, scale: Scale) -> nn.Module:
    """The method in plain torch."""
    vit = backbone(scale)
    return PlainMAE(vit, **decoder_sizes(scale)) if method == "mae" else PlainSimMIM(vit)


class PlainMAE(nn.Module):
    """Hidden patches leave the sequence; a narrow transformer rebuilds their pixels. Images -> (guess, truth)."""

    def __init__(self, vit: Any, width: int, depth: int, heads: int):
        super().__init__()
        self.vit, self.side = vit, vit.patch_embed.patch_size[0]
        cells = vit.patch_embed.num_patches
        self.keep = cells - round(HIDDEN["mae"] * cells)
        self.narrow = nn.Linear(vit.embed_dim, width)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, cells + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * self.side**2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vit, x = self.vit, self.vit.patch_embed(images) + self.vit.pos_embed[:, 1:]
        order = torch.rand(x.shape[:2], device=x.device).argsort(1)
        shown, hidden = order[:, : self.keep, None], order[:, self.keep :, None]
        first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, x.gather(1, shown.expand(-1, -1, x.shape[-1]))], 1)
        x = self.narrow(vit.norm(vit.blocks(x)))
        width = x.shape[-1]
        cells = self.token.to(x.dtype).repeat(len(x), order.shape[1], 1)
        cells = cells.scatter(1, shown.expand(-1, -1, width), x[:, 1:])
        guess = self.head(self.blocks(torch.cat([x[:, :1], cells], 1) + self.places)[:, 1:])
        truth = patches_of(images, self.side)
        truth = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
        return tuple(v.gather(1, hidden.expand(-1, -1, v.shape[-1])) for v in (guess, truth))  # type: ignore[return-value]


class PlainSimMIM(nn.Module):
    """A token replaces hidden patches; one linear layer gives their pixels. Images -> (guess, truth)."""

    def __init__(self, vit: Any):
        super().__init__()
        self.vit, self.side = vit, vit.patch_embed.patch_size[0]
        self.token = nn.Parameter(torch.zeros(1, 1, vit.embed_dim))
        self.head = nn.Linear(vit.embed_dim, 3 * self.side**2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vit, x = self.vit, self.vit.patch_embed(images)
        hidden = torch.rand(x.shape[:2], device=x.device).argsort(1) < round(HIDDEN["simmim"] * x.shape[1])
        x = torch.where(hidden[..., None], self.token.to(x.dtype), x)
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
        guess, seen = self.head(vit.norm(vit.blocks(x))[:, 1:]), hidden[..., None]
        return guess * seen, patches_of(images, self.side) * seen


def patches_of(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) -> (B, cells, 3 side²)."""
    return functional.unfold(images, side, stride=side).transpose(1, 2)


def lightly(method: str, scale: Scale) -> nn.Module:
    """The method from LightlySSL's modules."""
    vit = backbone(scale)
    if method == "mae":
        return LightlyMAE(vit, **decoder_sizes(scale))
    return LightlySimMIM(vit)


class LightlySimMIM(nn.Module):
    """SimMIM from LightlySSL's masked ViT. Images -> (guess, truth)."""

    method = "simmim"

    def __init__(self, vit: Any):
        from lightly.models import utils  # an optional package, installed or not
        from lightly.models.modules import MaskedVisionTransformerTIMM

        super().__init__()
        self.utils, self.encoder = utils, MaskedVisionTransformerTIMM(vit=vit)
        self.side, self.length = vit.patch_embed.patch_size[0], self.encoder.sequence_length
        self.head: nn.Module = nn.Linear(vit.embed_dim, 3 * self.side**2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size, share = (len(images), self.length), HIDDEN[self.method]
        shown, hidden = self.utils.random_token_mask(size=size, mask_ratio=share, device=images.device)
        truth = self.utils.get_at_index(self.utils.patchify(images, self.side), hidden - 1)
        return self.guess(images, shown, hidden), truth

    def guess(self, images: Tensor, shown: Tensor, hidden: Tensor) -> Tensor:
        """The pixels of hidden patches. shown, hidden: indices of tokens, the class token is number 0."""
        return self.head(self.utils.get_at_index(self.encoder.encode(images=images, idx_mask=hidden), hidden))


class LightlyMAE(LightlySimMIM):
    """MAE from LightlySSL's masked ViT and its decoder."""

    method = "mae"

    def __init__(self, vit: Any, width: int, depth: int, heads: int):
        from lightly.models.modules import MAEDecoderTIMM  # optional, as above

        super().__init__(vit)
        self.head = MAEDecoderTIMM(
            num_patches=vit.patch_embed.num_patches,
            patch_size=self.side,
            embed_dim=vit.embed_dim,
            decoder_embed_dim=width,
            decoder_depth=depth,
            decoder_num_heads=heads,
        )

    def guess(self, images: Tensor, shown: Tensor, hidden: Tensor) -> Tensor:
        seen = self.head.embed(self.encoder.encode(images=images, idx_keep=shown))
        tokens = self.utils.repeat_token(self.head.mask_token, (len(images), self.length)).to(seen.dtype)
        whole = self.head.decode(self.utils.set_at_index(tokens, shown, seen))
        return self.head.predict(self.utils.get_at_index(whole, hidden))
