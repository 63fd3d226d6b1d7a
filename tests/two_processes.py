"""Two real processes that find each other, as a SLURM step's variables say, and a port that is free."""

import os
import socket
import subprocess
import sys

from a2mim.processes import group as processes


def start_two(tmp_path, program, **environ):
    """Two processes that know of each other by a SLURM step's variables alone; returns their outputs."""
    script = tmp_path / "two.py"
    script.write_text(program)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = (free.getsockname()[1] - processes.PORTS[0]) % processes.PORTS[1]
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
