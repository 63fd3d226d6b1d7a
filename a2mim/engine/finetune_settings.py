"""Every setting of a fine-tuning recipe."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Ge
from pydantic import Field, model_validator

from a2mim.engine.setting_groups import Log, Optimizer, Options, Schedule, Settings, SourceImages
from a2mim.engine.setting_types import (
    Count,
    Flag,
    Group,
    Integer,
    Must,
    NonNegative,
    PositiveShare,
    Share,
    ShareBelowOne,
    Size,
    Text,
)


class Head(Group):
    """The classifier that is put on the encoder."""

    pooling: Annotated[Text, Must("'default' or a pooling of timm, e.g. 'avg'")] = Field(
        "default", description="What the classifier reads. default: as the encoder has it; or avg, token and so on."
    )
    norm: Literal["default", "after"] = Field(
        "default", description="after: a ViT's last norm moves behind the pooling, as MAE has it."
    )
    head_init_std: NonNegative = Field(
        0.0, description="Standard deviation of the classifier's first weights. 0: as timm has them."
    )
    start: Literal["random", "probe"] = Field(
        "random",
        description="The classifier's first weights. probe: a logistic regression on the frozen features of the"
        " training images, so that training begins without distorting them.",
    )
    drop_path_rate: Share = Field(0.0, description="Stochastic depth: the rate of the last layer.")
    allow_partial: Flag = Field(False, description="Take a source that lacks some tensors of the model.")


class FinetuneData(SourceImages):
    """The labelled images."""

    test_size: Size | None = Field(
        None, description="Side of a test crop in pixels, or (height, width). None: `img_size`."
    )
    crop_pct: PositiveShare = Field(0.875, description="Side of the test crop / short side of the image.")


class Augmentation(Group):
    """What changes a training image beyond its crop."""

    auto_augment: Annotated[Text, Must("'', 'trivial' or words of timm, e.g. 'rand-m9-mstd0.5-inc1'")] = Field(
        "", description="timm's words, e.g. rand-m9-mstd0.5-inc1; or trivial: torchvision's TrivialAugmentWide."
    )
    color_jitter: NonNegative = Field(0.0, description="Strength; timm leaves it out where there is auto_augment.")
    erasing: Share = Field(0.0, description="Probability of a random rectangle of noise.")
    repeats: Count = Field(1, description="Crops of an image in a batch; an epoch then sees 1/repeats of the images.")


class Mix(Group):
    """How images and their labels are mixed."""

    mixup: NonNegative = Field(0.0, description="Alpha of mixup. 0: none.")
    cutmix: NonNegative = Field(0.0, description="Alpha of cutmix. 0: none.")
    smoothing: ShareBelowOne = Field(0.0, description="Label smoothing: share of the target spread over all classes.")


class ClassLoss(Group):
    """The loss of the classifier."""

    type: Literal["cross-entropy", "bce"] = Field(
        "cross-entropy", description="bce: binary cross-entropy, each class for itself."
    )
    threshold: ShareBelowOne = Field(
        0.0,
        description="bce: a class with a greater share of a mixed image counts as present. 0: the share is the target.",
    )

    @model_validator(mode="after")
    def _threshold_of_bce(self) -> Self:
        if self.threshold and self.type != "bce":
            raise ValueError(f"loss.threshold={self.threshold} is for loss.type='bce' only; set it to 0")
        return self


class FinetuneOptimizer(Optimizer):
    """The optimiser of fine-tuning."""

    base_lr: NonNegative = Field(5e-4, description="Learning rate per `base_batch` images; it grows with the batch.")
    base_batch: Count = Field(256, description="Images that `base_lr` stands for.")
    momentum: Share = Field(0.9, description="sgd: momentum.")
    nesterov: Flag = Field(False, description="sgd: Nesterov's momentum.")
    layer_decay: PositiveShare = Field(
        1.0, description="The rate of layer i of L is multiplied by layer_decay^(L + 1 - i)."
    )
    rates: Annotated[list[NonNegative], Must("a list of learning rates")] = Field(
        [],
        description="Rates per `base_batch` images that take the place of `base_lr`: each trains on four fifths of the"
        " labelled images for a third of the steps, and the one that is best on the rest is taken.",
    )
    head_lr_scale: NonNegative = Field(1.0, description="The classifier's rate is multiplied by it.")


class FinetuneSchedule(Schedule):
    """The learning rate over the run."""

    epochs: Count = Field(100, description="Passes over the training images.")
    least_steps: Count | None = Field(
        None, description="Few images get more epochs, until the run has so many steps. None: `epochs` alone."
    )
    warmup_epochs: NonNegative = Field(5, description="Epochs in which the rate rises linearly.")
    warmup_lr: NonNegative = Field(0.0, description="The rate at the first step of the warm-up.")
    min_lr: NonNegative = Field(1e-6, description="Cosine: the rate at the end.")


class Labels(Group):
    """Which labelled images are trained on."""

    subset: Annotated[str | int | float, Must("a share such as '10%', or images a class")] | None = Field(
        None, description='"10%" of each class, or "5" images of each. None: all.'
    )
    seed: Annotated[Integer, Ge(0)] = Field(0, description="Seed of the choice.")


class Evaluation(Group):
    """When the classifier is tested on the way."""

    every_epochs: Count = Field(1, description="Epochs between two tests.")
    batch_size: Count = Field(64, description="Test images of a forward pass, a process.")


class FinetuneSettings(Settings):
    """Every setting of a fine-tuning recipe, laid over the constants of the protocol that it names."""

    command: ClassVar[str] = "finetune"
    example: ClassVar[str] = "configs/finetune/mae_finetune.py"

    protocol: Annotated[Text, Must("the name of a fine-tuning protocol")] | None = Field(
        None, description="Its constants are laid under what the recipe says."
    )
    variant: Annotated[Text, Must("a variant of the protocol")] | None = Field(
        None, description="A variant of the protocol, mostly a size of model."
    )
    classifier: Head = Field(Head(), description="The classifier that is put on the encoder.")
    data: FinetuneData = Field(FinetuneData(), description="How images are read, cropped and normalised.")
    augment: Augmentation = Field(Augmentation(), description="What changes a training image beyond its crop.")
    mix: Mix = Field(Mix(), description="How images and labels are mixed.")
    loss: ClassLoss = Field(ClassLoss(), description="The loss of the classifier.")
    global_batch_size: Count = Field(1024, description="Images of an optimiser step, over all processes.")
    optimizer: FinetuneOptimizer = Field(FinetuneOptimizer(), description="The optimiser and its learning rate.")
    schedule: FinetuneSchedule = Field(FinetuneSchedule(), description="The learning rate over the run.")
    labels: Labels = Field(Labels(), description="Which labelled images are trained on.")
    evaluate: Evaluation = Field(Evaluation(), description="When the classifier is tested on the way.")
    log: Log = Field(Log(), description="What is written on the way.")
    export: Annotated[list[Text], Must("a list of targets: ['timm'] or []")] = Field(
        ["timm"], description="[] leaves no encoder and no classifier behind."
    )
    laptop: Options = Field(
        {
            "data.img_size": None,
            "data.test_size": None,
            "global_batch_size": 64,
            "schedule.epochs": 6,
            "schedule.warmup_epochs": 1,
            "augment.repeats": 1,
        },
        description="Dotted key -> value: what changes when the recipe runs at laptop scale.",
    )

    @model_validator(mode="after")
    def _targets(self) -> Self:
        if set(self.export) - {"timm"}:
            raise ValueError(
                f"export={self.export!r}: fine-tuning hands over ['timm'] or []; a2mim export does the rest"
            )
        return self
