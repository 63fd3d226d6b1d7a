"""What strangers' files say is looked up in closed tables: no file imports code, opens an address or reads another."""

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from a2mim.checkpoints import FORMAT
from a2mim.cli import main
from a2mim.encoder import MaskedEncoder
from a2mim.export.receipt import hash_files
from a2mim.export.timm_folder import write_timm_folder
from a2mim.weights.loading import load_encoder, load_reported
from a2mim.weights.trust import check_pixels

CONFIGS = Path(__file__).parents[2] / "configs"
SIZE = 64
PIXELS = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "img_size": [SIZE, SIZE]}
CODE = """
import pathlib

pathlib.Path(__file__).with_name("marker").touch()
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8, **others):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)

    def forward(self, images):
        return self.stem(images)


def run(**arguments):
    return Net()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to stand in, with a module that leaves a file `marker` when it is imported."""
    (tmp_path / "evil_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("evil_net", None)


def write_folder(folder, change=lambda config: None, name="resnet10t"):
    """A timm folder whose config.json says something else."""
    folder.mkdir()
    torch.manual_seed(0)
    encoder = MaskedEncoder(name, img_size=SIZE)
    write_timm_folder(encoder.model, encoder.arguments(), PIXELS, folder, "mit")
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_checkpoint(path, name="resnet10t", kind="encoder", **model_args):
    """A checkpoint that says what a stranger wants it to say."""
    arguments = {"name": name, "img_size": [SIZE, SIZE], "in_chans": 3, "model_args": model_args, "frozen": []}
    meta = {kind: arguments | {"num_classes": 3, "site": "layer3", "pooling": "avg"}, "pixels": PIXELS}
    torch.save({"format": FORMAT, "state_dict": {"encoder.model.w": torch.zeros(1)}, "meta": meta}, path)
    return path


NAMES = [
    "evil_net.Net",
    "evil_net.run",
    "a2mim.mim.MIM",
    "a2mim.encoder.MaskedEncoder",
    "timm.models.create_model",
    "hf-hub:somebody/network",
    "local-dir:elsewhere",
    "resnet10t:elsewhere",
    "resnet10t.tag:elsewhere",
    ["resnet10t"],
    {"type": "evil_net.Net"},
    None,
    7,
]
ARGUMENTS = [
    {"encoder": {"type": "evil_net.run"}},
    {"act_layer": {"type": "evil_net.run"}},
    {"act_layer": "evil_net.run"},
    {"act_layer": "nothing_of_timm"},
    {"norm_layer": ["evil_net.run"]},
    {"block": "evil_net.Net"},
    {"layers": [1, 1, 1, {"type": "evil_net.run"}]},
    {"layers": [[[[1]]]]},
    {"layers": [10**6]},
    {"stem_width": 10**12},
    {"drop_rate": float("inf")},
    {"global_pool": "evil_net.run"},
    {"pretrained": True},
    {"checkpoint_path": "other.pth"},
    {"cache_dir": "/elsewhere"},
    {"pretrained_cfg": {"url": "http://127.0.0.1:9/w.pth"}},
    {"pretrained_cfg_overlay": {"file": "other.pth"}},
    {"features_only": True},
    {"_target_": "evil_net.run"},
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_folder_s_architecture_is_a_name_in_timm_s_table(place, name):
    folder = write_folder(place / "folder", lambda config: config.update(architecture=name))
    with pytest.raises(ValueError, match=r"names the network .* which is not in timm's table of models") as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value) and "if you trust it" in str(caught.value)
    assert not (place / "marker").exists()


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(n, str)])
@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_a_checkpoint_s_architecture_is_a_name_in_timm_s_table(place, name, kind):
    with pytest.raises(ValueError, match=r"names the network .* which is not in timm's table of models"):
        load_encoder(write_checkpoint(place / "c.pth", name, kind))
    assert not (place / "marker").exists()


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=lambda a: next(iter(a)))
def test_arguments_in_files_are_known_and_plain(place, arguments):
    sentence = "sets .*: a file may set only numbers and plain words for known arguments"
    folder = write_folder(place / "folder", lambda config: config.update(model_args=arguments))
    for source in (folder, write_checkpoint(place / "c.pth", **arguments)):
        with pytest.raises(ValueError, match=sentence) as caught:
            load_encoder(source)
        assert "\n" not in str(caught.value)
    if json.dumps(arguments).isascii():
        with pytest.raises(ValueError, match=r"the config\.json of local-dir:.* sets "):
            MaskedEncoder(f"local-dir:{folder}")  # timm itself would take them
    assert not (place / "marker").exists()


