"""Two real processes on this machine: as a SLURM step's variables say, or started by torchrun."""

import os
import socket
import subprocess
import sys

from a2mim.processes import group as processes

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_two(tmp_path, program, **environ):
    """Two processes that know of each other by a SLURM step's variables alone; returns their outputs."""
    script = tmp_path / "two.py"
    script.write_text(program)
    job = (free_port() - processes.PORTS[0]) % processes.PORTS[1]
    step = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODELIST": "n1"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "TORCHELASTIC"))}
    both = []
    for rank in map(str, range(2)):
        own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "RANK_HERE": rank}
        variables = (
            clean | step | own | ({"RANK": rank, "LOCAL_RANK": rank} if "WORLD_SIZE" in environ else {}) | environ
        )
        arguments = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        both.append(subprocess.Popen([sys.executable, str(script)], env=variables, **arguments))
    return [process.communicate(timeout=900)[0] for process in both]


def pair_of(*words: object, options: tuple[str, ...] = ()) -> list[str]:
    """torchrun's command of two processes of a script or of "-m", MODULE; `options` are torchrun's own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*torchrun, "--master-port", str(free_port()), *options, *map(str, words)]


def run_pair(*words: object) -> str:
    """Runs torchrun's two processes to their end, which must be good; returns what they told on stderr."""
    done = subprocess.run(pair_of(*words), check=False, capture_output=True, text=True, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return done.stderr
