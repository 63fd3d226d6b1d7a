"""Frozen features computed by two processes: the same bytes as by one, also after a kill."""

import json

import mmcv
import numpy as np
import pytest
from two_processes import start_two

from a2mim.data import EvalLoader, TrainLoader, open_dataset
from a2mim.data.faults import UnreadableData
from a2mim.embedding import embed
from a2mim.evaluation import evaluate
from a2mim.evaluation.cache import Cache
from a2mim.evaluation.parts import counted, share_of

PROTOCOLS = ["dino-knn", "dino-linear", "efficient-probe"]
SETTINGS = {"dino-knn.k": 3, "dino-linear.epochs": 2, "efficient-probe.epochs": 1, "efficient-probe.least_steps": 1}
SETTINGS |= {"dino-linear.batch_size": 8, "efficient-probe.batch_size": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes that colours tell roughly; a file in each half is no image. 4 a batch, the last one is short."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(1)
    for split, number in (("train", 25), ("test", 14)):
        for i in range(number):
            image = generator.integers(0, 200, (40, 44, 3), np.uint8)
            image[..., i % 3] += 30
            mmcv.imwrite(image, str(folder / split / "abc"[i % 3] / f"{i:02d}.png"))
        (folder / split / "b" / "04.png").write_bytes(b"no image")
    for i in range(11):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, 3 * i :] = 1
        image = (60 + 90 * mask[..., None] + generator.integers(0, 60, (32, 32, 3))).astype(np.uint8)
        for name, pixels in (("images", image), ("masks", mask)):
            mmcv.imwrite(pixels, str(folder / "masked" / name / f"{i:02d}.png"))
    return folder


def judge(data, folder, protocols=tuple(PROTOCOLS)):
    return evaluate(
        "test_resnet",
        list(protocols),
        f"{data}/train",
        f"{data}/test",
        out=folder,
        overrides={key: value for key, value in SETTINGS.items() if key.split(".")[0] in protocols},
        cache=Cache(folder / "cache"),
        img_size=32,
        batch_size=4,
        device="cpu",
    )


def judge_the_rest(data, folder):
    """Images without labels, images with masks, and embeddings."""
    same = {"out": folder, "img_size": 32, "batch_size": 4, "device": "cpu", "say": str}
    evaluate("test_resnet", ["label-free"], f"{data}/train", **same)
    evaluate("test_resnet", ["seg-knn"], f"{data}/masked", **same)
    embed("test_resnet", f"{data}/test", folder / "e.npz", img_size=32, batch_size=4, device="cpu")


def arrays(folder):
    """Every file of features, by its entry and part."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


def told(folder):
    """results.json, in order."""
    return sorted(json.loads((folder / "results.json").read_text()), key=lambda result: result["protocol"])


BOTH = """
import sys, os
from pathlib import Path
sys.path[:0] = [{here!r}, os.path.dirname({here!r})]
from test_shared_passes import judge, judge_the_rest
from a2mim.processes import group

data, folder = Path({data!r}), Path({folder!r})
with group.joined("cpu"):
    results = judge(data, folder)
    assert [result["protocol"] for result in results] == ["dino-knn", "dino-linear", "efficient-probe"]
    judge_the_rest(data, folder)
    try:
        judge(data / "missing", folder)
    except FileNotFoundError as error:
        assert error.__notes__
    else:
        raise AssertionError
print("left", flush=True)
"""


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    program = BOTH.format(here=str(__file__).rpartition("/")[0], data=str(data), folder=str(two))
    for printed in start_two(tmp_path, program):
        assert printed.endswith("left\n"), printed
    judge(data, one)
    judge_the_rest(data, one)
    assert len(arrays(one)) >= 8 and arrays(one) == arrays(two)
    assert told(one) == told(two) and told(one)[0]["unreadable"] == {"not an image": 2}
    assert (one / "e.npz").read_bytes() == (two / "e.npz").read_bytes()
    assert (one / "e.npz.json").read_text() == (two / "e.npz.json").read_text()


KILLED = """
import sys, os
from pathlib import Path
sys.path[:0] = [{here!r}, os.path.dirname({here!r})]
from a2mim.data import EvalLoader
from a2mim.evaluation import cache_entry
from test_shared_passes import judge

