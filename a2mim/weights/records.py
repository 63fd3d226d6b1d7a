"""What is known of weights before they are in a network, and what became of them afterwards: two records."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from a2mim.pixels import Preprocessing

NAMED = 3  # keys that a sentence spells out


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where an encoder comes from, read but not built: plain values, and its tensors unless it is only a name.

    Attributes:
        name: timm's, or the dotted path that the user gave.
        model_args: what builds it beyond the name and num_classes=0.
        preprocessing: None for a name alone.
        tensors: key -> tensor; None for a name alone, whose weights are random.
        frozen: parameters that pre-training never reached.
        path: the file or the folder that holds the tensors.
        given: the path that the user gave, e.g. the run's folder.
        calibrated: BatchNorm's running statistics are those of whole images, not of masked ones or of none.
        recognised: what it is, for the report.
        left_out: what the file holds beside the encoder: first part of the key -> count.
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
    """What became of every tensor, of the file and of the model.

    Attributes:
        source: the file, or the name.
        recognised: what the file was taken for.
        architecture: timm's name, or a dotted path.
        of: tensors of the model; 0 where nothing was loaded.
        loaded: tensors that come from the file.
        missing: keys of the model that the file lacks.
        unexpected: keys of the file that the model lacks.
        reshaped: keys whose shapes differ.
        left_out: what the file holds beside the encoder: first part of the key -> count.
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
        """Whether some tensors of the model stayed random, or some of the file were not used."""
        return bool(self.missing or self.unexpected or self.reshaped)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for results, checkpoints and summaries."""
        told = dict(vars(self))
        return told | {"of another shape": told.pop("reshaped"), "partial": self.partial}

    def __getitem__(self, key: str) -> Any:
        """A value by its key in `as_dict`, as code that was written for a dictionary reads it."""
        return self.as_dict()[key]

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> "LoadReport":
        """The inverse of `as_dict`; keys that it does not know are left out."""
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
