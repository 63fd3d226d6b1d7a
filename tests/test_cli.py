"""The commands that judge, hand over and write shards, from their arguments to what they print and leave."""

import errno
import io
import json
import os
import subprocess
import sys
import warnings

import mmcv
import numpy as np
import pytest
import timm

from a2mim.cli import main


def noise(root, seed):
    generator = np.random.default_rng(seed)
    for label, (low, high) in {"bright": (150, 256), "dark": (0, 100)}.items():
        for i in range(12):
            mmcv.imwrite(generator.integers(low, high, (40, 40, 3), np.uint8), str(root / label / f"{seed}-{i}.png"))
    return str(root)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of a dozen images: dark and bright noise."""
    return noise(tmp_path_factory.mktemp("labelled"), seed=0)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The same two classes, other images."""
    return noise(tmp_path_factory.mktemp("others"), seed=1)


def test_knn_of_a_random_network_is_calibrated_judged_and_written(folder, others, tmp_path, capsys):
    out = tmp_path / "knn.json"
    arguments = ["knn", "resnet18", "--data", folder, "--test-data", others, "--img-size", "32", "--out", str(out)]
    assert main([*arguments, "--device", "cpu"]) == 0
    result = json.loads(out.read_text())
    assert result["top1"] == 100.0
    assert (result["protocol"], result["k"], result["n_test"]) == ("dino-knn", 20, 24)
    assert result["batchnorm_calibrated_on"] == 24
    assert (result["img_size"], result["resize"]) == ([32, 32], 37)
    printed = capsys.readouterr().out
    assert "48 images, once" in printed
    row = next(line for line in printed.splitlines() if line.startswith("dino-knn  "))
    assert "100.00" in row and "k 20" in row and "{" not in printed
    assert "temperature 0.07" in printed and "calibrated on 24 training images" in printed


@pytest.mark.parametrize("protocol", ["dino-linear", "linear-cached"])
def test_a_linear_probe_tells_bright_from_dark(folder, others, tmp_path, protocol):
    out = tmp_path / "linear.json"
    arguments = ["linear-probe", "xcit_nano_12_p16_224", "--data", folder, "--test-data", others, "--img-size", "32"]
    more = ["--protocol", protocol, "--epochs", "3", "--out", str(out), "--device", "cpu"]
    assert main([*arguments, *more]) == 0
    result = json.loads(out.read_text())
    assert result["top1"] > 90
    assert result["protocol"] == protocol


def test_export_of_a_run_loads_in_timm(folder, tmp_path, capsys):
    recipe = tmp_path / "tiny.py"
    recipe.write_text(
        'model = dict(encoder=dict(name="resnet18"), masking=dict(type="BlockMask", mask_patch_size=16),'
        ' losses=[dict(type="MaskedL1")])\ndata = dict(img_size=32)\nglobal_batch_size = 12\n'
        "schedule = dict(epochs=1, warmup_epochs=0)\nexport = []\n"
    )
    run = str(tmp_path / "run")
    assert main(["pretrain", str(recipe), "--data", folder, "--work-dir", run, "--device", "cpu"]) == 0
    assert main(["export", run, "--to", "timm", "--out", str(tmp_path / "out"), "--data", folder]) == 0
    assert "timm computes the same features" in capsys.readouterr().out
    receipt = json.loads((tmp_path / "out" / "timm" / "receipt.json").read_text())
    assert receipt["batchnorm"] == {"recalibrated": True, "images": 24}
    assert timm.create_model(f"local-dir:{tmp_path / 'out' / 'timm'}", pretrained=True, num_classes=5).num_classes == 5


def test_shards_are_made_checked_and_read_back(folder, tmp_path, capsys):
    out = tmp_path / "shards"
    assert main(["shards", "make", folder, str(out), "--samples-per-shard", "10"]) == 0
    printed = capsys.readouterr().out
    assert "24 images in 3 shards" in printed
    assert "24 labelled: all readable" in printed
    damaged = out / "shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    assert main(["shards", "check", str(out / "shard-{000000..000002}.tar")]) == 1
    assert "1 damaged shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["knn", "resnett18", "--data", "FOLDER", "--test-data", "FOLDER"], "resnet18"),
        (["knn", "resnet18", "--data", "nowhere", "--test-data", "FOLDER"], "nowhere"),
        (["export", "nowhere/run", "--to", "timm"], "nowhere/run does not exist"),
        (["export", "FOLDER", "--to", "tim"], "tim"),
        (["shards", "make", "nowhere", "out"], "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_non_zero_exit(folder, capsys, arguments, message):
    assert main([folder if a == "FOLDER" else a for a in arguments]) == 1
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ")
    assert message in printed
    assert "\n" not in printed


def test_a_full_disk_is_one_sentence_that_names_the_file(folder, tmp_path, capsys, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("a2mim.files._flush", full)
    out = tmp_path / "stats.json"
    assert main(["recipes", "--copy", "a2mim_xcit", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert said == f"error: {out} cannot be written, the disk is full: make room, and run the command again\n"
    assert not list(tmp_path.iterdir())


def test_a_program_that_calls_the_command_keeps_how_it_shows_warnings(capsys):
    before = warnings.formatwarning
    assert main(["settings", "seed"]) == 0 and main(["settings", "sead"]) == 1
    assert warnings.formatwarning is before


def test_images_without_labels_are_not_judged(folder, capsys):
    unlabelled = f"{folder}/dark"
    assert main(["knn", "resnet18", "--data", unlabelled, "--test-data", unlabelled]) == 1
    assert "12 of the 12 images" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_character_that_the_terminal_lacks_is_escaped_and_ends_nothing(encoding, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr("a2mim.cli._run", lambda chosen: print("59.1 \u2192 65.4 %, \u6f22"))
    main(["recipes"])
    assert terminal.errors == "strict"  # a program that calls main keeps its own
    terminal.flush()
    assert terminal.buffer.getvalue().decode(encoding).strip() == r"59.1 \u2192 65.4 %, \u6f22"


def test_the_command_leaves_no_setting_of_bars_to_its_children(tmp_path):
    code = "import os, a2mim.cli; print([name for name in os.environ if name.startswith('TQDM')])"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TQDM")}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "words",
    ["worth-it x", "compare x", "report x", "shards check x", "export x --to timm --out y", "analyze x --data y"],
)
def test_work_that_cannot_be_shared_is_refused_under_torchrun_and_said_once(words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(words.split()) == 1
    said = capsys.readouterr().err
    told = f"a2mim {words.split()[0]} runs in one process, and 2 were started: start it without torchrun or srun"
    assert said == f"error: {told}\n"
    monkeypatch.setenv("RANK", "1")
    assert main(words.split()) == 1
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_what_only_prints_is_not_refused_under_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["recipes"]) == 0 and "a2mim_xcit" in capsys.readouterr().out
