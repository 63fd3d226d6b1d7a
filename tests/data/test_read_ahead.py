import gc
import os
import pickle
import threading
import time
import warnings
import weakref

import pytest

from a2mim.data import read_ahead
from a2mim.data.read_ahead import ReadAhead


def test_work_is_done_ahead_once_and_here_when_it_was_not_asked_for():
    done, ahead = [], ReadAhead(2)
    work = lambda key: (done.append(key), key * 2)[1]  # noqa: E731
    assert ahead.take(1, work) == 2
    for key in (3, 4, 3):
        ahead.ask(key, work)
    assert (ahead.take(3, work), ahead.take(4, work), ahead.take(5, work)) == (6, 8, 10)
    assert sorted(done) == [1, 3, 4, 5]


def test_several_are_under_way_at_once():
    ahead, together = ReadAhead(4), threading.Barrier(4, timeout=5)
    for key in range(4):
        ahead.ask(key, lambda key: together.wait())
    assert sorted(ahead.take(key, None) for key in range(4)) == [0, 1, 2, 3]


def test_an_error_is_raised_where_the_result_is_taken():
    ahead = ReadAhead(1)
    ahead.ask("a", lambda key: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ahead.take("a", None)


def test_what_nobody_takes_is_forgotten(monkeypatch):
    monkeypatch.setattr(read_ahead, "MOST", 3)
    ahead = ReadAhead(1)
    for key in range(5):
        ahead.ask(key, str)
    assert ahead.take(0, lambda key: "made here") == "made here" and ahead.take(4, None) == "4"


def test_a_copy_and_a_forked_process_begin_with_nothing():
    ahead = ReadAhead(1)
    ahead.ask(1, str)
    assert pickle.loads(pickle.dumps(ahead)).take(1, lambda key: "anew") == "anew"
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of what is tested here
        child = os.fork()
    if child == 0:
        os.write(writer, ahead.take(1, lambda key: "anew").encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 9) == b"anew"


def test_threads_end_with_their_owner():
    class Owner:
        def __init__(self):
            self.ahead = ReadAhead(3)
            self.ahead.ask(1, self.work)

        def work(self, key):
            return key

    before = threading.active_count()
    owner = Owner()
    owner.ahead.take(1, None)
    gone = weakref.ref(owner)
    gc.disable()
    del owner
    gc.enable()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        time.sleep(0.01)
    assert gone() is None and threading.active_count() <= before
