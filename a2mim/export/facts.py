"""Reads the facts of an exported folder and checks them before use: a folder may come from a stranger.

Invariant: the lines that are executed are a template of ours filled with these facts. A name in a file is looked up in
a closed table; it never becomes code, an import or an address.
"""

import ast
import json
import keyword
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
from safetensors import SafetensorError, safe_open

from a2mim.export.contracts import CONTRACTS
from a2mim.export.graphs import FORMATS
from a2mim.export.receipt import TOLERANCE
from a2mim.export.target import RESCALES, ExportError, Facts, Neck, Target
from a2mim.files import read_object, read_text
from a2mim.pixels import Preprocessing
from a2mim.text import quoted, shortened
from a2mim.wiring.networks import find_class, is_configured
from a2mim.wiring.plain_arguments import fault_of_argument, fault_of_own_argument

PACKAGES = {
    *("timm", "safetensors", "a2mim", "transformers", "torchvision", "mmpretrain", "mmdet", "mmseg"),
    *("detectron2", "ultralytics", "onnxruntime"),
}
CONFIG_KEYS = {"architecture", "num_classes", "num_features", "global_pool", "model_args", "pretrained_cfg"}
CFG_KEYS = {
    *("input_size", "mean", "std", "interpolation", "crop_pct", "num_classes", "pool_size", "custom_load", "license"),
    *("fixed_input_size", "first_conv", "classifier", "crop_mode"),
}
MODULES = {"mmpretrain.models", "a2mim"}  # that encoder.py may import
TIMM_MAPS = "mmpretrain.TIMMBackbone"  # OpenMMLab's class of a backbone whose maps timm takes
CLASSES = {"ResNet", "ResNeXt", "VisionTransformer", "XCiT", "SwinTransformer", "ConvNeXt"}
TYPES = {
    *CLASSES,
    *(f"mmpretrain.{name}" for name in CLASSES),
    *("TIMMBackbone", TIMM_MAPS, "TimmClassifier", "Pretrained", "DetDataPreprocessor", "SegDataPreProcessor"),
    *("LoadImageFromFile", "ResizeEdge", "CenterCrop", "PackInputs", "LN", "BN", "GELU", "DropPath"),
}
MOST_BYTES = 4 << 30  # of reference.npz, unpacked
LARGEST, DEEPEST = 65536, 8  # of numbers and of nesting in a contract's arguments
LEVELS = 4  # maps of a backbone for dense tasks
NETWORK = "network"  # the target of networks of the user's own


