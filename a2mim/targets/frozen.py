"""Features of a trained network that stays as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from a2mim.encoder import MaskedEncoder
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD
from a2mim.registry import MODELS, check_names, check_whole
from a2mim.targets.cells import NORMS, blend, plain_size, target_grid, unsquashed
from a2mim.targets.held import RandomTeacher
from a2mim.targets.precision import run_teacher
from a2mim.weights.loading import describe_report, initialise
from a2mim.weights.records import LoadReport
from a2mim.weights.sources import read_source


@MODELS.register_module()
class FrozenFeatures(RandomTeacher):
    """Feature maps of a frozen teacher, which sees the whole image.

    The teacher gets the image in its own normalisation and computes in float32, whatever the run's amp. Its map is
    normalised (`norm`) and brought to cells of `stride` pixels: finer cells are averaged, coarser ones repeated, and
    the result is normalised again. Where `stride` is None it follows from teacher and student: see
    `a2mim.targets.cells.target_grid`.

    Args:
        source: the teacher, as `a2mim.weights.loading.load_encoder` takes it: a run, an exported folder, NAME:FILE,
            NAME:pretrained, or a name alone, which is a network with random weights (see `RandomTeacher`).
        maps: modules whose outputs are averaged, see `MaskedEncoder`; "auto" is the last map.
        norm: "layer", "instance" or "none" (the raw features, for a cosine loss).
        stride: pixels of the student's image per target cell; None chooses.
        img_size: pixels of the image that the teacher sees: the shorter side, or (H, W) of the student's shape; None
            chooses.
        allow_partial: see `load_encoder`.

    Raises:
        FileNotFoundError, OSError, ValueError: as `load_encoder`; or teacher and student have no common grid, or the
            image would lose its shape; or a teacher with random weights makes all cells of an image alike.

    Source: LayerNorm without parameters and smooth L1 need no tuning between teachers: MaskDistill,
        https://arxiv.org/abs/2205.09616.
    """

    factor: Tensor  # to the teacher's normalisation: images * factor + shift
    shift: Tensor

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
        if stride is not None:
            check_whole("FrozenFeatures", stride=stride)
        check_names("FrozenFeatures", maps=maps)
        self.source, self.maps, self.norm, self.allow_partial = source, maps, norm, allow_partial
        self.asked_stride, self.asked_size = stride, plain_size("FrozenFeatures", img_size)
        self.found = read_source(source)
        pixels = self.found.preprocessing
        self.own_mean, self.own_std = (pixels.mean, pixels.std) if pixels else (IMAGENET_MEAN, IMAGENET_STD)
        self.normalise_as(self.own_mean, self.own_std)
        self.report: LoadReport | None = None  # of the weights; None: they are random, or not loaded yet
        self.attached: tuple | None = None  # image size, stride and normalisation of the student
        self._stride = stride

    @property
    def teacher(self) -> MaskedEncoder:
        """The network; built at the source's own size where `attach` has not built it."""
        if self.held("teacher") is None:
            size = self.asked_size
            self._build((size, size) if isinstance(size, int) else size, len(self.mean))
        return cast(MaskedEncoder, self.held("teacher"))

    @property
    def channels(self) -> int:
        """Width of the teacher's maps."""
        return self.teacher.channels[-1]

    def describe(self) -> str:
        """The teacher in one line: its size, and where its weights come from."""
        name, (height, width) = self.found.name, self.teacher.img_size
        told = f"random weights, as a name alone has; {name}:FILE, or timm's {name}:pretrained, has trained ones"
        return f"{self.source} at {height}x{width} px, {describe_report(self.report) if self.report else told}"

    @property
    def stride(self) -> int:
        """Pixels of the student's image per cell."""
        return self._stride or int(self.teacher.strides[-1])

    def attach(self, encoder, mean, std) -> None:
        """Chooses the grid, and builds the teacher for the student's image; once for each student."""
        image, cell = tuple(encoder.img_size), max(encoder.strides)
        student = image, cell, tuple(mean), tuple(std)
        if self.attached == student:
            return
        with torch.device("meta"):
            own = self._encoder(None, len(mean)).strides[-1]
        size, stride = self._fit(image, own, cell)
        self.attached = None
        self._build(size, len(mean))
        cells, wanted = self.teacher.outputs[-1].layout.grid, (image[0] // stride, image[1] // stride)
        if not (_divides(cells, wanted) or _divides(wanted, cells)):
            raise ValueError(
                f"FrozenFeatures: the teacher has {cells[0]}x{cells[1]} cells at {size[0]}x{size[1]} pixels, and the"
                f" target {wanted[0]}x{wanted[1]} of {stride} px, which neither divide nor hold them; choose another"
                " img_size or stride"
            )
        self._stride = stride
        self.normalise_as(mean, std)
        self.attached = student
        self.look_again()

    def _fit(self, image: tuple[int, int], own: float, cell: float) -> tuple[tuple[int, int], int]:
        """(size (H, W) at which the teacher sees the image, pixels of the student's image per target cell).

        Args:
            own, cell: pixels per cell of the teacher, and of the student.
        """
        if self.asked_size is None:
            stride, size = target_grid(image, own, cell)
            return size, self.asked_stride or stride
        size = unsquashed(self.asked_size, image)
        return size, self.asked_stride or target_grid(image, own * image[0] / size[0], cell)[0]

    def normalise_as(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Takes the normalisation of the images that `forward` gets: one mean and deviation a channel."""
        self.mean, self.std = tuple(mean), tuple(std)
        own_mean, own_std = (_as_many(values, len(self.mean)) for values in (self.own_mean, self.own_std))
        self.same_pixels = (self.mean, self.std) == (own_mean, own_std)
        device = self.factor.device if "factor" in self._buffers else None
        given, deviation, own, own_deviation = (
            torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std, own_mean, own_std)
        )
        # buffers, so that they travel to a device once, with the target
        self.register_buffer("factor", deviation / own_deviation, persistent=False)
        self.register_buffer("shift", (given - own) / own_deviation, persistent=False)

    def _encoder(self, size: tuple[int, int] | None, in_chans: int) -> MaskedEncoder:
        arguments = {k: v for k, v in self.found.model_args.items() if k not in ("img_size", "in_chans")}
        pixels = self.found.preprocessing
        side = size or (pixels.img_size if pixels else None)
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
            self.report = initialise(encoder.model, encoder.model_args, self.source, self.allow_partial)
        before = self.held("teacher")  # a teacher built anew lies where the one before did
        self.hold("teacher", encoder if before is None else encoder.to(next(before.parameters()).device))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, channels, H / stride, W / stride) float32."""
        teacher = self.teacher
        height, width = images.shape[-2:]
        maps = run_teacher(teacher, self._for_teacher(images, teacher.img_size))
        maps = [one for one in maps if one.shape[1] == self.channels]
        target = blend(maps, (height // self.stride, width // self.stride), self.norm)
        return self.look(target) if self.found.tensors is None else target

    def _for_teacher(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """In the teacher's normalisation and size."""
        if not self.same_pixels:
            images = images * self.factor + self.shift
        if tuple(images.shape[-2:]) != tuple(size):
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        return images


def _divides(few: tuple[int, int], many: tuple[int, int]) -> bool:
    """Whether each cell of the first grid holds whole cells of the second."""
    return all(number > 0 and more % number == 0 for number, more in zip(few, many, strict=True))


def _as_many(values, channels: int) -> tuple[float, ...]:
    """One value a channel: their average where there are fewer or more."""
    values = tuple(values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels
