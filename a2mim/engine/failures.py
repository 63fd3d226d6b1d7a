"""Ends of a run that are nobody's mistake, as one sentence: no memory left, another process gone."""

from __future__ import annotations

from a2mim.engine.assembly import Run
from a2mim.engine.memory import OutOfMemory, is_out_of_memory
from a2mim.engine.report import again
from a2mim.processes.group import is_lost_peer
from a2mim.text import first_line

UNGATHERED = ("DTensor", "its data is not allocated yet")  # torch, of a divided weight that was not gathered


def explained(error: BaseException, run: Run, step: int) -> Exception | None:
    """The error to raise in place of one that ended the training; None where that one says enough.

    Args:
        step: the number of the step that was not finished, 1 for the first.
    """
    if is_out_of_memory(error):
        return OutOfMemory(f"step {step}: {out_of_memory(run)}; {run.last_good()}")
    if any(sign in str(error) for sign in UNGATHERED) and run.settings.processes.strategy == "fsdp":
        return ValueError(
            f"processes.strategy='fsdp' does not fit this network, which uses weights of a block outside of it"
            f" ({first_line(error)}): leave the strategy out"
        )
    if is_lost_peer(error):
        command = again(run.task.command, run.request.config, run.claimed)
        return ConnectionError(
            f"step {step}: another process of this run is gone or answers no more; what ended it stands in its own"
            f" output; {run.last_good()}; go on with: {command}"
        )
    return None


def out_of_memory(run: Run) -> str:
    """What to change."""
    settings = run.settings
    images = settings.global_batch_size // run.loader.world_size // settings.micro_batches
    return (
        f"{run.device} has too little memory for {images} images at a time: raise accumulate (now"
        f" {settings.micro_batches}), which cuts the batch into more parts, or lower global_batch_size or data.img_size"
    )
