"""Features of a random network that stays as it is: a target that cannot collapse and needs no download."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from a2mim.registry import MODELS, check_whole, is_whole
from a2mim.targets.cells import normalise
from a2mim.targets.held import RandomTeacher
from a2mim.targets.precision import run_teacher


@MODELS.register_module()
class RandomFeatures(RandomTeacher):
    """What a random CNN with ReLU makes of the whole image, each cell normalised over its channels.

    The first layer sees one cell each, further layers of 3 x 3 the neighbours. A single layer without ReLU would be the
    pixels in another basis; a deep random network smooths until all cells of an image look alike, see `RandomTeacher`.

    Args:
        channels: width of the target.
        depth: layers, 1 to 8.
        stride: pixels per cell; None takes the student's.
        seed: of the weights, which do not depend on the run's seed.

    Raises:
        ValueError: from the first batch, or after the first step where the step is compiled, when the target hardly
            differs within an image.

    Source: the rule and the network are ours; the idea is that of latent targets from an untrained encoder (OlmoEarth,
        https://arxiv.org/abs/2511.13655).
    """

    def __init__(self, channels: int = 256, depth: int = 3, stride: int | None = None, seed: int = 0):
        super().__init__()
        if not is_whole(depth) or depth > 8:
            raise ValueError(f"RandomFeatures: depth={depth!r} must be a whole number from 1 to 8")
        check_whole("RandomFeatures", 2, channels=channels)
        check_whole("RandomFeatures", 0, seed=seed)
        if stride is not None:
            check_whole("RandomFeatures", stride=stride)
        self.channels, self.depth, self.seed = channels, depth, seed
        self.asked_stride, self.in_chans = stride, 3
        self.stride = stride or 16
        self._build()

    def attach(self, encoder, mean, std) -> None:
        """Takes the student's stride and number of channels; the next batch is looked at."""
        self.look_again()
        stride = self.asked_stride or int(max(encoder.strides))
        if (stride, len(mean)) != (self.stride, self.in_chans):
            self.stride, self.in_chans = stride, len(mean)
            device = next(cast(nn.Module, self.held("teacher")).parameters()).device
            self._build().to(device)

    def _build(self) -> nn.Module:
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
        return self.hold("teacher", nn.Sequential(*layers))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, channels, H / stride, W / stride) float32."""
        teacher = self.held("teacher")
        assert teacher is not None  # built with the target
        return self.look(normalise(run_teacher(teacher, images), "layer"))
