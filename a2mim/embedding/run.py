"""Writes a file of embeddings of images; continues where a killed run stopped."""

import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2mim import __version__
from a2mim.batchnorm import calibrate_batchnorm
from a2mim.data import Access, EvalLoader, ImageDataset, Reading, open_dataset
from a2mim.embedding import files
from a2mim.embedding.unfinished import STATE, Unfinished
from a2mim.evaluation.calibration import DESCRIPTION, calibration_batches, calibration_loader
from a2mim.evaluation.context import RESIZE
from a2mim.evaluation.encoder import Encoder
from a2mim.evaluation.features import frozen, pooling_name, pooling_of, refuse_below_one
from a2mim.evaluation.identity import stamp_of
from a2mim.evaluation.shown import Record
from a2mim.files import read_json, telling_full_disk, write_json
from a2mim.text import ProgressBar

NOT_FINITE = "its embedding is not finite"
FEW = 10  # images whose embedding may overflow before the run ends
SAVE_EVERY = 10.0  # seconds of work that a kill may cost


def embed(
    source,
    data,
    out: str | Path,
    pooling: str = "default",
    split: str = "train",
    img_size: int | tuple[int, int] | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device=None,
    calibrate: bool | None = None,
    allow_partial: bool = False,
    overwrite: bool = False,
    access: Access | None = None,
    reading: Reading | None = None,
) -> dict:
    """Writes one row per image to `out` (.parquet, .npz or .csv) and the facts to `out`.json; returns the facts.

    Args:
        source: what `load_encoder` takes; data: what `open_dataset` takes.
        pooling: see `a2mim.evaluation.extract_features`.
        split: of a source that has both, "train" or "test".
        img_size: pixels or (H, W); None is the encoder's own. The image is resized until it just covers 256/224 of that
            size, and its centre is cropped.
        calibrate: take BatchNorm's statistics from up to 1,024 of these images first. None: only if the encoder has
            no statistics of whole images.
        access, reading: how data are reached and pixels read, see a2mim/data/access.py and reading.py.
        overwrite: replace an existing `out` and discard unfinished work for it.

    Raises:
        ValueError, OSError: in one sentence, what to change.

    Example:
        >>> facts = a2mim.embed("runs/tiny", "photographs", "photographs.npz")
        >>> facts["images"], facts["width"]
        (16, 64)
    """
    out = Path(out)
    files.check_out(out)
    refuse_below_one(img_size=img_size, batch_size=batch_size)
    folder, told = out.with_name(f"{out.name}.unfinished"), out.with_name(f"{out.name}.json")
    if out.exists() and not overwrite and (told.exists() or not (folder / STATE).is_file()):
        damage = ", and is damaged (its SHA-256 is another than in its .json)" if is_damaged(out) else ""
        raise ValueError(f"{out} is there already{damage}: choose another --out, or add --overwrite.")
    encoder = Encoder(source, device, img_size, allow_partial)
    dataset = open_dataset(data, split, encoder.channels, access, **(reading or Reading()).arguments())
    calibrate = not encoder.clean_statistics if calibrate is None else calibrate
    view = {"img_size": list(encoder.img_size), "resize": round(max(encoder.img_size) * RESIZE)}
    view |= {"interpolation": encoder.pixels.interpolation, "batch_size": batch_size}

    def loader(indices) -> EvalLoader:
        sizes = (encoder.img_size, view["resize"], view["interpolation"], batch_size, num_workers)
        return EvalLoader(dataset, *sizes, indices=indices)

    run = _runner(encoder, pooling)
    about = {
        "encoder": encoder.name,
        "encoder_hash": encoder.hash,
        "loading": encoder.loading,
        "data": dataset.title,
        "data_fingerprint": dataset.fingerprint,
        "pooling": pooling,
        "pooled": pooling_name(encoder.model, pooling),
        **view,
        **encoder.stats,
        "batchnorm_calibrated_on": _calibrate(encoder, dataset, view, num_workers) if calibrate else 0,
        "device": encoder.device.type,
    }
    identity = {key: value for key, value in about.items() if key not in ("loading", "encoder", "data")}
    identity |= {"data_stamp": stamp_of(dataset), "torch": torch.__version__, "calibration": DESCRIPTION}
    if overwrite and folder.is_symlink():
        folder.unlink()
    if overwrite and folder.exists():
        shutil.rmtree(folder)
    with telling_full_disk(out, f"make room; the rows made so far are safe in {folder}, and the same command goes on"):
        work = Unfinished(folder, len(dataset), _width(run, encoder), identity)
        _embed(work, dataset, run, loader, batch_size)
        about |= {"a2mim": __version__, "torch": torch.__version__, **_outcome(work, dataset)}
        work.finish()
        told.unlink(missing_ok=True)  # an old one must not vouch for new embeddings
        about["sha256"] = files.write(out, dataset, work, about)
        write_json(told, about)
    work.remove()
    return Record(about)