def test_a_folder_of_transformers_is_held_to_the_same_tables(place):
    folder = write_folder(place / "folder")
    for config in (
        {"model_type": "timm_wrapper", "architecture": "evil_net.Net"},
        {"model_type": "timm_wrapper", "architecture": "resnet10t", "model_args": {"act_layer": {"type": "x"}}},
    ):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"config\.json (names the network|sets act_layer)"):
            load_encoder(folder)
    assert not (place / "marker").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "folder", "photos", "--out", "out.npz"],
        ["knn", "folder", "--data", "photos", "--test-data", "photos"],
        ["export", "folder", "--to", "timm", "--out", "out"],
        ["finetune", str(CONFIGS / "finetune" / "rsb_a3.py"), "folder", "--work-dir", "run"],
        ["pretrain", str(CONFIGS / "a2mim_resnet18.py"), "--work-dir", "run", "--init-from", "folder"],
    ],
    ids=lambda words: words[0],
)
def test_every_command_refuses_a_folder_that_names_code(place, capsys, words):
    write_folder(place / "folder", lambda config: config.update(architecture="evil_net.Net", model_type="timm_wrapper"))
    try:
        status = main(words)
    except SystemExit as error:
        status = error.code
    told = capsys.readouterr().err
    assert status == 1 and told.startswith("error: ") and told.count("\n") == 1
    if words[0] != "pretrain":  # its recipe names the network, so the folder's word for it is not even read
        assert "names the network 'evil_net.Net'" in told
    assert not (place / "marker").exists()


def test_what_the_user_types_may_be_a_dotted_path(place):
    folder = place / "own"
    folder.mkdir()
    network = MaskedEncoder("evil_net.Net", img_size=SIZE, model_args={"width": 4}).model
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, folder / "model.safetensors")
    config = {"architecture": "evil_net.Net", "model_args": {"width": 4}, "pretrained_cfg": {"input_size": [3, 64, 64]}}
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load_encoder(f"evil_net.Net:{folder}")
    assert torch.equal(model.state_dict()["stem.weight"], network.state_dict()["stem.weight"])
    config["model_args"]["inner"] = {"type": "evil_net.run"}  # the class is the user's, its arguments are the file's
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"sets inner=.*, which is neither numbers nor plain words"):
        load_encoder(f"evil_net.Net:{folder}")


def test_numbers_that_no_network_can_have_are_one_sentence(place):
    for arguments in ({"num_heads": 0}, {"patch_size": [1, 2, 3]}, {"embed_dim": "wide"}, {"depth": -3}):
        path = write_checkpoint(place / "c.pth", "vit_tiny_patch16_224", **arguments)
        with pytest.raises(ValueError) as caught:
            load_encoder(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pixels", [{"mean": "x"}, {"std": [0.0, 1.0, 1.0]}, {"std": [float("nan")] * 3}, {"interpolation": "evil"}]
)
def test_pixels_that_no_image_can_be_prepared_with_are_one_sentence(place, pixels):
    folder = write_folder(place / "folder", lambda config: config["pretrained_cfg"].update(pixels))
    with pytest.raises(ValueError, match=rf"has {next(iter(pixels))}=.*, with which no image can be prepared"):
        load_encoder(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_file_that_is_not_its_receipt_s_is_refused(place, file):
    folder = write_folder(place / "folder")
    (folder / "receipt.json").write_text(json.dumps({"sha256": hash_files(folder), "frozen": []}))
    load_encoder(folder)
    content = bytearray((folder / file).read_bytes())
    content[-30] ^= 1
    (folder / file).write_bytes(content)
    words = rf"{file} (is not the file that .*receipt\.json|cannot be read)"
    for source in (folder, f"resnet10t:{folder / file}") if file != "config.json" else (folder,):
        with pytest.raises(ValueError, match=words) as caught:
            load_encoder(source)
        assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_named(place):
    folder = write_folder(place / "folder")
    tensors = load_file(folder / "model.safetensors")
    tensors["layer2.0.conv1.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    words = r"1 of \d+ tensors are not finite \(NaN or infinity\), the first is layer2\.0\.conv1\.weight"
    for source in (folder, f"resnet10t:{folder / 'model.safetensors'}"):
        with pytest.raises(ValueError, match=words):
            load_encoder(source)


def test_what_our_own_recipes_say_of_their_networks_comes_back(place):
    for name, arguments in {
        "xvit_nano_p16_224": {"eta": 1e-5, "qkv": "full"},
        "linglo_b0": {"interaction": "gate", "depths": [1, 1, 1, 1]},
        "vit_tiny_patch16_224": {"depth": 1, "global_pool": "avg", "act_layer": "relu", "norm_layer": "layernorm"},
        "convnext_atto": {"depths": [1, 1, 1, 1], "head_norm_first": True},
    }.items():
        if not timm.is_model(name):
            continue
        encoder = MaskedEncoder(name, img_size=SIZE, model_args=arguments)
        state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
        meta = {"encoder": encoder.arguments(), "pixels": PIXELS}
        torch.save({"format": FORMAT, "state_dict": state, "meta": meta}, place / "c.pth")
        assert not load_reported(place / "c.pth")[2].partial


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), 1e31, True])
def test_a_number_that_no_pixel_can_have_is_one_sentence(value):
    with pytest.raises(ValueError, match=r"has mean=.*with which no image can be prepared"):
        check_pixels({"mean": [0.5, 0.5, value]}, Path("config.json"))
