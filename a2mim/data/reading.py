"""How pixels are read. The command line or the encoder's run sets it, and it is passed to every set that is opened."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """Fields of `PixelFormat` (data/pixel_format.py) that a user can set.

    Args:
        bits: bits per value, 8 or 16; None: as many as the images have.
        exif: apply the EXIF orientation.
        value_range: (least, greatest) value of arrays that are neither uint8 nor uint16.
        nodata, fill: the value of pixels without a measurement, and its replacement.
    """

    bits: int | None = None
    exif: bool = False
    value_range: tuple[float, float] | None = None
    nodata: float | str | None = None
    fill: float | None = None

    def arguments(self) -> dict:
        """The same choices as keyword arguments of `open_dataset`."""
        return dict(vars(self))

    def __str__(self) -> str:
        said = [f"bits {self.bits}"] if self.bits else []
        said += ["by their EXIF orientation"] if self.exif else []
        said += [f"values from {self.value_range[0]:g} to {self.value_range[1]:g}"] if self.value_range else []
        said += [f"{self.nodata} for no data"] if self.nodata is not None else []
        said += [f"filled with {self.fill:g}"] if self.fill is not None else []
        return ", ".join(said)


DEFAULT = Reading()
