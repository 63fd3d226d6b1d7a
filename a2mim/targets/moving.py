"""Features of a moving average of the student itself."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from a2mim.batchnorm import share_statistics
from a2mim.encoder import MaskedEncoder
from a2mim.registry import MODELS, check_names, is_number
from a2mim.targets.cells import NORMS, blend
from a2mim.targets.held import Held, spread_of
from a2mim.targets.precision import run_teacher
from a2mim.wiring.timm_models import is_registered

HALVINGS = 30  # c of the automatic momentum 1 - c / steps
SLOWEST = 0.9998  # data2vec's momentum
LOOK_EVERY = 50  # steps between two looks at a GPU's deviation
READ_AFTER = 10  # steps until it is read, when the device has long sent it
LEAST = 0.01  # deviation of targets, or of predictions, below which they have collapsed


@MODELS.register_module()
class MovingAverage(Held):
    """Feature maps of a teacher whose weights are the exponential moving average of the student's.

    The teacher sees the whole image, in evaluation mode and in float32, whatever the run's amp. Each map is normalised,
    maps are averaged, and the average is normalised again. After each step t = m t + (1 - m) s for each parameter in
    float32; buffers are copied. Each process of a run gathers BatchNorm's statistics for itself; the teachers of all
    have those of the first process, which are in the checkpoint.

    Args:
        maps: modules whose outputs are averaged, see `MaskedEncoder`; "auto" takes the student's maps.
        momentum: a number; (start, end), linear over the run; or "auto": 1 - 30 / steps, at most 0.9998. With a fixed
            0.9998 the teacher of a run of 1,000 steps is a frozen random network.
        norm: "layer", "instance" or "none".

    Raises:
        FloatingPointError: from `after_step`, when the target hardly differs over the batch: it has collapsed to a
            constant, which satisfies any regression loss.

    Source: data2vec, https://arxiv.org/abs/2202.03555: the ends of the last six blocks, momentum 0.9998; I-JEPA,
        https://arxiv.org/abs/2301.08243: the last layer, momentum (0.996, 1).
    """

    def __init__(
        self,
        maps: str | Sequence[str] = "auto",
        momentum: float | str | Sequence[float] = "auto",
        norm: str = "layer",
    ):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"MovingAverage: norm={norm!r} is not one of {', '.join(map(repr, NORMS))}")
        check_names("MovingAverage", maps=maps)
        self.maps, self.norm, self.ends = maps, norm, _ends_of(momentum)
        self.step = 0  # updates so far
        self.spread: Tensor | None = None  # deviation of the last target over places and images
        self.looked: tuple[int, Tensor] | None = None  # a step and its spread, on its way to the host

    @property
    def teacher(self) -> MaskedEncoder:
        """The averaged network."""
        teacher = self.held("teacher")
        if teacher is None:
            raise ValueError("MovingAverage has no teacher yet: call attach(encoder, mean, std), as MIM does")
        return cast(MaskedEncoder, teacher)

    @property
    def channels(self) -> int:
        """Width of the teacher's maps."""
        return self.teacher.channels[-1]

    @property
    def stride(self) -> int:
        """Pixels of the image per cell."""
        return int(self.teacher.strides[-1])

    def attach(self, encoder, mean, std) -> None:
        """Builds the teacher as a copy of the student; until the first step, again each time. A student of other shapes
        gets a teacher of its own.
        """
        if self.held("teacher") is None or not self._fits(encoder):
            self.step = 0
            self.hold("teacher", self._copy(encoder))
            widths = set(self.teacher.channels)
            if len(widths) > 1:
                raise ValueError(f"MovingAverage: maps of {sorted(widths)} channels cannot be averaged; name one width")
        if not self.step:
            self._move(encoder, momentum=0.0)

    def _fits(self, encoder) -> bool:
        """Whether the student has every tensor of the teacher, in the same shape."""
        shapes, own = (
            {name: tensor.shape for name, tensor in (*model.named_parameters(), *model.named_buffers())}
            for model in (encoder.model, self.teacher.model)
        )
        return own.items() <= shapes.items() and tuple(self.teacher.img_size) == tuple(encoder.img_size)

    def _copy(self, encoder) -> MaskedEncoder:
        """The student's network, with maps of its own where they were asked for."""
        if self.maps == "auto":
            return copy.deepcopy(encoder)
        model = encoder.name if is_registered(encoder.name) else copy.deepcopy(encoder.model)
        with torch.enable_grad():
            return MaskedEncoder(
                model,
                img_size=encoder.img_size,
                in_chans=encoder.in_chans,
                maps=self.maps,
                model_args={k: v for k, v in encoder.model_args.items() if k not in ("img_size", "in_chans")},
            ).to(next(encoder.parameters()).device)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, channels, H / stride, W / stride) float32."""
        maps = run_teacher(self.teacher, images)
        target = blend(maps, (maps[-1].shape[2], maps[-1].shape[3]), self.norm)
        self.spread = spread_of(target)[1]
        return target

    def momentum(self, step: int, steps: int) -> float:
        """Share of the teacher that stays, at step 1..steps."""
        if not self.ends:
            return min(SLOWEST, max(0.0, 1 - HALVINGS / steps))
        start, end = self.ends[0], self.ends[-1]
        return start + (end - start) * step / steps

    def after_step(self, encoder, step: int, steps: int) -> None:
        """Moves the teacher towards the student, and stops a run whose target has collapsed."""
        if self.spread is not None and (self.spread.device.type == "cpu" or step % LOOK_EVERY == 0):
            self.looked = step, self.spread.to("cpu", non_blocking=True)
        if self.looked and (self.looked[1] is self.spread or step % LOOK_EVERY == READ_AFTER):
            (seen, held), self.looked = self.looked, None
            spread = float(held.numpy())
            if spread < LEAST:
                raise FloatingPointError(
                    f"step {seen}: the teacher's features differ by {spread:.2g} over the batch (below {LEAST}): they"
                    " have collapsed to a constant; try a slower teacher (momentum), a lower optimizer.base_lr, or a"
                    " larger share of hidden cells"
                )
        self._move(encoder, self.momentum(step, steps))
        share_statistics(self.teacher)
        self.step = step

    @torch.no_grad()
    def _move(self, encoder, momentum: float) -> None:
        student = dict(encoder.model.named_parameters())
        averages = dict(self.teacher.model.named_parameters())
        new = [student[name].detach().to(average.dtype) for name, average in averages.items()]
        if momentum == 0:
            for average, value in zip(averages.values(), new, strict=True):
                average.copy_(value)  # one by one: torch cannot copy lists of divided weights
        else:
            torch._foreach_lerp_(list(averages.values()), new, 1 - momentum)
        buffers, own = dict(encoder.model.named_buffers()), dict(self.teacher.model.named_buffers())
        if own:
            torch._foreach_copy_(list(own.values()), [buffers[name] for name in own])

    def memory(self) -> dict:
        """The number of updates."""
        return {"step": self.step}

    def remember(self, memory: dict) -> None:
        """The inverse of `memory`."""
        self.step = memory["step"]


def _ends_of(momentum: object) -> list[float]:
    """The first and the last momentum of a run, or the one of all steps; [] for "auto"."""
    if isinstance(momentum, str) and momentum == "auto":
        return []
    ends: list = list(momentum) if isinstance(momentum, list | tuple) else [momentum]
    if not 1 <= len(ends) <= 2 or not all(is_number(one) and 0 <= one <= 1 for one in ends):
        raise ValueError(f'MovingAverage: momentum={momentum!r} must be "auto", or one or two numbers from 0 to 1')
    return ends
