"""Exports loaded by every target that the package index has, each in an environment of its own.

    python benchmarks/exports.py --environments environments          # makes what is missing there (pip), then proves
    python benchmarks/exports.py --environments environments --targets mmpretrain --models swin,convnext

Prints one row a model: the largest difference of the features, as a share of the largest feature, or why not. Every
bias, norm and statistic of the models is moved off its initial value, so that two layers that are exchanged would show.
mmdet and mmseg need mmcv's compiled operators to be imported, which the package index has as source only; here each of
them is a function that raises when it is called. No backbone calls one.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import a2mim  # before timm: it mends torchvision

# isort: split
import timm
import torch

from a2mim.export import TARGETS, ExportError
from a2mim.export.exporting import prove
from a2mim.export.target import Subject
from a2mim.pixels import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

MODELS = (
    *("xcit_nano_12_p16_224", "resnet18", "resnet50", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"),
    *("convnext_atto", "xvit_tiny_p16_224", "linglo_b1", "crossvit_tiny_240"),
)
COMMON = ("timm", "safetensors", "setuptools")
OWN = ("einops", "timm", "safetensors")  # what our own architectures import, where a target cannot do without them
# environment -> what is installed there, and the targets that are proven there
ENVIRONMENTS = {
    "torchvision": (COMMON, ("timm", "safetensors", "torchvision")),
    "transformers": (("transformers", *OWN), ("transformers",)),
    "mmpretrain": (("mmpretrain", "mmcv-lite", *COMMON), ("mmpretrain",)),
    "mmdet": (("mmpretrain", "mmdet", "mmsegmentation", "mmcv-lite==2.1.0", "ftfy", *COMMON), ("mmdet", "mmseg")),
    "ultralytics": (("ultralytics",), ("ultralytics",)),
    "graphs": (("onnx", "onnxscript", "onnxruntime"), ("onnx", "torch-export", "torchscript")),
}
ABSENT_OPERATORS = """\
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def absent(*args, **kwargs):
        raise RuntimeError(f"mmcv's compiled operator {name} is not here")

    return absent
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environments", type=Path, required=True, help="folder for one environment a library")
    parser.add_argument("--targets", default="", help="some of them, separated by commas")
    parser.add_argument("--models", default="", help="parts of their names, separated by commas")
    chosen = parser.parse_args()
    wanted = chosen.targets.split(",") if chosen.targets else list(TARGETS)
    targets = [target for _, proven in ENVIRONMENTS.values() for target in proven if target in wanted]
    names = [name for name in MODELS if any(part in name for part in chosen.models.split(","))]
    print("| | " + " | ".join(targets) + " |\n" + "|---" * (len(targets) + 1) + "|", flush=True)
    for name in names:
        subject = subject_of(name)
        cells = [outcome(subject, target, chosen.environments) for target in targets]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def subject_of(name: str) -> Subject:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.ndim < 2:
                value.mul_(1 + 0.2 * torch.rand(value.shape)).add_(0.1 * torch.rand(value.shape))
    size = model.pretrained_cfg["input_size"][1:]
    pixels = Preprocessing(IMAGENET_MEAN, IMAGENET_STD, size, "bicubic")
    return Subject(model, {}, pixels)


def outcome(subject: Subject, target: str, root: Path) -> str:
    """The largest difference, or what stands in its way."""
    if TARGETS[target].refuse(subject):
        return "refused"
    environment = next(name for name, (_, proven) in ENVIRONMENTS.items() if target in proven)
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        receipt = prove(
            TARGETS[target], subject, folder / target, {"recalibrated": False}, python_of(environment, root)
        )
    except ExportError as error:
        return str(error)
    finally:
        shutil.rmtree(folder)
    return receipt["mode"] if receipt["largest_difference"] is None else f"{receipt['largest_difference']:.0e}"


def python_of(environment: str, root: Path) -> str:
    """The environment's interpreter; pip makes what is not there."""
    folder, constraints = root / environment, Path(a2mim.__file__).parents[1] / "constraints.txt"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return str(python)
    packages, _ = ENVIRONMENTS[environment]
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pinned = constraints.read_text().splitlines()
    named = {package.split("==")[0] for package in packages if "==" in package}
    kept = [line for line in pinned if line.split("==")[0] not in named]
    (folder / "constraints.txt").write_text("\n".join(kept))
    install = [python, "-m", "pip", "install", "-q", "-c", folder / "constraints.txt"]
    subprocess.run([*install, "torch"], check=True)  # first, so that nothing else brings another build of it
    subprocess.run([*install, "torchvision", *packages], check=True)
    if environment == "mmdet":
        mmcv = next(folder.glob("lib/python*/site-packages/mmcv"))
        (mmcv / "_ext.py").write_text(ABSENT_OPERATORS)
    (folder / "complete").touch()
    return str(python)


if __name__ == "__main__":
    main()
