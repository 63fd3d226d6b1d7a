"""Writes a file of embeddings of images; continues where a killed run stopped."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from a2mim import __version__
from a2mim.batchnorm import batchnorm_statistics, calibrate_batchnorm, load_statistics
from a2mim.data import Access, EvalLoader, ImageDataset, Reading, open_dataset
from a2mim.embedding import files
from a2mim.embedding.unfinished import STATE, Unfinished
from a2mim.evaluation.calibration import DESCRIPTION, calibration_batches, calibration_loader
from a2mim.evaluation.context import RESIZE
from a2mim.evaluation.encoder import Encoder
from a2mim.evaluation.features import frozen, pooling_name, pooling_of, refuse_below_one
from a2mim.evaluation.identity import stamp_of
from a2mim.evaluation.parts import Part, counted, share_of
from a2mim.evaluation.shown import Record
from a2mim.files import read_json, telling_full_disk, write_json
from a2mim.processes.group import joined
from a2mim.processes.leading import Share, lead, spread, together
from a2mim.text import ProgressBar

EMBEDDING = "embedding"
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

    The processes of a torchrun that all call this share the work; the first one writes.

    Raises:
        ValueError, OSError: in one sentence, what to change.

    Examples:
        >>> facts = a2mim.embed("runs/tiny", "photographs", "photographs.npz")
        >>> facts["images"], facts["width"]
        (16, 64)
    """
    out = Path(out)
    with joined(device) as here:

        def build() -> _Embedding:
            files.check_out(out)
            refuse_below_one(img_size=img_size, batch_size=batch_size)
            _refuse_present(out, overwrite)
            encoder = Encoder(source, here, img_size, allow_partial)
            form = {"access": access, **(reading or Reading()).arguments()}
            dataset = open_dataset(data, split, encoder.channels, **form)
            return _Embedding(encoder, dataset, out, pooling, batch_size, num_workers)

        job = together(build)
        return Record(lead(lambda: job.write(calibrate, overwrite), {"rows": job.share}))


class _Embedding:
    """An encoder, the images to embed, and the file to write; the arguments are those of `embed`."""

    def __init__(
        self, encoder: Encoder, dataset: ImageDataset, out: Path, pooling: str, batch_size: int, num_workers: int
    ):
        self.encoder, self.dataset, self.out, self.pooling = encoder, dataset, out, pooling
        self.batch_size, self.num_workers = batch_size, num_workers
        self.resize, self.interpolation = round(max(encoder.img_size) * RESIZE), encoder.pixels.interpolation
        self.run = _runner(encoder, pooling)

    def loader(self, start: int) -> EvalLoader:
        """The images from a row on."""
        sizes = (self.encoder.img_size, self.resize, self.interpolation, self.batch_size, self.num_workers)
        return EvalLoader(self.dataset, *sizes, indices=np.arange(start, len(self.dataset)))

    def share(self, statistics: dict[str, Tensor], start: int) -> Share:
        """The share of a process that does not lead, with the statistics of BatchNorm of the one that does."""
        load_statistics(self.encoder.model, statistics)
        return share_of(self.loader(start), self.run)

    def parts(self, start: int) -> Iterator[Part]:
        """The results of all batches from a row on, in order."""
        loader = self.loader(start)
        statistics = batchnorm_statistics(self.encoder.model)
        return counted(
            loader, spread("rows", (statistics, start), share_of(loader, self.run)), len(self.dataset) - start
        )

    def calibrate(self) -> int:
        """Calibrates BatchNorm; returns the number of images used. The same set always gives the same images."""
        view = (self.encoder.img_size, self.resize, self.interpolation, self.num_workers)
        batches = calibration_batches(calibration_loader(self.dataset, *view), self.encoder.normalized)
        return calibrate_batchnorm(self.encoder.model, batches)

    def write(self, calibrate: bool | None, overwrite: bool) -> dict:
        """Computes the rows that are missing, and writes the file and its facts; returns the facts."""
        encoder, dataset, (folder, told) = self.encoder, self.dataset, _beside(self.out)
        calibrate = not encoder.clean_statistics if calibrate is None else calibrate
        about = {
            "encoder": encoder.name,
            "encoder_hash": encoder.hash,
            "loading": encoder.loading,
            "data": dataset.title,
            "data_fingerprint": dataset.fingerprint,
            "pooling": self.pooling,
            "pooled": pooling_name(encoder.model, self.pooling),
            "img_size": list(encoder.img_size),
            "resize": self.resize,
            "interpolation": self.interpolation,
            "batch_size": self.batch_size,
            **encoder.stats,
            "batchnorm_calibrated_on": self.calibrate() if calibrate else 0,
            "device": encoder.device.type,
        }
        identity = {key: value for key, value in about.items() if key not in ("loading", "encoder", "data")}
        identity |= {"data_stamp": stamp_of(dataset), "torch": torch.__version__, "calibration": DESCRIPTION}
        if overwrite and folder.is_symlink():
            folder.unlink()
        if overwrite and folder.exists():
            shutil.rmtree(folder)
        advice = f"make room; the rows made so far are safe in {folder}, and the same command goes on"
        with telling_full_disk(self.out, advice):
            work = Unfinished(folder, len(dataset), _width(self.run, encoder), identity)
            _embed(work, dataset, self.parts, self.batch_size)
            about |= {"a2mim": __version__, "torch": torch.__version__, **_outcome(work, dataset)}
            work.finish()
            told.unlink(missing_ok=True)  # an old one must not vouch for new embeddings
            about["sha256"] = files.write(self.out, dataset, work, about)
            write_json(told, about)
        work.remove()
        return about


