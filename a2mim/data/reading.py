"""How pixels are read where a call says nothing: so the command line's flags reach every set that a command opens."""

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """See data/pixel_format.py.

    Args:
        bits: 8 or 16; None: what the first image has.
        exif: turn images as their EXIF orientation says.
        value_range: (least, greatest) value of arrays that are neither uint8 nor uint16.
    """

    bits: int | None = None
    exif: bool = False
    value_range: tuple[float, float] | None = None

    def __str__(self) -> str:
        said = [f"bits {self.bits}"] if self.bits else []
        said += ["by their EXIF orientation"] if self.exif else []
        said += [f"values from {self.value_range[0]:g} to {self.value_range[1]:g}"] if self.value_range else []
        return ", ".join(said)


DEFAULT = Reading()
_current = ContextVar("reading", default=DEFAULT)


def current() -> Reading:
    """What `open_dataset` takes when it is told nothing."""
    return _current.get()


@contextmanager
def using(reading: Reading):
    """Makes these the current choices."""
    token = _current.set(reading)
    try:
        yield
    finally:
        _current.reset(token)
