"""The rates of stochastic depth and dropout that a network uses in training, read from its modules."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Rates:
    """The largest rates in the network, in [0, 1).

    Attributes:
        drop_path: of stochastic depth, which skips a whole branch for an image.
        dropout: of dropout in any module.
    """

    drop_path: float
    dropout: float

    def __str__(self) -> str:
        parts = [f"{word} up to {rate:.3g}" for word, rate in self._named() if rate]
        return ", ".join(parts) or "no stochastic depth, no dropout"

    def _named(self) -> tuple[tuple[str, float], ...]:
        return ("stochastic depth", self.drop_path), ("dropout", self.dropout)


def measure_rates(model: nn.Module) -> Rates:
    """The rates that `model` uses in training, whatever its arguments were."""
    paths, dropouts = [0.0], [0.0]
    for module in model.modules():
        kind = type(module).__name__.lower()
        if isinstance(module, nn.modules.dropout._DropoutNd):
            dropouts.append(float(module.p))
        elif "drop" in kind and ("path" in kind or "depth" in kind or "stochastic" in kind):
            paths.append(_rate_of(module))
        else:  # functional dropout reads its rate from an attribute of the module (timm's classifiers)
            dropouts += [float(vars(module)[key]) for key in ("drop_rate",) if isinstance(vars(module).get(key), float)]
    return Rates(round(max(paths), 6), round(max(dropouts), 6))


def _rate_of(module: nn.Module) -> float:
    """The rate of timm's DropPath, torchvision's StochasticDepth, transformers' …DropPath."""
    return float(next((getattr(module, key) for key in ("drop_prob", "p") if getattr(module, key, None)), 0.0))