def _beside(out: Path) -> tuple[Path, Path]:
    """(the folder of unfinished work for `out`, the file of its facts)."""
    return out.with_name(f"{out.name}.unfinished"), out.with_name(f"{out.name}.json")


def _refuse_present(out: Path, overwrite: bool) -> None:
    """Raises ValueError if `out` is there already, and is not what an unfinished run has left."""
    folder, told = _beside(out)
    if out.exists() and not overwrite and (told.exists() or not (folder / STATE).is_file()):
        damage = ", and is damaged (its SHA-256 is another than in its .json)" if is_damaged(out) else ""
        raise ValueError(f"{out} is there already{damage}: choose another --out, or add --overwrite.")


def is_damaged(out: str | Path) -> bool:
    """Whether the file does not match the checksum in its .json; False if the .json has no checksum."""
    out = Path(out)
    try:
        told = read_json(out.with_name(f"{out.name}.json")).get("sha256")
    except (OSError, ValueError, AttributeError):
        return False
    return told is not None and (not out.is_file() or told != files.sha256_of(out))


def _runner(encoder: Encoder, pooling: str):
    """(images as a loader gives them) -> {EMBEDDING: (B, D) float32 on the CPU}."""
    pool = pooling_of(encoder.model, pooling)

    def run(images: Tensor) -> dict[str, Tensor]:
        with frozen(encoder.model):
            return {EMBEDDING: pool(encoder.normalized(images)).float().cpu()}

    return run


def _width(run, encoder: Encoder) -> int:
    return run(torch.zeros(1, encoder.channels, *encoder.img_size))[EMBEDDING].shape[1]


def _embed(work: Unfinished, dataset: ImageDataset, parts: Callable[[int], Iterator[Part]], batch_size: int) -> None:
    """Computes the remaining rows. Resuming does not change which images share a batch.

    Args:
        parts: first row -> the results of all batches from there on, in order.
    """
    saved = time.monotonic()
    starts = iter(range(work.done, len(dataset), batch_size))
    if work.done == len(dataset):
        return
    with ProgressBar(total=len(dataset), initial=work.done, desc="embedding", unit="image", leave=False) as bar:
        start = next(starts)
        for part in parts(work.done):
            ids = part.ids.numpy()
            while ids[0] >= start + batch_size:  # the loader skips a batch without readable images
                start = next(starts)
            work.put(ids, part.found[EMBEDDING].numpy())
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
