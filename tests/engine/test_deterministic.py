"""Deterministic algorithms are a setting of one run, not of the program that calls it."""

import torch

from a2mim.engine.runner import TrainLoop


def test_deterministic_algorithms_are_on_during_the_run_alone(run, monkeypatch):
    seen = []

    def note(self):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return plain(self)

    plain = TrainLoop.run
    monkeypatch.setattr(TrainLoop, "run", note)
    run("exact", deterministic=True, **{"schedule.epochs": 2})
    run("fast", **{"schedule.epochs": 2})
    assert seen == [(True, False), (False, True)]
    assert not torch.are_deterministic_algorithms_enabled()