def is_damaged(out: str | Path) -> bool:
    """Whether the file does not match the checksum in its .json; False if the .json has no checksum."""
    out = Path(out)
    try:
        told = read_json(out.with_name(f"{out.name}.json")).get("sha256")
    except (OSError, ValueError, AttributeError):
        return False
    return told is not None and (not out.is_file() or told != files.sha256_of(out))


def _runner(encoder: Encoder, pooling: str):
    """(images as a loader gives them) -> (B, D) float32 on the CPU."""
    pool = pooling_of(encoder.model, pooling)

    def run(images: Tensor) -> Tensor:
        with frozen(encoder.model):
            return pool(encoder.normalized(images)).float().cpu()

    return run


def _width(run, encoder: Encoder) -> int:
    return run(torch.zeros(1, encoder.channels, *encoder.img_size)).shape[1]


def _calibrate(encoder: Encoder, dataset: ImageDataset, view: dict, num_workers: int) -> int:
    """Calibrates BatchNorm; returns the number of images used. The same set always gives the same images."""
    loader = calibration_loader(dataset, encoder.img_size, view["resize"], view["interpolation"], num_workers)
    return calibrate_batchnorm(encoder.model, calibration_batches(loader, encoder.normalized))


def _embed(work: Unfinished, dataset: ImageDataset, run, loader, batch_size: int) -> None:
    """Computes the remaining rows. Resuming does not change which images share a batch."""
    saved = time.monotonic()
    starts = iter(range(work.done, len(dataset), batch_size))
    if work.done == len(dataset):
        return
    with ProgressBar(total=len(dataset), initial=work.done, desc="embedding", unit="image", leave=False) as bar:
        start = next(starts)
        for batch in loader(np.arange(work.done, len(dataset))):
            ids = batch["ids"].numpy()
            while ids[0] >= start + batch_size:  # the loader skips a batch without readable images
                start = next(starts)
            work.put(ids, run(batch["images"]).numpy())
            end = min(start + batch_size, len(dataset))
            _refuse_not_finite(work, dataset)
            bar.update(end - bar.n)
            if time.monotonic() - saved > SAVE_EVERY:
                work.save(end)
                saved = time.monotonic()
    work.save(len(dataset))


def _refuse_not_finite(work: Unfinished, dataset: ImageDataset) -> None:
    """Ends a run whose embeddings overflow. A few such images are tolerated: they count as unreadable and are named.

    Raises:
        ValueError: more than FEW images and more than 1 %, or all of them.
    """
    bad = work.not_finite
    if bad and (bad > max(FEW, len(dataset) / 100) or bad == len(dataset)):
        raise ValueError(
            f"the embeddings of {bad} of {len(dataset)} images are not finite, the last of them"
            f" {dataset.name(work.last_not_finite)}: the encoder has diverged, or its weights do not suit it"
        )


def _outcome(work: Unfinished, dataset: ImageDataset) -> dict:
    """How many images there are, and each that could not be read, with the reason."""
    unreadable = []
    for i in np.flatnonzero(~work.readable):
        if work.overflowed[i]:
            unreadable.append({"key": dataset.name(int(i)), "reason": NOT_FINITE})
            continue
        try:
            dataset.read(int(i))
            reason = "could not be read when its turn came, and can be now"
        except ValueError as error:
            reason = str(error)
        unreadable.append({"key": dataset.name(int(i)), "reason": reason})
    return {"images": len(dataset), "width": work.embeddings.shape[1], "unreadable": unreadable}
