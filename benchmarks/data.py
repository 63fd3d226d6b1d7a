"""How many images a second of processor time becomes batches, beside what everyone runs, and whether memory stays flat.

python benchmarks/data.py ['SHARDS'] [--images 1024] [--rounds 5] [--workers 0 1 2]
python benchmarks/data.py --against threads shipped lent --workers 1 2
python benchmarks/data.py --memory [--epochs 20]

Without SHARDS it writes its own into a temporary folder: 500x375 JPEGs of quality 95 cut from the built-in photographs,
with a film grain that makes them as large as ImageNet's (115 kB on average). In turn, each in a fresh process:

- a2mim: `TrainLoader`, uint8;
- folder: torchvision's ImageFolder, Pillow, RandomResizedCrop, flip, ToTensor, Normalize: float32;
- webdataset: WebDataset, shuffle, decode("pil"), the same transforms, batched: float32;
- decode: simplejpeg alone on the same bytes, the floor;
- threads, shipped (with --against): a2mim's batches made by threads of this process, or by processes that send each
  finished batch as torch's DataLoader does, instead of writing into the shared ring;
- lent (with --against): a2mim's batches as they lie in the ring, without a copy, until the next one is asked for.

All read the same images and crop with the same settings (224 px, scale 0.67 to 1) in batches of 64. Numbers are images
per second of processor time of the process and its workers; batches before every worker has delivered are not counted.
A ratio is the median over rounds of pairs measured in the same round.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import a2mim  # noqa: F401  before torchvision: it mends it

# isort: split
import numpy as np
import torch

from a2mim.data import TrainLoader, make_shards, open_dataset
from a2mim.data.batches import Batches
from a2mim.data.plan import Plan
from a2mim.data.prepare.stages import children, cpu_seconds
from a2mim.data.records import Request
from a2mim.data.workers import as_it_is
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD

SIZE, BATCH, SCALE, GRAIN = 224, 64, (0.67, 1.0), 12.0  # GRAIN: standard deviation, of 255


def write_photos(folder: Path, images: int) -> Path:
    """folder/<photograph>/<number>.jpg."""
    from PIL import Image

    from a2mim.data.photos import PHOTOGRAPHS, half

    rng = np.random.default_rng(0)
    halves = [half(photo, split) for photo in PHOTOGRAPHS for split in ("train", "test")]
    for number in range(images):
        photo = halves[number % len(halves)]
        height, width = photo.shape[:2]
        share = min(width / 500, height / 375) * rng.uniform(0.6, 1)
        w, h = int(500 * share), int(375 * share)
        x, y = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
        image = Image.fromarray(photo[y : y + h, x : x + w]).resize((500, 375), Image.Resampling.BICUBIC)
        grainy = np.asarray(image) + rng.normal(0, GRAIN, (375, 500, 1))
        buffer = io.BytesIO()
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=95)
        place = folder / f"{number % len(halves):02d}" / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(buffer.getvalue())
    return folder


def unpack(shards: str, folder: Path) -> Path:
    """The images of shards as files in folder/<label>/, for ImageFolder."""
    dataset = open_dataset(shards)
    for i in range(len(dataset)):
        place = folder / f"{max(0, dataset.labels[i]):05d}" / f"{i:08d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(dataset.store.content(i))
    return folder


def usual_transform():
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, SCALE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


def a2mim_batches(shards: str, folder: str, workers: int):
    loader = TrainLoader(open_dataset(shards), SIZE, BATCH, scale=SCALE, num_workers=workers)
    while True:
        for batch in loader:
            yield len(batch["images"])


def threads_batches(shards: str, folder: str, workers: int):
    batches, requests = Batches(*_parts(shards)), _requests(shards)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting = deque(pool.submit(batches.__getitem__, next(requests)) for _ in range(2 * max(1, workers)))
        while True:
            waiting.append(pool.submit(batches.__getitem__, next(requests)))
            yield len(waiting.popleft().result().ids)


def shipped_batches(shards: str, folder: str, workers: int):
    batches = Batches(*_parts(shards))
    requests = _Sampler(_requests, shards)
    for batch in torch.utils.data.DataLoader(
        batches, sampler=requests, batch_size=None, num_workers=workers, collate_fn=as_it_is
    ):
        yield len(batch.ids)


def lent_batches(shards: str, folder: str, workers: int):
    loader = TrainLoader(open_dataset(shards), SIZE, BATCH, scale=SCALE, num_workers=workers)
    loader._workers._copy = lambda images: images
    while True:
        for batch in loader:
            yield len(batch["images"])


class _Sampler:
    """Iterates over what a function gives, anew each time."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __iter__(self):
        return self.function(*self.arguments)


def _parts(shards: str):
    loader = TrainLoader(open_dataset(shards), SIZE, BATCH, scale=SCALE)
    return loader.dataset, loader.crop


def _requests(shards: str):
    """What a TrainLoader sends to its workers, for ever; without a slot in a ring."""
    plan = Plan(open_dataset(shards).shard_sizes, BATCH)
    for epoch in count():
        for step in range(plan.steps):
            ids = plan.batch(epoch, step)
            yield Request(epoch, ids, ahead=ids)


def folder_batches(shards: str, folder: str, workers: int):
    from torchvision.datasets import ImageFolder

    images = ImageFolder(folder, usual_transform())
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    while True:
        for batch, _ in loader:
            yield len(batch)


