"""Pipelines that can only be iterated, such as `webdataset.WebDataset`. They come with fewer guarantees.

The pipeline decides the order of images and their split over workers and processes. Guaranteed: an epoch has the stated
number of steps on every process; a pipeline that ends is started again; crops depend on the seed and the position in
the stream. Not guaranteed: a resumed run starts the stream from its beginning, another number of workers gives other
batches, and nothing checks whether an image comes twice or never. The first 256 images represent the data in pictures,
in BatchNorm's calibration and in the fingerprint.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from a2mim.data import keyed
from a2mim.data.batches import MAX_IN_A_ROW, RandomCrops
from a2mim.data.dataset import ImageDataset, Stream
from a2mim.data.decode import UnreadableImage
from a2mim.data.faults import Faults, UnreadableData
from a2mim.data.items import image_and_label
from a2mim.data.keyed import key_of
from a2mim.data.options import LoaderOptions
from a2mim.data.progress import Progress
from a2mim.data.records import Batch, Fault, WorkerBatch
from a2mim.data.workers import as_it_is, explained_death

HEAD = 256  # images kept
HEAD_SIDE = 256  # least short side of a kept image in pixels; larger images are subsampled
PROMISE = "your own pipeline: it decides order and split, and a resumed run starts it from the beginning"
_MOST_WORKERS = 1 << 20  # per process, so that the numbers of workers of two processes never collide


def open_stream(pipeline, images_per_epoch: int | None = None) -> ImageDataset:
    """A pipeline as a training set.

    Args:
        pipeline: starts again each time it is iterated; data/items.py says what an item may be.
        images_per_epoch: over all processes; None: its len().

    Raises:
        ValueError: the pipeline is a generator, which can be read only once, has no length, or yields no images.
    """
    title = type(pipeline).__name__
    if iter(pipeline) is pipeline:
        raise ValueError(f"a {title} can be read only once; give an object that can be iterated again and again")
    if images_per_epoch is None:
        try:
            images_per_epoch = len(pipeline)
        except TypeError:
            raise ValueError(
                f"the {title} does not say how long an epoch is; give a2mim.data.open_stream(pipeline,"
                " images_per_epoch=...) or, with webdataset, pipeline.with_length(..., silent=True)"
            ) from None
    if images_per_epoch < 1:
        raise ValueError(f"images_per_epoch={images_per_epoch} must be at least 1")
    head = list(itertools.islice(map(image_and_label, pipeline), min(HEAD, images_per_epoch)))
    if not head:
        raise ValueError(f"the {title} gave no image")
    keys = np.array([key_of(f"stream/{i}") for i in range(len(head))], np.uint64)
    labels = [label for _, label in head]
    dataset = ImageDataset(HeadStore([_thinned(image) for image, _ in head], title), title, keys, labels, [len(head)])
    dataset.promise = PROMISE
    dataset.stream = Stream(pipeline, images_per_epoch)
    return dataset


@dataclass(frozen=True)
class StreamPlan:
    """The part of a `Plan` that a stream has."""

    global_batch_size: int
    steps: int


class HeadStore:
    """The first images of a stream, in memory."""

    def __init__(self, contents: list, title: str):
        self.contents, self.title = contents, title

    def content(self, i: int) -> bytes | np.ndarray:
        return self.contents[i]

    def name(self, i: int) -> str:
        return f"{self.title}, image {i}"


class StreamLoader(Progress):
    """A training loader for a data set of `open_stream`. It takes `LoaderOptions`, like TrainLoader. The stream decides
    the order, so lanes, block, prefetch and start_method have no effect.
    """

    def __init__(self, dataset: ImageDataset, img_size, global_batch_size: int, **options):
        chosen = LoaderOptions(img_size, global_batch_size, **options)
        if chosen.repeats != 1:
            raise ValueError(f"repeats={chosen.repeats}: images of a pipeline come once each; leave repeats at 1")
        self.stream = _stream_of(dataset)
        self.plan = StreamPlan(global_batch_size, self.stream.images_per_epoch // global_batch_size)
        if not self.plan.steps or global_batch_size % chosen.world_size:
            raise ValueError(
                f"an epoch of {self.stream.images_per_epoch} images has no step of global_batch_size="
                f"{global_batch_size} for {chosen.world_size} processes; change one of them"
            )
        self.dataset, self.seed = dataset, chosen.seed
        self.views = chosen.views
        self.faults = Faults()
        self._running: Iterator[WorkerBatch] | None = None
        self.crop, self.batch_size = chosen.crops(), chosen.batch_size
        batches = _StreamBatches(dataset, self.crop, self.batch_size, chosen.rank, chosen.views)
        self._loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=chosen.num_workers,
            collate_fn=as_it_is,
            pin_memory=chosen.pin_memory,
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return self.plan.steps

    @property
    def left_out(self) -> int:
        """Images of an epoch that do not fill a batch."""
        return self.stream.images_per_epoch - self.plan.steps * self.plan.global_batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Yields to the end of the current epoch. The next iterator continues in the stream."""
        if self._running is None:
            self._running = iter(self._loader)
        for _ in range(len(self) - self._place()[1]):
            self.position += 1
            with explained_death():
                made = next(self._running)
            yield self.faults.receive(made, self.position * self.batch_size)

    def state_dict(self) -> dict:
        return {**self._identity(), **self._position(), "faults": dict(self.faults)}

    def load_state_dict(self, state: dict, next_epoch: bool = False) -> list[str]:
        """Restores the position; returns sentences for the user, among them that the stream starts again."""
        said = self._take_up(state, next_epoch)
        self.faults = Faults(state["faults"])
        return [*said, f"the {self.dataset.title} starts from the beginning: images of this epoch may come again"]

    def _identity(self) -> dict:
        return {"plan": "stream", "seed": self.seed, "views": self.views, **asdict(self.plan)}


