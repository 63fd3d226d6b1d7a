"""`accumulate="auto"`: a trial step finds the largest part of a batch that fits into memory.

The trial trains a copy of the model on noise, so weights, running statistics, random numbers and the optimiser of the
run stay as they are. The number that it finds is then a setting like any other: settings.json holds it, and a resumed
run keeps it.
"""

from __future__ import annotations

import copy
import gc
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from a2mim.data.crops import height_and_width
from a2mim.data.pixel_format import DTYPES
from a2mim.data.records import Batch
from a2mim.engine.assembly import choose_amp, prepare_model
from a2mim.engine.finetune_settings import FinetuneSettings
from a2mim.engine.memory import OutOfMemory, free_memory, is_out_of_memory
from a2mim.engine.optim import StepWrapper
from a2mim.engine.records import StepContext
from a2mim.engine.task import RecipeSettings, Task
from a2mim.processes.group import largest_of_all

GPU_SHARE = 0.95  # of a GPU's memory that the trial may take: pictures and fragments need some too
CPU_SHARE = 0.8  # of the memory that is free beside the trial
TEMPORARY = 1.5  # memory of a step over that of the tensors that autograd keeps
TOO_FEW = "Expected more than 1 value per channel"  # BatchNorm's error for a single value


@dataclass(frozen=True)
class Found:
    """What the trial found.

    Args:
        accumulate: parts into which each process divides its share of a batch.
        says: a sentence about it.
    """

    accumulate: int
    says: str


