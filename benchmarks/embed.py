"""Memory and time of keeping and writing embeddings, without the encoder: python benchmarks/embed.py --rows 1000000

Prints the seconds of making the rows and of writing each file, the size of each file, and the highest anonymous memory
of the process meanwhile, sampled every 10 ms by a thread. Pages of mapped files are not counted: the system can drop
them.
"""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from a2mim.embedding import files
from a2mim.embedding.unfinished import Unfinished


class Rows:
    """A set of images by name only, 1,000 in a shard and 1,000 classes."""

    def __init__(self, rows: int):
        self.labels, self.class_names = np.arange(rows) % 1000, [f"class {i}" for i in range(1000)]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        return f"train-{i // 1000:06d}.tar/{i:09d}"


def anonymous() -> float:
    """Memory of this process that no file backs, in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


class Peak:
    """`with Peak() as peak`: `peak.megabytes` is the highest anonymous memory inside the block, in MB.

    A thread samples it every `interval` seconds; a shorter peak can be missed.
    """

    def __init__(self, interval: float = 0.01):
        self.interval, self.megabytes, self._end = interval, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def _sample(self) -> None:
        while not self._end.wait(self.interval):
            self.megabytes = max(self.megabytes, anonymous())

    def __enter__(self) -> "Peak":
        self.megabytes = anonymous()
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._end.set()
        self._thread.join()
        self.megabytes = max(self.megabytes, anonymous())


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--width", type=int, default=384)
    p.add_argument("--formats", nargs="+", default=[".parquet", ".npz"], choices=list(files.WRITERS))
    p.add_argument("--dir", help="where to write (default: the system's temporary folder)")
    chosen = p.parse_args()
    rows, before = Rows(chosen.rows), anonymous()

    with tempfile.TemporaryDirectory(dir=chosen.dir) as folder:
        work = Unfinished(Path(folder) / "unfinished", len(rows), chosen.width, {})
        batch, began = np.random.default_rng(0).standard_normal((4096, chosen.width), np.float32), time.monotonic()
        with Peak() as peak:
            for start in range(0, len(rows), len(batch)):
                ids = np.arange(start, min(start + len(batch), len(rows)))
                work.put(ids, batch[: len(ids)])
            work.save(len(rows))
        print(f"{len(rows):,} rows: {time.monotonic() - began:.1f} s, {peak.megabytes - before:.0f} MB of memory")
        for suffix in chosen.formats:
            began, out = time.monotonic(), Path(folder) / f"features{suffix}"
            with Peak() as peak:
                files.write(out, rows, work, {})
            seconds, size = time.monotonic() - began, out.stat().st_size / 2**20
            print(f"{suffix}: {seconds:.1f} s, {peak.megabytes - before:.0f} MB of memory for a file of {size:.0f} MB")
            out.unlink()


if __name__ == "__main__":
    main()
