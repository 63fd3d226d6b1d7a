"""The first process leads, the others help; an error of one of them is everybody's."""

import pytest
from two_processes import start_two

from a2mim.processes.errors import is_shared, portable, refuse_several, share_error, started_as
from a2mim.processes.leading import is_leading, lead, spread, together


def share_of_numbers(last):
    def share(rank, size):
        return iter(range(rank, last, size))

    return share


def test_one_process_alone_does_everything_itself():
    found = lead(lambda: (is_leading(), list(spread("numbers", (5,), share_of_numbers(5)))), {})
    assert found == (False, [0, 1, 2, 3, 4])
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "3"}, (1, 3)),
        ({"WORLD_SIZE": "3"}, (0, 1)),
        ({"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4"}, (2, 4)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 1)),  # a batch script, outside a step
    ],
)
def test_which_of_how_many_processes_a_launcher_has_started(variables, found):
    assert started_as(variables) == found


def test_a_command_that_cannot_be_shared_is_refused_where_several_were_started(monkeypatch):
    refuse_several("a2mim export")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="a2mim export runs in one process, and 3 were started: start it without"):
        refuse_several("a2mim export")


def test_an_error_travels_as_its_built_in_class_and_says_the_same():
    class Own(FileNotFoundError):
        pass

    assert type(portable(Own("gone"), 1)) is FileNotFoundError and str(portable(Own("gone"), 1)) == "gone"
    refused = portable(PermissionError(13, "Permission denied", "x"), 1)
    assert type(refused) is PermissionError and (refused.errno, refused.filename) == (13, "x")
    assert str(portable(TypeError("no"), 1)) == "process 1: TypeError: no"
    assert is_shared(share_error(share_error(ValueError()))) and not is_shared(ValueError())


PAIR = """
import os
from contextlib import suppress
from datetime import timedelta
from a2mim.processes import group
from a2mim.processes.errors import is_shared
from a2mim.processes.leading import lead, spread, together

rank = int(os.environ["RANK_HERE"])
group.POLL = timedelta(seconds=1)

def numbers(last, bad=None):
    def share(rank, size):
        for number in range(rank, last, size):
            if number == bad:
                raise ValueError(f"number {number} is bad")
            yield number, rank
    return share

helpers = {"numbers": numbers}

def asked(last, bad=None):
    return spread("numbers", (last, bad), numbers(last, bad))

def raised(work):
    try:
        lead(work, helpers)
    except Exception as error:
        return type(error).__name__, str(error), is_shared(error)

with group.joined("cpu"):
    several = lead(lambda: [list(asked(last)) for last in (5, 0, 1, 4)], helpers)
    assert several[0] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)] and several[1:] == [[], [(0, 0)], several[0][:4]]
    # whoever finds the bad number, in the middle of a pass or at its start, all raise its error
    for bad in range(4):
        assert raised(lambda: list(asked(5, bad))) == ("ValueError", f"number {bad} is bad", True)
    # the first process fails between two passes, and in the middle of one
    assert raised(lambda: [list(asked(2)), int("x")])[0] == "ValueError"
    assert raised(lambda: [1 / 0 for _ in asked(5)]) [1].endswith("division by zero")
    # a pass that is left early, and one that is given up for another
    def early():
        first = next(asked(9))
        kept = asked(9)
        next(kept)
        return first, len(list(asked(3)))
    assert lead(early, helpers) == ((0, 0), 3)
    with suppress(OSError):
        together(lambda: open(f"/nowhere/{rank}") if rank else None)
        raise AssertionError("the other process has failed")
    assert together(lambda: rank) == rank
print("left", flush=True)
"""


@pytest.mark.slow
def test_two_processes_share_passes_and_errors(tmp_path):
    for printed in start_two(tmp_path, PAIR):
        assert printed.endswith("left\n"), printed


LOST = """
import os
from a2mim.processes import group
from a2mim.processes.leading import lead, spread

def numbers(last):
    def share(rank, size):
        for number in range(rank, last, size):
            if number == 5:
                os._exit(3)
            yield number
    return share

try:
    with group.joined("cpu"):
        lead(lambda: list(spread("numbers", (9,), numbers(9))), {"numbers": numbers})
except ConnectionError as error:
    print(error, flush=True)
"""


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_in_a_sentence(tmp_path):
    first, _ = start_two(tmp_path, LOST)
    assert first.startswith("another process of this command is gone or answers no more"), first
