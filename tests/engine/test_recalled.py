"""A run's folder, resumed, chooses no code, no address and no file."""

import json
import shutil

import pytest

import a2mim
from a2mim.checkpoints import list_checkpoints, read_checkpoint, write_checkpoint

TRAP = """
from pathlib import Path

from torch import nn

from a2mim.losses import MaskedL1

Path({mark!r}).touch()


class Loss(MaskedL1):
    pass


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, images):
        return self.stem(images)
"""


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that exists once the module `trap_of_strangers` was imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "trap_of_strangers", raising=False)
    (tmp_path / "trap_of_strangers.py").write_text(TRAP.format(mark=str(tmp_path / "mark")))
    return tmp_path / "mark"


@pytest.fixture
def foreign(run, tmp_path):
    """foreign({"a.b": value}): a run's folder, with other settings in settings.json and in its only checkpoint."""
    whole, _ = run("whole", **{"schedule.epochs": 2})

    def make(changes, checkpoint=True):
        folder = tmp_path / "foreign"
        shutil.copytree(whole, folder)
        settings = json.loads((folder / "settings.json").read_text())
        for dotted, value in changes.items():
            *path, last = dotted.split(".")
            place = settings
            for key in path:
                place = place[int(key) if key.isdecimal() else key]
            place[int(last) if last.isdecimal() else last] = value
        (folder / "settings.json").write_text(json.dumps(settings))
        for path in list_checkpoints(folder / "checkpoints")[0 if not checkpoint else 2 :]:
            path.unlink()
        for path in list_checkpoints(folder / "checkpoints"):
            content = read_checkpoint(path)
            content["meta"]["settings"] = json.dumps(settings)
            write_checkpoint(path, content)
        if not checkpoint:
            (folder / "log.jsonl").unlink()
        return folder

    return make


@pytest.mark.parametrize("checkpoint", [True, False], ids=["with a checkpoint", "before the first"])
@pytest.mark.parametrize(
    "changes",
    [
        {"model.losses.0.type": "trap_of_strangers.Loss"},
        {"model.losses.0.type": "trap_of_strangers"},
        {"model.masking": {"type": "trap_of_strangers.Loss"}},
        {"model.decoder": {"type": "trap_of_strangers.Net"}},
        {"model.target": {"type": "FrozenFeatures", "source": "trap_of_strangers.Net"}},
        {"model.fill": {"type": "trap_of_strangers.Loss"}},
        {"model.encoder.name": "trap_of_strangers.Net"},
        {"model.encoder": {"name": "resnet18", "model_args": {"act_layer": {"type": "trap_of_strangers.Net"}}}},
        {"model.encoder": {"name": "resnet18", "model_args": {"checkpoint_path": "/etc/passwd"}}},
        {"model.encoder": {"name": "resnet18", "model_args": ["block"]}},
        {"model.encoder": {"name": "resnet18", "pretrained": True}},
        {"model.encoder": {"name": "hf-hub:somebody/something"}},
        {"init_from": "trap_of_strangers.Net"},
        {"init_from": "resnet18:pretrained"},
        {"init_from": "hf-hub:somebody/something"},
        {"data.transforms": [{"type": "trap_of_strangers.Net"}]},
        {"data.transforms": [{"type": "RandomApply", "transforms": [{"type": "trap_of_strangers.Net"}]}]},
        {"custom_imports": {"imports": ["trap_of_strangers"]}},
    ],
    ids=str,
)
def test_a_foreign_run_that_is_resumed_imports_and_opens_nothing(foreign, recipe, images, mark, changes, checkpoint):
    folder = foreign(changes, checkpoint)
    if "custom_imports" in changes:
        a2mim.pretrain(recipe, work_dir=folder, data=images, resume=True, device="cpu", num_workers=0)
    else:
        with pytest.raises(ValueError, match="a run's folder may not choose code"):
            a2mim.pretrain(recipe, work_dir=folder, data=images, resume=True, device="cpu", num_workers=0)
    assert not mark.exists()


def test_a_source_of_fine_tuning_is_recalled_by_name_or_path_alone(tmp_path, labelled, mark):
    recipe = tmp_path / "tune.py"
    recipe.write_text("data = dict(img_size=32)\nglobal_batch_size = 8\nschedule = dict(epochs=2, warmup_epochs=0)\n")
    folder = tmp_path / "tuned"
    arguments = {"device": "cpu", "num_workers": 0, "work_dir": folder}
    a2mim.finetune(recipe, "xcit_nano_12_p16_224", labelled, export=[], **arguments)
    shutil.rmtree(folder / "checkpoints")
    (folder / "log.jsonl").unlink()
    summary = json.loads((folder / "summary.json").read_text())
    summary["asked"]["source"] = "trap_of_strangers.Net"
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match="type the SOURCE again"):
        a2mim.finetune(recipe, resume=True, **arguments)
    assert not mark.exists()


def test_what_the_recipe_on_the_command_line_names_is_imported_again(foreign, recipe, images, mark):
    folder = foreign({"model.losses.0.type": "trap_of_strangers.Loss"})
    recipe.write_text(recipe.read_text().replace('type="MaskedL1"', 'type="trap_of_strangers.Loss"'))
    summary = a2mim.pretrain(recipe, work_dir=folder, data=images, resume=True, device="cpu", num_workers=0)
    assert summary["status"] == "finished" and mark.exists()
