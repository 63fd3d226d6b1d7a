"""Kills runs at random moments and goes on with them, until each has ended with the weights of an undisturbed run.

python tools/fuzzing/kills.py --kills 50 [--seed 0]

A run reads shards whose indices are gone again at every start, judges before and after, writes a checkpoint at each
step and exports. Every second SIGKILL comes at any moment from the start of its process to the end of its export, the
others soon after a step that is drawn, so that a slow machine does not move all of them to the start.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process with several threads cannot be forked safely
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import a2mim
from a2mim.checkpoints import list_checkpoints, read_newest
from a2mim.engine.stored import read_log
from fuzzing.archives import write_shard

STEPS = 8  # of a run
SPARED = 0.25  # of the starts, so that not all kills fall into the end of one run
SOON = 0.05  # s, at most, from a step's checkpoint to the kill
RECIPE = """
model = dict(
    encoder=dict(name="vit_tiny_patch16_224", model_args=dict(patch_size=8, embed_dim=8, depth=2, num_heads=2)),
    masking=dict(type="BlockMask", mask_patch_size=8),
    losses=[dict(type="MaskedL1")],
)
data = dict(img_size=32)
global_batch_size = 8
schedule = dict(epochs=4, warmup_epochs=1)
checkpoint = dict(every_steps=1, keep=3)
log = dict(every_steps=1)
export = ["timm", "safetensors"]
"""


def start(place: Path, run: Path) -> int:
    """Starts or goes on with a run in a process of its own; returns its number."""
    for index in place.glob("*.npz"):
        index.unlink()
    child = os.fork()
    if child:
        return child
    status = 1
    with contextlib.suppress(BaseException), open(run.with_suffix(".txt"), "a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        shards = [str(place / f"{number}.tar") for number in range(6)]
        choices = {"test_data": shards[4:], "resume": "auto", "device": "cpu", "num_workers": 0}
        a2mim.pretrain(place / "recipe.py", shards[:4], run, **choices)
        status = 0
    os._exit(status)


def wait(child: int, run: Path, seconds: float | None = None, step: int = 0) -> int | None:
    """The exit status; -9 after a kill, which comes when the step has a checkpoint and then the seconds are over."""
    end = None if seconds is None or step else time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if step and (run / "checkpoints" / f"step_{step:08d}.pth").exists():
            end, step = time.monotonic() + (seconds or 0), 0
        if end is not None and time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            end = None
        time.sleep(0.002)


def next_step(run: Path, draw: random.Random) -> int:
    """A step that the run has not reached yet; 0 where it has reached the last."""
    reached = max([0, *(int(path.stem.removeprefix("step_")) for path in list_checkpoints(run / "checkpoints"))])
    return draw.randint(reached + 1, STEPS) if reached < STEPS else 0


def stage(run: Path) -> str:
    """What a killed run had done."""
    if not run.is_dir():
        return "before its folder was made"
    if (run / "encoder" / "receipt.json").is_file():
        return "exporting"
    steps = len(list_checkpoints(run / "checkpoints"))
    last = max([0, *(line["step"] for line in read_log(run / "log.jsonl")[0])])
    return "judging before" if not steps else "judging after or exporting" if last >= STEPS else "training"


def prepare(place: Path) -> None:
    (place / "recipe.py").write_text(RECIPE)
    for number in range(6):  # two classes; four shards to train on, two to test on
        write_shard(place / f"{number}.tar", labels=("cls", str(number % 2).encode()), first=4 * number)


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = read_newest(run / "checkpoints")
    assert newest is not None
    return newest[1]["state_dict"]


def kill_runs(kills: int, seed: int, place: Path) -> Counter:
    """How many kills fell into each stage, and how many runs ended.

    Raises:
        AssertionError: a run could not go on, left partial files, or ended with other weights.
    """
    draw, counts = random.Random(seed), Counter()
    prepare(place)
    began = time.monotonic()
    assert wait(start(place, place / "whole"), place / "whole") == 0, (place / "whole.txt").read_text()
    longest, whole = time.monotonic() - began, weights(place / "whole")
    for number in range(kills + 1):
        run, killed = place / f"run{number}", 0
        while True:
            step = next_step(run, draw) if draw.random() < 0.5 else 0
            seconds = draw.uniform(0, SOON if step else longest)
            spared = counts["kills"] >= kills or draw.random() < SPARED
            status = wait(start(place, run), run, None if spared else seconds, 0 if spared else step)
            if status == 0:
                break
            assert status == -signal.SIGKILL, run.with_suffix(".txt").read_text()
            counts.update(["kills", stage(run)])
            print(f"kill {counts['kills']}: {stage(run)}", flush=True)
            killed += 1
        counts["runs that ended"] += 1
        found = weights(run)
        assert list(found) == list(whole), "other parameters"
        assert all(torch.equal(found[key], whole[key]) for key in whole), f"other weights after {killed} kills"
        left = [*run.rglob("*.partial"), *run.rglob(".staging-*")]
        assert not left, f"left behind: {left}"
        assert all((run / folder / "receipt.json").is_file() for folder in ("encoder", "export/safetensors"))
        shutil.rmtree(run)
        if counts["kills"] >= kills:
            return counts
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        counts = kill_runs(chosen.kills, chosen.seed, Path(place))
    print(", ".join(f"{what}: {count}" for what, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
