"""Every setting of a pre-training recipe."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Self

from annotated_types import Ge
from pydantic import Field, model_validator

from a2mim.engine.setting_groups import Images, Log, Mean, Optimizer, Schedule, Settings, Std
from a2mim.engine.setting_types import Count, Flag, Group, Integer, Must, NonNegative, Size, Text

Band = Annotated[Integer, Ge(0)]


class PretrainData(Images):
    """The images that the encoder is trained on."""

    img_size: Size = Field(224, description="Side of the crop in pixels, or (height, width).")
    in_chans: Count = Field(3, description="Channels of an image.")
    mean: Mean = Field((0.485, 0.456, 0.406), description="Subtracted from each channel, in units of 0..1.")
    std: Std = Field((0.229, 0.224, 0.225), description="Divides each channel, in units of 0..1.")

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        if not len(self.mean) == len(self.std) == self.in_chans:
            raise ValueError(
                f"data.mean has {len(self.mean)} and data.std {len(self.std)} values, data.in_chans={self.in_chans};"
                " give one each"
            )
        return self


class PretrainOptimizer(Optimizer):
    """The optimiser of pre-training."""

    token_lr_scale: NonNegative = Field(1.0, description="Learning rate of mask token and gamma, relative to the rest.")


class PretrainLog(Log):
    """What is written while an encoder is pre-trained."""

    pictures: Annotated[Integer, Ge(2)] = Field(5, description="Pictures of reconstructions in a run.")
    rows: Count = Field(6, description="Images in a picture.")
    bands: (
        Annotated[tuple[Band] | tuple[Band, Band, Band], Must("a list of one or three channel numbers, from 0")] | None
    ) = Field(None, description="Channels that a picture shows: one in grey, or red, green and blue. None: the first.")


class Judging(Group):
    """How the encoder is judged. It needs labels and a test set."""

    train_images: Count = Field(5000, description="Training images, at most, for the judgement before and after.")
    test_images: Count = Field(2000, description="Test images, at most, for the judgement before and after.")
    k: Count = Field(20, description="Neighbours of the k-NN.")
    every_epochs: Count | None = Field(
        1,
        description="Epochs between two runs of a small k-NN and, where time allows, a linear and an attentive probe,"
        " within 2 % of the time. None: none on the way.",
    )
    images: Annotated[Integer, Ge(4)] | None = Field(
        None,
        description="Images of these probes. None: a 50th of the training images, from 500 to 10,000.",
    )


class PretrainJudging(Judging):
    """How a pre-trained encoder is judged, and for which images it is exported."""

    img_size: Size | None = Field(
        None,
        description="Side of the images, or (height, width), for the judgement before and after and for the export;"
        " position embeddings are resampled. None: data.img_size.",
    )


class PretrainSettings(Settings):
    """Every setting of a pre-training recipe."""

    command: ClassVar[str] = "pretrain"
    example: ClassVar[str] = "configs/a2mim_xcit.py"
    required: ClassVar[tuple[str, ...]] = ("model",)

    model: Annotated[dict[str, Any], Must("a dict")] = Field(
        description="The method as a row of parts: encoder, masking, fill, decoder, target, losses (`a2mim.mim.MIM`)."
    )
    init_from: Annotated[Text, Must("weights to start from, e.g. NAME:FILE")] | None = Field(
        None, description="Weights that the encoder starts from. None: random weights."
    )
    allow_partial: Flag = Field(False, description="What the file of `init_from` lacks stays random.")
    data: PretrainData = Field(PretrainData(), description="How images are read, cropped and normalised.")
    global_batch_size: Count = Field(2048, description="Images of an optimiser step, over all processes.")
    optimizer: PretrainOptimizer = Field(PretrainOptimizer(), description="The optimiser and its learning rate.")
    schedule: Schedule = Field(Schedule(), description="The learning rate over the run.")
    log: PretrainLog = Field(PretrainLog(), description="What is written on the way.")
    judge: PretrainJudging = Field(
        PretrainJudging(), description="How the encoder is judged; needs labels and a test set."
    )
    export: Annotated[list[Text], Must("a list of targets, e.g. ['timm'] or []")] = Field(
        ["timm"],
        description="What the encoder is written for at the end, with a receipt each: encoder/ for timm, and"
        " export/TARGET for each further one. []: nothing.",
    )

    @model_validator(mode="after")
    def _parts(self) -> Self:
        check_parts(self.model)
        check_pixels(self.model["encoder"], self.data)
        check_cell(self.model.get("masking"), self.data.img_size)
        if self.log.bands and max(self.log.bands) >= self.data.in_chans:
            raise ValueError(
                f"log.bands={list(self.log.bands)}: the images have the channels 0 to {self.data.in_chans - 1}"
                f" (data.in_chans={self.data.in_chans})"
            )
        return self


def check_parts(model: dict) -> None:
    """ValueError where the row has no encoder or no loss; the parts check their own arguments when they are built."""
    encoder = model.get("encoder")
    if not isinstance(encoder, dict) or not isinstance(encoder.get("name"), str):
        raise ValueError(f"model.encoder={encoder!r} must be a dict with the name of a timm model")
    losses = model.get("losses")
    if not isinstance(losses, list | tuple) or not losses or not all(isinstance(loss, dict) for loss in losses):
        raise ValueError(f"model.losses={losses!r} must be a list of at least one loss, e.g. [dict(type='MaskedL1')]")


def check_pixels(encoder: dict, data: PretrainData) -> None:
    """ValueError where the encoder states another image size or number of channels than the data."""
    for key in {"img_size", "in_chans"} & encoder.keys():
        given, known = encoder[key], getattr(data, key)
        sides = tuple(given) if isinstance(given, list) else given
        if sides != known and not (isinstance(known, int) and sides == (known, known)):
            raise ValueError(f"model.encoder.{key}={given!r} is not data.{key}={known!r}: leave it out of the encoder")


def check_cell(masking: Any, size: int | tuple[int, int]) -> None:
    """ValueError where the mask cell does not divide the sides of an image of `size` pixels."""
    if not isinstance(masking, dict):
        raise ValueError(f"model.masking={masking!r} must be a dict, e.g. dict(type='BlockMask', mask_patch_size=32)")
    cell, sides = masking.get("mask_patch_size"), (size, size) if isinstance(size, int) else size
    if isinstance(cell, int) and cell > 0 and any(side % cell for side in sides):
        fits = [c for c in range(1, min(sides) + 1) if not any(side % c for side in sides)]
        near = sorted(fits, key=lambda c: abs(c - cell))[:2]
        larger = dict.fromkeys(-(-side // cell) * cell for side in sides)
        raise ValueError(
            f"model.masking.mask_patch_size={cell} does not divide data.img_size={size};"
            f" set the cell to {' or '.join(map(str, near))}, or the image to {' x '.join(map(str, larger))} pixels"
        )
