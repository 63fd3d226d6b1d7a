"""What is damaged or lost in a run folder is said, and nothing more is lost."""

import shutil
import warnings

import pytest
import torch
from resumed_runs import assert_same_run, kill_after
from small_recipe import RECIPE

import a2mim
from a2mim.checkpoints import list_checkpoints, read_newest, write_checkpoint


def test_a_corrupt_newest_checkpoint_falls_back_to_the_one_before_with_a_warning(run, tmp_path):
    whole, _ = run("whole")
    kill_after(whole, 5, tmp_path / "resumed")
    newest = list_checkpoints(tmp_path / "resumed" / "checkpoints")[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)  # the second half is zeros
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step_00000005.pth cannot be read .* trying the one before"):
        resumed, _ = run("resumed", resume=True)
    assert_same_run(whole, resumed)
    read_newest(tmp_path / "resumed" / "checkpoints")


def test_a_corrupt_checkpoint_of_the_last_step_is_written_anew(run):
    folder, _ = run("whole")
    newest = list_checkpoints(folder / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="step_00000009.pth cannot be read"):
        run("whole", resume=True)
    assert read_newest(folder / "checkpoints")[0] == newest


def test_one_flipped_bit_in_a_checkpoint_is_noticed(run, tmp_path):
    folder, _ = run("whole")
    newest = list_checkpoints(folder / "checkpoints")[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of a tensor
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match="cannot be read"):
        path, _ = read_newest(folder / "checkpoints")
    assert path.name == "step_00000008.pth"


def test_when_no_checkpoint_can_be_read_resuming_is_refused(run):
    folder, _ = run("whole")
    for path in list_checkpoints(folder / "checkpoints"):
        path.write_bytes(b"nothing")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="none of the 9 checkpoints"):
            run("whole", resume=True)


DAMAGE = {  # dotted place in a checkpoint -> a value whose checksum is right; None: the place is deleted
    "meta.step": {"a": 1},
    "meta": [],
    "loader.step": "3",
    "loader.position": 10**400,
    "loader.epoch": -1,
    "loader.faults": "none",
    "loader.faults.x": 1.5,
    "loader": None,
    "state_dict": 3,
    "optimizer.optimizer.state.0.exp_avg": None,
    "optimizer.optimizer.state.1.exp_avg_sq": torch.zeros(3, 5, 7),
    "optimizer.optimizer.state.1.exp_avg": torch.zeros(1),
    "optimizer.optimizer.state.2": "x",
    "optimizer.optimizer.param_groups": {"lr": 1},
    "optimizer.optimizer.param_groups.0": 7,
    "optimizer.scaler": None,
    "health": 5,
}


@pytest.fixture(scope="module")
def short_run(images, tmp_path_factory):
    """A run of nine steps that was killed after its second."""
    place = tmp_path_factory.mktemp("short")
    (place / "tiny.py").write_text(RECIPE)
    pretrain = {"work_dir": place / "whole", "data": images, "device": "cpu", "num_workers": 0}
    a2mim.pretrain(place / "tiny.py", **pretrain, **{"log.report": False})
    for path in list_checkpoints(place / "whole" / "checkpoints")[2:]:
        path.unlink()
    return place / "whole"


@pytest.mark.parametrize("place", DAMAGE)
def test_a_wrong_value_with_a_right_checksum_is_one_sentence(short_run, tmp_path, place):
    folder = shutil.copytree(short_run, tmp_path / "damaged")
    first, newest = list_checkpoints(folder / "checkpoints")
    first.unlink()
    checkpoint = inside = torch.load(newest, weights_only=True)
    *path, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    for key in path:
        inside = inside[key]
    if DAMAGE[place] is None:
        del inside[last]
    else:
        inside[last] = DAMAGE[place]
    torch.save(checkpoint, newest)
    before = newest.read_bytes()
    with pytest.raises(ValueError, match="checkpoint") as caught:
        a2mim.pretrain(short_run.parent / "tiny.py", work_dir=folder, resume=True, device="cpu", num_workers=0)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 700
    assert [path.read_bytes() for path in list_checkpoints(folder / "checkpoints")] == [before]


@pytest.mark.parametrize("every", [{"checkpoint.every_steps": 5}, {"checkpoint.every_steps": None}])
def test_a_run_whose_checkpoints_are_lost_is_a_question_and_keeps_its_log(run, every):
    folder, _ = run("lost", **every)
    log = (folder / "log.jsonl").read_bytes()
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match=r"has logged 9 steps and holds no checkpoint.*to start over"):
        run("lost", resume=True)
    assert (folder / "log.jsonl").read_bytes() == log


def test_damaged_lines_of_the_log_are_counted_and_the_others_kept(run):
    folder, _ = run("damaged")
    lines = (folder / "log.jsonl").read_bytes().splitlines(keepends=True)
    bad = [b"\xff\xfe{\n", b"[1, 2]\n", b'{"loss": 1}\n']
    (folder / "log.jsonl").write_bytes(b"".join([*lines[:2], *bad, *lines[2:]]))
    with pytest.warns(UserWarning, match="3 damaged lines are left out, 9 are kept"):
        run("damaged", resume=True)
    assert (folder / "log.jsonl").read_bytes().splitlines(keepends=True) == lines


def test_a_damaged_record_is_said_and_the_checkpoint_s_copy_used(run, tmp_path):
    whole, _ = run("whole")
    kill_after(whole, 4, tmp_path / "resumed")
    (tmp_path / "resumed" / "settings.json").write_text("{")
    (tmp_path / "resumed" / "summary.json").write_bytes(b"\xff")
    with pytest.warns(UserWarning) as said:
        resumed, _ = run("resumed", resume=True, data=None)
    assert any("settings.json is damaged" in str(w.message) for w in said)
    assert any("summary.json is damaged" in str(w.message) for w in said)
    assert_same_run(whole, resumed)


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def break_half_way(checkpoint, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", break_half_way)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path / "step_00000001.pth", {})
    assert list_checkpoints(tmp_path) == []
