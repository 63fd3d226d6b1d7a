"""accumulate="auto": a trial step finds the number, the run is as with that number, and a resumed run keeps it."""

import json

import pytest
import torch

import a2mim
from a2mim.checkpoints import list_checkpoints
from a2mim.engine import memory, trial
from a2mim.engine.classifier import Classifier
from a2mim.engine.config import load_config
from a2mim.engine.finetune_settings import FinetuneSettings
from a2mim.engine.memory import OutOfMemory, free_memory
from a2mim.engine.refine.refiner import Refiner
from a2mim.engine.refine_settings import RefineSettings
from a2mim.engine.trial import numbers_of_parts
from a2mim.mim import MIM

BRIEF = {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "judge.every_epochs": None, "log.report": False}


def state_of(folder):
    saved = torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)
    return saved["state_dict"] | {f"optimizer {i}": s for i, s in flat(saved["optimizer"]["optimizer"]["state"])}


def flat(state):
    return [(f"{i} {key}", value) for i, each in state.items() for key, value in each.items()]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def gpu_of(monkeypatch):
    """gpu_of(n): more than n images at a time raise CUDA's error in training; returns the sizes that were tried."""

    def limit(most):
        tried, forward = [], MIM.forward

        def small(self, images, *arguments, **named):
            if self.training:
                tried.append(len(images))
                if len(images) > most:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(self, images, *arguments, **named)

        monkeypatch.setattr(MIM, "forward", small)
        return tried

    return limit


@pytest.mark.parametrize("encoder", [None, {"name": "resnet10t"}], ids=["stochastic depth", "batchnorm"])
def test_the_run_is_the_one_with_the_number_written_out(run, gpu_of, encoder):
    changes = BRIEF | {"ema": 0.1} | ({"model.encoder": encoder} if encoder else {})
    written, _ = run("written", accumulate=2, **changes)
    tried = gpu_of(4)
    found, summary = run("found", accumulate="auto", **changes)
    assert summary["accumulate"] == 2 and summary["origins"]["accumulate"] == "trial step"
    assert tried[:4] == [1, 8, 4, 4] or tried[:5] == [1, 2, 8, 4, 4]  # the least, all, half in two parts
    assert same(state_of(written), state_of(found))


def test_it_is_said_logged_and_kept_and_a_resumed_run_takes_the_same_number(run, gpu_of, monkeypatch, capsys):
    gpu_of(2)
    folder, _ = run("run", accumulate="auto", **BRIEF)
    assert "memory   accumulate=auto: 4 x 2 images a step on cpu" in capsys.readouterr().out
    says = [json.loads(line).get("says", "") for line in (folder / "log.jsonl").read_text().splitlines()]
    assert any("accumulate=auto: 4 x 2 images a step" in line for line in says)
    assert json.loads((folder / "settings.json").read_text())["accumulate"] == 4
    assert "accumulate = 4" in (folder / "config.py").read_text()
    for path in list_checkpoints(folder / "checkpoints")[2:]:
        path.unlink()
    monkeypatch.setattr(trial, "find_accumulate", lambda *_: pytest.fail("a resumed run tries nothing"))
    for resume in (True, "auto"):
        _, summary = run("run", accumulate="auto", resume=resume, **BRIEF)
        assert summary["accumulate"] == 4 and not summary["changes"]


def test_a_resumed_run_takes_another_number_where_one_is_typed(run, gpu_of):
    gpu_of(4)
    folder, _ = run("run", accumulate="auto", **BRIEF)
    for path in list_checkpoints(folder / "checkpoints")[2:]:
        path.unlink()
    _, summary = run("run", resume=True, accumulate=8)
    assert summary["accumulate"] == 8 and summary["changes"][0]["changed"] == ["accumulate: 2 -> 8"]


def test_other_numbers_give_the_same_loss_and_gradient_within_rounding(run):
    vit = {"name": "vit_tiny_patch16_224", "model_args": {"depth": 2, "embed_dim": 64, "num_heads": 2}}
    lines = []
    for number in (1, 4):
        folder, _ = run(f"in {number}", accumulate=number, **BRIEF, **{"model.encoder": vit})
        lines.append(json.loads((folder / "log.jsonl").read_text().splitlines()[2]))
    for key in ("loss", "grad_norm"):
        assert lines[0][key] == pytest.approx(lines[1][key], rel=1e-4)


