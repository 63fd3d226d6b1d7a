"""What the machine is: card, memory, cores and versions, so that figures can be compared later."""

from __future__ import annotations

import os
import platform

import timm
import torch

import a2mim

from .isolation import Findings
from .scale import Scale, card_of


def run(scale: Scale, findings: Findings) -> None:
    """One finding."""
    cuda = scale.where.type == "cuda"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    findings.add(
        "machine",
        card=card_of(scale.where),
        memory_gb=round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if cuda else None,
        cores=cores,
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda or torch.version.hip,
        timm=timm.__version__,
        a2mim=a2mim.__version__,
    )


def has_gpu(findings: Findings) -> None:
    """Whether torch finds a GPU. It is asked in a process of its own: a process that has asked cannot fork any more."""
    findings.add("gpu", found=torch.cuda.is_available())
