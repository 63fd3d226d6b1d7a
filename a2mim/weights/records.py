"""Two records of weights: a source before it is loaded, and a report afterwards."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from a2mim.pixels import Preprocessing

NAMED = 3  # keys that a sentence names


@dataclass(frozen=True, kw_only=True)
class Source:
    """An encoder's weights and settings, read but not built: plain values, and tensors unless it is only a name.

    Attributes:
        name: timm's name, or the dotted path that the user gave.
        model_args: arguments that build it, besides the name and num_classes=0.
        preprocessing: None for a name without weights.
        tensors: key -> tensor; None for a name without weights, whose parameters are random.
        frozen: parameters that pre-training never reached.
        path: the file or folder that holds the tensors.
        given: the path that the user gave, e.g. the run's folder.
        calibrated: BatchNorm's running statistics come from whole images, not from masked ones.
        recognised: the kind of source, for the report.
        left_out: content of the file that is not the encoder: first part of the key -> count.
    """

    name: str
    model_args: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    tensors: dict[str, Tensor] | None = None
    frozen: list[str] = field(default_factory=list)
    path: Path | None = None
    given: Path | None = None
    calibrated: bool = False
    recognised: str = "a timm name, with random weights"
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to every tensor of the file and of the model.

    Attributes:
        source: the file, or the name.
        recognised: the kind of file.
        architecture: timm's name, or a dotted path.
        of: number of tensors of the model; 0 if nothing was loaded.
        loaded: number of tensors that come from the file.
        missing: keys of the model that the file lacks.
        unexpected: keys of the file that the model lacks.
        reshaped: keys whose shapes differ.
        left_out: content of the file that is not the encoder: first part of the key -> count.
    """

    source: str
    recognised: str
    architecture: str
    of: int = 0
    loaded: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def partial(self) -> bool:
        """True if some tensors of the model stayed random, or some of the file were not used."""
        return bool(self.missing or self.unexpected or self.reshaped)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for results, checkpoints and summaries."""
        told = dict(vars(self))
        return told | {"of another shape": told.pop("reshaped"), "partial": self.partial}

    def __getitem__(self, key: str) -> Any:
        """A value by its key in `as_dict`, for code that expects a dictionary."""
        return self.as_dict()[key]

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> "LoadReport":
        """The inverse of `as_dict`; unknown keys are ignored."""
        values = {key: told[key] for key in cls.__dataclass_fields__ if key in told}
        return cls(**values | {"reshaped": told.get("of another shape", [])})

    def __str__(self) -> str:
        """One sentence, for people."""
        if not self.of:
            return f"{self.architecture}: {self.recognised}"
        text = f"{self.loaded} of {self.of} tensors of {self.architecture} from {self.recognised}"
        lists = {"missing": self.missing, "of another shape": self.reshaped, "unexpected": self.unexpected}
        for word, keys in lists.items():
            text += f"; {len(keys)} {word} ({name_some(keys)})" if keys else ""
        left = ", ".join(f"{count} of {what}" for what, count in self.left_out.items())
        return text + (f"; left out: {left}" if left else "")


def name_some(keys: list[str]) -> str:
    """The first keys of a list, for a sentence."""
    return ", ".join(keys[:NAMED]) + (", …" if len(keys) > NAMED else "")
