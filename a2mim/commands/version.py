"""`a2mim --version`: what a bug report needs, in a form to paste. No package is imported for its version."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import a2mim

_PACKAGES = ("torch", "torchvision", "timm", "mmengine", "mmcv-lite", "webdataset", "numpy", "pydantic")


def version_text() -> str:
    """One line each: a2mim, Python, the packages that decide results, the machine."""
    lines = [f"a2mim {a2mim.__version__}", f"python {platform.python_version()}"]
    lines += [f"{name} {_version(name)}" for name in _PACKAGES]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines.append(f"machine {platform.system()} {platform.machine()}, {cores} cores, {_accelerators()}")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _accelerators() -> str:
    """What the driver shows; torch is not imported for it."""
    if os.path.isdir("/proc/driver/nvidia/gpus"):
        return f"{len(os.listdir('/proc/driver/nvidia/gpus'))} NVIDIA GPUs"
    return "no NVIDIA driver"
