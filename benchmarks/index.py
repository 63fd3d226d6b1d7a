"""Seconds and memory to open many shards whose indices are cached, in a fresh process.

python benchmarks/index.py [--images 1000000] [--shards 1000] [--folder DIR]

Shards are synthetic: files of the right size without content (they take no space), with indices as `a2mim shards index`
would leave them. `open_dataset` reads every index, asks the file system for every shard's size and time, joins labels
and prepares the store. Seconds are of that call alone, with the index files in the system's cache; memory is the
greatest resident size of the whole process, Python and numpy included, and what the call added to it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from a2mim.data.access import Access
from a2mim.data.shards.index import SAMPLE, ShardIndex
from a2mim.data.shards.index_file import local_paths, local_stamp, store

OPEN = """
import resource, sys, time
from a2mim.data import open_dataset
import a2mim.data.shards.tar_shards  # what an open costs beyond its imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began, busy = time.perf_counter(), time.process_time()
dataset = open_dataset(sys.argv[1], bits=8)
seconds, busy = time.perf_counter() - began, time.process_time() - busy
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert "torch" not in sys.modules
print(len(dataset), seconds, busy, peak / 1024, (peak - before) / 1024)
"""


def write_synthetic(folder: Path, images: int, shards: int) -> str:
    """Shards without content and their indices; returns their pattern."""
    rng = np.random.default_rng(0)
    for k in range(shards):
        count = images // shards
        samples = np.zeros(count, SAMPLE)
        samples["size"] = rng.integers(50_000, 150_000, count)
        needs = samples["size"] // 512 * 512 + 2048
        samples["offset"] = 512 + np.cumsum(needs) - needs
        samples["label"], samples["key"] = rng.integers(0, 1000, count), rng.integers(0, 1 << 63, count)
        samples["name"] = samples["text"] = samples["folder"] = -1
        path = str(folder / f"shard-{k:06d}.tar")
        with open(path, "wb") as file:
            file.truncate(int(samples["offset"][-1] + samples["size"][-1] + 10240))
        keys = [f"{k * count + i:09d}" for i in range(count)]
        store(ShardIndex(samples, keys=keys), local_paths(path, Access()), local_stamp(path))
    return str(folder / f"shard-{{000000..{shards - 1:06d}}}.tar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--folder", help="where the synthetic shards go (default: a temporary folder)")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        pattern = write_synthetic(Path(folder), chosen.images, chosen.shards)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        for _ in range(chosen.rounds):
            command = [sys.executable, "-c", OPEN, pattern]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            images, seconds, busy, peak, added = map(float, done.stdout.split())
            taken = f"{seconds:.2f} s ({busy:.2f} s of a core), {peak:.0f} MB ({added:+.0f} MB)"
            print(f"{images:,.0f} images in {chosen.shards} shards: {taken}")


if __name__ == "__main__":
    main()
