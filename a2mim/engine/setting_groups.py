"""Settings that pre-training and fine-tuning share: each is defined here once, with its range, default and meaning."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge
from pydantic import Field, model_validator

from a2mim.engine.setting_types import (
    Count,
    Flag,
    Group,
    Integer,
    Must,
    NonNegative,
    Number,
    Positive,
    PositiveShare,
    Range,
    Ratios,
    Share,
    ShareBelowOne,
    Shares,
    Size,
    Text,
)

Mean = Annotated[tuple[Number, ...], Must("a list of numbers, one a channel")]
Std = Annotated[tuple[Positive, ...], Must("a list of numbers above 0, one a channel")]
Options = Annotated[dict[str, Any], Must("a dict")]


class Images(Group):
    """How images are read and cropped."""

    bits: Annotated[Literal[None, 8, 16], Must("one of None, 8, 16")] = Field(
        None, description="Bits of a value in the batches. None: 16 where an image that is looked at has 16, else 8."
    )
    exif: Flag = Field(False, description="Turn each image as its EXIF orientation says.")
    value_range: Annotated[Range, Must("two numbers, the least and the greatest value")] | None = Field(
        None, description="(least, greatest) value of arrays that are neither uint8 nor uint16."
    )
    nodata: Annotated[Number | Literal["nan"], Must('a number, or "nan"')] | None = Field(
        None, description='Stored value of pixels where nothing was measured; "nan" for NaN.'
    )
    fill: Number | None = Field(
        None, description="Value that replaces `nodata`, in stored units. None: the least of value_range, else 0."
    )
    scale: Annotated[Shares, Must("two numbers from 0 to 1, the least and the greatest share of the area")] = Field(
        (0.67, 1.0), description="The crop's share of the image's area: the least and the greatest."
    )
    ratio: Annotated[Ratios, Must("two numbers above 0, the least and the greatest width / height")] = Field(
        (3 / 4, 4 / 3),
        description="The crop's width / height, relative to that of `img_size`: the least and the greatest.",
    )
    hflip: Share = Field(0.5, description="Probability of a horizontal flip.")
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="How a crop is resized.")
    transforms: Annotated[list[Any], Must("a list of transforms")] = Field(
        [], description="mmcv transforms of the uint8 image, between decode and crop."
    )


class SourceImages(Images):
    """Images for an encoder whose source has a size, channels and a normalisation of its own."""

    img_size: Size | None = Field(
        None, description="Side of the crop in pixels, or (height, width). None: the source's own."
    )
    in_chans: Count | None = Field(None, description="Channels of an image. None: the source's own.")
    mean: Mean | None = Field(None, description="Subtracted from each channel, 0..1. None: the source's own.")
    std: Std | None = Field(None, description="Divides each channel, 0..1. None: the source's own.")
    scale: Annotated[Shares, Must("two numbers from 0 to 1, the least and the greatest share of the area")] = Field(
        (0.08, 1.0), description="The crop's share of the image's area: the least and the greatest."
    )
    interpolation: Literal["bilinear", "bicubic"] = Field("bicubic", description="How a crop is resized.")

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and self.in_chans is not None and len(values) != self.in_chans:
                raise ValueError(
                    f"data.{key} has {len(values)} values, data.in_chans={self.in_chans}; give one a channel"
                )
        return self


class Optimizer(Group):
    """The optimiser and its learning rate."""

    type: Annotated[Text, Must("the name of an optimiser of timm.optim")] = Field(
        "adamw", description="Any name of timm.optim."
    )
    base_lr: NonNegative = Field(1.5e-4, description="Learning rate per 256 images; it grows with the batch.")
    betas: Annotated[tuple[ShareBelowOne, ShareBelowOne], Must("two numbers from 0 to 1, 1 excluded")] = Field(
        (0.9, 0.999), description="Decay of the optimiser's first and second moment."
    )
    weight_decay: NonNegative = Field(
        0.05, description="Not applied to norms, biases, tokens, position embeddings and LayerScale."
    )


class Schedule(Group):
    """The learning rate over the run."""

    type: Literal["cosine", "step"] = Field("cosine", description="Shape of the decay.")
    epochs: Count = Field(300, description="Passes over the training images.")
    warmup_epochs: NonNegative = Field(10, description="Epochs in which the rate rises linearly.")
    warmup: Literal["before", "inside", "multiplied"] = Field(
        "before",
        description="When the cosine starts. before: after the warm-up, at its peak; inside: at the first step, and the"
        " warm-up replaces its first part; multiplied: at the first step, and the warm-up multiplies it.",
    )
    min_lr: NonNegative = Field(1e-5, description="Cosine: the rate at the end.")
    decay_epochs: Annotated[list[Count], Must("a list of epochs")] = Field(
        [], description="Step: epochs after which the rate is multiplied by `decay_rate`."
    )
    decay_rate: NonNegative = Field(0.1, description="Step: the factor of each decay.")

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"schedule.warmup_epochs={self.warmup_epochs} must be less than schedule.epochs={self.epochs}"
            )
        if self.warmup != "before" and self.type != "cosine":
            raise ValueError(f"schedule.warmup={self.warmup!r} is for schedule.type='cosine' only; leave it out")
        return self


class Checkpoint(Group):
    """When the run is saved."""

    every_steps: Count | None = Field(None, description="Steps between two checkpoints. None: `every_epochs` decides.")
    every_epochs: Count = Field(1, description="Epochs between two checkpoints, saved at the end of an epoch.")
    every_minutes: Positive | None = Field(
        None,
        description="Save also when the last checkpoint is this old. None: only `every_steps` or `every_epochs` count.",
    )
    keep: Count = Field(3, description="How many of the newest checkpoints stay.")
    background: Flag = Field(
        False,
        description="Copy the state, and write it while training goes on. The copy needs memory for one checkpoint.",
    )


class Processes(Group):
    """The processes of a run, where there are several."""

    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: each process holds the whole model. fsdp: each holds a part of every weight, gradient and"
        " optimiser state (torch's FSDP2); for models that do not fit one GPU.",
    )
    timeout_minutes: Positive = Field(
        10, description="How long an exchange of gradients may take; after that another process counts as lost."
    )


class Log(Group):
    """What is written while the run trains."""

    every_steps: Count = Field(10, description="Steps between two lines of log.jsonl.")
    report: Flag = Field(
        True, description="Write report.html and the pictures of features in it, on the way and at the end."
    )
    tensorboard: Flag = Field(False, description="Write TensorBoard files too; the same as naming it in `backends`.")
    backends: Annotated[
        list[Text | dict[str, Any]], Must('a list of names and dicts, e.g. ["tensorboard", dict(type="wandb")]')
    ] = Field(
        [],
        description="Loggers of other tools that get settings, scalars and pictures: tensorboard, wandb, mlflow, aim,"
        " clearml, dvclive, neptune; a dict with `type` gives options.",
    )


class Settings(Group):
    """Every setting of one kind of recipe; the fields here are those that all kinds share."""

    command: ClassVar[str]  # the command that runs such a recipe
    example: ClassVar[str]  # a recipe of this kind
    required: ClassVar[tuple[str, ...]] = ()  # settings without a default
    open_groups: ClassVar[tuple[str, ...]] = ("laptop",)  # dicts whose keys are not settings

    processes: Processes = Field(Processes(), description="The processes of a run, where there are several.")
    accumulate: Annotated[Count | Literal["auto"], Must('a whole number of at least 1, or "auto"')] = Field(
        1,
        description="Micro-batches into which each process divides its share of a batch. auto: as few as fit into"
        " memory, found by a trial step.",
    )
    clip_grad: Positive | None = Field(None, description="Largest L2 norm of the gradient. None: no limit.")
    amp: Literal["auto", None, "bf16", "fp16"] = Field(
        "auto", description="Type to compute in. None: float32. auto: bf16 on a GPU that has it, else float32."
    )
    ema: PositiveShare | None = Field(None, description="Momentum of averaged weights, e.g. 1e-4. None: no average.")
    activation_checkpointing: Flag = Field(
        False,
        description="Do not keep activations; compute them again in the backward pass. Takes much less memory, and"
        " about a third more time.",
    )
    compile: Annotated[Flag | Literal["encoder", "step"], Must('one of False, "encoder", "step"')] = Field(
        False,
        description="Compile with torch.compile. encoder: the network (True means the same). step: the whole forward"
        " pass of pre-training with its losses, as one graph.",
    )
    deterministic: Flag = Field(
        False,
        description="Give the same numbers in each run, also on a GPU, by kernels that add in a fixed order. Slower.",
    )
    channels_last: Flag = Field(False, description="Keep images and weights in the channels-last memory format.")
    sync_batchnorm: Flag = Field(False, description="BatchNorm over the images of all GPUs, also in the decoder.")
    checkpoint: Checkpoint = Field(Checkpoint(), description="When the run is saved.")
    seed: Annotated[Integer, Ge(0)] = Field(0, description="Seed of every random number.")
    laptop: Options = Field({}, description="Dotted key -> value: what changes when the recipe runs at laptop scale.")
    custom_imports: Options | None = Field(
        None, description="mmengine's: dict(imports=[modules]) that register parts of your own."
    )

    @property
    def micro_batches(self) -> int:
        """`accumulate` as a number; 1 as long as "auto" has not been replaced by what the trial step found."""
        return 1 if self.accumulate == "auto" else self.accumulate

    @classmethod
    def groups(cls) -> dict[str, type[Group]]:
        """Name -> class of the settings that are groups."""
        kinds = {key: field.annotation for key, field in cls.model_fields.items()}
        return {key: kind for key, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Group)}

    @classmethod
    def defaults(cls) -> dict:
        """Every setting with its default, groups as dicts; None for a required one."""
        groups = cls.groups()
        defaults: dict[str, Any] = {}
        for key, field in cls.model_fields.items():
            if key in groups:
                defaults[key] = groups[key]().model_dump()
            else:
                defaults[key] = None if field.is_required() else field.get_default(call_default_factory=True)
        return defaults
