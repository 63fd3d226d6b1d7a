"""What evaluation costs, as ratios measured side by side in one run.

python benchmarks/evaluation.py [knn] [grid] [linear] [--scale 0.01] [--steps 4] [--folder DIR]

knn: 50,000 queries on 1.28 M features of 384 dimensions, times --scale in both, k = 200: a2mim's search and votes
against its floor, the plain matrix products of the same blocks alone. The bank lies on disk, memory-mapped. Memory is
the largest anonymous resident set above that before the search: pages of the mapped file are the kernel's to drop.

grid: the 52 heads of dinov2-linear in one pass over one forward, against 52 passes with one head each, on the same
random crops of the built-in photographs at 64 px: --steps steps each.

linear: where an epoch of dino-linear goes: reading and cropping, the forward pass, seven heads.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import a2mim  # noqa: F401  before timm: it mends torchvision

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from a2mim.evaluation.context import EvalContext
from a2mim.evaluation.heads import LinearHeads
from a2mim.evaluation.knn import _CHUNK, knn
from a2mim.evaluation.taps import dino_parts, grid_parts
from a2mim.protocols import read_protocol

QUERIES, BANK, DIM, CLASSES, K = 50_000, 1_281_167, 384, 1000, 200
ENCODER, SIZE = "vit_tiny_patch16_224", 64


class PeakMemory:
    """Largest anonymous resident set while it is open, in bytes above that at its start."""

    def __enter__(self):
        self.start = self.most = _anonymous()
        self.running = True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while self.running:
            self.most = max(self.most, _anonymous())
            time.sleep(0.005)

    def __exit__(self, *_):
        self.running = False
        self.thread.join()

    @property
    def used(self) -> int:
        return self.most - self.start


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def write_bank(path: Path, rows: int) -> np.ndarray:
    """Unit noise, a block at a time, so that making it needs no memory either."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, DIM))
    generator = np.random.default_rng(0)
    for start in tqdm(range(0, rows, _CHUNK), desc="writing the bank", leave=False):
        array[start : start + _CHUNK] = generator.standard_normal((min(_CHUNK, rows - start), DIM), np.float32)
    array.flush()
    del array
    return np.load(path, mmap_mode="c")


def floor(bank: torch.Tensor, queries: torch.Tensor, block_bytes: int = 2**27) -> float:
    """Seconds of the matrix products alone, in the blocks of the search."""
    queries, started = F.normalize(queries, dim=1), time.perf_counter()
    rows = max(1, block_bytes // (4 * min(_CHUNK, len(bank))))
    for first in range(0, len(bank), _CHUNK):
        chunk = bank[first : first + _CHUNK].T
        for start in range(0, len(queries), rows):
            queries[start : start + rows] @ chunk
    return time.perf_counter() - started


def compare_knn(scale: float, folder: str | None) -> None:
    n_bank, n_queries = max(K, round(BANK * scale)), max(1, round(QUERIES * scale))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        bank = torch.from_numpy(write_bank(Path(place) / "bank.npy", n_bank))
        generator = torch.Generator().manual_seed(1)
        queries = torch.randn(n_queries, DIM, generator=generator)
        labels = torch.randint(CLASSES, (n_bank,), generator=generator)
        wanted = torch.randint(CLASSES, (n_queries,), generator=generator)
        plain = floor(bank, queries)
        with PeakMemory() as memory:
            started = time.perf_counter()
            knn(bank, labels, queries, wanted, k=K)
            taken = time.perf_counter() - started
    print(
        f"k-NN of {n_queries:,} queries on {n_bank:,} features of {DIM} dimensions, k {K}: {taken:.1f} s, "
        f"{taken / plain:.2f} times the matrix products alone ({plain:.1f} s); {memory.used / 2**30:.2f} GiB at most",
        flush=True,
    )


def views(bench: EvalContext, parts, constants: dict, batch_size: int):
    kept = np.arange(len(bench.train))
    return bench.random_views(kept, parts, torch.arange(14), constants | {"batch_size": batch_size})


def compare_grid(bench: EvalContext, steps: int) -> None:
    constants = read_protocol("dinov2-linear").constants
    images = torch.zeros(2, 3, SIZE, SIZE).normal_(generator=torch.Generator().manual_seed(0))
    inputs = grid_parts(bench.model, images, constants["blocks"])
    width = bench.model.num_features
    lrs = constants["base_lrs"]

    def run(chosen: dict, rates) -> float:
        parts = tuple(dict.fromkeys(part for joined in chosen.values() for part in joined))
        heads = {name: LinearHeads(rates, width * len(joined), 14) for name, joined in chosen.items()}
        stream = views(bench, parts, constants, constants["batch_size"])
        started = time.perf_counter()
        for _, batch in zip(range(steps), stream, strict=False):
            for name, joined in chosen.items():
                heads[name].step(torch.cat([batch.parts[part] for part in joined], dim=1), batch.targets, 0.5)
        return time.perf_counter() - started

    run(inputs, lrs)
    together = run(inputs, lrs)
    alone = sum(run({name: joined}, [lr]) for name, joined in inputs.items() for lr in tqdm(lrs, leave=False))
    print(
        f"grid of {len(inputs) * len(lrs)} heads, {steps} steps of {constants['batch_size']} crops at {SIZE} px "
        f"through {ENCODER}: {together:.2f} s in one pass, {alone:.2f} s in separate runs, "
        f"{alone / together:.1f} times",
        flush=True,
    )


def split_linear(bench: EvalContext) -> None:
    constants = read_protocol("dino-linear").constants
    parts, _ = dino_parts(bench.model)
    loader = bench.crops(bench.train, 256, constants)
    run, seconds = bench.encoder.taps(parts), dict.fromkeys(("reading and cropping", "forward", "heads"), 0.0)
    heads = LinearHeads(constants["base_lrs"], bench.model.num_features * len(parts), 14)
    images, last = 0, time.perf_counter()

    def note(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = seconds[name] + now - last, now

    for batch in loader:
        note("reading and cropping")
        joined = [torch.cat(list(run(some).values()), dim=1) for some in batch["images"].split(bench.batch_size)]
        note("forward")
        heads.step(torch.cat(joined), batch["labels"], 0.5)
        note("heads")
        images += len(batch["ids"])
    total = sum(seconds.values())
    told = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in seconds.items())
    print(f"an epoch of dino-linear: {1000 * total / images:.2f} ms an image at {SIZE} px through {ENCODER}: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["knn", "grid", "linear"], help="knn, grid, linear (all)")
    parser.add_argument("--scale", type=float, default=0.01, help="of queries and bank (0.01)")
    parser.add_argument("--steps", type=int, default=4, help="of the grid (4)")
    parser.add_argument("--folder", help="where the bank is written (the system's temporary folder)")
    chosen = parser.parse_args()
    if "knn" in chosen.what:
        compare_knn(chosen.scale, chosen.folder)
    if {"grid", "linear"} & set(chosen.what):
        bench = EvalContext(ENCODER, "photos", "photos", device="cpu", img_size=SIZE, calibrate=False)
        if "grid" in chosen.what:
            compare_grid(bench, chosen.steps)
        if "linear" in chosen.what:
            split_linear(bench)


if __name__ == "__main__":
    main()
