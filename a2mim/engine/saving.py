"""Writes checkpoints, beside the training where the recipe says so.

Invariant: a file under a checkpoint's name is whole. One checkpoint is written at a time, in the order of the steps;
old ones are deleted only after the new one is on disk.
"""

from __future__ import annotations

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from a2mim.checkpoints import keep_newest, write_checkpoint
from a2mim.files import telling_full_disk


class Writer:
    """Writes the checkpoints of a run.

    Args:
        background: copy the checkpoint to the host's memory, and let a thread write it while the training goes on.
    """

    def __init__(self, background: bool = False):
        self.background = background
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._buffers: dict[tuple, Tensor] = {}  # pinned memory, kept for the next checkpoint

    def write(self, path: Path, checkpoint: dict, keep: int, advice: str) -> None:
        """Writes a checkpoint, then deletes all but the newest `keep` of its folder.

        Args:
            advice: what to do where the disk is full, as part of a sentence.

        Raises:
            OSError: this checkpoint, or in the background the one before, cannot be written.
        """
        self.wait()
        if not self.background:
            _write(path, checkpoint, keep, advice)
            return
        held = self._snapshot(checkpoint)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = self._thread.submit(_write, path, held, keep, advice)

    def look(self) -> None:
        """Raises the error of a checkpoint that could not be written, if it is known; waits for nothing."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Returns when the checkpoint in progress is on disk; raises its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def finish(self) -> None:
        """Waits for the checkpoint in progress and keeps its error for the next `look` or `wait`."""
        if self._writing is not None:
            self._writing.exception()

    def close(self) -> None:
        """Waits, and ends the thread. An error of the last checkpoint was raised by `wait`, or another one is on its
        way.
        """
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    def _snapshot(self, checkpoint: dict) -> dict:
        """A copy on the host; tensors that share memory share it in the copy too."""
        made: dict[tuple, Tensor] = {}
        copied = _copied(checkpoint, made, self._buffers)
        if any(tensor.is_pinned() for tensor in made.values()):
            torch.cuda.synchronize()  # the copies are complete
        return copied


def _write(path: Path, checkpoint: dict, keep: int, advice: str) -> None:
    with telling_full_disk(path, advice):
        write_checkpoint(path, checkpoint)
    keep_newest(path.parent, keep)


def _copied(value: Any, made: dict[tuple, Tensor], buffers: dict[tuple, Tensor]) -> Any:
    """Plain containers and their tensors, copied.

    Args:
        made: (where a tensor lies) -> its copy.
        buffers: the same, of pinned memory of earlier copies.
    """
    if isinstance(value, Tensor):
        return _copied_tensor(value.detach(), made, buffers)
    if isinstance(value, dict):
        twin = copy.copy(value)  # of the same class, with its attributes
        for key, inner in value.items():
            twin[key] = _copied(inner, made, buffers)
        return twin
    if isinstance(value, list | tuple):
        return type(value)([_copied(inner, made, buffers) for inner in value])
    return copy.deepcopy(value)


def _copied_tensor(tensor: Tensor, made: dict[tuple, Tensor], buffers: dict[tuple, Tensor]) -> Tensor:
    place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
    if place not in made or not tensor.numel():
        if tensor.is_cuda:
            if place not in buffers:
                buffers[place] = torch.empty_like(tensor, device="cpu", pin_memory=True)
            made[place] = buffers[place].copy_(tensor, non_blocking=True)
        else:
            made[place] = tensor.clone()
    return made[place]
