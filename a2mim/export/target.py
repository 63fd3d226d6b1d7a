"""The interface of every target: its definition, its input and its result.

A target writes files, and has the lines that load them as a template. The lines are filled with checked values only
(`Facts`), executed in a fresh process (`check.py`), and shown in the folder's README.md. Nothing that is executed is
ever read from the page.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from a2mim.evaluation.features import frozen
from a2mim.export.levels import Level, choose_levels
from a2mim.pixels import Preprocessing

SEED, IMAGES = 0, 2
RESCALES = ((), (4.0, 2.0, 1.0, 0.5), (2.0, 1.0, 0.5, 0.25))  # of mmseg's Feature2Pyramid; (): there is none


class ExportError(ValueError):
    """The loaded encoder differs from the exported one."""


@dataclass
class Subject:
    """The encoder that is exported, as every target gets it.

    Args:
        model: a timm model with num_classes=0. It becomes a float32 copy on the CPU where it is not one; in evaluation
            mode while its outputs are computed.
        model_args: what rebuilds it beyond its name and num_classes=0.
        frozen: parameters that pre-training never reached.
        trained: what it was trained on, in sentences for the model card; "" where nobody knows.
        license: of the weights, as model hubs spell it; "": none was chosen.
    """

    model: Any  # a timm model; torch knows the attributes of modules as Tensor | Module only
    model_args: dict
    preprocessing: Preprocessing
    frozen: list[str] = field(default_factory=list)
    source: str = ""
    trained: str = ""
    license: str = ""

    def __post_init__(self):
        weight = next(self.model.parameters())
        if weight.device.type != "cpu" or weight.dtype != torch.float32:
            self.model = copy.deepcopy(self.model).to("cpu", torch.float32)

    @property
    def name(self) -> str:
        """timm's name of the architecture, without the tag of its pretrained weights."""
        return self.model.pretrained_cfg["architecture"]

    @property
    def ours(self) -> bool:
        """timm knows the name only after `import a2mim`."""
        return type(self.model).__module__.startswith("a2mim.")

    @property
    def input_size(self) -> list[int]:
        """[C, H, W]"""
        return [self.preprocessing.channels, *self.preprocessing.img_size]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The state dictionary by timm's keys: contiguous copies, no two of which share memory."""
        return {key: value.detach().contiguous().clone() for key, value in self.model.state_dict().items()}

    @cached_property
    def images(self) -> Tensor:
        """Fixed noise of 8-bit values, normalised: (2, C, H, W) float32."""
        levels = torch.randint(0, 256, (IMAGES, *self.input_size), generator=torch.Generator().manual_seed(SEED))
        mean, std = (
            torch.tensor(values).view(-1, 1, 1) for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return ((levels / 255 - mean) / std).float()

    @cached_property
    def levels(self) -> list[Level]:
        """Four maps of strides 4, 8, 16 and 32; ValueError where it has none. See `choose_levels`."""
        return choose_levels(self.model, self.images)

    @cached_property
    def outputs(self) -> dict[str, Any]:
        """ "pooled": (2, D), the embedding of the images; "unpooled": what timm's forward_features gives."""
        with frozen(self.model):
            return {"pooled": self.model(self.images), "unpooled": self.model.forward_features(self.images)}


@dataclass
class Written:
    """What a target wrote into its folder, and the values that its check needs.

    Args:
        expected: variable that the target's lines set -> its value; nested lists, tuples and dictionaries of tensors
            are compared tensor by tensor. Not empty.
        packages: what the lines import beyond torch and numpy; where one is not installed, the check is
            "contract only". "a2mim" only where the target cannot do without.
        tensors: what the target's files hold, by the target's keys; empty for a graph.
        weights: the file that holds them, which `check.read_weights` can read; "" where only the library can.
        file_prefix, model_prefix: before each of these keys in the file, and in the state dictionary of `model`.
        left_random: keys of `model` that are the user's own new layers, such as a classifier.
        contract: (name in contracts.py, its arguments): keys and shapes that the target's documentation asks for.
        notes: paragraphs for the README, after the lines.
        details: plain values that the receipt states as well.
    """

    expected: dict
    packages: tuple[str, ...] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)
    weights: str = ""
    file_prefix: str = ""
    model_prefix: str = ""
    left_random: tuple[str, ...] = ()
    contract: tuple[str, dict] | None = None
    notes: str = ""
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Neck:
    """What stands between the backbone and the heads.

    Args:
        channels: D of the backbone's four maps, the finest first.
        rescales: factors from each map to its level of the pyramid, as mmseg's Feature2Pyramid takes them; () where the
            backbone's maps are a pyramid already.
        crop: side of the square of pixels that a segmenter is trained on.
    """

    channels: tuple[int, ...]
    rescales: tuple[float, ...] = ()
    crop: int = 512


@dataclass(frozen=True)
class Facts:
    """What the lines of a README are filled with; see facts.py, which reads them from a folder and checks them.

    Args:
        architecture: timm's name, or the dotted path of a network of the user's own.
        width: D of the embedding; 0 where the lines do not name it.
        import_a2mim: timm knows the architecture only after `import a2mim`.
        free_size: height and width of a graph's input are free.
        onnx: a pyramid is written as ONNX too.
        classifier: OpenMMLab's TimmClassifier, not a backbone.
        neck: of a segmenter or a detector.
        timm_maps: mmpretrain builds the backbone through timm, with maps of chosen blocks.
        scoped: OpenMMLab's class is mmpretrain's, whatever library builds it.
        arguments: of a network of the user's own.
        configured: that network is built from its `config_class`.
    """

    architecture: str
    preprocessing: Preprocessing
    width: int = 0
    import_a2mim: bool = False
    free_size: bool = False
    onnx: bool = False
    classifier: bool = False
    neck: Neck | None = None
    timm_maps: bool = False
    scoped: bool = False
    arguments: dict = field(default_factory=dict)
    configured: bool = False

    @property
    def size(self) -> str:
        """C, H, W as they stand in a comment."""
        return ", ".join(map(str, (self.preprocessing.channels, *self.preprocessing.img_size)))


@dataclass(frozen=True)
class Target:
    """One row of the table in targets.py.

    Args:
        lines: the lines that load the export and compute the `expected` variables from reference.npz, run with the
            folder as working directory. For targets with tensors they set `model`. They may set `preprocess`, which
            maps a PIL image to the model's input (or to a dictionary with "pixel_values"): then mean, deviation and
            size are checked too.
        write: puts the target's files into an empty folder. README.md, reference.npz and receipt.json are not its
            business. Imports its library inside; raises ValueError where it must have one that is not installed.
        refuse: why this encoder cannot be exported so, in one sentence that starts with a small letter and says which
            architectures can; "" where it can.
        texts: file name -> its whole text, for small files that the lines read and that are a template too.
    """

    name: str
    write: Callable[[Subject, Path], Written]
    lines: Callable[[Facts], str]
    refuse: Callable[[Subject], str] = lambda subject: ""
    texts: Callable[[Facts], dict[str, str]] = lambda facts: {}


def flatten(name: str, value) -> dict[str, Tensor]:
    """{"name": tensor}, or {"name.0": …} for a list, tuple or dictionary of tensors, however nested."""
    if isinstance(value, Tensor):
        return {name: value.detach().float().contiguous()}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: tensor for place, part in pairs for key, tensor in flatten(f"{name}.{place}", part).items()}