def numbers_of_parts(settings: RecipeSettings, share: int) -> list[int]:
    """The numbers of equal parts that `share` images can be divided into, ascending; mixup needs even parts, and
    refinement tells an image from another one.
    """
    pairs = isinstance(settings, FinetuneSettings) and bool(settings.mix.mixup or settings.mix.cutmix)
    numbers = [number for number in range(1, share + 1) if share % number == 0]
    least = 2 if settings.command == "refine" else 1
    return [n for n in numbers if share // n >= least and not (pairs and share // n % 2)] or [1]


def find_accumulate(task: Task, device: torch.device, rank: int, world_size: int) -> Found:
    """The least number of parts whose step fits into the memory of every process.

    A GPU is asked by trying. A CPU's memory is promised before it is there, so torch raises no error in time: the
    memory of a step is estimated from what autograd keeps for an image, and compared with what is free.

    Args:
        task: as it was built, on the CPU; it is left as it is.

    Raises:
        ValueError: refinement on several processes.
        OutOfMemory: not even the smallest part fits.
    """
    settings = task.settings
    if settings.command == "refine" and world_size > 1:
        raise ValueError(
            "accumulate='auto' cannot try a step of refinement on several processes, because they exchange embeddings"
            " in it: give a number"
        )
    share = settings.global_batch_size // world_size
    numbers = numbers_of_parts(settings, share)
    with _untouched(device):
        number = largest_of_all(_least_that_fits(task, numbers, StepContext(device, settings.seed, rank, world_size)))
    if number == math.inf:
        raise OutOfMemory(
            f"{device} has too little memory for {share // numbers[-1]} images at a time, the least that"
            " accumulate='auto' can choose: lower data.img_size, choose a smaller network, or set"
            " activation_checkpointing=True"
        )
    chosen = int(number)
    says = f"accumulate=auto: {chosen} x {share // chosen} images a step on {device}, as a trial step found"
    if device.type == "cpu" and free_memory() is None:
        says += "; this system does not say how much memory is free, so only errors of torch counted"
    return Found(chosen, says)


def _least_that_fits(task: Task, numbers: list[int], context: StepContext) -> float:
    """The first number of parts whose step fits on this process; infinity where none does."""
    try:
        trial = Trial(task, context)
        least = trial.begin(numbers)
        room = trial.room()
        for number in (number for number in numbers if number <= least):
            if trial.expected(number) <= room and trial.step(number, parts=min(number, 2)) == "fits":
                return number
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return math.inf


class Trial:
    """Steps of a copy of a task's model, beside the optimiser's state and the averaged weights that a run has.

    Args:
        task: the run's.
        context: of this process.
    """

    def __init__(self, task: Task, context: StepContext):
        settings = self.settings = task.settings
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.context = replace(context, memory_format=layout)
        self.share = settings.global_batch_size // context.world_size
        self.kept = 0.0  # bytes that autograd keeps for an image
        self.batch = noise(task, self.share)
        memo: dict[int, Any] = {}
        self.model: Any = copy.deepcopy(task.model, memo).to(context.device).train()
        copied: Any = copy.copy(task)
        copied.model, copied.network = self.model, copy.deepcopy(task.network, memo)  # the copy's part, by the memo
        self.task: Task = copied
        prepare_model(self.task, settings)
        self.averaged = copy.deepcopy(self.model) if settings.ema else None  # only takes its memory
        self.optimizer = self.task.optimizer()

    def begin(self, numbers: list[int]) -> float:
        """Takes a step with the smallest part, which makes the optimiser's state, and counts what autograd keeps.

        Returns the number of parts of that step: the largest that BatchNorm allows; 0 if memory does not allow it.
        """
        own = {tensor.untyped_storage().data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())}
        for number in reversed(numbers):
            sizes: dict[int, int] = {}
            on_cpu = self.context.device.type == "cpu"
            with torch.autograd.graph.saved_tensors_hooks(_noting(sizes), _same) if on_cpu else nullcontext():
                outcome = self.step(number, parts=1)
            if outcome == "no memory":
                return 0
            if outcome == "fits":
                self.kept = sum(size for place, size in sizes.items() if place not in own) / (self.share // number)
                return number
        return 0

    def room(self) -> float:
        """Bytes that a CPU has for a step beside what the trial holds now; infinity where only torch's errors count."""
        free = free_memory() if self.context.device.type == "cpu" else None
        return math.inf if free is None else CPU_SHARE * free

    def expected(self, number: int) -> float:
        """Bytes that a step in so many parts takes: gradients, and activations of a part."""
        gradients = sum(p.nbytes for p in self.model.parameters() if p.requires_grad)
        return gradients + TEMPORARY * self.kept * (self.share // number)

    def step(self, number: int, parts: int) -> str:
        """Takes a step that consists of `parts` of the batch's `number` parts; two need as much memory as more.

        Returns "fits", "no memory", or "too few" images for BatchNorm.
        """
        outcome = "fits"
        try:
            self._train(replace(self.context, accumulate=number), parts)
        except FloatingPointError:
            pass  # the numbers do not matter here
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            outcome = "no memory"
        except ValueError as error:
            if TOO_FEW not in str(error):
                raise
            outcome = "too few"
        self.optimizer.zero_grad()
        free_cached(self.context.device)
        return outcome

    def _train(self, context: StepContext, parts: int) -> None:
        amp = choose_amp(self.settings.amp, context.device)
        wrapper = StepWrapper(self.optimizer, amp, context.device.type, parts, self.settings.clip_grad)
        last = self.settings.schedule.epochs - 1  # refinement trains its heads alone in the first ones
        for data in islice(self.task.micro_batches(context, dict(self.batch), 0, last), parts):
            self.model.train_step(data, optim_wrapper=wrapper)
        if context.device.type == "cuda":
            torch.cuda.synchronize(context.device)


def noise(task: Task, images: int) -> Batch:
    """A batch as the loader gives it, of random pixels: `images` images, or as many pairs of views."""
    size, channels = task.settings.data.img_size, task.settings.data.in_chans
    assert size is not None and channels is not None  # `complete_pixels` filled them in
    number = images * (2 if task.settings.command == "refine" else 1)
    dtype = torch.from_numpy(np.zeros(0, DTYPES[task.train_set.pixel_format.bits])).dtype
    pixels = torch.randint(0, 256, (number, channels, *height_and_width(size))).to(dtype)
    return Batch(pixels, torch.zeros(number, dtype=torch.int64), torch.arange(number))


@contextmanager
def _untouched(device: torch.device) -> Iterator[None]:
    """Gives random generators and the GPU's memory back as they were."""
    states = random.getstate(), np.random.get_state()
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        if on_gpu:
            before = torch.cuda.get_per_process_memory_fraction(device)
            torch.cuda.set_per_process_memory_fraction(GPU_SHARE * before, device)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            free_cached(device)
            if on_gpu:
                torch.cuda.set_per_process_memory_fraction(before, device)
                torch.cuda.reset_peak_memory_stats(device)


def free_cached(device: torch.device) -> None:
    """Gives memory that nothing uses back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _noting(sizes: dict[int, int]):
    """A hook for saved tensors: notes the bytes of each storage that a forward pass keeps."""

    def note(tensor: Tensor) -> Tensor:
        if torch._C._current_graph_task_id() == -1:  # a backward pass that computes a block again keeps it only shortly
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    return note


def _same(tensor: Tensor) -> Tensor:
    return tensor
