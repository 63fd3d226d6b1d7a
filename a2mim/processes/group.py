"""The processes of a run: how they find one another, what they agree on, how they wait and how they end.

torchrun starts and restarts them; without it, the variables of a SLURM step are taken. Gradients travel over NCCL on
GPUs and gloo on CPUs. Signals use a separate gloo group. Processes that wait for the first one wait on the store,
which has no time-out: judging and exporting may take as long as they need.
"""

from __future__ import annotations

import gc
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from a2mim.devices import choose_device
from a2mim.processes.errors import is_shared, tasks_of_step

TIMEOUT = timedelta(minutes=10)  # for the start; then `processes.timeout_minutes` of the recipe holds
POLL = timedelta(seconds=30)  # how long one look at the store waits before the next
FAREWELL = timedelta(seconds=60)  # how long the first process waits for the others to leave
PORTS = 15_000, 20_000  # the first port for SLURM's steps, and how many

Answer = TypeVar("Answer")


@dataclass
class Group:
    """What this process knows of the others, beside torch's default group.

    Args:
        store: keys and values of all processes.
        control: a gloo group for what is no gradient.
        waits: how often the others have waited for the first process; the same number on all of them.
        asked: requests of the first process to the others so far; the same number on all of them.
    """

    store: distributed.Store
    control: distributed.ProcessGroup
    waits: int = 0
    asked: int = 0


_joined: list[Group] = []  # empty, or the one group that this process has joined


def start_processes(device: str | None) -> torch.device:
    """The device of this process; joins the process group where several were started.

    mmengine's own start needs a GPU: it calls torch.cuda.set_device whatever the backend.

    Raises:
        ValueError: there are fewer GPUs than processes on this node; SLURM's variables do not say enough.
        ConnectionError: the others cannot be reached.
    """
    fill_from_slurm()
    chosen = choose_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or distributed.is_initialized():
        return chosen
    if chosen.type == "cuda":
        chosen = torch.device("cuda", own_gpu(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()))
        torch.cuda.set_device(chosen)
    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        store = distributed.PrefixStore(life(), store)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            store=distributed.PrefixStore("default", store),
            rank=rank,
            world_size=size,
            timeout=TIMEOUT,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    except (distributed.DistError, RuntimeError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConnectionError(
            f"the processes of this run do not find one another at {address}: {_line(error)}"
        ) from error
    _joined.append(Group(distributed.PrefixStore("a2mim", store), distributed.new_group(backend="gloo")))
    return chosen


@contextmanager
def joined(device: str | None) -> Iterator[torch.device]:
    """The device of this process, which belongs to the group of all of them during the block.

    Joins nothing, and leaves nothing, where this process belongs to a group already: a run's, or a user's own.
    """
    if distributed.is_initialized():
        yield choose_device(device)
        return
    chosen = start_processes(device)
    try:
        yield chosen
        if _joined:
            leave_together()
    except Exception as error:
        if _joined and is_shared(error):
            leave_together()
        raise
    finally:
        if _joined:
            stop_processes()


def set_timeout(minutes: float) -> None:
    """How long an exchange of gradients may take. The group starts before the settings of a resumed run are known."""
    if _joined:
        distributed.distributed_c10d._set_pg_timeout(timedelta(minutes=minutes), distributed.group.WORLD)


def own_gpu(local_rank: int, gpus: int) -> int:
    """The number of this process's GPU; a scheduler may have left it a single one.

    Raises:
        ValueError: there are too few.
    """
    if gpus == 1:
        return 0
    if local_rank >= gpus:
        raise ValueError(
            f"process {local_rank} of this node has no GPU: torch finds {gpus}; start as many processes a node as it"
            " has GPUs (--nproc-per-node)"
        )
    return local_rank


def fill_from_slurm(environ: dict[str, str] | os._Environ = os.environ) -> None:
    """Sets the variables of torchrun from those of a SLURM step with several tasks, where torchrun has set none.

    Raises:
        ValueError: SLURM has started several tasks, and its variables do not say which one this is.
    """
    if "WORLD_SIZE" in environ or "RANK" in environ:
        return
    tasks = tasks_of_step(environ)
    if tasks == "1":
        return
    try:
        rank, local = int(environ["SLURM_PROCID"]), int(environ["SLURM_LOCALID"])
        hosts = first_host(environ.get("SLURM_STEP_NODELIST") or environ["SLURM_NODELIST"])
        job = int(environ["SLURM_JOB_ID"]) + int(environ.get("SLURM_STEP_ID", 0))
        variables = {
            "WORLD_SIZE": str(int(tasks)),
            "RANK": str(rank),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(tasks_of_node(environ, int(tasks))),
            "MASTER_ADDR": hosts[0] if hosts[1] else "127.0.0.1",
            "MASTER_PORT": str(PORTS[0] + job % PORTS[1]),
        }
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"SLURM has started {tasks} tasks, and its variables do not say which of them this is ({error}): start the"
            " run with srun torchrun, see docs/cluster.md"
        ) from error
    environ.update(variables)


def first_host(nodes: str) -> tuple[str, bool]:
    """(the first host of a SLURM node list, whether there are others): "n[07-09,12],m3" is ("n07", True)."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)([^\]]*)\]([^,\[]*))?(.*)", nodes.strip())
    if match is None:
        raise ValueError(f"the node list {nodes!r}")
    name, first, more, end, others = match.groups()
    return name + (first or "") + (end or ""), bool(more or others)


def tasks_of_node(environ: dict[str, str] | os._Environ, tasks: int) -> int:
    """How many tasks of the step run on this node, from SLURM's "2(x3),1": three nodes of two, one of one."""
    stated = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if not stated:
        return tasks
    counts: list[int] = []
    for part in stated.split(","):
        number, _, times = part.partition("(x")
        counts += [int(number)] * int(times.rstrip(")") or 1)
    return counts[int(environ.get("SLURM_NODEID", 0))]


