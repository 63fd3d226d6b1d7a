"""Checkpoints that a thread writes: the same content, order and promises as those that the loop writes."""

import threading
from collections import OrderedDict

import pytest
import torch

from a2mim.checkpoints import checkpoint_path, list_checkpoints, read_checkpoint, write_checkpoint
from a2mim.engine import saving
from a2mim.engine.saving import Writer
from a2mim.files import DiskFull

ADVICE = "make room"


@pytest.fixture
def gate(monkeypatch):
    """Holds every write back until it is set; `gate.error` is raised in place of writing."""
    opened = threading.Event()
    opened.error = None

    def held(path, checkpoint):
        assert opened.wait(60)
        if opened.error:
            raise opened.error
        write_checkpoint(path, checkpoint)

    monkeypatch.setattr(saving, "write_checkpoint", held)
    return opened


def content(value):
    weight = torch.full((3, 4), float(value))
    return {
        "format": 1,
        "state_dict": OrderedDict(weight=weight, tied=weight, view=weight[1:].t()),
        "history": [{"step": value}],
    }


def test_the_file_holds_what_was_true_when_it_was_asked_for(tmp_path, gate):
    writer, state = Writer(background=True), content(1)
    writer.write(checkpoint_path(tmp_path, 1), state, keep=3, advice=ADVICE)
    state["state_dict"]["weight"].fill_(9)
    state["history"][0]["step"] = 9
    assert not list_checkpoints(tmp_path)
    gate.set()
    writer.wait()
    writer.close()
    found, expected = read_checkpoint(checkpoint_path(tmp_path, 1)), content(1)
    assert found["history"] == expected["history"] and list(found["state_dict"]) == list(expected["state_dict"])
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value)
    assert found["state_dict"]["weight"].data_ptr() == found["state_dict"]["tied"].data_ptr()


def test_one_is_written_at_a_time_and_old_ones_go_after_the_new_one_came(tmp_path, gate):
    gate.set()
    writer = Writer(background=True)
    for step in (1, 2, 3):
        writer.write(checkpoint_path(tmp_path, step), content(step), keep=1, advice=ADVICE)
        assert [path.name for path in list_checkpoints(tmp_path)] in (
            [],
            [f"step_{step - 1:08d}.pth"],
            [f"step_{step:08d}.pth"],
            [f"step_{step - 1:08d}.pth", f"step_{step:08d}.pth"],
        )
    writer.wait()
    writer.close()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000003.pth"]


@pytest.mark.parametrize("method", ["look", "wait"])
def test_a_write_that_fails_is_said_at_the_next_step_and_keeps_the_old_file(tmp_path, gate, method):
    gate.set()
    writer = Writer(background=True)
    writer.write(checkpoint_path(tmp_path, 1), content(1), keep=1, advice=ADVICE)
    writer.wait()
    gate.error = OSError(28, "No space left on device")
    writer.write(checkpoint_path(tmp_path, 2), content(2), keep=1, advice=ADVICE)
    writer.finish()
    with pytest.raises(DiskFull, match=r"step_00000002.* the disk is full: make room"):
        getattr(writer, method)()
    writer.close()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000001.pth"]


TINY = {"model.encoder": {"name": "vit_tiny_patch16_224", "model_args": {"depth": 2, "embed_dim": 64, "num_heads": 2}}}


def test_a_run_in_the_background_saves_the_same_checkpoints(run):
    states = []
    for name, background in (("plain", False), ("behind", True)):
        folder, _ = run(name, ema=0.1, **TINY, **{"checkpoint.background": background, "checkpoint.keep": 2})
        paths = list_checkpoints(folder / "checkpoints")
        assert [path.stem for path in paths] == ["step_00000008", "step_00000009"]
        states.append([torch.load(path, weights_only=True) for path in paths])
    for plain, behind in zip(*states, strict=True):
        assert plain["meta"]["step"] == behind["meta"]["step"] and list(plain) == list(behind)
        for key in ("state_dict", "ema_state_dict"):
            assert all(torch.equal(value, behind[key][name]) for name, value in plain[key].items())


def test_a_full_disk_ends_the_run_and_names_the_last_good_checkpoint(run, gate, monkeypatch):
    gate.set()
    written = []

    def full_at_the_third(path, checkpoint):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        write_checkpoint(path, checkpoint)

    monkeypatch.setattr(saving, "write_checkpoint", full_at_the_third)
    with pytest.raises(DiskFull, match=r"step_00000003.*the last good checkpoint is .*step_00000002"):
        run("full", **TINY, **{"checkpoint.background": True})


def test_a_mapped_checkpoint_holds_the_same(tmp_path):
    path = checkpoint_path(tmp_path, 1)
    write_checkpoint(path, content(5))
    mapped = read_checkpoint(path, mapped=True)
    assert torch.equal(mapped["state_dict"]["view"], content(5)["state_dict"]["view"])
    mapped["state_dict"]["weight"].add_(1)  # a resumed run trains on in it; the file stays
    assert read_checkpoint(path)["state_dict"]["weight"][0, 0] == 5