def webdataset_batches(shards: str, folder: str, workers: int):
    import webdataset as wds

    transform = usual_transform()
    images = wds.WebDataset(shards, shardshuffle=100, empty_check=False).shuffle(1000).decode("pil")
    images = images.to_tuple("jpg", "cls").map_tuple(transform, lambda label: label).batched(BATCH, partial=False)
    loader = wds.WebLoader(images, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    while True:
        for batch, _ in loader:
            yield len(batch)


def decode_batches(shards: str, folder: str, workers: int):
    import simplejpeg

    dataset = open_dataset(shards)
    while True:
        for i in range(len(dataset)):
            simplejpeg.decode_jpeg(dataset.store.content(i))
            yield 1


PIPELINES = {
    "a2mim": a2mim_batches,
    "folder": folder_batches,
    "webdataset": webdataset_batches,
    "decode": decode_batches,
    "threads": threads_batches,
    "shipped": shipped_batches,
    "lent": lent_batches,
}


def measure_here(name: str, shards: str, folder: str, workers: int, images: int) -> dict[str, float]:
    """In this process: images per second of processor time, and of the clock."""
    torch.set_num_threads(1)
    batches = PIPELINES[name](shards, folder, workers)
    for _ in range(1 + 2 * workers):
        next(batches)
    started, cpu, taken = time.perf_counter(), cpu_seconds(), 0
    while taken < images:
        taken += next(batches)
    return {"cpu": taken / (cpu_seconds() - cpu), "clock": taken / (time.perf_counter() - started)}


def measure(name: str, shards: str, folder: Path, workers: int, images: int) -> dict[str, float]:
    """In a process of its own."""
    own = ["--one", name, "--folder", str(folder), "--workers", str(workers), "--images", str(images)]
    done = subprocess.run([sys.executable, __file__, shards, *own], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(shards: str, folder: Path, images: int, rounds: int, workers: list[int], against: list[str]) -> None:
    runs = {("decode", 0): []} | {(name, n): [] for n in workers for name in ("a2mim", *against)}
    for number in range(rounds):
        for (name, n), found in runs.items():
            found.append(measure(name, shards, folder, n, images))
            print(f"round {number + 1}, {name}, {n} workers: {found[-1]['cpu']:.0f} images/CPU-s", file=sys.stderr)
    cpu = {key: [found["cpu"] for found in all_] for key, all_ in runs.items()}
    clock = {key: statistics.median(found["clock"] for found in all_) for key, all_ in runs.items()}
    print(f"decoding alone: {statistics.median(cpu['decode', 0]):.0f} images/CPU-s")
    for n in workers:
        for name in ("a2mim", *against):
            each = statistics.median(cpu[name, n])
            print(f"{name}, {n} workers: {each:.0f} images/CPU-s, {clock[name, n]:.0f} images/s")
        for other, key in (*((name, n) for name in against), ("decode", 0)):
            ratios = sorted(a / b for a, b in zip(cpu["a2mim", n], cpu[other, key], strict=True))
            print(f"  a2mim / {other}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def memory_of(process: int | str) -> dict[str, float]:
    """MiB: all that is resident, and what of it is the process's own (Linux)."""
    fields = dict(line.split(":") for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")}


def watch_memory(shards: str, epochs: int, workers: int) -> None:
    """Resident memory of this process and its workers, at the end of each epoch with the same workers."""
    torch.set_num_threads(1)
    loader = TrainLoader(open_dataset(shards), SIZE, BATCH, scale=SCALE, num_workers=workers)
    history = []
    for epoch in range(epochs):
        for _ in loader:
            pass
        history.append([memory_of("self"), *map(memory_of, children())])
        row = ", ".join(f"{m['VmRSS']:.0f} ({m['RssAnon']:.0f} own)" for m in history[-1])
        print(f"epoch {epoch + 1}: MiB of main and workers: {row}", flush=True)
    early = min(4, epochs - 1)
    for place, name in enumerate(["main", *(f"worker {k}" for k in range(workers))]):
        before, after = (
            sum(moment[place].values()) - moment[place]["VmRSS"] for moment in (history[early], history[-1])
        )
        print(f"{name}: own memory from epoch {early + 1} to {epochs}: {before:.1f} -> {after:.1f} MiB")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak of main: {peak:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="?", help="brace pattern of JPEG shards; none: its own")
    parser.add_argument("--images", type=int, default=1024, help="in a measurement, and in shards of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--against", nargs="+", choices=PIPELINES, default=["folder", "webdataset"])
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--epochs", type=int, default=20, help="of --memory")
    parser.add_argument("--one", choices=PIPELINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        found = measure_here(chosen.one, chosen.shards, chosen.folder, chosen.workers[0], chosen.images)
        print(json.dumps(found), flush=True)
        os._exit(0)  # the pipelines run for ever, and their workers are told nothing by a measurement that ends
    with tempfile.TemporaryDirectory() as scratch:
        shards, folder = chosen.shards, Path(scratch) / "images"
        if shards is None:
            write_photos(folder, chosen.images)
            shards = make_shards(folder, Path(scratch) / "shards", -(-chosen.images // 8))["pattern"]
        elif not chosen.memory:
            unpack(shards, folder)
        data = open_dataset(shards)
        size = np.mean([len(data.store.content(i)) for i in range(0, len(data), 7)])
        print(f"{len(data)} images of {size / 1000:.0f} kB on average, {os.cpu_count()} cores", flush=True)
        if chosen.memory:
            watch_memory(shards, chosen.epochs, max(chosen.workers))
        else:
            compare(shards, folder, chosen.images, chosen.rounds, chosen.workers, chosen.against)


if __name__ == "__main__":
    main()
