"""What an evaluation will cost, known before its first image: forward passes, their seconds, bytes of features."""

from __future__ import annotations

from dataclasses import dataclass, field

from a2mim.evaluation.context import EvalContext
from a2mim.evaluation.linear import epochs_for
from a2mim.protocols import Protocol


@dataclass(frozen=True)
class ViewPass:
    """One pass over the images in one view, which computes all parts that the protocols need.

    Args:
        constants: "resize" and "interpolation".
        parts: names, see `taps`.
    """

    constants: dict
    parts: tuple[str, ...]


@dataclass
class Cost:
    """Counts of an evaluation.

    Args:
        images: forward passes whose features are kept; 0 where all are in the cache.
        seconds: of computing these, without reading the images.
        size: bytes of the features, of both sets and all views.
        crops: {protocol: (forward passes of random crops, seconds)}.
    """

    images: int = 0
    seconds: float = 0.0
    size: int = 0
    crops: dict[str, tuple[int, float]] = field(default_factory=dict)

    def sentence(self) -> str:
        """One line for the screen."""
        told = [f"{self.images:,} images, once ({_time(self.seconds)})" if self.images else "all features are cached"]
        if self.images:
            told[0] += f", {_bytes(self.size)} of features on disk"
        told += [f"{name}: {count:,} random crops ({_time(seconds)})" for name, (count, seconds) in self.crops.items()]
        return f"forward passes, without reading images and without classifiers: {'; '.join(told)}"


def estimate(context: EvalContext, protocols: list[Protocol], passes: list[ViewPass]) -> Cost:
    """Estimates the cost without reading images: sizes and times come from a forward pass over noise."""
    cost = Cost()
    for view in passes:
        missing = [split for split in ("train", "test") if context.missing(split, view.parts, view.constants)]
        sizes, seconds = context.probe_forward(view.parts) if missing else ({}, 0.0)
        cost.size += sum(context.missing_bytes(split, sizes, view.constants) for split in ("train", "test"))
        images = sum(len(context.dataset(split)) for split in missing)
        cost.images, cost.seconds = cost.images + images, cost.seconds + images * seconds
    for protocol in protocols:
        c = protocol.constants
        if protocol.kind in ("linear", "mae-linear", "attentive") and c["train_view"] == "crops":
            crops = _crops(c, len(context.train))
            cost.crops[protocol.name] = (crops, crops * context.probe_forward(passes[0].parts)[1])
    return cost


def _crops(c: dict, images: int) -> int:
    """Random crops that a protocol of constants `c` takes of a training set."""
    if c.get("epoch_length"):
        return c["epochs"] * c["epoch_length"] * c["batch_size"]
    return images * epochs_for(c, images // min(c["batch_size"], images))


def _bytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def _time(seconds: float) -> str:
    """About how long, to one or two digits."""
    if seconds < 1:
        return "under a second"
    if seconds < 100:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.0f} h"
