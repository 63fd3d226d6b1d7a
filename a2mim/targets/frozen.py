"""Features of a trained network that stays as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.encoder import MaskedEncoder
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD
from a2mim.registry import MODELS
from a2mim.targets.cells import NORMS, blend, target_grid
from a2mim.targets.held import Held
from a2mim.weights.loading import initialise
from a2mim.weights.sources import read_source


@MODELS.register_module()
class FrozenFeatures(Held):
    """Feature maps of a frozen teacher, which sees the whole image.

    The teacher gets the image in its own normalisation. Its map is normalised in float32 (`norm`) and brought to cells
    of `stride` pixels: finer cells are averaged, coarser ones repeated, and the result is normalised again. Where
    `stride` is None it follows from teacher and student: see `a2mim.targets.cells.target_grid`.

    Args:
        source: the teacher, as `a2mim.weights.loading.load_encoder` takes it: a run, an exported folder, NAME:FILE,
            NAME:pretrained, or a name alone, which is a network with random weights.
        maps: modules whose outputs are averaged, see `MaskedEncoder`; "auto" is the last map.
        norm: "layer", "instance" or "none" (the raw features, for a cosine loss).
        stride: pixels of the student's image per target cell; None chooses.
        img_size: pixels of the image that the teacher sees, a side or (H, W); None chooses.
        allow_partial: see `load_encoder`.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load_encoder`; or teacher and student have no common grid.

    Source: LayerNorm without parameters and smooth L1 need no tuning between teachers: MaskDistill,
        https://arxiv.org/abs/2205.09616.
    """

    def __init__(
        self,
        source: str | Path,
        maps: str | Sequence[str] = "auto",
        norm: str = "layer",
        stride: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        allow_partial: bool = False,
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"FrozenFeatures: norm={norm!r} is not one of {', '.join(map(repr, NORMS))}")
        self.source, self.maps, self.norm, self.allow_partial = source, maps, norm, allow_partial
        self.asked_stride, self.asked_size = stride, (img_size, img_size) if isinstance(img_size, int) else img_size
        self.found = read_source(source)
        pixels = self.found.preprocessing
        self.own_mean, self.own_std = (pixels.mean, pixels.std) if pixels else (IMAGENET_MEAN, IMAGENET_STD)
        self.mean, self.std = self.own_mean, self.own_std
        self.seen: tuple[int, int] | None = None  # (H, W) of the student's image
        self._stride = stride

    @property
    def teacher(self) -> MaskedEncoder:
        """The network; built at the source's own size where `attach` has not built it."""
        if self.held("teacher") is None:
            self._build(self.asked_size, len(self.mean))
        return cast(MaskedEncoder, self.held("teacher"))

    @property
    def channels(self) -> int:
        """Width of the teacher's maps."""
        return self.teacher.channels[-1]

    @property
    def stride(self) -> int:
        """Pixels of the student's image per cell."""
        return self._stride or int(self.teacher.strides[-1])

    def attach(self, encoder, mean, std) -> None:
        """Chooses the grid, and builds the teacher for the student's image."""
        if self.seen == tuple(encoder.img_size):
            return
        self.mean, self.std, self.seen = tuple(mean), tuple(std), tuple(encoder.img_size)
        self.own_mean, self.own_std = (_as_many(v, len(mean)) for v in (self.own_mean, self.own_std))
        with torch.device("meta"):
            own = self._encoder(None, len(mean)).strides[-1]
        if self.asked_size is None:
            stride, size = target_grid(self.seen, own, max(encoder.strides))
        else:
            size = (self.asked_size[0], self.asked_size[1])
            stride = target_grid(self.seen, own * self.seen[0] / size[0], max(encoder.strides))[0]
        self._stride = self.asked_stride or stride
        self._build(size, len(mean))

    def _encoder(self, size: tuple[int, int] | None, in_chans: int) -> MaskedEncoder:
        arguments = {k: v for k, v in self.found.model_args.items() if k not in ("img_size", "in_chans")}
        own = self.found.preprocessing
        side = size or (own.img_size if own else None)
        img_size = (side[0], side[1]) if side else None
        with torch.enable_grad():
            return MaskedEncoder(
                self.found.name,
                img_size=img_size,
                in_chans=in_chans,
                maps=self.maps,
                model_args=arguments,
            )

    def _build(self, size: tuple[int, int] | None, in_chans: int) -> None:
        encoder = self._encoder(size, in_chans)
        widths = set(encoder.channels)
        if len(widths) > 1 and self.maps != "auto":
            raise ValueError(
                f"FrozenFeatures: maps of {sorted(widths)} channels cannot be averaged; name maps of one width"
            )
        if self.found.tensors is not None:
            initialise(encoder.model, encoder.model_args, self.source, self.allow_partial)
        self.hold("teacher", encoder)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, channels, H / stride, W / stride) float32."""
        teacher = self.teacher
        height, width = images.shape[-2:]
        maps = teacher(self._for_teacher(images, teacher.img_size))
        maps = [one for one in maps if one.shape[1] == self.channels]
        return blend(maps, (height // self.stride, width // self.stride), self.norm)

    def _for_teacher(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """In the teacher's normalisation and size."""
        if (self.mean, self.std) != (self.own_mean, self.own_std):
            mean, std, own_mean, own_std = (
                torch.tensor(v, device=images.device).view(-1, 1, 1)
                for v in (self.mean, self.std, self.own_mean, self.own_std)
            )
            images = images * (std / own_std) + (mean - own_mean) / own_std
        if tuple(images.shape[-2:]) != tuple(size):
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        return images


def _as_many(values, channels: int) -> tuple[float, ...]:
    """One value a channel: their average where there are fewer or more."""
    values = tuple(values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels
