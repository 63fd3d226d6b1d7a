"""Faults of the data on their way into a run's log and summary, and data that is given as an object."""

import io
import json
import shutil
import tarfile

import mmcv
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import a2mim
from a2mim.cli import main

SHORT = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}


def write(path, contents: list[bytes]):
    with tarfile.open(path, "w") as archive:
        for i, content in enumerate(contents):
            member = tarfile.TarInfo(f"{i:03d}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def damaged(images, tmp_path):
    """A shard of 22 good images and two that are none, and one that is cut."""
    good = [path.read_bytes() for path in sorted(images.iterdir())]
    write(tmp_path / "d-0.tar", [*good[:22], b"", b"<html>"])
    cut = write(tmp_path / "d-1.tar", good).read_bytes()
    (tmp_path / "d-1.tar").write_bytes(cut[:9000])
    return str(tmp_path / "d-{0..1}.tar")


def test_faults_are_in_the_log_and_the_summary_by_reason_with_names(recipe, damaged, tmp_path, capsys):
    arguments = ["pretrain", str(recipe), "--data", damaged, "--work-dir", str(tmp_path / "run"), "--device", "cpu"]
    arguments += ["--cfg-options", "schedule.epochs=2", "schedule.warmup_epochs=0"]
    assert main(arguments) == 1
    assert "d-1.tar: byte" in capsys.readouterr().err and not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match="1 bad shards are left out"):
        assert main([*arguments, "--skip-bad-shards"]) == 0
    said = capsys.readouterr().out
    assert "1 bad shards skipped" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["data"]
    assert summary["unreadable"].keys() == {"empty", "not an image"} and len(summary["first_unreadable"]) == 3
    assert "d-0.tar/02" in summary["first_unreadable"][0] and "d-1.tar: byte" in summary["skipped_shards"][0]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["faults"] == summary["unreadable"]
    lost = sum(summary["unreadable"].values())
    assert f"{lost} reads of unreadable images were replaced by other images; the first: " in said
    assert summary["first_unreadable"][0] in said


def test_images_that_lost_bits_are_not_counted_as_damaged(run, images, tmp_path):
    shutil.copytree(images, tmp_path / "mixed")
    for number in range(24):
        mmcv.imwrite(np.full((40, 40, 3), 999 * number, np.uint16), str(tmp_path / "mixed" / f"deep{number}.png"))
    _, summary = run("mixed", data=tmp_path / "mixed", **SHORT, **{"data.bits": 8})
    assert summary["data"]["reduced_to_8_bits"] == 24 and summary["data"]["damaged_but_decoded"] == 0


class Pictures(Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return Image.open(self.paths[i])


class Pipeline(IterableDataset):
    def __init__(self, paths):
        self.paths = paths

    def __iter__(self):
        for path in self.paths:
            yield {"png": path.read_bytes()}


def test_a_data_set_of_ones_own_is_trained_on_and_resumed(run, images, tmp_path, recipe):
    pictures = Pictures(sorted(images.iterdir()))
    whole, summary = run("whole", data=pictures, **SHORT)
    assert summary["status"] == "finished" and summary["asked"]["data"] == "<Pictures given from Python>"
    assert "your own data set" in summary["data"]["source"]
    with pytest.raises(ValueError, match="the data was a Pictures given from Python; give it again"):
        a2mim.pretrain(recipe, None, whole, resume=True, device="cpu")
    again = a2mim.pretrain(recipe, pictures, whole, resume=True, device="cpu")
    assert again["steps"] == summary["steps"]


def test_a_pipeline_of_ones_own_is_trained_on_and_says_what_it_does_not_promise(run, images, capsys):
    from a2mim.data import open_stream

    _, summary = run("piped", data=open_stream(Pipeline(sorted(images.iterdir())), 24), **SHORT)
    assert summary["status"] == "finished" and summary["steps"] == 3
    assert "24 images, no labels; your own pipeline" in capsys.readouterr().out