def facts_of(target: str, architecture: str, told: dict, request: dict, folder: Path, network: str | None) -> Facts:
    """The facts of a folder.

    Args:
        told: the receipt, or what is known of it so far: "dynamic", "formats", "class", "neck".
        request: the receipt's "check".
        network: the dotted path that the user trusts, of a network of their own; None: none.

    Raises:
        ValueError: what the folder says is not plain, or not known.
    """
    own = target == NETWORK
    if not isinstance(architecture, str):
        raise ValueError(f"{folder} names no architecture.")
    if own:
        if not all(part.isidentifier() and not keyword.iskeyword(part) for part in architecture.split(".")):
            raise ValueError(f"{folder} names the network {quoted(architecture)}, which is no dotted path.")
    elif target not in FORMATS and not (":" not in architecture and timm.is_model(architecture)):
        raise ValueError(f"{folder} names the architecture {shortened(architecture)!r}, which timm does not know.")
    packages = set(request["packages"]) - ({architecture.partition(".")[0]} if own else set())
    if not request["tolerance"] <= TOLERANCE:
        raise ValueError(f"{folder} asks for a tolerance of {shortened(request['tolerance'])}, more than {TOLERANCE}.")
    if packages - PACKAGES:
        raise ValueError(f"{folder} asks for {shortened(sorted(packages - PACKAGES))}, which no target needs.")
    arguments = read_object(folder / "config.json").get("model_args", {}) if own else {}
    if not all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in arguments):
        raise ValueError(f"{folder}/config.json has arguments that are no names.")
    try:
        preprocessing = Preprocessing.of(request["preprocessing"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder}: the preprocessing in its receipt cannot be used: {error}") from None
    return Facts(
        architecture,
        preprocessing,
        _width(folder / "reference.npz"),
        import_a2mim="a2mim" in request["packages"],
        free_size="height" in told.get("dynamic", ()),
        onnx="onnx" in told.get("formats", ()),
        classifier=told.get("class") == "TimmClassifier",
        neck=_neck(told.get("neck"), folder),
        timm_maps=told.get("class") == TIMM_MAPS,
        scoped=str(told.get("class")).startswith("mmpretrain."),
        arguments=arguments,
        configured=own and network == architecture and is_configured(find_class(architecture)),
    )


def _neck(told: Any, folder: Path) -> Neck | None:
    """The neck that a receipt states, from plain numbers alone."""
    if told is None:
        return None
    try:
        channels, rescales, crop = told["channels"], told["rescales"], told["crop"]
        whole = all(type(value) is int and 0 < value <= LARGEST for value in (*channels, crop))
        if len(channels) == LEVELS and whole and tuple(rescales) in RESCALES:
            return Neck(tuple(channels), tuple(rescales), crop)
    except (KeyError, TypeError):
        pass
    raise ValueError(f"{folder} states a neck that a2mim does not write.")


def _width(path: Path) -> int:
    """D of the embedding, or of the last map where there is no embedding; 0 where neither has a name of its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size <= MOST_BYTES:
            with np.load(path, allow_pickle=False) as arrays:
                shapes = {name: arrays[name].shape for name in ("pooled", "one", "unpooled") if name in arrays.files}
    except Exception as error:  # damage in a zip archive may raise anything, a system's error without a file included
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ValueError(f"{path} cannot be read ({type(error).__name__}): export the encoder again.") from None
    if size > MOST_BYTES:
        raise ValueError(f"{path} unpacks to {size:,} bytes, more than {MOST_BYTES:,}.")
    return next((int(shape[1]) for shape in shapes.values() if len(shape) > 1), 0)


def compare_page(target: Target, facts: Facts, folder: Path) -> str:
    """The lines to run. The page and the small files that the lines read must show the same template.

    Raises:
        ExportError: they do not; nothing of them was run.
    """
    lines = target.lines(facts)
    page = read_text(folder / "README.md")
    fence = f"```python\n{lines.strip()}\n```"
    fences = [line for line in page.splitlines() if line.lstrip().startswith(("```", "~~~"))]
    if page.count(f"\n{fence}\n") != 1 or fences != ["```python", "```"]:
        raise ExportError(
            f"the lines in {folder}/README.md are not those that a2mim writes for {target.name}; none of them was run."
        )
    for name, text in target.texts(facts).items():
        if read_text(folder / name) != text:
            raise ExportError(f"{folder}/{name} is not what a2mim writes for {target.name}; it was not loaded.")
    return lines


def check_contents(target: Target, facts: Facts, request: dict, folder: Path) -> None:
    """Refuses what a loader would take from a file and act upon: names of code, addresses, arguments that open files.

    Raises:
        ValueError: the file and what is wrong with it.
    """
    weights = request["weights"]
    if weights and (Path(weights).name != weights or (folder / weights).is_symlink()):
        raise ValueError(f"{folder} names the weights {shortened(weights)!r}, which is no file in the folder.")
    if request.get("contract"):
        _check_bounded(request["contract"], folder)
        _check_contract(request["contract"], facts, folder / "receipt.json")
    if target.name in ("timm", "transformers", NETWORK):
        _check_config(read_object(folder / "config.json"), facts, folder / "config.json", target.name == NETWORK)
    elif target.name == "safetensors":
        _check_header(folder / "encoder.safetensors", facts)
    elif target.name in ("mmpretrain", "mmdet", "mmseg"):
        _check_configuration(folder / "encoder.py", facts)


def _check_contract(contract: list, facts: Facts, path: Path) -> None:
    """The contract is a known one, for the architecture of the receipt."""
    name, arguments = contract
    named = [arguments[key] for key in ("architecture", "name") if key in arguments]
    if not isinstance(name, str) or name not in CONTRACTS or any(each != facts.architecture for each in named):
        raise ValueError(f"{path} has a contract of {shortened(name)} for {', '.join(map(shortened, named))}.")
    if "model_args" in arguments:
        _check_arguments(arguments["model_args"], path, fault_of_argument)


def _check_config(config: dict, facts: Facts, path: Path, own: bool) -> None:
    if not isinstance(config.get("pretrained_cfg", {}), dict):
        raise ValueError(f"{path} has a pretrained_cfg that is no dictionary.")
    unknown = sorted(set(config) - CONFIG_KEYS) + sorted(set(config.get("pretrained_cfg", {})) - CFG_KEYS)
    if unknown:
        raise ValueError(f"{path} has {', '.join(map(shortened, unknown[:5]))}, which a2mim does not write.")
    if config.get("architecture") != facts.architecture:
        raise ValueError(f"{path} names {shortened(config.get('architecture'))}, and the receipt {facts.architecture}.")
    if config.get("pretrained_cfg", {}).get("custom_load"):
        raise ValueError(f"{path} asks for a loader of its own.")
    _check_arguments(config.get("model_args", {}), path, fault_of_own_argument if own else fault_of_argument)


def _check_header(path: Path, facts: Facts) -> None:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        name, arguments = json.loads(header["architecture"]), json.loads(header["model_args"])
    except (KeyError, ValueError, RecursionError, SafetensorError):
        raise ValueError(f"{path} has no header of a2mim's.") from None
    if name != facts.architecture:
        raise ValueError(f"{path} names {shortened(name)}, and the receipt {facts.architecture}.")
    _check_arguments(arguments, path, fault_of_argument)


def _check_arguments(arguments: Any, path: Path, fault_of) -> None:
    if not isinstance(arguments, dict):
        raise ValueError(f"{path} has model_args that are no dictionary.")
    for key, value in arguments.items():
        if fault := fault_of(key, value):
            raise ValueError(f"{path} sets {fault}: a file may bring numbers and plain words for known arguments only.")


def _check_configuration(path: Path, facts: Facts) -> None:
    """OpenMMLab executes encoder.py: it must be a docstring and plain values, with names of known classes only."""
    try:
        tree = ast.parse(read_text(path))
        parts = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body[1:]}  # type: ignore[attr-defined]
        plain = isinstance(tree.body[0].value.value, str)  # type: ignore[attr-defined]
    except (ValueError, SyntaxError, AttributeError, IndexError, RecursionError, TypeError):
        plain, parts = False, {}
    imports = parts.get("custom_imports", {"imports": []})
    if (
        not plain
        or set(parts) - {"custom_imports", "model", "test_pipeline"}
        or set(imports) - {"imports", "allow_failed_imports"}
        or set(imports["imports"]) - MODULES
    ):
        raise ValueError(f"{path} is not what a2mim writes: it has more than plain values. It was not loaded.")
    _check_bounded(parts, path)
    for key, value in _pairs(parts):
        if key == "type" and not (isinstance(value, str) and value in TYPES):
            raise ValueError(f"{path} names the class {shortened(value)}, which a2mim does not write.")
        if key == "checkpoint" and value != "{{ fileDirname }}/encoder.pth":
            raise ValueError(f"{path} loads {shortened(value)}, and not the encoder.pth beside it.")
        if key == "model_name" and value != facts.architecture:
            raise ValueError(f"{path} names {shortened(value)}, and the receipt {facts.architecture}.")
        if key in ("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "_scope_", "_base_"):
            raise ValueError(f"{path} sets {key}, which a2mim does not write.")


def _pairs(value: Any):
    """Every (key, value) of nested dictionaries."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield key, part
            yield from _pairs(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _pairs(part)


def _check_bounded(value: Any, path: Path, depth: int = 0) -> None:
    """Numbers that say how large something is built are bounded."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        if depth > DEEPEST:
            raise ValueError(f"{path} is nested too deeply.")
        for part in value:
            _check_bounded(part, path, depth + 1)
    elif isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise ValueError(f"{path} has the number {shortened(value)}, more than {LARGEST:,}.")
