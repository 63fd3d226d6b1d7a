import os
import time

import pytest
from parallel_work import die_elsewhere, double, fail, unpicklable

from a2mim.data.parallel import each

HERE = os.getpid()


@pytest.mark.parametrize("processes", [1, 2])
def test_every_item_is_answered_once(processes):
    found = dict(each(double, range(7), processes))
    assert {item: answer[0] for item, answer in found.items()} == {n: 2 * n for n in range(7)}
    assert (HERE in {process for _, process in found.values()}) == (processes == 1)


@pytest.mark.parametrize("processes", [1, 2])
def test_errors_are_results_and_the_others_go_on(processes):
    found = dict(each(fail, range(4), processes))
    assert isinstance(found[2], OSError) and found[2].errno == 5
    assert [found[n] for n in (0, 1, 3)] == [0, 1, 3]


def test_what_a_killed_process_had_is_done_here():
    found = dict(each(die_elsewhere, [(n, os.getpid()) for n in range(5)], 2))
    assert sorted(found.values()) == list(range(5))


def test_a_result_that_cannot_be_sent_is_an_error():
    found = dict(each(unpicklable, [1, 2], 2))
    assert all(isinstance(error, RuntimeError) for error in found.values())


def test_leaving_early_ends_the_processes():
    began = time.monotonic()
    answers = each(double, range(1000), 2)
    _, (_, process) = next(answers)
    answers.close()
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