cache_entry._SAVE_EVERY = -1.0
whole = EvalLoader.share

def dying(self, rank, size):
    for number, batch in enumerate(whole(self, rank, size)):
        if rank and number == 2:
            os._exit(9)
        yield batch

EvalLoader.share = dying
try:
    judge(Path({data!r}), Path({folder!r}), ["dino-knn"])
except ConnectionError as error:
    print(error, flush=True)
"""


@pytest.mark.slow
def test_a_pass_of_two_processes_of_which_one_is_killed_goes_on_without_loss(data, tmp_path, monkeypatch):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    program = KILLED.format(here=str(__file__).rpartition("/")[0], data=str(data), folder=str(two))
    first, _ = start_two(tmp_path, program)
    assert "another process of this command is gone" in first, first
    (state,) = two.rglob("state.json")
    rows = {part["rows"] for part in json.loads(state.read_text())["content"]["parts"].values()}
    assert rows == {16}  # two rounds of two batches of four
    starts = []

    def noting(self, *arguments, indices, make=EvalLoader.__init__):
        starts.append(indices)
        make(self, *arguments, indices=indices)

    monkeypatch.setattr(EvalLoader, "__init__", noting)
    judge(data, two, ["dino-knn"])
    assert starts[1][0] == 16  # the first loader is that of the calibration
    judge(data, one, ["dino-knn"])
    assert arrays(one) == arrays(two) and told(one) == told(two)


def mean_of(images):
    return {"mean": images.float().mean(dim=(1, 2, 3))}


def test_shares_are_the_batches_of_the_whole_and_count_faults_once(data):
    dataset = open_dataset(f"{data}/train")
    loader = EvalLoader(dataset, 32, 37, batch_size=4)
    whole = list(share_of(loader, mean_of)(0, 1))
    parts = [list(share_of(EvalLoader(dataset, 32, 37, batch_size=4), mean_of)(rank, 3)) for rank in range(3)]
    mixed = [parts[number % 3][number // 3] for number in range(len(loader))]
    assert [part.ids.tolist() for part in mixed] == [part.ids.tolist() for part in whole]
    assert all(one.found["mean"].equal(other.found["mean"]) for one, other in zip(mixed, whole, strict=True))
    assert sum(part.faults.get("not an image", 0) for part in mixed) == 1 == loader.faults.total()
    taken = EvalLoader(dataset, 32, 37, batch_size=4)
    assert len(list(counted(taken, mixed, len(dataset)))) == len(whole)
    others = [part for part in mixed if part.rank]
    assert taken.faults.total() == sum(part.faults.get("not an image", 0) for part in others)


def test_a_share_of_an_epoch_is_that_of_the_plan(data):
    dataset = open_dataset(f"{data}/train")
    loader = TrainLoader(dataset, 32, 4, seed=3)
    whole = {epoch: [batch.ids.tolist() for batch in loader] for epoch in range(2)}
    other = TrainLoader(dataset, 32, 4, seed=3)
    for epoch in (1, 0):
        shares = [[batch.ids.tolist() for batch in other.share(epoch, rank, 2)] for rank in range(2)]
        assert [shares[step % 2][step // 2] for step in range(len(loader))] == whole[epoch]
    assert other.position == 0


def test_too_many_unreadable_images_are_too_many_whoever_reads_them(data):
    loader = EvalLoader(open_dataset(f"{data}/train"), 32, 37)
    loader.faults.take_over({"damaged": 6}, ["x (damaged)"], 100)
    with pytest.raises(UnreadableData, match=r"too many of 100 images cannot be read \(12 damaged\), first: x"):
        loader.faults.take_over({"damaged": 6}, ["y (damaged)"], 100)
