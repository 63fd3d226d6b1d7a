"""The table of targets: one row each, its file beside this one."""

from a2mim.export import (
    detectron2_pickle,
    onnx_graph,
    openmmlab,
    own_network,
    pyramid,
    safetensors_file,
    timm_folder,
    torch_graphs,
    torchvision_file,
    transformers_folder,
    ultralytics_model,
)
from a2mim.export.target import Subject, Target

ROWS = (
    timm_folder.TARGET,
    transformers_folder.TARGET,
    torchvision_file.TARGET,
    openmmlab.MMPRETRAIN,
    openmmlab.MMDET,
    openmmlab.MMSEG,
    detectron2_pickle.TARGET,
    ultralytics_model.TARGET,
    onnx_graph.TARGET,
    torch_graphs.EXPORT,
    torch_graphs.SCRIPT,
    pyramid.TARGET,
    safetensors_file.TARGET,
    own_network.TARGET,
)
TARGETS: dict[str, Target] = {target.name: target for target in ROWS}


def check_targets(names: list[str]) -> None:
    """Raises ValueError for names that are no target, or for none at all."""
    if not names or set(names) - {*TARGETS, "all"}:
        raise ValueError(f"export to {names} was asked for: choose from {', '.join(TARGETS)}, or all.")


def possible(subject: Subject, names: list[str]) -> list[str]:
    """The names, each once; for "all" those that can take this encoder. Raises ValueError with every reason why one
    that was asked for by its name cannot.
    """
    reasons = {name: own_network.refuse(subject, TARGETS[name]) for name in (TARGETS if "all" in names else names)}
    if "all" in names:
        return [name for name, reason in reasons.items() if not reason]
    refused = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    if refused:
        raise ValueError(f"{subject.name} cannot be exported to {'; to '.join(refused)}.")
    return list(reasons)
