"""Encoders from every source arrive whole, or not at all."""

import argparse
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from a2mim.checkpoints import FORMAT
from a2mim.encoder import MaskedEncoder
from a2mim.export.timm_folder import write_timm_folder
from a2mim.weights.loading import load_encoder, load_reported, read_source

SIZE = 64
PIXELS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}


def encoder_of(name="xcit_nano_12_p16_224", **kwargs):
    torch.manual_seed(0)
    return MaskedEncoder(name, img_size=SIZE, **kwargs).eval()


def write_checkpoint(encoder, path, change=lambda state: None, pixels=PIXELS):
    """As the engine writes it; `change` edits the state dictionary first."""
    state = {f"encoder.{key}": value for key, value in encoder.state_dict().items()} | {"decoder.w": torch.zeros(1)}
    change(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"encoder": encoder.arguments(), "pixels": pixels, "step": 7}
    torch.save({"format": FORMAT, "state_dict": state, "meta": meta}, path)
    return path


def same_features(first, second, channels=3, size=SIZE):
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.equal(first.eval()(images), second.eval()(images))


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "resnet18", "vit_tiny_patch16_224"])
def test_a_checkpoint_gives_the_same_features_and_its_preprocessing(tmp_path, name):
    encoder = encoder_of(name)
    model, preprocessing = load_encoder(write_checkpoint(encoder, tmp_path / "step_000007.pth"))
    assert same_features(model, encoder.model)
    assert preprocessing == PIXELS | {"img_size": [SIZE, SIZE]}
    assert not model.training and model.num_classes == 0
    assert "state_dict" not in model.pretrained_cfg


def test_a_run_folder_gives_its_encoder_else_its_newest_checkpoint(tmp_path):
    old, new = encoder_of(), encoder_of(drop_path_rate=0.1)
    torch.nn.init.normal_(new.model.norm.weight)
    write_checkpoint(old, tmp_path / "checkpoints" / "step_000900.pth")
    write_checkpoint(new, tmp_path / "checkpoints" / "step_001000.pth")
    assert same_features(load_encoder(tmp_path)[0], new.model)
    (tmp_path / "encoder").mkdir()
    write_timm_folder(old.model, old.arguments(), PIXELS | {"img_size": [SIZE, SIZE]}, tmp_path / "encoder", "mit")
    model, preprocessing = load_encoder(tmp_path)
    assert same_features(model, old.model)
    assert preprocessing == PIXELS | {"img_size": [SIZE, SIZE]}
    assert same_features(load_encoder(f"local-dir:{tmp_path / 'encoder'}")[0], old.model)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("encoder.model.norm.weight"), r"1 missing \(norm.weight\)"),
        (lambda s: s.update({"encoder.model.norm.extra": torch.zeros(1)}), r"1 unexpected \(norm.extra\)"),
        (lambda s: s.update({"encoder.model.norm.weight": torch.zeros(3)}), r"1 of another shape \(norm.weight\)"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("encoder.model.blocks")], r"324 missing \(.*, …\)"),
        (lambda s: s.update({"encoder.model.nrom.bias": s.pop("encoder.model.norm.bias")}), "1 missing.*1 unexpected"),
    ],
)
def test_weights_that_are_not_exactly_the_models_are_refused_with_counts_and_names(tmp_path, change, words):
    path = write_checkpoint(encoder_of(), tmp_path / "step_000001.pth", change)
    with pytest.raises(ValueError, match=words) as caught:
        load_encoder(path)
    assert "\n" not in str(caught.value)


def test_keys_that_timm_itself_would_leave_random_are_refused(tmp_path):
    # timm loads a siglip ViT without its pooling head non-strictly, and says nothing
    model_args = {"embed_dim": 32, "depth": 1, "num_heads": 1, "img_size": [SIZE, SIZE], "global_pool": "avg"}
    name = "vit_base_patch16_siglip_224"
    state = timm.create_model(name, num_classes=0, **model_args).state_dict()
    state = {f"encoder.model.{key}": value for key, value in state.items() if key != "blocks.0.norm1.bias"}
    arguments = {"name": name, "img_size": [SIZE, SIZE], "in_chans": 3, "model_args": model_args, "frozen": []}
    meta = {"encoder": arguments, "pixels": PIXELS}
    torch.save({"format": FORMAT, "state_dict": state, "meta": meta}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"1 missing \(blocks.0.norm1.bias\)"):
        load_encoder(tmp_path / "c.pth")


def test_a_checkpoint_wins_over_the_folder_that_its_encoder_started_from(tmp_path):
    start = encoder_of("resnet18")
    write_timm_folder(start.model, start.arguments(), PIXELS | {"img_size": [SIZE, SIZE]}, tmp_path, "mit")
    trained = encoder_of(f"local-dir:{tmp_path}")
    torch.nn.init.normal_(trained.model.bn1.weight)
    model, _ = load_encoder(write_checkpoint(trained, tmp_path / "c.pth"))
    assert same_features(model, trained.model)


