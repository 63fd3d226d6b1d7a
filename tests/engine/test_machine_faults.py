"""A full disk, a killed data worker, and links that somebody planted in a run's folder."""

import errno
import json
import os

import pytest
import torch

import a2mim
from a2mim.checkpoints import list_checkpoints, read_checkpoint
from a2mim.data import TrainLoader
from a2mim.data.workers import WorkerDied
from a2mim.files import DiskFull


def full_disk(number):
    """torch.save on a disk that is full from the `number`th call on: torch hides the system's error."""
    save, calls = torch.save, []

    def limited(content, file):
        calls.append(1)
        if len(calls) < number:
            return save(content, file)
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2")

    return limited


def test_a_full_disk_at_a_checkpoint_is_one_sentence_and_the_run_goes_on_later(run, tmp_path, monkeypatch):
    whole, _ = run("whole")
    with monkeypatch.context() as patch, pytest.raises(DiskFull) as error:
        patch.setattr(torch, "save", full_disk(3))
        run("stopped")
    checkpoints = tmp_path / "stopped" / "checkpoints"
    assert f"{checkpoints / 'step_00000003.pth'} cannot be written, the disk is full: the last good" in str(error.value)
    assert "--resume" in str(error.value)
    assert [path.name for path in checkpoints.iterdir()] == ["step_00000001.pth", "step_00000002.pth"]
    _, summary = run("stopped", resume=True)
    assert summary["steps"] == 9
    first, second = (read_checkpoint(list_checkpoints(f / "checkpoints")[-1]) for f in (whole, tmp_path / "stopped"))
    assert all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())


def test_a_full_disk_anywhere_in_a_run_names_its_folder(run, tmp_path, monkeypatch):
    def full(hook, *lines):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("a2mim.engine.hooks.LogHook.append", full)
    with pytest.raises(DiskFull, match="run cannot be written, the disk is full: checkpoints that were written are"):
        run("run")


def test_when_a_data_worker_dies_the_last_step_is_saved(run, tmp_path, monkeypatch):
    batches = TrainLoader.__iter__

    def dying(loader):
        for number, batch in enumerate(batches(loader)):
            if number == 2:
                raise WorkerDied("a data worker was ended by the signal Killed")
            yield batch

    with monkeypatch.context() as patch, pytest.raises(WorkerDied, match="step 2 is saved: go on with --resume"):
        patch.setattr(TrainLoader, "__iter__", dying)
        run("run", **{"checkpoint.every_steps": 100})
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_00000002.pth"]
    assert run("run", resume=True)[1]["steps"] == 9


NAMES = ("config.py", "settings.json", "log.jsonl", "summary.json", ".lock", ".asked.json", "checkpoints", "logs")
PICTURES = ("reconstructions", "reconstructions/step_00000000.png", "checkpoints/step_00000001.pth", "results.json")


@pytest.mark.parametrize("name", [*NAMES, *PICTURES, "encoder", "encoder/model.safetensors"])
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
def test_a_planted_link_in_a_run_s_folder_is_refused_and_not_followed(run, tmp_path, name, there):
    outside, link = tmp_path / "outside", tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    if there and "." in name:
        outside.write_text("mine")
    elif there:
        outside.mkdir()
    with pytest.raises((ValueError, OSError)) as error:
        run("run")
    assert str(tmp_path / "run") in str(error.value)
    if not there:
        assert not outside.exists()
    elif "." in name:
        assert outside.read_text() == "mine"
    else:
        assert not list(outside.iterdir())


def test_a_second_name_of_a_file_elsewhere_is_not_written_through(run, tmp_path):
    """A hard link is no link to the system: only a new file under the old name leaves the other one alone."""
    (tmp_path / "run" / "reconstructions").mkdir(parents=True)
    names = ["log.jsonl", "summary.json", ".asked.json", "reconstructions/step_00000000.png"]
    for name in names:
        (tmp_path / "mine").write_text("mine")
        os.replace(tmp_path / "mine", tmp_path / name.replace("/", "-"))
        os.link(tmp_path / name.replace("/", "-"), tmp_path / "run" / name)
    run("run", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    assert [(tmp_path / name.replace("/", "-")).read_text() for name in names] == ["mine"] * 4
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "finished"


def test_a_run_killed_while_it_wrote_its_first_checkpoint_starts_again(run, tmp_path):
    folder, _ = run("run", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    for path in list_checkpoints(folder / "checkpoints"):
        path.unlink()
    (folder / "log.jsonl").write_text((folder / "log.jsonl").read_text().splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="no step to go on from"):  # it has finished: its checkpoints are lost
        run("run", resume=True)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"status": "running"}))
    (folder / "checkpoints" / ".step_00000001.pth.abcdefgh.partial").write_bytes(b"half")
    assert run("run", resume=True)[1]["status"] == "finished"
    assert not list(folder.rglob("*.partial"))


def test_the_folder_itself_may_be_a_link(recipe, images, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "run").symlink_to("large")
    short = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}
    a2mim.pretrain(recipe, work_dir=tmp_path / "run", data=images, device="cpu", num_workers=0, **short)
    assert (tmp_path / "large" / "summary.json").is_file()
