"""A run end to end on a tiny recipe: its folder, its errors, its options, its processes."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from two_processes import run_pair

import a2mim
from a2mim.checkpoints import list_checkpoints
from a2mim.cli import main
from a2mim.engine.assembly import build_mim, choose_amp
from a2mim.engine.config import load_config
from a2mim.engine.folder import claim, find_run, release
from a2mim.engine.records import step_seed
from a2mim.engine.report import _too_short, command_line, judging_lines
from a2mim.engine.resized import at_judged_size
from a2mim.export import TARGETS
from a2mim.report.records import read_run
from a2mim.weights.sources import read_source


def test_a_run_leaves_the_folder_that_the_documentation_names(run):
    folder, summary = run("whole", **{"export": ["timm"], "schedule.epochs": 1, "schedule.warmup_epochs": 0})
    assert {p.name for p in folder.iterdir()} >= {
        "config.py",
        "log.jsonl",
        "summary.json",
        "reconstructions",
        "checkpoints",
        "encoder",
    }
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert summary["status"] == "finished"
    assert summary["steps"] == 3
    assert not [
        path for path in folder.rglob("[!.]*") if not (any(path.iterdir()) if path.is_dir() else path.stat().st_size)
    ]
    assert len(list((folder / "reconstructions").glob("*.png"))) == 2
    line = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    assert line["loss"] == pytest.approx(line["loss_l1"] + line["loss_fourier"])
    assert 0 <= line["data_share"] <= 1
    assert summary["data"]["sizes"]["median"] == [40, 48] and summary["data"]["sizes"]["looked_at"] == 24
    assert 0.05 < line["memory_gb"] < 100  # torch alone takes more than the least of these
    encoder = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True, num_classes=0)
    trained = torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)["state_dict"]
    key = "blocks.3.mlp.fc1.weight"
    assert torch.equal(encoder.state_dict()[key], trained[f"encoder.model.{key}"])


def test_the_written_config_runs_again_and_gives_the_same(run, images, tmp_path):
    folder, first = run("whole")
    second = a2mim.pretrain(folder / "config.py", images, tmp_path / "again", device="cpu", num_workers=0)
    assert second["loss"] == first["loss"]


def test_a_run_whose_target_holds_a_network_is_a_source_without_it(run):
    target = {"type": "RandomFeatures", "channels": 16, "depth": 2}
    folder, _ = run("taught", **{"model.target": target, "model.losses": [{"type": "MaskedSmoothL1"}], "export": []})
    state = torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)["state_dict"]
    assert "target._extra_state" in state
    tensors = read_source(folder).tensors
    assert {f"encoder.model.{key}" for key in tensors} == {key for key in state if key.startswith("encoder.model.")}
    assert all(torch.equal(value, state[f"encoder.model.{key}"]) for key, value in tensors.items())


def test_tensorboard_gets_what_the_log_gets(run):
    folder, _ = run("whole", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0, "log.tensorboard": True})
    events = list((folder / "logs").rglob("events.out.tfevents*"))
    assert len(events) == 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(events[0]))
    accumulator.Reload()
    assert [image.step for image in accumulator.Images("reconstructions")] == [0, 3]
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    assert [s.value for s in accumulator.Scalars("loss")] == pytest.approx([line["loss"] for line in lines])


def test_a_finished_run_that_is_resumed_only_judges_and_exports_again(run):
    _, first = run("whole")
    _, again = run("whole", resume=True)
    assert again["loss"] == first["loss"]
    assert again["steps"] == first["steps"]


def test_accumulating_in_pieces_takes_as_many_steps(run):
    _, whole = run("whole", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    _, pieces = run("pieces", accumulate=4, **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    assert pieces["steps"] == whole["steps"]


def test_labels_and_a_test_set_are_judged_before_and_after(run, images, tmp_path, capsys):
    labelled = tmp_path / "labelled"
    for split in ("train", "test"):
        for i, path in enumerate(sorted(images.iterdir())):
            if (i // 2) % 2 == (split == "test"):
                continue
            target = labelled / split / "ab"[i % 2] / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    _, summary = run("whole", data=labelled / "train", test_data=labelled / "test")
    judged = summary["judged"]
    assert judged["before"]["knn"]["n_test"] == 12
    names = ["linear probe", "attentive probe", "k-NN"]
    assert [one["name"] for one in judged["differences"]] == names and len(judged["verdicts"]) == 3
    for one, key in zip(judged["differences"], ("linear", "attentive", "knn"), strict=True):
        change = judged["after"][key]["top1"] - judged["before"][key]["top1"]
        assert one["points"] == pytest.approx(change) and one["low"] <= one["points"] <= one["high"]
        assert one["word"] in ("gain", "loss", "none")
    printed = capsys.readouterr().out
    assert "before pre-training: linear probe" in printed and "steps teach little" in printed


@pytest.mark.parametrize(
    "command, steps, epochs", [("pretrain", 24, 50), ("pretrain", 300, None), ("finetune", 24, None)]
)
def test_a_run_too_short_to_teach_anything_names_the_epochs_that_are_enough(command, steps, epochs):
    schedule = SimpleNamespace(schedule=SimpleNamespace(epochs=4))
    told = _too_short(SimpleNamespace(task=SimpleNamespace(command=command), max_steps=steps, settings=schedule))
    assert [line.rpartition("schedule.epochs=")[2] for line in told] == ([] if epochs is None else [str(epochs)])


def test_a_loss_that_is_not_a_number_stops_with_the_last_good_checkpoint(run, tmp_path):
    with pytest.raises(FloatingPointError) as caught:
        run("broken", **{"optimizer.base_lr": 1e30, "optimizer.type": "sgd", "clip_grad": None})
    saved = list_checkpoints(tmp_path / "broken" / "checkpoints")
    assert "stopped before the weights changed" in str(caught.value)
    assert f"the last good checkpoint is {saved[-1]}" in str(caught.value)
    state = torch.load(saved[-1], weights_only=True)["state_dict"]
    assert all(torch.isfinite(v).all() for v in state.values())


def test_every_step_draws_its_own_random_numbers_and_each_purpose_its_own():
    seeds = {step_seed(0, step, rank, p) for step in range(50) for rank in range(4) for p in ("mask", "dropout")}
    assert len(seeds) == 400
    assert step_seed(0, 3, 1, "mask") != step_seed(1, 3, 1, "mask")


def test_amp_is_float32_by_default_on_a_cpu():
    assert choose_amp("auto", torch.device("cpu")) is None
    assert choose_amp(None, torch.device("cpu")) is None


def test_a_recipe_s_own_row_wins_over_what_is_derived(recipe):
    settings = load_config(recipe, {"model.encoder.mask_patch_size": 8})
    assert build_mim(settings).encoder.img_size == (32, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg-options", "optimizer.type=adamm"], "not an optimiser of timm.optim; did you mean adam"),
        (["--cfg-options", "model.encoder.name=xcit_nanoo_12_p16_224"], "xcit_nano_12_p16_224"),
        (["--cfg-options", "model.encoder.sight=layer3"], "has no argument 'sight'; did you mean site"),
        (["--cfg-options", "data.img_size=40"], "does not divide data.img_size=40"),
        (["--cfg-options", "global_batch_size=7", "accumulate=2"], "not divisible by 1 processes x accumulate=2"),
        (["--cfg-options", "global_batch_size=64"], "24"),
        (["--cfg-options", "export=['timmm']"], "export to ['timmm'] was asked for"),
        (["--data", "nowhere-{000..002}.tar"], "nowhere-000.tar"),
        (["--resume"], "holds no run"),
        (["--device", "cuda:7"], "torch finds no CUDA GPU"),
    ],
)
def test_a_mistake_is_one_sentence_a_non_zero_exit_and_leaves_nothing(
    recipe, images, tmp_path, capsys, arguments, message
):
    if torch.cuda.is_available() and "cuda:7" in arguments:
        pytest.skip("this machine has a GPU")
    folder = tmp_path / "run"
    data = [] if "--data" in arguments else ["--data", str(images)]
    code = main(["pretrain", str(recipe), *data, "--work-dir", str(folder), *arguments])
    printed = capsys.readouterr().err.strip()
    assert code == 1
    assert message in printed
    assert printed.startswith("error: ")
    assert printed.count("\n") == 0
    assert not folder.exists()


def test_an_empty_folder_and_an_unknown_flag_are_refused(recipe, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["pretrain", str(recipe), "--data", str(tmp_path / "empty")]) == 1
    assert "error: " in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", str(recipe), "--works-dir", "x"])
    assert stopped.value.code == 2
    assert "--works-dir" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_never_overwritten(run):
    run("whole", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})
    with pytest.raises(ValueError, match="holds a run already; add --resume"):
        run("whole")


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_writes(run, tmp_path):
    claim(tmp_path / "whole", "tiny")
    with pytest.raises(ValueError, match="another run is writing"):
        run("whole")
    release()
    run("whole", **{"schedule.epochs": 1, "schedule.warmup_epochs": 0})


def test_without_a_name_each_run_takes_the_first_free_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [claim(None, "tiny"), claim(None, "tiny")]
    release()
    assert [str(f) for f in folders] == ["runs/tiny", "runs/tiny-2"]
    with pytest.raises(FileNotFoundError, match="holds no run of tiny"):
        find_run(None, "tiny")
    (tmp_path / "runs" / "tiny-2" / "config.py").write_text("")
    assert str(find_run(None, "tiny")) == "runs/tiny-2"


def test_signals_belong_to_their_old_owner_after_an_error(run):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FloatingPointError):
        run("broken", **{"optimizer.base_lr": 1e30, "optimizer.type": "sgd", "clip_grad": None})
    assert signal.getsignal(signal.SIGTERM) is before


def test_help_answers_without_importing_torch():
    code = (
        "import sys; from a2mim.cli import main\n"
        "try: main(['pretrain', '--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--cfg-options" in done.stdout


@pytest.mark.slow
def test_two_processes_take_the_same_steps_over_the_same_data_and_one_goes_on(run, recipe, images, tmp_path):
    alone, summary = run("alone", **{"schedule.epochs": 2})
    run_pair(
        *("-m", "a2mim.cli", "pretrain", recipe, "--data", images, "--work-dir", tmp_path / "pair"),
        *("--device", "cpu", "--num-workers", "0", "--cfg-options", "schedule.epochs=2"),
    )
    pair = json.loads((tmp_path / "pair" / "summary.json").read_text())
    assert (pair["processes"], pair["steps"]) == (2, summary["steps"])
    saved = [torch.load(list_checkpoints(f / "checkpoints")[-1], weights_only=True) for f in (alone, tmp_path / "pair")]
    assert saved[0]["loader"] == saved[1]["loader"]
    _, longer = run("pair", resume=True, **{"schedule.epochs": 3})
    assert (longer["processes"], longer["steps"]) == (1, 9)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("TOOLS/pretrain.py", "python TOOLS/linear_probe.py"),
        ("/somewhere/bin/a2mim", "a2mim linear-probe"),
        ("/site-packages/a2mim/cli.py", "python -m a2mim.cli linear-probe"),
        ("own_script.py", "a2mim linear-probe"),
    ],
)
def test_the_next_command_begins_as_the_user_typed_this_one(monkeypatch, typed, words):
    tools = str(Path(__file__).parents[2] / "tools")
    monkeypatch.setattr("sys.argv", [typed.replace("TOOLS", tools)])
    assert " ".join(command_line("linear-probe")) == words.replace("TOOLS", tools)


def test_a_run_without_test_images_tells_of_the_command_that_splits_some_off(monkeypatch):
    monkeypatch.setattr("sys.argv", ["a2mim"])
    unjudged = {"judged": None, "asked": {"data": "my photographs", "test_data": None}}
    assert judging_lines(unjudged, "runs/a", ["knn"]) == ["  a2mim evaluate runs/a 'my photographs'"]
    judged = {"judged": {"before": 0}, "asked": {"data": None, "test_data": None}}
    assert judging_lines(judged, "runs/a", ["knn"]) == ["  a2mim knn runs/a --data photos --test-data photos"]
    given = {"judged": None, "asked": {"data": "a", "test_data": ["b", "c"]}}
    assert judging_lines(given, "runs/a", ["knn"]) == ["  a2mim knn runs/a --data a --test-data b c"]


def test_an_encoder_is_judged_and_exported_at_a_larger_size(run, labelled):
    """Pre-trained at 32 px, then 64: positions are resampled, and nothing else changes."""
    changes = {"data": labelled / "train", "test_data": labelled / "test", "judge.img_size": 64, "export": ["timm"]}
    changes |= {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "judge.every_epochs": None}
    vit = {"name": "vit_tiny_patch16_224", "model_args": {"depth": 2, "embed_dim": 64, "num_heads": 2}}
    folder, summary = run("larger", **changes, **{"model.encoder": vit})
    assert summary["judged"]["after"]["knn"]["n_test"] == 12
    assert summary["export"]["largest_difference"] <= summary["export"]["tolerance"]
    model, pixels = a2mim.load_encoder(folder)
    assert pixels["img_size"] == [64, 64] and model(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
    trained = torch.load(list_checkpoints(folder / "checkpoints")[-1], weights_only=True)["state_dict"]
    trained = {key.removeprefix("encoder.model."): value for key, value in trained.items()}
    assert trained["pos_embed"].shape[1] == 1 + 2 * 2 and model.pos_embed.shape[1] == 1 + 4 * 4
    for key, value in model.state_dict().items():
        assert key == "pos_embed" or torch.equal(value, trained[key]), key
    results = json.loads((folder / "results.json").read_text())
    assert {result["constants"]["img_size"] for result in results} == {64}
    drawn = json.loads(next((folder / "representation").glob("*.json")).read_text())
    assert "Spectrum of the reconstruction" in json.dumps(drawn)  # whose images have the size of the training


def test_a_network_without_positions_keeps_every_tensor_at_a_larger_size(recipe):
    settings = load_config(recipe, {"model.encoder": {"name": "test_resnet"}, "judge.img_size": 64})
    encoder = build_mim(settings).encoder
    larger = at_judged_size(encoder, settings)
    assert larger.img_size == (64, 64) and at_judged_size(larger, settings) is larger
    before, after = encoder.state_dict(), larger.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_a_size_to_be_judged_at_that_does_not_suit_is_refused_before_the_training(run, tmp_path):
    with pytest.raises(ValueError, match=r"judge\.img_size=40 does not suit this recipe: .*mask_patch_size=16"):
        run("odd", **{"judge.img_size": 40})
    assert not (tmp_path / "odd").exists()


def test_every_target_of_the_recipe_is_written_and_an_impossible_one_is_refused_before_the_first_step(run, tmp_path):
    short = {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "log.report": False, "judge.every_epochs": None}
    network = {"model.encoder": {"name": "test_resnet"}, "model.masking.mask_patch_size": 32, **short}
    with pytest.raises(ValueError, match="test_resnet cannot be exported to torchvision"):
        run("refused", export=["timm", "torchvision"], **network)
    assert not (tmp_path / "refused").exists()
    folder, summary = run("written", export=["safetensors", "timm"], **network)
    assert [receipt["target"] for receipt in summary["exports"]] == ["safetensors"]
    assert json.loads((folder / "export" / "safetensors" / "receipt.json").read_text())["mode"] == "loaded"
    assert sorted(receipt["target"] for receipt in read_run(folder).receipts) == ["safetensors", "timm"]


def test_a_target_that_fails_at_the_end_stops_nothing(run, monkeypatch, capsys):
    def fail(subject, folder):
        raise ValueError("its library is not there")

    target = replace(TARGETS["safetensors"], write=fail)
    monkeypatch.setitem(TARGETS, "safetensors", target)
    short = {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "log.report": False}
    folder, summary = run("failed", export=["safetensors"], **short)
    assert summary["status"] == "finished" and (folder / "encoder" / "receipt.json").exists()
    assert summary["exports"] == [{"target": "safetensors", "problem": "its library is not there"}]
    assert "not exported to safetensors: its library is not there" in capsys.readouterr().out
