"""What tools/export.py calls: an export whose BatchNorm is calibrated on images that the user names."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from a2mim.data import Access, Reading, open_dataset
from a2mim.data.ownership import refuse_foreign_addresses
from a2mim.data.request import recall
from a2mim.devices import choose_device
from a2mim.evaluation import calibration
from a2mim.export.exporting import export
from a2mim.export.targets import check_targets
from a2mim.weights.loading import Source, read_source


def export_calibrated(
    source: str | Path,
    to: list[str],
    out_dir=None,
    data=None,
    num_workers: int = 0,
    calibrate: bool = True,
    device: str | None = None,
    access: Access | None = None,
    reading: Reading | None = None,
    **options,
) -> list[dict]:
    """`export` with BatchNorm calibrated on images from `data`. Returns the receipts.

    Args:
        data: what `open_dataset` takes; None takes the run's own images where the statistics are those of masked ones,
            and leaves them as they are where they are fit to be left.
        calibrate: False leaves them as they are whatever they are; the receipt says so.
        device: where they are calibrated; None takes a GPU where there is one.
        access, reading: how data are reached and pixels read, see a2mim/data/access.py and reading.py.
        options: further arguments of `export`.

    Raises:
        ValueError: an unknown target; no data for a checkpoint with BatchNorm, whose statistics are those of masked
            images, outside its run's folder.
    """
    check_targets(to)
    if not calibrate:
        data = None
    elif data is None and has_masked_statistics(read_source(source)):
        data = data_of_run(source)
    batches = None if data is None else calibration_batches(source, data, num_workers, access, reading)
    return export(source, to, out_dir, batches, device=choose_device(device), **options)


def has_masked_statistics(found: Source) -> bool:
    """Whether these are trained weights whose BatchNorm has only seen masked images."""
    if found.calibrated or found.tensors is None:
        return False
    return any(key.endswith("running_mean") for key in found.tensors)


def data_of_run(source: str | Path):
    """The training images of a run folder.

    Raises:
        ValueError: the folder says nothing of them, or names an address, and another account began the run.
    """
    asked = recall(Path(source))
    if "data" not in asked:
        raise ValueError(
            f"the BatchNorm statistics in {source} are those of masked images, with which its features are wrong on"
            " whole ones: give images to take them from anew with --data"
        )
    refuse_foreign_addresses(Path(source), asked, {})
    return "photos" if asked["data"] is None else asked["data"]


def calibration_batches(
    source, data, num_workers: int = 0, access: Access | None = None, reading: Reading | None = None
) -> Iterator[Tensor]:
    """Normalised central crops (B, C, H, W) at the encoder's own size, of the set's calibration images."""
    preprocessing = read_source(source).preprocessing
    if preprocessing is None:
        raise ValueError(f"{source} is a name with random weights: there is nothing to calibrate, leave out --data")
    dataset = open_dataset(data, "train", preprocessing.channels, access, **(reading or Reading()).arguments())
    loader = calibration.calibration_loader(
        dataset, preprocessing.img_size, None, preprocessing.interpolation, num_workers
    )
    return calibration.calibration_batches(loader, preprocessing.normalize)