def _stream_of(dataset: ImageDataset) -> Stream:
    assert dataset.stream is not None  # open_stream sets it
    return dataset.stream


class _StreamBatches(IterableDataset):
    """An endless stream of finished batches, made in a worker or in this process."""

    def __init__(self, dataset: ImageDataset, crop: RandomCrops, batch_size: int, rank: int, views: int):
        self.dataset, self.crop, self.batch_size = dataset, crop, batch_size
        self.rank, self.views = rank, views

    def __iter__(self) -> Iterator[WorkerBatch]:
        worker = get_worker_info()
        number = self.rank * _MOST_WORKERS + (worker.id if worker else 0)
        faults: list[Fault] = []
        try:
            images = self._crops(number, faults)
            while True:
                rows = list(itertools.islice(images, self.batch_size))
                yield WorkerBatch(
                    images=torch.from_numpy(np.stack([np.asarray(row[0]) for row in rows])),
                    labels=np.array([row[1] for row in rows], np.int64),
                    ids=np.array([row[2] for row in rows], np.int64),
                    faults=tuple(faults),
                )
                faults.clear()
        except Exception as error:  # the user's code may raise anything; a sentence is clearer than a page of traceback
            known = isinstance(error, UnreadableData)
            said = error if known else UnreadableData(f"{self.dataset.title} failed: {type(error).__name__}: {error}")
            yield WorkerBatch(faults=tuple(faults), error=said)

    def _crops(self, number: int, faults: list) -> Iterator[tuple[np.ndarray, int, int]]:
        """Yields (crop, label, position in this worker's stream) without end."""
        bad, position = 0, -1
        while True:
            began = position
            for item in _stream_of(self.dataset).pipeline:
                position += 1
                content, label = image_and_label(item)
                try:
                    notes: list[str] = []
                    pixels = self.dataset.decode(content, notes)
                except UnreadableImage as error:
                    bad += 1
                    faults.append((error.reason, f"{self.dataset.title}, image {position} ({error})"))
                    if bad == MAX_IN_A_ROW:
                        names = "; ".join(sentence for _, sentence in faults[-MAX_IN_A_ROW:][:3])
                        raise UnreadableData(f"{bad} images in a row cannot be read, first: {names}") from None
                    continue
                bad = 0
                faults += [(note, f"{self.dataset.title}, image {position} ({note})") for note in notes]
                for view in range(self.views):
                    name = f"{number}/{position}/{view}" if view else f"{number}/{position}"
                    key = np.array([key_of(name)], np.uint64)
                    u = keyed.uniforms(self.crop.seed, 0, key, self.crop.draws, keyed.CROP)[0]
                    yield self.crop(pixels, u), label, position
            if position == began:
                raise UnreadableData(f"{self.dataset.title} gave no image; has each worker and process a part of it?")


def _thinned(content: bytes | np.ndarray) -> bytes | np.ndarray:
    """Every n-th pixel of a large image: 256 photographs of 12 megapixels would need 9 GB."""
    if isinstance(content, bytes):
        return content
    step = max(1, min(content.shape[:2]) // HEAD_SIDE)
    return np.ascontiguousarray(content[::step, ::step])
