"""Damages files of every kind that a2mim reads, and fails where a reader ends in anything but its own short error.

python tools/fuzz.py --seconds 3600 [--kind tar-pax] [--seed 0]

Attempt n of a kind and a seed is always the same: --kind index --seed 3 --first 71 --rounds 1 makes one again.
"""

import argparse
import os
import shutil
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with several threads cannot be forked safely
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzzing import archives, pictures, runs, weights
from fuzzing.guard import Outcome, fuzz

TURN = 200  # attempts on a kind before the next one has its turn
SLOW = {"report": 50, "weights": 4, "weights-old": 4}  # kinds that have so many times fewer attempts
KINDS = {**pictures.KINDS, **archives.KINDS, **weights.KINDS, **runs.KINDS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for all kinds together (60)")
    parser.add_argument("--kind", action="append", help="only these, e.g. 'image-*'; may be repeated")
    parser.add_argument("--rounds", type=int, help="attempts on a kind, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=1, help="number of the first attempt (1)")
    chosen = parser.parse_args()
    kinds = [name for name in KINDS if any(fnmatch(name, like) for like in chosen.kind or ["*"])]
    if not kinds:
        parser.error(f"no such kind; there are {', '.join(KINDS)}")
    if any(KINDS[name] in runs.KINDS.values() for name in kinds):
        runs.run_folder()  # made before the first kind is given its time
    try:
        return _all(kinds, chosen)
    finally:
        if runs.run_folder.cache_info().currsize:
            shutil.rmtree(runs.run_folder())


def _all(kinds: list[str], chosen: argparse.Namespace) -> int:
    """Takes turns, so that each kind has as many attempts as any other whenever the time is over."""
    end, first = time.monotonic() + chosen.seconds, chosen.first
    last = first + (chosen.rounds or sys.maxsize - first)
    outcomes = {name: Outcome() for name in kinds}
    while time.monotonic() < end and first < last:
        turn = min(TURN, last - first)
        for name in kinds:
            slow = SLOW.get(name, 1)
            rounds, start = -(-turn // slow), (first - 1) // slow + 1
            outcome = fuzz(name, KINDS[name], end - time.monotonic(), chosen.seed, rounds, start)
            print("".join(f"FAILED {failure}\n" for failure in outcome.failures), end="", flush=True)
            outcomes[name].add(outcome)
        first += turn
        if first < last:
            print(f"{first - chosen.first:,} attempts on each kind", flush=True)
    for name, outcome in outcomes.items():
        counts = ", ".join(f"{count:,} {ended}" for ended, count in outcome.counts.most_common())
        print(f"{name:22} {outcome.counts.total():7,} in {outcome.seconds:5.0f} s: {counts}")
    failures = sum(len(outcome.failures) for outcome in outcomes.values())
    total = sum(outcome.counts.total() for outcome in outcomes.values())
    print(f"{total:,} attempts on {len(kinds)} kinds, {failures} failures", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
