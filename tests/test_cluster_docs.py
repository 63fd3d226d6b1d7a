"""The SLURM script of docs/cluster.md, run with stand-ins for SLURM's commands and for torchrun."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
STAND_INS = {
    "srun": 'exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\n"; else echo "$@" >> scontrol.txt; fi',
    "torchrun": 'trap "echo saved >> torchrun.txt; exit 138" USR1; echo "$@" > torchrun.txt\n'
    "for i in $(seq 600); do sleep 0.1; done",
}


@pytest.fixture
def script(tmp_path):
    """The script as a process, in a folder whose commands are stand-ins."""
    text = next(block for block in PAGE.read_text(encoding="utf-8").split("```bash\n")[1:] if block.startswith("#!"))
    (tmp_path / "job.sh").write_text(text.split("```")[0])
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    environ = os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environ)
    yield process
    process.kill()
    process.wait()


def test_the_script_starts_torchrun_and_on_its_signal_saves_and_queues_the_job_again(script, tmp_path):
    deadline = time.monotonic() + 60
    started = tmp_path / "torchrun.txt"
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < deadline and script.poll() is None
        time.sleep(0.05)
    words = started.read_text().split()
    assert {"--nnodes=2", "--rdzv-id=7", "--rdzv-endpoint=n1:29500", "--max-restarts=3"} <= set(words)
    assert words[-2:] == ["--resume", "auto"] and any("SIGUSR1" in word for word in words)
    script.send_signal(signal.SIGUSR1)
    assert script.wait(timeout=60) is not None
    assert started.read_text().endswith("saved\n")
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 7\n"
