"""Work that the first process leads: passes over images are shared by all processes, the rest it does alone.

The first process runs the whole work. Where a pass over images comes, it asks for it by name, and each process computes
every n-th batch; the first one gets the results of all batches, in order. The others wait for the next request without
a time limit. A batch holds the same images whatever the number of processes, so its numbers are the same. An error of
any process is raised on all of them. Without other processes, everything runs by the same code in this one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from torch import distributed

from a2mim.processes.errors import is_shared, portable, share_error
from a2mim.processes.group import Group, is_lost_peer, joined_group, wait_for_key

Share: TypeAlias = Callable[[int, int], Iterator[Any]]  # (rank, size) -> results of batches rank, rank + size, …
Answer = TypeVar("Answer")

DONE = ""  # the request after the last pass
_ENDED, _STOPPED = "ended", "stopped"  # what a process says where it has no further batch, or wants no more


@dataclass
class _Lead:
    """What the first process knows while it leads; the others are in `_help`.

    Args:
        current: the pass that has not ended yet.
    """

    group: Group
    current: _Pass | None = None


_leads: list[_Lead] = []  # empty, or the one of this process


def lead(work: Callable[[], Answer], helpers: Mapping[str, Callable[..., Share]]) -> Answer:
    """Runs `work` on the first process, while the others help with its passes; returns its answer on all of them.

    Args:
        work: asks for passes with `spread`. Its answer is pickled, so keep it small.
        helpers: name of a pass -> a function of its arguments that returns this process's share.

    Raises:
        Exception: of `work`, or of a share on any process; raised on all processes.
        ConnectionError: another process is gone.
    """
    group = joined_group()
    if group is None or _leads:
        return work()
    try:
        return _lead(group, work) if distributed.get_rank() == 0 else _help(group, helpers)
    except (distributed.DistError, RuntimeError) as error:
        if not is_lost_peer(error):
            raise
        raise ConnectionError(
            "another process of this command is gone or answers no more; what ended it stands in its own output;"
            " start the command again"
        ) from error


def together(work: Callable[[], Answer]) -> Answer:
    """Runs `work` on every process; an error of one of them is raised on all."""
    group = joined_group()
    if group is None or _leads:
        return work()
    answer, problem = None, None
    try:
        answer = work()
    except Exception as error:  # whatever it is, the others must not wait for this process
        problem = error
    _raise_any(group, problem, "")
    return answer  # type: ignore[return-value]  # without a problem there is an answer


def spread(name: str, arguments: tuple, share: Share) -> Iterator[Any]:
    """The results of a pass, in the order of the batches; computed by all processes, where this one leads them.

    Args:
        name: of the pass, among the `helpers` of `lead`.
        arguments: what the helper needs to make its share; plain values and small tensors.
        share: of this process.
    """
    if not _leads:
        return share(0, 1)
    lead_ = _leads[0]
    if lead_.current is not None:
        lead_.current.stop()
    lead_.current = _Pass(lead_, _tell(lead_.group, name, arguments), share)
    return lead_.current.results()


def is_leading() -> bool:
    """Whether this process has others that share its passes."""
    return bool(_leads)


def _lead(group: Group, work: Callable[[], Answer]) -> Answer:
    lead_ = _Lead(group)
    _leads.append(lead_)
    try:
        answer = work()
        if lead_.current is not None:
            lead_.current.stop()
    except Exception as error:
        if lead_.current is not None and not is_lost_peer(error):
            lead_.current.stop(error)
        elif not is_shared(error) and not is_lost_peer(error):
            _tell(group, DONE, (None, portable(error, 0)))
        if not is_lost_peer(error):
            share_error(error)
        raise
    finally:
        _leads.clear()
    _tell(group, DONE, (answer, None))
    return answer


def _help(group: Group, helpers: Mapping[str, Callable[..., Share]]) -> Any:
    rank, size = distributed.get_rank(), distributed.get_world_size()

    def share(name: str, arguments: tuple) -> Iterator[Any]:
        yield from helpers[name](*arguments)(rank, size)  # inside, so that an error of making it travels too

    while True:
        name, arguments = _hear(group)
        if name == DONE:
            answer, error = arguments
            if error is not None:
                raise share_error(error)
            return answer
        for _ in _rounds(group, share(name, arguments)):
            pass


class _Pass:
    """A pass that the first process has asked for.

    Args:
        key: of the request in the store; it is deleted when every process has read it.
    """

    def __init__(self, lead_: _Lead, key: str, share: Share):
        self.lead, self.key = lead_, key
        self.rounds = _rounds(lead_.group, share(0, distributed.get_world_size()))

    def results(self) -> Iterator[Any]:
        try:
            for results in self.rounds:
                yield from results
        except GeneratorExit:
            if self.lead.current is self:
                self.stop()
            raise
        except BaseException:
            self.lead.current = None  # the others know
            raise
        self._end()

    def stop(self, error: Exception | None = None) -> None:
        """Ends the pass on all processes before its last batch; they raise the error, if there is one."""
        statuses: list = [None] * distributed.get_world_size()
        said = _STOPPED if error is None else portable(error, 0)
        distributed.all_gather_object(statuses, said, group=self.lead.group.control)
        self._end()

    def _end(self) -> None:
        self.lead.current = None
        self.lead.group.store.delete_key(self.key)


def _rounds(group: Group, own: Iterator[Any]) -> Iterator[list]:
    """Round by round one result of each process, in the order of ranks; other processes than the first get none."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    while True:
        result, status, problem = None, None, None
        try:
            result = next(own, _ENDED)
        except Exception as error:
            problem = error
        if isinstance(result, str) and result == _ENDED:
            result, status = None, _ENDED
        statuses = _raise_any(group, problem, status)
        if _STOPPED in statuses or all(each == _ENDED for each in statuses):
            return
        gathered: list | None = [None] * size if rank == 0 else None
        distributed.gather_object(result, gathered, dst=0, group=group.control)
        yield [each for said, each in zip(statuses, gathered or [], strict=False) if said != _ENDED]


def _raise_any(group: Group, problem: Exception | None, status: str | None) -> list:
    """What every process says; raises the error of the first process that has one, on all of them."""
    rank = distributed.get_rank()
    statuses: list = [None] * distributed.get_world_size()
    said = status if problem is None else portable(problem, rank)
    distributed.all_gather_object(statuses, said, group=group.control)
    for number, each in enumerate(statuses):
        if isinstance(each, Exception):
            raise share_error(problem if problem is not None and number == rank else each)
    return statuses


def _tell(group: Group, name: str, arguments: tuple) -> str:
    """Hands the next request to the other processes; returns its key in the store."""
    group.asked += 1
    key = f"asked/{group.asked}"
    group.store.set(key, pickle.dumps((name, arguments)))  # type: ignore[arg-type]  # bytes too, and get returns them
    return key


def _hear(group: Group) -> tuple[str, tuple]:
    """The first process's next request, however long that takes."""
    group.asked += 1
    key = f"asked/{group.asked}"
    wait_for_key(group, key)
    return pickle.loads(group.store.get(key))
