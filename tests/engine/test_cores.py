"""How cores are divided between data processes and torch's threads."""

import pytest
import torch

from a2mim.checkpoints import list_checkpoints, read_checkpoint
from a2mim.engine import assembly, cores

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def machine(monkeypatch):
    """A machine of that many cores, on which nobody has chosen torch's threads."""

    def of(number: int, processes: int = 1, threads: str | None = None) -> None:
        monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(number)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if threads:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)

    return of


@pytest.mark.parametrize(
    ("number", "processes", "threads", "device", "laptop", "expected"),
    [
        (2, 1, None, CPU, True, 1),
        (8, 1, None, CPU, True, 1),
        (1, 1, None, CPU, True, 0),
        (2, 2, None, CPU, True, 0),  # torchrun's other process has the other core
        (2, 1, "1", CPU, True, 0),
        (8, 1, None, CPU, False, 0),
        (6, 1, None, GPU, False, 5),
        (16, 1, None, GPU, True, 15),
        (64, 1, None, GPU, False, 16),
        (16, 4, None, GPU, False, 3),
        (2, 8, None, GPU, False, 1),
    ],
)
def test_data_processes_follow_from_the_cores(machine, number, processes, threads, device, laptop, expected):
    machine(number, processes, threads)
    assert cores.choose_workers(None, device, laptop) == expected


def test_what_was_asked_for_is_used_and_a_negative_number_refused(machine):
    machine(8)
    assert cores.choose_workers(3, CPU, True) == 3 and cores.choose_workers(0, GPU, False) == 0
    with pytest.raises(ValueError, match="--num-workers -1 must be at least 0"):
        cores.choose_workers(-1, CPU, True)


def test_torch_leaves_a_core_to_the_data_process_and_gets_it_back(machine):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for number, workers, device, laptop, inside in (
            (2, 1, CPU, True, 1),
            (4, 1, CPU, True, 3),
            (16, 1, CPU, True, 4),  # never more than there were
            (4, 0, CPU, True, 4),
            (4, 1, CPU, False, 4),
            (4, 1, GPU, True, 4),
        ):
            machine(number)
            with cores.core_for_data(workers, device, laptop):
                assert torch.get_num_threads() == inside
            assert torch.get_num_threads() == 4
        machine(2, threads="4")
        with cores.core_for_data(1, CPU, True):
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_a_laptop_run_has_a_core_for_data_and_trains_the_same_weights(machine, run, monkeypatch):
    def weights(folder):
        return read_checkpoint(list_checkpoints(folder / "checkpoints")[-1])["state_dict"]

    def build_loader(dataset, settings, device, num_workers, augmentation):
        workers.append(num_workers)
        return assembly.build_loader(dataset, settings, device, num_workers, augmentation)

    workers, threads = [], torch.get_num_threads()
    monkeypatch.setattr("a2mim.engine.run.build_loader", build_loader)
    plain, _ = run("plain", laptop=True)
    machine(2)
    beside, _ = run("beside", laptop=True, num_workers=None)
    assert workers == [0, 1] and torch.get_num_threads() == threads
    assert weights(beside).keys() == weights(plain).keys()
    assert all(torch.equal(value, weights(plain)[key]) for key, value in weights(beside).items())
