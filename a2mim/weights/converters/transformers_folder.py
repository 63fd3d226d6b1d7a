"""Reads a folder of transformers: config.json names the architecture, preprocessor_config.json the preprocessing."""

from pathlib import Path

from a2mim.files import read_json
from a2mim.weights.converters.forms import BICUBIC, BILINEAR, HALF

READ = ("vit", "resnet", "timm_wrapper")  # model types
_RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def architecture_of(config: dict, folder: Path) -> tuple[str, dict]:
    """(timm's name, model_args) of a config.json with a model_type.

    Raises:
        ValueError: timm has no equivalent of the model type or of its variant.
    """
    kind = config["model_type"]
    read = {"timm_wrapper": _wrapped, "vit": _vit, "resnet": _resnet}.get(kind if isinstance(kind, str) else "")
    if read is not None:
        try:
            return read(config, folder)
        except (KeyError, TypeError, ZeroDivisionError, AttributeError) as error:
            raise ValueError(
                f"{folder}/config.json is no configuration of {kind} as transformers writes it"
                f" ({type(error).__name__}: {error})"
            ) from None
    raise ValueError(
        f"{folder} holds a transformers model of type {kind!r}: of transformers, {', '.join(READ)} are read; "
        "write NAME:FOLDER, with timm's name of the architecture, if its weights have one of these formats."
    )


def _wrapped(config: dict, folder: Path) -> tuple[str, dict]:
    arguments = config.get("model_args") or {}
    return config["architecture"], {key: value for key, value in arguments.items() if key != "num_classes"}


def _vit(config: dict, folder: Path) -> tuple[str, dict]:
    if config.get("hidden_act", "gelu") != "gelu" or not config.get("qkv_bias", True):
        raise ValueError(f"{folder}: timm has no ViT with hidden_act={config.get('hidden_act')!r}, only with 'gelu'.")
    width = config["hidden_size"]
    arguments = {
        "embed_dim": width,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / width,
        "patch_size": config["patch_size"],
        "img_size": [config["image_size"]] * 2 if isinstance(config["image_size"], int) else config["image_size"],
    }
    if config.get("num_channels", 3) != 3:
        arguments["in_chans"] = config["num_channels"]
    sizes = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large"}
    size = sizes.get((width, arguments["depth"], arguments["num_heads"]))
    if size and arguments["patch_size"] == 16 and arguments["mlp_ratio"] == 4:
        kept = {key: arguments[key] for key in ("img_size", "in_chans") if key in arguments}
        return f"vit_{size}_patch16_224", {} if kept == {"img_size": [224, 224]} else kept
    return "vit_base_patch16_224", arguments


def _resnet(config: dict, folder: Path) -> tuple[str, dict]:
    kind, depths = config.get("layer_type", "bottleneck"), tuple(config.get("depths", (3, 4, 6, 3)))
    name = _RESNETS.get((kind, depths))
    usual = config.get("hidden_sizes") == _WIDTHS.get(kind) and config.get("embedding_size", 64) == 64
    odd = [key for key in ("downsample_in_bottleneck", "downsample_in_first_stage") if config.get(key)]
    if name is None or not usual or odd or config.get("hidden_act", "relu") != "relu":
        raise ValueError(
            f"{folder}: a transformers ResNet with layer_type={kind!r}, depths={list(depths)},"
            f" hidden_sizes={config.get('hidden_sizes')}{''.join(f', {key}' for key in odd)} is none of timm's resnets."
        )
    return name, {"in_chans": config["num_channels"]} if config.get("num_channels", 3) != 3 else {}


def pixels_of(config: dict, folder: Path) -> dict | None:
    """mean, std and interpolation from the folder's preprocessor, else those of the model type; None: unknown."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {"vit": HALF, "resnet": BICUBIC}.get(config["model_type"])
    told = read_json(path)
    if isinstance(told, dict) and "pretrained_cfg" in told:  # TimmWrapper's processor
        told = told["pretrained_cfg"]
        if not isinstance(told, dict):
            raise ValueError(f"{path} has no dictionary under 'pretrained_cfg'")
        return {key: told[key] for key in ("mean", "std", "interpolation") if key in told} or None
    if not isinstance(told, dict):
        raise ValueError(f"{path} holds no JSON object")
    if "image_mean" not in told or "image_std" not in told:
        return None
    resample = told.get("resample")
    known = _RESAMPLE.get(resample) if isinstance(resample, int) else None
    interpolation = known or BILINEAR["interpolation"]
    return {"mean": told["image_mean"], "std": told["image_std"], "interpolation": interpolation}