def test_a_wrong_key_in_an_exported_folder_is_refused(tmp_path):
    encoder = encoder_of("resnet18")
    write_timm_folder(encoder.model, encoder.arguments(), PIXELS | {"img_size": [SIZE, SIZE]}, tmp_path, "mit")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["layer1.0.conv1.wieght"] = tensors.pop("layer1.0.conv1.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 missing \(layer1.0.conv1.weight\); 1 unexpected"):
        load_encoder(tmp_path)


def test_another_tools_folder_loads_without_its_classifier(tmp_path):
    encoder = encoder_of("resnet18")
    config = write_timm_folder(encoder.model, encoder.arguments(), PIXELS | {"img_size": [SIZE, SIZE]}, tmp_path, "mit")
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 10
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}, tmp_path / "model.safetensors")
    model, _ = load_encoder(tmp_path)
    assert same_features(model, encoder.model)


def test_five_channels_come_back_as_five(tmp_path):
    encoder = encoder_of(in_chans=5)
    pixels = {"mean": [0.5] * 5, "std": [0.2] * 5, "interpolation": "bilinear"}
    model, preprocessing = load_encoder(write_checkpoint(encoder, tmp_path / "c.pth", pixels=pixels))
    assert same_features(model, encoder.model, channels=5)
    assert preprocessing["mean"] == [0.5] * 5


def test_another_image_size_adapts_position_embeddings_and_says_so_in_the_preprocessing(tmp_path):
    path = write_checkpoint(encoder_of("vit_tiny_patch16_224"), tmp_path / "c.pth")
    model, preprocessing = load_encoder(path, img_size=96)
    assert model.pos_embed.shape[1] == 1 + 36
    assert preprocessing["img_size"] == [96, 96] and model.pretrained_cfg["input_size"] == (3, 96, 96)


def test_another_number_of_channels_adapts_the_first_convolution(tmp_path):
    encoder = encoder_of("resnet18")
    model, preprocessing = load_encoder(write_checkpoint(encoder, tmp_path / "c.pth"), in_chans=1)
    expected = encoder.model.conv1.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(model.conv1.weight, expected)
    assert preprocessing["mean"] == pytest.approx([0.2]) and preprocessing["std"] == pytest.approx([0.5])


def test_a_name_gives_random_weights_at_any_size():
    model, preprocessing = load_encoder("resnet18", img_size=SIZE, in_chans=2)
    assert model.conv1.weight.shape[1] == 2 and model.num_classes == 0
    assert preprocessing["img_size"] == [SIZE, SIZE] and len(preprocessing["mean"]) == 2
    assert load_encoder("xcit_nano_12_p16_224")[1]["img_size"] == [224, 224]


def test_unknown_names_come_with_the_nearest_ones():
    with pytest.raises(ValueError, match=r"nearest names: .*resnet50"):
        load_encoder("resnet_50")


@pytest.mark.parametrize("source", ["runs/none", "none.pth"])
def test_a_path_that_does_not_exist_is_named(source):
    with pytest.raises(FileNotFoundError, match=f"{source} does not exist"):
        load_encoder(source)


def test_folders_without_an_encoder_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither"):
        load_encoder(tmp_path)
    path = write_checkpoint(encoder_of("resnet18"), tmp_path / "checkpoints" / "step_000003.pth")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"none of the 1 checkpoints .*step_000003\.pth cannot be read"):
        load_encoder(tmp_path)
    for content in ({"weights": torch.zeros(2)}, {"format": FORMAT, "meta": {}}, [torch.zeros(2)]):
        torch.save(content, path)
        with pytest.raises(ValueError, match="not a checkpoint of a2mim") as caught:
            load_encoder(path)
        assert "\n" not in str(caught.value)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path):
    old, new = encoder_of("resnet18"), encoder_of("resnet18")
    torch.nn.init.normal_(old.model.bn1.weight)
    write_checkpoint(old, tmp_path / "checkpoints" / "step_000003.pth")
    damaged = write_checkpoint(new, tmp_path / "checkpoints" / "step_000004.pth")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of one weight: it loads, but it is not what was saved
    damaged.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step_000004\.pth cannot be read .*; trying the one before it"):
        assert same_features(load_encoder(tmp_path)[0], old.model)
    with pytest.raises(ValueError, match=r"step_000004\.pth cannot be read \(wrong checksum of"):
        load_encoder(damaged)


def test_only_exported_folders_bring_statistics_of_whole_images(tmp_path):
    encoder = encoder_of("resnet18")
    path = write_checkpoint(encoder, tmp_path / "checkpoints" / "step_000003.pth")
    assert [read_source(s).calibrated for s in ("resnet18", path, tmp_path)] == [False] * 3
    (tmp_path / "encoder").mkdir()
    write_timm_folder(encoder.model, encoder.arguments(), PIXELS | {"img_size": [SIZE, SIZE]}, tmp_path / "encoder", "")
    assert read_source(tmp_path).calibrated
    receipt = {"batchnorm": {"recalibrated": False, "clean": False}}  # an export that was told to leave them
    (tmp_path / "encoder" / "receipt.json").write_text(json.dumps(receipt))
    assert not read_source(tmp_path).calibrated


