"""Embeddings as data: what the encoder computes, a row an image, the same bits after a kill."""

import csv
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys

import mmcv
import numpy as np
import pytest
import timm
import torch

from a2mim import embedding
from a2mim.cli import main
from a2mim.data import EvalLoader, make_shards, open_dataset
from a2mim.embedding import embed, files
from a2mim.evaluation.context import Encoder

SIZE, BATCH, IMAGES = 32, 4, 22
NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small ViT's file, with a class token that says something."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=0, img_size=SIZE)
    torch.nn.init.normal_(model.cls_token)
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(model.state_dict(), path)
    return f"{NAME}:{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes, one file in them that is no image."""
    root, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(IMAGES):
        pixels = generator.integers(0, 256, (40, 36, 3), np.uint8)
        mmcv.imwrite(pixels, str(root / ("cats" if i % 2 else "dogs") / f"{i:02d}.png"))
    (root / "dogs" / "06.png").write_bytes(b"not an image")
    return root


BROKEN = "dogs/06.png"


def run(source, data, out, **arguments):
    return embed(source, data, out, **({"batch_size": BATCH, "device": "cpu"} | arguments))


@pytest.fixture(scope="module")
def made(weights, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "features.npz"
    return run(weights, folder, out), dict(np.load(out)), out


def test_every_row_is_what_the_encoder_computes_of_that_image(made, weights, folder):
    about, columns, _ = made
    encoder = Encoder(weights, "cpu")
    dataset = open_dataset(folder)
    loader = EvalLoader(dataset, SIZE, 37, encoder.pixels.interpolation, 1)
    for batch in loader:  # one by one
        with torch.no_grad():
            expected = encoder.model(encoder.normalized(batch["images"]))[0]
        row = columns["embedding"][int(batch["ids"])]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)
    assert columns["key"].tolist() == [dataset.name(i) for i in range(IMAGES)]
    assert columns["label"].tolist() == dataset.labels.tolist()
    assert {(k, c) for k, c in zip(columns["label"], columns["class"], strict=True)} == {(0, "cats"), (1, "dogs")}
    assert about["images"] == IMAGES and about["width"] == 192 and about["pooled"] == "token"
    assert about["resize"] == 37 and about["loading"]["loaded"] == about["loading"]["of"] > 0


def test_an_unreadable_image_keeps_its_row_and_is_named(made, folder):
    about, columns, _ = made
    (fault,) = about["unreadable"]
    assert fault["key"].endswith(BROKEN) and fault["reason"]
    empty = np.isnan(columns["embedding"]).all(axis=1)
    assert empty.sum() == 1 and columns["key"][empty][0] == fault["key"]
    assert np.isfinite(columns["embedding"][~empty]).all()


