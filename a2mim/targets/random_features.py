"""Features of a random network that stays as it is: a target that cannot collapse and needs no download."""

from typing import Any

import torch
from torch import Tensor, nn

from a2mim.registry import MODELS
from a2mim.targets.cells import normalise
from a2mim.targets.held import Held, spread_of
from a2mim.targets.precision import full_precision

LEAST_SPREAD = 0.1  # share of a target's deviation that must lie within images


@MODELS.register_module()
class RandomFeatures(Held):
    """What a random CNN with ReLU makes of the whole image, each cell normalised over its channels.

    The first layer sees one cell each, further layers of 3 x 3 the neighbours. A single layer without ReLU would be the
    pixels in another basis; a deep random network smooths until all cells of an image look alike. So the first batch is
    looked at: at least a tenth of the target's deviation must lie within images.

    Args:
        channels: width of the target.
        depth: layers, 1 to 8.
        stride: pixels per cell; None takes the student's.
        seed: of the weights, which do not depend on the run's seed.

    Raises:
        ValueError: from the first batch, when the target hardly differs within an image.

    Source: the rule and the network are ours; the idea is that of latent targets from an untrained encoder (OlmoEarth,
        https://arxiv.org/abs/2511.13655).
    """

    def __init__(self, channels: int = 256, depth: int = 3, stride: int | None = None, seed: int = 0):
        super().__init__()
        if not 1 <= depth <= 8 or channels < 2:
            raise ValueError(f"RandomFeatures: depth={depth} must be from 1 to 8, channels={channels} at least 2")
        self.channels, self.depth, self.seed = channels, depth, seed
        self.asked_stride, self.in_chans, self.checked = stride, 3, False
        self.stride = stride or 16
        self._build()

    def attach(self, encoder, mean, std) -> None:
        """Takes the student's stride and number of channels."""
        stride = self.asked_stride or int(max(encoder.strides))
        if (stride, len(mean)) != (self.stride, self.in_chans):
            self.stride, self.in_chans = stride, len(mean)
            self._build()

    def _build(self) -> None:
        generator = torch.Generator("cpu").manual_seed(self.seed)
        layers = []
        for i in range(self.depth):
            width, kernel = (self.channels, 3) if i else (self.in_chans, self.stride)
            padding: dict[str, Any] = {"padding": 1, "padding_mode": "replicate"} if i else {}
            # on the meta device, so that torch's own initialisation draws nothing from the run's random numbers
            conv = nn.Conv2d(width, self.channels, kernel, 1 if i else kernel, bias=False, device="meta", **padding)
            gain = (2 / (width * kernel**2)) ** 0.5
            weight = torch.randn(conv.weight.shape, generator=generator, device="cpu") * gain
            conv.weight = nn.Parameter(weight.to(torch.get_default_device()))
            layers += [conv, nn.ReLU()]
        self.hold("teacher", nn.Sequential(*layers))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, channels, H / stride, W / stride) float32."""
        teacher = self.held("teacher")
        assert teacher is not None  # built with the target
        with full_precision(images):
            target = normalise(teacher(images.float()), "layer")
        if not self.checked and not target.is_meta:
            self.checked = True
            check_spread(target, type(self).__name__)
        return target


def check_spread(target: Tensor, name: str) -> None:
    """Raises ValueError for a target (B, C, h, w) that hardly differs between the cells of an image."""
    within, total = (float(value) for value in spread_of(target))
    if not within > LEAST_SPREAD * total:
        share = within / total if total else 0.0
        raise ValueError(
            f"{name}: only {share:.1%} of the target's deviation lies within images (at least {LEAST_SPREAD:.0%} is"
            " needed): the loss would fall and nothing be learned; take fewer layers, finer cells or other images"
        )
