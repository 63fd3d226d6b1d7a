"""What is measured: the networks and sizes of a full run on a GPU, and those of a dry run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

TINY = {"depth": 2, "embed_dim": 64, "num_heads": 2}

# Dense peak of matrix products in TFLOP/s, (bf16, TF32), from the makers' data sheets; the first name that fits counts.
PEAKS = {
    "B200": (2250, 1125),
    "H100 PCIe": (756, 378),
    "H100": (989, 494),
    "H200": (989, 494),
    "A100": (312, 156),
    "A10G": (70, 35),
    "L40S": (362, 183),
    "L4": (121, 60),
    "RTX 4090": (165, 82.6),
    "RTX 3090": (71, 35.6),
    "MI300X": (1307, 653),
}


@dataclass(frozen=True)
class Network:
    """A backbone of timm, and the recipe whose method trains it."""

    name: str
    recipe: str
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def convolutional(self) -> bool:
        """Whether it takes images of any size, and no `img_size`."""
        return self.name.startswith("resnet")

    def bare_arguments(self, px: int) -> dict[str, Any]:
        """What timm's `create_model` takes for images of px × px."""
        return self.arguments | ({} if self.convolutional else {"img_size": px})


@dataclass(frozen=True)
class Scale:
    """Sizes of a run. px, cell: sides of an image and of a mask cell, in pixels; steps: measured steps of a row."""

    device: str
    dry: bool
    networks: tuple[Network, ...]
    parity: tuple[Network, ...]
    rival: Network
    px: int
    batch: int
    cell: int
    steps: int
    backend: str
    shard_images: int
    shard_copies: int
    image_side: tuple[int, int]

    @property
    def where(self) -> torch.device:
        """The device that is asked."""
        return torch.device(self.device)


SMALL = (
    Network("xcit_nano_12_p16_224", "a2mim_xcit"),
    Network("resnet18", "a2mim_resnet50"),
    Network("vit_tiny_patch16_224", "a2mim_xcit"),
)
TINIEST = (
    Network("xcit_nano_12_p16_224", "a2mim_xcit", TINY),
    Network("resnet10t", "a2mim_resnet50"),
    Network("vit_tiny_patch16_224", "a2mim_xcit", TINY),
)
FULL = Scale(
    device="cuda",
    dry=False,
    networks=(
        Network("xcit_small_12_p16_224", "a2mim_xcit"),
        Network("resnet50", "a2mim_resnet50"),
        Network("vit_base_patch16_224", "a2mim_xcit"),
    ),
    parity=SMALL,
    rival=Network("vit_base_patch16_224", ""),
    px=224,
    batch=256,
    cell=32,
    steps=12,
    backend="inductor",
    shard_images=2048,
    shard_copies=12,
    image_side=(500, 375),
)
DRY = Scale(
    device="cpu",
    dry=True,
    networks=TINIEST,
    parity=TINIEST[1:],
    rival=Network("vit_tiny_patch16_224", "", TINY),
    px=32,
    batch=4,
    cell=16,
    steps=3,
    backend="aot_eager",
    shard_images=32,
    shard_copies=2,
    image_side=(48, 40),
)


def peak_of(card: str, precision: str) -> float | None:
    """The card's dense peak for a precision in FLOP/s; None where the card is not in the table."""
    found = next((peaks for name, peaks in PEAKS.items() if name in card), None)
    return found[precision != "bf16"] * 1e12 if found and precision in ("bf16", "tf32") else None


def card_of(device: torch.device) -> str:
    """The name of the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
