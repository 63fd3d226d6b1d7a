"""Every setting of a refinement recipe."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge
from pydantic import Field, model_validator

from a2mim.engine.pretrain_settings import Judging
from a2mim.engine.setting_groups import Log, Optimizer, Schedule, Settings, SourceImages
from a2mim.engine.setting_types import (
    Count,
    Flag,
    Group,
    Integer,
    Must,
    NonNegative,
    Positive,
    PositiveShare,
    ShareBelowOne,
    Text,
)


class RefineData(SourceImages):
    """The images, of which two crops are taken each."""


class Heads(Group):
    """The contrastive heads."""

    maps: Annotated[Literal["last_third", "last"] | list[Text], Must("'last_third', 'last' or a list of modules")] = (
        Field(
            "last_third",
            description="The maps with a head each: all that end in the last third of the layers, the final one, or"
            " the named modules.",
        )
    )
    hidden: Count = Field(2048, description="Width of the projector's two inner layers.")
    predicted: Count = Field(4096, description="Width of the predictor's inner layer.")
    width: Count = Field(256, description="Width of an embedding.")
    queue: Count = Field(
        65536, description="Images among which neighbours are looked for; never more than a quarter of the images."
    )
    k: Count = Field(
        20,
        description="Nearest neighbours of which one is drawn; never more than half the images of the smallest class,"
        " where there are labels. While the heads train alone it is 1.",
    )
    temperature: Positive = Field(0.15, description="Of the softmax over the images of a batch.")
    momentum: ShareBelowOne = Field(
        0.99, description="Of a copy of the projector whose embeddings are looked up. 0: the projector itself."
    )
    alone_epochs: Annotated[Integer, Ge(0)] = Field(
        20, description="Epochs, from the first on, in which the encoder stays as it is and the heads train."
    )
    weight_decay: NonNegative = Field(1e-5, description="Of the heads.")


class RefineOptimizer(Optimizer):
    """The optimiser of refinement."""

    base_lr: NonNegative = Field(1e-4, description="Learning rate per 256 images; it grows with the batch.")
    betas: Annotated[tuple[ShareBelowOne, ShareBelowOne], Must("two numbers from 0 to 1, 1 excluded")] = Field(
        (0.9, 0.95), description="Decay of the optimiser's first and second moment."
    )
    layer_decay: PositiveShare = Field(
        0.65,
        description="The rate of layer i of L is multiplied by layer_decay^(L + 1 - i); not that of the heads.",
    )


class RefineSchedule(Schedule):
    """The learning rate over the run."""

    epochs: Count = Field(40, description="Passes over the images, those of the heads alone included.")
    warmup_epochs: NonNegative = Field(
        4,
        description="Epochs in which the rate rises linearly. The encoder's rises over as many once it is trained too.",
    )
    min_lr: NonNegative = Field(0.0, description="Cosine: the rate at the end.")


class RefineSettings(Settings):
    """Every setting of a refinement recipe."""

    command: ClassVar[str] = "refine"
    example: ClassVar[str] = "configs/refine/last_third.py"

    heads: Heads = Field(Heads(), description="The contrastive heads.")
    frozen: ShareBelowOne = Field(
        0.5, description="Share of the encoder's layers, from the first on, that are not trained."
    )
    allow_partial: Flag = Field(False, description="Take a source that lacks some tensors of the model.")
    data: RefineData = Field(RefineData(), description="How images are read, cropped and normalised.")
    global_batch_size: Count = Field(1024, description="Images of an optimiser step, over all processes.")
    optimizer: RefineOptimizer = Field(RefineOptimizer(), description="The optimiser and its learning rate.")
    schedule: RefineSchedule = Field(RefineSchedule(), description="The learning rate over the run.")
    judge: Judging = Field(Judging(), description="How the encoder is judged; needs labels and a test set.")
    log: Log = Field(Log(), description="What is written on the way.")
    export: Annotated[list[Text], Must("a list of targets: ['timm'] or []")] = Field(
        ["timm"], description="[] leaves no encoder behind; a2mim export does the rest."
    )

    @model_validator(mode="after")
    def _heads_end(self) -> Self:
        if self.heads.alone_epochs >= self.schedule.epochs:
            raise ValueError(
                f"heads.alone_epochs={self.heads.alone_epochs} must be less than schedule.epochs="
                f"{self.schedule.epochs}; otherwise the encoder is never trained"
            )
        if self.global_batch_size // self.micro_batches < 2:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} in accumulate={self.micro_batches} parts is one image at a"
                " time, with no other to be told from, so nothing would be learned: raise global_batch_size, or lower"
                " accumulate"
            )
        if set(self.export) - {"timm"}:
            raise ValueError(
                f"export={self.export!r}: refinement hands over ['timm'] or []; a2mim export does the rest"
            )
        return self
