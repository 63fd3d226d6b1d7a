"""`a2mim shards` from its arguments to what it prints, leaves and returns."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from a2mim.cli import main


@pytest.fixture
def pattern(tmp_path):
    """Two shards of five labelled pictures each."""
    rng = np.random.default_rng(0)
    for k in range(2):
        with tarfile.open(tmp_path / f"s-{k}.tar", "w") as archive:
            for i in range(5):
                picture = tmp_path / "picture.jpg"
                Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(picture)
                archive.add(picture, f"{i}.jpg")
                (tmp_path / "label").write_text(str(i % 2))
                archive.add(tmp_path / "label", f"{i}.cls")
    return str(tmp_path / "s-{0..1}.tar")


def lines(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_ls_tells_what_is_in_each_shard_and_in_all(pattern, tmp_path, capsys):
    assert main(["shards", "ls", pattern]) == 0
    first, second, total = lines(capsys)
    assert first.split()[:4] == ["5", "images", "5", "labelled"] and second.endswith(str(tmp_path / "s-1.tar"))
    assert total.split()[:5] == ["10", "images", "in", "2", "of"]
    assert main(["shards", "ls", "--samples", pattern]) == 0
    samples = [line.split("\t") for line in lines(capsys)]
    assert len(samples) == 10 and samples[6][:3] == [str(tmp_path / "s-1.tar"), "1", "1"]
    os.truncate(tmp_path / "s-1.tar", 700)
    assert main(["shards", "ls", pattern]) == 1
    assert "damaged" in lines(capsys)[1]


def test_index_writes_beside_the_shards_and_exchanges_with_dali(pattern, tmp_path, capsys):
    assert main(["shards", "index", pattern]) == 0
    assert (tmp_path / "s-0.tar.index.npz").exists() and len(lines(capsys)) == 3
    assert main(["shards", "index", pattern, "--dali", "export"]) == 0
    assert lines(capsys) == [str(tmp_path / f"s-{k}.idx") for k in range(2)]
    assert Path(tmp_path / "s-0.idx").read_text().startswith("v1.2 5\n")
    assert main(["shards", "index", pattern, "--dali", "import"]) == 0
    printed = lines(capsys)
    assert "headers unchecked" in printed[0] and "Taken from DALI's word" in printed[3]
    (tmp_path / "s-0.idx").unlink()
    assert main(["shards", "index", pattern, "--dali", "import"]) == 1
    assert "s-0.idx: there is no such index; wds2idx makes it" in capsys.readouterr().err
    assert main(["shards", "index", "http://localhost/x.tar", "--dali", "export"]) == 1
    assert "is remote" in capsys.readouterr().err


def test_check_names_everything_when_asked(pattern, tmp_path, capsys):
    assert main(["shards", "check", pattern]) == 0
    assert "10 images in 2 shards, 10 labelled: all readable" in lines(capsys)[0]
    with tarfile.open(tmp_path / "s-2.tar", "w") as archive:
        for name in ("a.jpg", "b.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    assert main(["shards", "check", str(tmp_path / "s-*.tar"), "--all"]) == 1
    first, *rest = lines(capsys)
    assert "2 empty; first: " in first and [line.rpartition("/")[2] for line in rest] == ["a (empty)", "b (empty)"]
    assert main(["shards", "check", pattern, str(tmp_path / "s-7.tar")]) == 1
    assert "1 of 3 shards missing" in capsys.readouterr().err


def test_a_command_is_run_only_with_the_flag(pattern, tmp_path, capsys):
    piped = f"pipe:cat {tmp_path}/s-0.tar"
    assert main(["shards", "check", piped, "--shard-cache", str(tmp_path / "cache")]) == 1
    assert "would run a command in a shell; add --allow-pipe" in capsys.readouterr().err
    assert main(["shards", "check", piped, "--allow-pipe", "--shard-cache", str(tmp_path / "cache")]) == 0
    assert "5 images in 1 shards" in lines(capsys)[0] and list((tmp_path / "cache").rglob("*.tar"))


def test_reshard_reencodes_once_and_goes_on(pattern, tmp_path, capsys):
    out = str(tmp_path / "small")
    assert main(["shards", "reshard", pattern, out, "--short-side", "20", "--samples-per-shard", "4"]) == 0
    printed = lines(capsys)
    assert "10 images in 3 shards (0 of them" in printed[0] and printed[1] == "10 re-encoded"
    assert "10 labelled: all readable" in printed[3]
    assert main(["shards", "reshard", pattern, out, "--short-side", "20", "--samples-per-shard", "4"]) == 0
    assert "(3 of them were there already)" in lines(capsys)[0]
    assert main(["shards", "reshard", pattern, out, "--as-is", "--samples-per-shard", "4"]) == 1
    assert "made with short_side=20, now it is None" in capsys.readouterr().err


def test_what_is_written_is_checked_by_the_channels_that_it_has(tmp_path, capsys):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((20, 20, 5), i, np.float32))
    form = ["--in-chans", "5", "--value-range", "0", "4"]
    assert main(["shards", "make", str(tmp_path), str(tmp_path / "made"), *form]) == 0
    shards = str(tmp_path / "made" / "*.tar")
    assert main(["shards", "reshard", shards, str(tmp_path / "again"), *form]) == 0
    assert lines(capsys)[-1].startswith("3 images in 1 shards, 0 labelled: all readable")
    assert main(["shards", "check", shards]) == 1