def restarted() -> bool:
    """Whether torchrun has started this process anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def life(environ: dict[str, str] | os._Environ = os.environ) -> str:
    """A name in the store for the processes between two restarts of torchrun.

    With torchrun's static rendezvous, the default on one node, the store outlives the processes. Without a name of
    their own, restarted processes would read the addresses and the signs of dead ones. Several nodes restart with the
    c10d rendezvous, which makes a new store each time; there each node has a restart count of its own.
    """
    alone = environ.get("GROUP_WORLD_SIZE", "1") == "1"
    return f"life {environ.get('TORCHELASTIC_RESTART_COUNT', '0')}" if alone else "life"


def launcher() -> str | None:
    """Names the torchrun that this process belongs to, alike over its restarts; None without one."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if run is None else f"{run} of process {os.getppid()} on {socket.gethostname()}"


def agree(decide: Callable[[], Answer]) -> Answer:
    """What the first process decides, on all of them; its ValueError or OSError too.

    Args:
        decide: called on the first process alone; its answer is pickled, so keep it small.
    """
    group = _joined[0] if _joined else None
    if group is None:
        return decide()
    choice: list = [None, None]
    problem: Exception | None = None
    if distributed.get_rank() == 0:
        try:
            choice[0] = decide()
        except (ValueError, OSError) as error:
            problem = error
            kind = next(kind for kind in (FileNotFoundError, OSError, ValueError) if isinstance(error, kind))
            choice[1] = kind(str(error))  # an error of another class may not travel
    distributed.broadcast_object_list(choice, src=0, group=group.control, device=torch.device("cpu"))
    if choice[1] is not None:
        raise problem or choice[1]
    return choice[0]


def largest_of_all(number: float) -> float:
    """The largest of the numbers that the processes give; they wait for one another."""
    if not _joined:
        return number
    found = torch.tensor(number, dtype=torch.float64)
    distributed.all_reduce(found, distributed.ReduceOp.MAX, group=_joined[0].control)
    return float(found)


def least_of_all(numbers: torch.Tensor) -> torch.Tensor:
    """The least of the numbers that the processes give, place by place; they wait for one another.

    Args:
        numbers: on the CPU; bool counts as 0 and 1.
    """
    if not _joined:
        return numbers
    found = numbers.to(torch.float64)
    distributed.all_reduce(found, distributed.ReduceOp.MIN, group=_joined[0].control)
    return found.to(numbers.dtype)


def is_first() -> bool:
    """Whether this process is the first of the default group; True where there is no group."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def joined_group() -> Group | None:
    """What this process knows of the others; None where it has joined none."""
    return _joined[0] if _joined else None


def control_group() -> distributed.ProcessGroup | None:
    """The gloo group for what is no gradient; None, torch's default group, where this process has joined none."""
    return _joined[0].control if _joined else None


@contextmanager
def first_alone() -> Iterator[bool]:
    """Whether this process is the first one, which does the block's work; the others wait until it is done.

    They wait on the store, without time-out. All processes must come here in the same order.
    """
    yield is_first()
    wait_for_first()


def wait_for_first() -> None:
    """Returns when the first process has come here too, however long that takes.

    Raises:
        ConnectionError: the store is gone, and with it the first process.
    """
    if not _joined:
        return
    group = _joined[0]
    group.waits += 1
    key = f"first/{group.waits}"
    if distributed.get_rank() == 0:
        group.store.set(key, "done")
        return
    wait_for_key(group, key)


def wait_for_key(group: Group, key: str) -> None:
    """Returns when the first process has set a key, however long that takes.

    Raises:
        ConnectionError: the store is gone, and with it the first process.
    """
    while True:
        try:
            group.store.wait([key], POLL)
            return
        except distributed.DistStoreError:
            continue  # the time of one look has passed
        except (distributed.DistError, RuntimeError) as error:
            raise ConnectionError(f"the first process of this run is gone: {_line(error)}") from error


class Exchange:
    """The largest number of all processes, one call late: nobody waits for anybody in an ordinary step."""

    def __init__(self) -> None:
        self.sent: torch.Tensor | None = None
        self.work: distributed.Work | None = None

    def largest(self, number: int) -> int:
        """Sends a number, and returns the largest of those that were sent with the call before; 0 the first time.

        Without other processes it returns the number itself.
        """
        if not _joined:
            return number
        earlier = self.collect()
        self.sent = torch.tensor(int(number))
        self.work = distributed.all_reduce(self.sent, distributed.ReduceOp.MAX, group=_joined[0].control, async_op=True)
        return earlier

    def collect(self) -> int:
        """The largest of the numbers that were sent last."""
        if self.work is None or self.sent is None:
            return 0
        self.work.wait()
        self.work = None
        return int(self.sent.numpy())


def leave_together() -> None:
    """The others wait for the process that hands over; the first one, whose store they use, leaves last."""
    gc.collect()
    if not _joined:
        return
    wait_for_first()
    group = _joined[0]
    if group.store.add("left", 1) == distributed.get_world_size():
        group.store.set("all left", "yes")
    if is_first():
        try:
            group.store.wait(["all left"], FAREWELL)
        except distributed.DistError:
            return  # another one ended otherwise; nothing is left to do for it


def stop_processes() -> None:
    """Leaves the process group, if there is one."""
    _joined.clear()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error of an exchange means that another process is gone or answers no more."""
    if isinstance(error, distributed.DistError):
        return True
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs) and bool(_joined)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
