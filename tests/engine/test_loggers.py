"""Loggers by name: settings, scalars and pictures reach each; what is missing is one sentence."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

from a2mim.engine.loggers import BACKENDS, MLflowPictures, configs, destinations, options_of, stay_local
from a2mim.engine.setting_groups import Log

SHORT = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}


def test_without_a_name_there_is_no_logger():
    assert configs(Log()) == [] and destinations(Log(), "runs/a/logs") == []


def test_options_go_to_the_logger_and_a_name_comes_once():
    log = Log(backends=[{"type": "tensorboard"}], tensorboard=False)
    assert configs(log) == [{"type": "TensorboardVisBackend"}]
    assert len(configs(Log(backends=["tensorboard"], tensorboard=True))) == 1
    assert configs(Log(tensorboard=True)) == [{"type": "TensorboardVisBackend"}]


def test_an_unknown_name_and_a_missing_package_are_one_sentence(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'tensorbord', which is no logger.*tensorboard"):
        options_of(Log(backends=["tensorbord"]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the package wandb is not installed: pip install wandb"):
        run("none", **{"log.backends": ["wandb"]})
    assert not (tmp_path / "none").exists()


def test_the_first_lines_say_where_each_logger_sends(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    told = lambda *backends: destinations(Log(backends=list(backends)), "runs/a/logs")[0]  # noqa: E731
    assert told("wandb") == "  logger   wandb: sends to https://api.wandb.ai"
    assert told({"type": "wandb", "mode": "offline"}).endswith("files in runs/a/logs; nothing is sent")
    assert told({"type": "mlflow", "tracking_uri": "http://h:5000"}) == "  logger   mlflow: sends to http://h:5000"
    assert told("tensorboard").endswith("files in runs/a/logs; nothing is sent")
    monkeypatch.setenv("WANDB_BASE_URL", "https://here")
    assert told("wandb").endswith("sends to https://here")
    assert len(destinations(Log(backends=list(BACKENDS)), "x")) == len(BACKENDS)


def test_loggers_that_write_files_alone_are_told_to_send_nothing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    names = ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING", "WANDB_MODE")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    stay_local(Log(backends=["wandb", {"type": "mlflow", "tracking_uri": "http://h:5000"}, "tensorboard"]))
    assert not [name for name in names if name in os.environ]
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    stay_local(Log(backends=[{"type": "wandb", "mode": "offline"}, "mlflow"]))
    assert [os.environ.get(name) for name in names] == ["true", "false", "false", None]
    told = destinations(Log(backends=[{"type": "mlflow", "tracking_uri": "sqlite:///m.db"}]), "x")[0]
    assert told == "  logger   mlflow: sqlite:///m.db; nothing is sent"


def test_pictures_for_mlflow_have_names_with_a_step_and_an_ending(tmp_path):
    said = []
    logger = MLflowPictures(str(tmp_path))
    logger.close()  # before it has begun: nothing happens
    logger._env_initialized = True
    logger._mlflow = SimpleNamespace(
        log_image=lambda image, name: said.append(name), end_run=lambda: said.append("end")
    )
    logger.add_image("reconstructions", np.zeros((2, 2, 3), np.uint8), 12)
    logger.close()
    assert said == ["reconstructions/step_00000012.png", "end"]


def test_tensorboard_gets_settings_scalars_and_pictures(run, capsys):
    pytest.importorskip("tensorboard")
    folder, _ = run("board", **SHORT, **{"log.backends": ["tensorboard"]})
    assert f"  logger   tensorboard: files in {folder}/logs; nothing is sent" in capsys.readouterr().out
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (folder / "logs").rglob("events.out.tfevents*")
    found = EventAccumulator(str(events))
    found.Reload()
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert [scalar.value for scalar in found.Scalars("loss")] == pytest.approx(losses)
    assert [image.step for image in found.Images("reconstructions")] == [0, 3]
    assert b"mask_patch_size" in found.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_gets_scalars_and_pictures_into_the_folder(run):
    pytest.importorskip("wandb")
    folder, _ = run("wandb", **SHORT, **{"log.backends": [{"type": "wandb", "mode": "offline", "project": "a2mim"}]})
    (file,) = (folder / "logs").rglob("run-*.wandb")
    content = file.read_bytes()
    assert b"loss_l1" in content and b"mask_patch_size" in content
    assert list((folder / "logs").rglob("media/images/reconstructions*.png"))


@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_settings_scalars_and_pictures_into_a_local_folder(run):
    pytest.importorskip("mlflow")
    folder, _ = run("mlflow", **SHORT, **{"log.backends": ["mlflow"]})
    files = [path for path in (folder / "logs").rglob("*") if path.is_file()]
    (metric,) = [path for path in files if path.parent.name == "metrics" and path.name == "loss"]
    assert len(metric.read_text().splitlines()) == 3
    pictures = sorted(path.name for path in files if path.parent.name == "reconstructions")
    assert pictures == ["step_00000000.png", "step_00000003.png"]
    assert any("mask_patch_size" in path.name for path in files if path.parent.name == "params")
