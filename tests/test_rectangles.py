"""Images that are not square, from the recipe to the export: (height, width) wherever one number may stand."""

import json

import mmcv
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms import CenterCrop, InterpolationMode

import a2mim
from a2mim.cli import main
from a2mim.commands.arguments import join_sizes
from a2mim.data.crops import center_crop, covering
from a2mim.engine.assembly import ratio_of
from a2mim.engine.config import load_config
from a2mim.export import torchvision_file
from a2mim.export.target import Facts
from a2mim.pixels import Preprocessing
from a2mim.protocols import read_protocol

RECIPE = """
model = dict(
    encoder=dict(name="test_vit"),
    masking=dict(type="BlockMask", mask_patch_size=16, mask_ratio=0.5),
    losses=[dict(type="MaskedL1"), dict(type="FourierLoss", weight=0.1)],
)
data = dict(img_size=(32, 64))
global_batch_size = 8
schedule = dict(epochs=1, warmup_epochs=0)
log = dict(every_steps=1, rows=2, pictures=2)
"""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """train/ and test/ with two classes of wide images."""
    folder = tmp_path_factory.mktemp("wide")
    generator = np.random.default_rng(0)
    for split, number in (("train", 16), ("test", 8)):
        for i in range(number):
            image = generator.integers(0, 120, (40, 90, 3), np.uint8) + np.uint8(100 * (i % 2))
            mmcv.imwrite(image, str(folder / split / "ab"[i % 2] / f"{i}.png"))
    return folder


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory):
    """(folder, summary) of one epoch."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "wide.py").write_text(RECIPE)
    run = folder / "wide"
    return run, a2mim.pretrain(folder / "wide.py", photographs, run, device="cpu", num_workers=0)


def test_every_station_of_a_run_has_height_and_width(trained):
    run, summary = trained
    assert summary["status"] == "finished"
    assert summary["encoder"]["img_size"] == [32, 64]
    assert summary["judged"]["after"]["linear"]["top1"] > 0
    layout = json.loads((run / "reconstructions" / "layout.json").read_text())
    width, height = layout["tile"]
    assert width == 2 * height
    config = json.loads((run / "encoder" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 64]
    assert json.loads((run / "settings.json").read_text())["data"]["img_size"] == [32, 64]
    encoder = timm.create_model(f"local-dir:{run / 'encoder'}", pretrained=True, num_classes=0)
    assert encoder.patch_embed.grid_size == (2, 4)
    assert (run / "report.html").is_file()


def test_fine_tuning_takes_the_rectangle_of_its_source(trained, photographs, tmp_path):
    chosen = {"schedule.epochs": 1, "schedule.warmup_epochs": 0, "global_batch_size": 8}
    tuned = a2mim.finetune(
        "mae-finetune", trained[0], photographs, tmp_path / "tuned", device="cpu", num_workers=0,
        **chosen, **{"data.img_size": None, "data.test_size": None},
    )  # fmt: skip
    assert tuned["classifier"]["img_size"] == [32, 64]
    model = timm.create_model(f"local-dir:{tmp_path / 'tuned' / 'classifier'}", pretrained=True)
    assert model(torch.zeros(1, 3, 32, 64)).shape == (1, 2)


def test_judging_and_embedding_take_another_rectangle(trained, photographs, tmp_path, capsys):
    run, sets = str(trained[0]), ["--data", str(photographs), "--test-data", str(photographs)]
    words = ["--k", "1", "--device", "cpu", "--out", str(tmp_path / "knn.json"), "--img-size", "64", "32"]
    assert main(["knn", run, *sets, *words]) == 0
    assert json.loads((tmp_path / "knn.json").read_text())["img_size"] == [64, 32]
    out = tmp_path / "all.npz"
    assert main(["embed", run, str(photographs), "--out", str(out), "--img-size=64x32", "--device", "cpu"]) == 0
    assert json.loads((tmp_path / "all.npz.json").read_text())["img_size"] == [64, 32]


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (300, 211), (64, 65), (7, 400)])
@pytest.mark.parametrize(("size", "margin_side"), [((32, 64), 64), ((32, 64), 73), ((48, 24), 55)])
def test_a_rectangle_is_cut_as_timm_cuts_it(height, width, size, margin_side):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    ours = center_crop(pixels, size, margin_side, "bicubic")
    target = [side * margin_side / max(size) for side in size]
    resized = ResizeKeepRatio(target, interpolation="bicubic")(Image.fromarray(pixels))
    assert covering(height, width, size, margin_side) == (resized.height, resized.width)
    if max(height, width) > 16 * min(height, width):
        return  # its far ends are cut off first
    theirs = np.asarray(CenterCrop(size)(resized)).transpose(2, 0, 1)
    assert np.abs(ours.astype(int) - theirs).mean() < 1


def test_a_wide_crop_of_a_wide_image_sees_nearly_all_of_it():
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, :3], pixels[:, -3:] = 255, 255
    crop = center_crop(pixels, (32, 64), 64, "bilinear")
    assert crop.shape == (3, 32, 64)
    assert crop[:, :, 0].min() > 100
    assert crop[:, :, -1].min() > 100


def test_the_crop_s_ratio_follows_the_rectangle_and_a_square_keeps_it(tmp_path):
    (tmp_path / "wide.py").write_text(RECIPE)
    wide = load_config(tmp_path / "wide.py")
    assert ratio_of(wide.data) == pytest.approx((1.5, 8 / 3))
    square = load_config(tmp_path / "wide.py", {"data.img_size": (64, 64)})
    assert square.data.img_size == 64
    assert ratio_of(square.data) == (3 / 4, 4 / 3)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((40, 64), r"=16 does not divide data.img_size=\(40, 64\); set the cell to 8 or 4, or the image to 48 x 64"),
        ((64, 40), r"or the image to 64 x 48 pixels"),
        ((32, 64, 3), r"data.img_size=\(32, 64, 3\) must be a whole number of at least 1, or \(height, width\)"),
        ((0, 64), r"must be a whole number of at least 1, or \(height, width\)"),
        ("32x64", r"must be a whole number of at least 1, or \(height, width\)"),
    ],
)
def test_a_size_that_cannot_be_is_refused_in_one_sentence(tmp_path, size, message):
    (tmp_path / "wide.py").write_text(RECIPE)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(tmp_path / "wide.py", {"data.img_size": size})
    assert "\n" not in str(caught.value)


def test_the_patches_must_fit_too(tmp_path, photographs, capsys):
    (tmp_path / "wide.py").write_text(RECIPE.replace("(32, 64)", "(40, 72)").replace("size=16", "size=8"))
    words = ["pretrain", str(tmp_path / "wide.py"), "--data", str(photographs), "--work-dir", str(tmp_path / "run")]
    assert main([*words, "--device", "cpu"]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and "\n" not in said
    assert "40" in said
    assert not (tmp_path / "run").exists()


def test_two_numbers_behind_the_flag_are_one_size():
    assert join_sizes(["knn", "x", "--img-size", "192", "384", "--k", "1"])[3] == "192x384"
    assert join_sizes(["embed", "--img-size", "64", "run", "data"]) == ["embed", "--img-size", "64", "run", "data"]
    assert main(["check-model", "test_vit", "--img-size", "1", "2", "3"]) == 1
    with pytest.raises(SystemExit):
        main(["check-model", "test_vit", "--img-size", "wide"])


def test_a_protocol_takes_a_rectangle_where_it_takes_a_size():
    protocol = read_protocol("mae-finetune", {"train_size": (192, 384), "test_size": "[192, 384]"})
    assert protocol.constants["train_size"] == protocol.constants["test_size"] == [192, 384]
    with pytest.raises(ValueError, match="train_size"):
        read_protocol("mae-finetune", {"train_size": [192, 384, 3]})


def test_torchvision_s_lines_cut_a_rectangle_without_squeezing():
    facts = Facts("resnet18", Preprocessing((0.5,) * 3, (0.2,) * 3, (192, 384)), 512)
    code = torchvision_file.lines(facts)
    names = {"transforms": __import__("torchvision").transforms}
    exec(code[code.index("def cover") : code.index("with torch.no_grad")], names)
    assert names["preprocess"](Image.new("RGB", (640, 480))).shape == (3, 192, 384)
    assert names["cover"](Image.new("RGB", (640, 480))).size == (439, 329)
    assert InterpolationMode.BILINEAR is names["transforms"].InterpolationMode.BILINEAR
