import numpy as np
import pytest
import torch

from a2mim.data import EvalLoader, TrainLoader
from a2mim.data.records import Batch, WorkerBatch


def test_a_batch_is_read_by_attribute_and_by_name(dataset):
    batch = next(iter(TrainLoader(dataset, 16, 8)))
    assert batch["images"] is batch.images and dict(batch).keys() == {"images", "labels", "ids"}
    assert [len(batch[name]) for name in batch] == [8, 8, 8]
    with pytest.raises(KeyError):
        batch["faults"]
    with pytest.raises(AttributeError):
        batch.images = None


def test_batches_of_both_loaders_are_of_one_kind(dataset):
    kinds = {type(next(iter(loader))) for loader in (TrainLoader(dataset, 16, 8), EvalLoader(dataset, 16, 20))}
    assert kinds == {Batch}


def test_a_workers_answer_becomes_tensors_of_its_own_arrays():
    made = WorkerBatch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 0, np.array([1, -1]), np.array([7, 9]))
    batch = Batch.of(made)
    assert batch.labels.tolist() == [1, -1] and batch.ids.tolist() == [7, 9] and batch.images is made.images
