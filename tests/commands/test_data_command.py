import re

import numpy as np
import pytest

from a2mim.cli import main


@pytest.fixture
def arrays(tmp_path):
    for i in range(6):
        values = np.random.default_rng(i).integers(0, 4096, (20, 24, 5)).astype(np.uint16)
        np.save(tmp_path / f"{i}.npy", values)
    return str(tmp_path)


def test_measured_statistics_can_be_pasted_into_a_recipe(arrays, capsys):
    assert main(["measure-stats", arrays, "--in-chans", "5"]) == 0
    printed = capsys.readouterr().out
    assert "# 6 images, 2,880 pixels, 16 bits" in printed
    settings = {}
    exec(printed, settings)
    assert settings["data"]["in_chans"] == len(settings["data"]["mean"]) == len(settings["data"]["std"]) == 5
    assert np.allclose(settings["data"]["mean"], 2048 / 65535, rtol=0.02)


def test_the_bench_prints_stages_speeds_and_what_limits(arrays, capsys):
    arguments = ["--in-chans", "5", "--img-size", "16", "--images", "12", "--batch-size", "3", "--workers", "1"]
    assert main(["bench-data", arrays, *arguments]) == 0
    printed = capsys.readouterr().out
    for stage in ("read", "decode", "crop", "resize", "write"):
        assert re.search(rf"\b{stage} \d+\.\d{{3}}", printed)
    assert len(re.findall(r"^[01] workers: .* images/s, wait \d", printed, re.MULTILINE)) == 2
    assert re.search(r"limits .*Fastest: \d+ images/s", printed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["measure-stats", "DATA"], "does not suit: other channels"),
        (["measure-stats", "DATA", "--in-chans", "5", "--num-workers", "-1"], "--num-workers -1 must be at least 0"),
        (["bench-data", "DATA", "--images", "0"], "--images 0 must be at least 1"),
        (["bench-data", "DATA", "--workers", "-1"], "--workers -1 must be at least 0"),
        (["bench-data", "nowhere.tar"], "nowhere.tar"),
    ],
)
def test_mistakes_are_one_sentence(arrays, capsys, arguments, message):
    assert main([arrays if word == "DATA" else word for word in arguments]) == 1
    printed = capsys.readouterr().err.strip()
    assert message in printed and "\n" not in printed


def test_how_pixels_are_read_is_said_once_for_all_sets_of_a_command(tmp_path, capsys):
    for i in range(8):
        place = tmp_path / ("train" if i < 6 else "test") / "ab"[i % 2] / f"{i}.npy"
        place.parent.mkdir(exist_ok=True, parents=True)
        noise = np.random.default_rng(i).uniform(0, 0.5, (32, 32, 3))
        np.save(place, (0.5 * (i % 2) + noise).astype(np.float32))
    judged = ["knn", "resnet18", "--data", str(tmp_path / "train"), "--test-data", str(tmp_path / "test")]
    judged += ["--img-size", "32", "--k", "1"]
    assert main(judged) == 1
    assert "give data.value_range" in capsys.readouterr().err
    assert main([*judged, "--value-range", "0", "1"]) == 0
    assert "100.00" in capsys.readouterr().out
    assert main(["measure-stats", str(tmp_path / "train"), "--value-range", "0", "1"]) == 0
    settings = {}
    exec(capsys.readouterr().out, settings)
    assert settings["data"]["value_range"] == (0.0, 1.0) and np.allclose(settings["data"]["mean"], 0.5, atol=0.02)
