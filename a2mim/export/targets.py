"""The table of targets: one row each, its file beside this one."""

from a2mim.export import timm_folder
from a2mim.export.target import Subject, Target

TARGETS: dict[str, Target] = {target.name: target for target in (timm_folder.TARGET,)}


def check_targets(names: list[str]) -> None:
    """Raises ValueError for names that are no target, or for none at all."""
    if not names or set(names) - set(TARGETS):
        raise ValueError(f"export to {names} was asked for: choose from {', '.join(TARGETS)}.")


def check_possible(subject: Subject, names: list[str]) -> None:
    """Raises ValueError with every reason why one of these targets cannot take this encoder."""
    reasons = [f"{name}: {reason}" for name in names if (reason := TARGETS[name].refuse(subject))]
    if reasons:
        raise ValueError(f"{subject.name} cannot be exported to {'; '.join(reasons)}.")