def test_too_little_memory_for_the_smallest_part_is_one_sentence_and_leaves_no_folder(run, gpu_of, tmp_path):
    gpu_of(0)
    with pytest.raises(OutOfMemory, match=r"cpu has too little memory for 1 images at a time.*data\.img_size"):
        run("none", accumulate="auto", **BRIEF)
    assert not (tmp_path / "none").exists()


def test_a_cpu_takes_the_largest_part_whose_estimate_is_free(run, monkeypatch):
    estimates, expected = {}, trial.Trial.expected

    def noted(self, number):
        estimates.update({n: expected(self, n) for n in (1, 2, 4, 8)})
        return estimates[number]

    monkeypatch.setattr(trial.Trial, "expected", noted)
    monkeypatch.setattr(trial, "free_memory", lambda: 10**12)
    assert run("all", accumulate="auto", **BRIEF)[1]["accumulate"] == 1
    activations = estimates[1] - estimates[2]
    assert activations == pytest.approx(2 * (estimates[2] - estimates[4]), rel=0.01)  # twice the images, twice as much
    assert activations > 4 * 1.5 * 3 * 32 * 32 * 4  # four images, each kept at least once, as float32
    monkeypatch.setattr(trial, "free_memory", lambda: (estimates[2] + 1) / trial.CPU_SHARE)
    assert run("half", accumulate="auto", **BRIEF)[1]["accumulate"] == 2


def test_a_system_that_does_not_say_what_is_free_is_named(run, monkeypatch):
    monkeypatch.setattr(trial, "free_memory", lambda: None)
    folder, summary = run("unknown", accumulate="auto", **BRIEF)
    assert summary["accumulate"] == 1
    assert "this system does not say how much memory is free" in (folder / "log.jsonl").read_text()


def test_mixup_is_given_even_parts(recipe):
    settings = load_config("finetune/rsb_a2", kind=FinetuneSettings)
    assert settings.mix.mixup and numbers_of_parts(settings, 12) == [1, 2, 3, 6]
    assert numbers_of_parts(load_config(recipe), 12) == [1, 2, 3, 4, 6, 12]


def test_refinement_is_never_given_one_image_alone():
    assert numbers_of_parts(load_config("refine/last_third", kind=RefineSettings), 12) == [1, 2, 3, 4, 6]


@pytest.mark.filterwarnings("ignore:.* is a name with random weights")
@pytest.mark.parametrize("task", ["finetune", "refine"])
def test_fine_tuning_and_refinement_find_theirs_too(task, labelled, tmp_path, monkeypatch):
    kind = Classifier if task == "finetune" else Refiner
    forward = kind.forward

    def small(self, images, *arguments, **named):
        if self.training and len(images) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, images, *arguments, **named)

    monkeypatch.setattr(kind, "forward", small)
    settings = {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "global_batch_size": 8, "data.img_size": 32}
    if task == "finetune":
        settings |= {"data.test_size": 32, "evaluate.every_epochs": 1}
        recipe = ("finetune/rsb_a3", "test_resnet", labelled / "train", tmp_path / "run")
    else:
        settings |= {"judge.every_epochs": None, "heads.alone_epochs": 0}
        recipe = ("test_vit", labelled / "train", tmp_path / "run")
    more = {"test_data": labelled / "test", "device": "cpu", "num_workers": 0, "export": [], "log.report": False}
    summary = getattr(a2mim, task)(*recipe, **more, **settings, accumulate="auto")
    assert summary["status"] == "finished" and summary["accumulate"] == 2


def test_free_memory_is_the_least_that_machine_and_container_leave(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:    40 kB\n")
    assert free_memory(tmp_path) == 40 * 1024 // 2
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("9000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 1000\n")
    assert free_memory(tmp_path) == 40 * 1024 // 2
    (group / "memory.max").write_text("10000\n")
    assert free_memory(tmp_path) == 1000
    assert memory.free_memory() is None or memory.free_memory() > 0
