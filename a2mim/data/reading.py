"""How pixels are read: passed from the command line, or the run that an encoder comes from, to every set it opens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """See data/pixel_format.py.

    Args:
        bits: 8 or 16; None: what the images have.
        exif: turn images as their EXIF orientation says.
        value_range: (least, greatest) value of arrays that are neither uint8 nor uint16.
        nodata, fill: the value where nothing was measured, and what takes its place.
    """

    bits: int | None = None
    exif: bool = False
    value_range: tuple[float, float] | None = None
    nodata: float | str | None = None
    fill: float | None = None

    def arguments(self) -> dict:
        """The keyword arguments of `open_dataset` that say the same."""
        return dict(vars(self))

    def __str__(self) -> str:
        said = [f"bits {self.bits}"] if self.bits else []
        said += ["by their EXIF orientation"] if self.exif else []
        said += [f"values from {self.value_range[0]:g} to {self.value_range[1]:g}"] if self.value_range else []
        said += [f"{self.nodata} for no data"] if self.nodata is not None else []
        said += [f"filled with {self.fill:g}"] if self.fill is not None else []
        return ", ".join(said)


DEFAULT = Reading()
