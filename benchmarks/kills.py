"""Kills one of two processes of a run again and again, under torchrun; compares the weights with an undisturbed run.

python benchmarks/kills.py [--kills 50] [--seed 0] [--steps 3000] [--work-dir DIR]

torchrun restarts both processes after each kill; the command line says nothing of resuming. A kill comes at a random
time: in 3 of 10 lives while the processes still start, else within 1.5 s after the first step of that life. The script
prints one line a kill, then how many folders there are and whether all weights are bit-equal, and ends with status 1
if they are not, or if there is more than one folder.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from a2mim.checkpoints import read_newest

RECIPE = """
model = dict(
    encoder=dict(name="vit_tiny_patch16_224", model_args=dict(depth=2, embed_dim=64, num_heads=2)),
    masking=dict(type="BlockMask", mask_patch_size=16),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=32)
global_batch_size = 8
optimizer = dict(base_lr=0.01)
schedule = dict(epochs={epochs}, warmup_epochs=1)
ema = 0.01
clip_grad = 5.0
checkpoint = dict(every_steps=5, keep=3)
log = dict(every_steps=1, rows=2, pictures=2)
judge = dict(every_epochs=None)
export = []
"""
IMAGES, BATCH = 24, 8
START = 6.0  # seconds that two processes take to start, about
DEADLINE = 600.0  # seconds that a life may take to reach its first step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--work-dir", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as folder:
        return compare(Path(folder), arguments.kills, arguments.steps, random.Random(arguments.seed))


def compare(folder: Path, kills: int, steps: int, draw: random.Random) -> int:
    """Both runs, and the exit status."""
    write_inputs(folder, steps)
    whole = start(folder, "whole", kills)
    if whole.wait():
        raise SystemExit((folder / "whole.log").read_text()[-3000:])
    killed = start(folder, "killed", kills)
    done = disturb(folder, killed, kills, draw)
    status = killed.wait()
    if status:
        print((folder / "killed.log").read_text()[-3000:])
    runs = sorted(path.name for path in (folder / "killed" / "runs").iterdir())
    unequal = differences(*(folder / name / "runs" / "tiny" / "checkpoints" for name in ("whole", "killed")))
    print(f"kills {done}, status {status}, folders {runs}, tensors that differ: {len(unequal)}", *unequal[:3])
    return int(bool(status or unequal or len(runs) != 1))


def write_inputs(folder: Path, steps: int) -> None:
    """The recipe and the images."""
    import cv2

    (folder / "tiny.py").write_text(RECIPE.replace("{epochs}", str(steps * BATCH // IMAGES)))
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(IMAGES):
        image = cv2.resize(generator.integers(0, 256, (6, 6, 3), np.uint8), (48, 40))
        cv2.imwrite(str(folder / "images" / f"{number:02d}.png"), image)


def start(folder: Path, name: str, kills: int) -> subprocess.Popen:
    """A run of two processes in a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = folder / name
    here.mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    words = ["-m", "a2mim.cli", "pretrain", str(folder / "tiny.py"), "--data", str(folder / "images")]
    command = [*torchrun, "--max-restarts", str(kills + 1), *words, "--device", "cpu", "--num-workers", "0"]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, cwd=here, env=environ, stdout=log, stderr=subprocess.STDOUT)


def disturb(folder: Path, run: subprocess.Popen, kills: int, draw: random.Random) -> int:
    """Kills one of the processes, up to `kills` times; returns how often."""
    log = folder / "killed" / "runs" / "tiny" / "log.jsonl"
    seen: set[int] = set()
    for number in range(1, kills + 1):
        pids = new_workers(run, seen)
        if not pids:
            return number - 1
        seen |= set(pids)
        began = time.time()
        starting = draw.random() < 0.3
        if starting:
            time.sleep(draw.uniform(0, START))
        else:
            while run.poll() is None and modified(log) < began + 1 and time.time() < began + DEADLINE:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 1.5))
        rank = draw.randrange(2)
        try:
            os.kill(pids[rank], signal.SIGKILL)
        except ProcessLookupError:  # the run has ended
            return number - 1
        step = sum(1 for _ in log.open()) if log.exists() else 0
        print(f"kill {number}: process {rank}, {'at the start' if starting else f'at about step {step}'}", flush=True)
    return kills


def new_workers(run: subprocess.Popen, seen: set[int]) -> list[int]:
    """The two processes of the next life; [] where the run has ended."""
    while run.poll() is None:
        found = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        pids = [pid for pid in map(int, found) if pid not in seen]
        if len(pids) == 2:
            return pids
        time.sleep(0.05)
    return []


def modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def differences(first: Path, second: Path) -> list[str]:
    """Names of tensors of two runs' last checkpoints that are not bit-equal; the averaged weights too."""
    loaded = [read_newest(folder) for folder in (first, second)]
    if None in loaded:
        return ["there is no checkpoint"]
    states = [
        checkpoint["state_dict"] | {f"averaged {k}": v for k, v in checkpoint["ema_state_dict"].items()}
        for _, checkpoint in loaded
    ]
    return [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]


if __name__ == "__main__":
    sys.exit(main())