def test_the_files_hold_the_same(made, weights, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 5)  # so that there are several
    about, columns, out = made
    assert json.loads(out.with_name("features.npz.json").read_text()) == about
    assert json.loads(str(columns["about"])) == {k: v for k, v in about.items() if k != "sha256"}
    assert about["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert sorted(path.name for path in out.parent.iterdir()) == ["features.npz", "features.npz.json"]
    run(weights, folder, tmp_path / "f.csv")
    rows = list(csv.reader((tmp_path / "f.csv").read_text().splitlines()))
    assert rows[0][:4] == ["key", "label", "class", "e0"] and len(rows) == 1 + IMAGES and len(rows[0]) == 3 + 192
    assert [row[0] for row in rows[1:]] == columns["key"].tolist()
    found = np.array([[float(v or "nan") for v in row[3:]] for row in rows[1:]], np.float32)
    np.testing.assert_array_equal(found, columns["embedding"])
    parquet = pytest.importorskip("pyarrow.parquet")
    run(weights, folder, tmp_path / "f.parquet")
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["key", "label", "class", "embedding"]
    assert table["key"].to_pylist() == columns["key"].tolist()
    rows = [v or [float("nan")] * 192 for v in table["embedding"].to_pylist()]
    np.testing.assert_array_equal(np.array(rows, np.float32), columns["embedding"])
    assert table["embedding"].null_count == 1
    assert json.loads(table.schema.metadata[b"a2mim"])["pooling"] == "default"


CUT = """
import sys
from a2mim.embedding import run
run.SAVE_EVERY = 0.0
save = run.Unfinished.save
def save_and_wait(self, done):
    save(self, done)
    if done >= {done}:
        print("saved", done, flush=True)
        import time; time.sleep(60)
run.Unfinished.save = save_and_wait
run.embed({source!r}, {data!r}, {out!r}, batch_size={batch}, device="cpu")
"""


def test_after_a_kill_the_same_command_ends_with_the_same_bits(made, weights, folder, tmp_path, monkeypatch):
    out = tmp_path / "f.npz"
    code = CUT.format(done=2 * BATCH, source=weights, data=str(folder), out=str(out), batch=BATCH)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("saved 8")
        process.send_signal(signal.SIGKILL)
    assert not out.exists() and (tmp_path / "f.npz.unfinished").is_dir()
    with pytest.raises(
        ValueError, match=r"unfinished work of a run with pooling='default', now it is 'cls'; .*overwrite"
    ):
        run(weights, folder, out, pooling="cls")
    asked = []

    class Recorded(EvalLoader):
        def __init__(self, *arguments, indices):
            asked.append(indices[0])
            super().__init__(*arguments, indices=indices)

    monkeypatch.setattr(embedding.run, "EvalLoader", Recorded)
    run(weights, folder, out)
    assert asked == [2 * BATCH]  # what was done is not done again
    found = np.load(out)
    assert all(np.array_equal(found[k], made[1][k], equal_nan=k == "embedding") for k in ("key", "label", "embedding"))
    assert not (tmp_path / "f.npz.unfinished").exists()


def test_a_file_that_is_there_is_not_lost_by_mistake(made, weights, folder, capsys):
    _, columns, out = made
    with pytest.raises(ValueError, match=r"features\.npz is there already: .* --overwrite"):
        run(weights, folder, out)
    run(weights, folder, out, pooling="avg", overwrite=True)
    assert not np.array_equal(np.load(out)["embedding"], columns["embedding"], equal_nan=True)
    run(weights, folder, out, overwrite=True)
    assert np.array_equal(np.load(out)["embedding"], columns["embedding"], equal_nan=True)


@pytest.mark.parametrize("name", ["features", "features.txt"])
def test_another_ending_is_refused_before_any_work(weights, folder, tmp_path, name):
    with pytest.raises(ValueError, match=r"end it in \.parquet, \.npz, \.csv"):
        run(weights, folder, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow_is_one_sentence(weights, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pyarrow must be installed: pip install 'a2mim\[parquet\]'"):
        run(weights, folder, tmp_path / "f.parquet")


def test_shards_of_five_channels_and_batchnorm_are_calibrated_and_recorded(tmp_path):
    generator = np.random.default_rng(0)
    for i in range(6):
        (tmp_path / "five").mkdir(exist_ok=True)
        np.save(tmp_path / "five" / f"{i}.npy", generator.integers(0, 256, (40, 40, 5), np.uint8))
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet18", in_chans=5, num_classes=0).state_dict(), tmp_path / "w.pth")
    state = torch.load(tmp_path / "w.pth") | {"mask_token": torch.zeros(1)}  # so that its statistics are not clean
    torch.save(state, tmp_path / "w.pth")
    source, arguments = f"resnet18:{tmp_path / 'w.pth'}", {"img_size": SIZE}
    about = run(source, tmp_path / "five", tmp_path / "a.npz", **arguments)
    assert about["batchnorm_calibrated_on"] == 6 and about["unreadable"] == [] and len(about["mean"]) == 5
    plain = run(source, tmp_path / "five", tmp_path / "b.npz", calibrate=False, **arguments)
    assert plain["batchnorm_calibrated_on"] == 0
    assert not np.allclose(np.load(tmp_path / "a.npz")["embedding"], np.load(tmp_path / "b.npz")["embedding"])
    assert np.load(tmp_path / "a.npz")["label"].tolist() == [-1] * 6


def test_the_command_says_what_it_wrote_and_what_it_could_not_read(weights, folder, tmp_path, capsys):
    out = tmp_path / "f.csv"
    assert main(["embed", weights, str(folder), "--out", str(out), "--batch-size", "8", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: {IMAGES} embeddings of 192 numbers (token)" in printed
    assert "1 could not be read and have an empty row" in printed and BROKEN in printed
    assert main(["embed", weights, str(folder), "--out", str(out)]) == 1
    assert "is there already" in capsys.readouterr().err


def test_shards_give_their_members_as_keys(weights, folder, tmp_path):
    made = make_shards(folder, tmp_path / "shards", 8)
    run(weights, made["pattern"], tmp_path / "f.npz")
    found = np.load(tmp_path / "f.npz")
    assert len(set(found["key"].tolist())) == len(found["key"]) == made["images"]
    assert set(found["class"].tolist()) == {"cats", "dogs"}


def flipped(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def test_a_flipped_byte_of_a_finished_file_is_noticed(made, weights, folder, tmp_path):
    out = made[2]
    for name in ("features.npz", "features.npz.json"):
        (tmp_path / name).write_bytes((out.parent / name).read_bytes())
    copy = tmp_path / "features.npz"
    assert not embedding.is_damaged(copy)
    flipped(copy, 1000)
    assert embedding.is_damaged(copy)
    with pytest.raises(ValueError, match="is there already, and is damaged"):
        run(weights, folder, copy)


@pytest.mark.parametrize("name", ["embedding.npy", "readable.npy", "overflowed.npy", "state.json"])
def test_a_flipped_byte_of_unfinished_work_is_noticed_and_made_again(
    made, weights, folder, tmp_path, monkeypatch, name
):
    stop_at(monkeypatch, 3)
    out = tmp_path / "f.npz"
    with pytest.raises(KeyboardInterrupt):
        run(weights, folder, out)
    monkeypatch.undo()
    flipped(tmp_path / "f.npz.unfinished" / name, 130 if name.endswith("npy") else 20)
    with pytest.warns(UserWarning, match=f"{name} is damaged"):
        run(weights, folder, out)
    np.testing.assert_array_equal(np.load(out)["embedding"], made[1]["embedding"])


def stop_at(monkeypatch, batch):
    """The process is interrupted at a batch, when all before it are saved."""
    original, seen = embedding.run.Unfinished.put, []

    def put(self, ids, embeddings):
        seen.append(1)
        if len(seen) == batch:
            raise KeyboardInterrupt
        original(self, ids, embeddings)

    monkeypatch.setattr(sys.modules["a2mim.embedding.run"].Unfinished, "put", put)
    monkeypatch.setattr(sys.modules["a2mim.embedding.run"], "SAVE_EVERY", -1.0)


def test_a_kill_between_the_data_and_its_json_needs_no_overwrite(made, weights, folder, tmp_path, monkeypatch):
    out = tmp_path / "f.npz"

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["a2mim.embedding.run"], "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        run(weights, folder, out)
    monkeypatch.undo()
    assert out.exists() and not (tmp_path / "f.npz.json").exists()
    again = run(weights, folder, out)
    assert again["unreadable"] == made[0]["unreadable"] and not embedding.is_damaged(out)
    assert not (tmp_path / "f.npz.unfinished").exists()
    np.testing.assert_array_equal(np.load(out)["embedding"], made[1]["embedding"])


@pytest.mark.parametrize("when", ["rows", "file"])
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(made, weights, folder, tmp_path, monkeypatch, when):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "f.npz"
    if when == "rows":
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"f.npz cannot be written, the disk is full: make room; .* goes on") as caught:
        run(weights, folder, out)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    run(weights, folder, out)
    np.testing.assert_array_equal(np.load(out)["embedding"], made[1]["embedding"])


def test_weights_and_embeddings_that_are_not_finite_are_refused(folder, tmp_path):
    state = timm.create_model("resnet10t", num_classes=0).state_dict()
    large = {k: v * 1e9 + 1e9 if k.endswith(("bn1.weight", "bn2.weight")) else v for k, v in state.items()}
    torch.save(large, tmp_path / "large.pth")
    with pytest.raises(ValueError, match=r"embeddings of \d+ of 22 images are not finite"):
        run(f"resnet10t:{tmp_path / 'large.pth'}", folder, tmp_path / "e.npz", img_size=SIZE, calibrate=False)
    state["layer1.0.conv1.weight"][0] = torch.inf
    torch.save(state, tmp_path / "inf.pth")
    with pytest.raises(
        ValueError, match=r"tensors are not finite \(NaN or infinity\), the first is layer1.0.conv1.weight"
    ):
        run(f"resnet10t:{tmp_path / 'inf.pth'}", folder, tmp_path / "e.npz", img_size=SIZE)
    assert not (tmp_path / "e.npz").exists()