def test_pickled_code_is_never_run(tmp_path):
    torch.save({"format": FORMAT, "state_dict": {}, "meta": print}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"holds more than tensors and plain values .*, and reading that could run code"
    ):
        load_encoder(tmp_path / "c.pth")


def test_a_network_of_ones_own_comes_back_from_its_checkpoint(tmp_path):
    encoder = encoder_of("torchvision.models.resnet18")
    path = write_checkpoint(encoder, tmp_path / "step_000001.pth")
    typed = f"torchvision.models.resnet18:{path}"
    model, preprocessing = load_encoder(typed)
    assert same_features(model, encoder.model) and preprocessing["img_size"] == [SIZE, SIZE]
    with pytest.raises(ValueError, match=r"names the network 'torchvision\.models\.resnet18', which is not in timm's"):
        load_encoder(path)  # a checkpoint may not choose code to import
    with pytest.raises(ValueError, match=r"holds the weights of 'torchvision\.models\.resnet18', not of torchvision"):
        load_encoder(f"torchvision.models.resnet34:{path}")
    write_checkpoint(encoder, path, lambda state: state.pop("encoder.model.bn1.bias"))
    with pytest.raises(ValueError, match=r"1 missing \(bn1.bias\)"):
        load_encoder(typed)
    assert load_encoder("torchvision.models.resnet18", img_size=SIZE)[1]["img_size"] == [SIZE, SIZE]


def test_a_first_convolution_that_timm_cannot_adapt_is_refused_not_left_random(tmp_path):
    # NaFlexViT embeds patches by a linear layer: timm drops its weights for another number of channels, and says so
    # in its log alone
    name = "naflexvit_base_patch16_gap"
    model_args = {"embed_dim": 64, "depth": 1, "num_heads": 2}
    state = timm.create_model(name, num_classes=0, **model_args).state_dict()
    state = {f"encoder.model.{key}": value for key, value in state.items()}
    arguments = {"name": name, "img_size": [SIZE, SIZE], "in_chans": 3, "model_args": model_args, "frozen": []}
    torch.save(
        {"format": FORMAT, "state_dict": state, "meta": {"encoder": arguments, "pixels": PIXELS}}, tmp_path / "c.pth"
    )
    load_encoder(tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"cannot be adapted from 3 to 5 channels and would stay random: .* in_chans=3"
    ):
        load_encoder(tmp_path / "c.pth", in_chans=5)


def test_tables_of_another_window_are_refused_although_timm_would_resample_them(tmp_path):
    small = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "img_size": 256}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, window_size=8, **small)
    pixels = PIXELS | {"img_size": [256, 256]}
    write_timm_folder(model, {"model_args": small | {"window_size": 8}}, pixels, tmp_path, "mit")
    assert load_reported(tmp_path)[2]["partial"] is False
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_args"]["window_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"not those of swin_tiny.* of another shape \(layers\.0.*relative_position_bias"
    ):
        load_encoder(tmp_path)
    report = load_reported(tmp_path, allow_partial=True)[2]
    assert report["partial"] and all("relative_position_bias_table" in key for key in report["of another shape"])


def test_a_config_that_names_nothing_or_is_broken_is_one_sentence(tmp_path):
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"vision": {}}')
    with pytest.raises(ValueError, match=r"config\.json names neither timm's architecture .* write NAME:"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"vision": ')
    with pytest.raises(ValueError, match=r"config\.json cannot be read: it is incomplete or not JSON \("):
        load_encoder(tmp_path)


class Code:
    """What a pickle would run."""

    def __reduce__(self):
        return print, ("run",)


def test_a_file_without_a_name_that_holds_code_is_refused_by_the_name_of_the_code(tmp_path, capsys):
    torch.save({"state_dict": Code()}, tmp_path / "c.pth")
    with pytest.raises(
        ValueError, match=r"holds more than tensors and plain values \((__builtin__|builtins|)\.?print\)"
    ):
        load_encoder(tmp_path / "c.pth")
    assert not capsys.readouterr().out


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_another_toolkit_without_a_name_says_which_name_it_needs(tmp_path, old):
    tensors = timm.create_model("resnet18", num_classes=0).state_dict()
    state = {f"backbone.{key}": value for key, value in tensors.items()}
    content = state if old else {"teacher": state, "args": argparse.Namespace(epochs=1)}  # DINO's has its arguments
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(
        ValueError, match=r"weights of a ResNet .* write NAME:.*w\.pth, with timm's name of it, e\.g\. resnet18:"
    ):
        load_encoder(tmp_path / "w.pth")


@pytest.mark.parametrize("source", ["", "resnet18:"])
def test_an_empty_source_is_named_as_it_was_given(source):
    with pytest.raises(ValueError, match=f"'{source}' names no encoder: give a run folder"):
        load_encoder(source)
