"""mmengine's Runner with a training loop that seeks, and without the parts that a run here does better itself."""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch.nn.parallel import DistributedDataParallel

from a2mim.data.workers import WorkerDied
from a2mim.devices import Later
from a2mim.engine import loggers
from a2mim.engine.averaging import AveragingHook
from a2mim.engine.fsdp import Division
from a2mim.engine.hooks import CheckpointHook
from a2mim.engine.records import ResumePoint, StepContext
from a2mim.engine.state import restore
from a2mim.registry import SCOPE

_runs = count()
_ARGUMENTS = inspect.signature(DistributedDataParallel).parameters
BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _ARGUMENTS else "broadcast_buffers"  # the newer name
SomeHook = TypeVar("SomeHook", bound=Hook)
KEPT = 1000  # gradient norms that wait for a hook to look at them


class TrainLoop(BaseLoop):
    """One optimiser step an iteration, from any step on.

    mmengine's own loops read the data again up to the step where they resume, and need a loader's length; this one
    asks the loader to go there. The random numbers of step n are a function of (seed, n, rank), so a resumed run draws
    the same.
    """

    def __init__(self, runner, loader, max_steps: int):
        super().__init__(runner, loader)
        self.max_steps = max_steps
        self.step = 0
        self.stop = False  # set by a hook: finish this step, then leave
        self.waited = self.spent = 0.0  # seconds waiting for data, and in all, since a hook last set them to 0
        self.unread: deque[tuple[int, Later]] = deque()  # steps whose numbers the host has not seen yet
        self.norms: deque[tuple[int, float]] = deque(maxlen=KEPT)  # gradient norms of steps, as they become known

    iter = property(lambda self: self.step)
    max_iters = property(lambda self: self.max_steps)
    epoch = property(lambda self: int(self.dataloader.epochs_done(self.step)))
    max_epochs = property(lambda self: int(self.dataloader.epochs_done(self.max_steps)))

    def seek(self, step: int) -> None:
        """Goes on at `step`: optimiser steps since the start of the run."""
        self.step = step
        self.dataloader.seek(step)

    def run(self) -> torch.nn.Module:
        runner = self.runner
        runner.call_hook("before_train")
        runner.model.train()
        while self.step < self.max_steps and not self.stop:
            self.run_epoch()
        runner.call_hook("after_train")
        return runner.model

    def run_epoch(self) -> None:
        """To the end of the epoch, of the run, or until a hook stops it."""
        self.runner.call_hook("before_train_epoch")
        counted = ready = time.perf_counter()
        for batch in self._batches():
            self.waited += time.perf_counter() - ready
            self.run_iter(batch)
            self.spent += time.perf_counter() - counted
            counted = time.perf_counter()
            self.runner.call_hook("after_train_iter", batch_idx=self.step - 1, data_batch=batch, outputs=self.outputs)
            if self.stop or self.step >= self.max_steps:
                break
            ready = time.perf_counter()  # a hook's time is spent, but not waiting for data
        self.runner.call_hook("after_train_epoch")

    def _batches(self) -> Iterator[dict]:
        """Batches of the loader. When a data worker dies, the last step is saved, if one process can do that alone."""
        try:
            yield from self.dataloader
        except WorkerDied as error:
            if not self.step or self.runner.distributed:
                raise
            self.runner.hook("checkpoint", CheckpointHook).save(self.runner)
            self.runner.run.writer.wait()
            raise WorkerDied(f"{error}; step {self.step} is saved: go on with --resume") from None

    def run_iter(self, batch: dict) -> None:
        """One step, in `accumulate` micro-batches; `outputs` are the losses, averaged over them."""
        runner, context = self.runner, self.runner.context
        runner.call_hook("before_train_iter", batch_idx=self.step, data_batch=batch)
        torch.manual_seed(context.step_seed(self.step, "dropout"))
        self.outputs: dict[str, Any] = {}
        try:
            for data in runner.run.task.micro_batches(context, batch, self.step, self.epoch):
                losses = runner.model.train_step(data, optim_wrapper=runner.optim_wrapper)
                for name, value in losses.items():
                    self.outputs[name] = self.outputs.get(name, 0) + value.detach() / context.accumulate
        except FloatingPointError as error:
            raise self._stopped(self.step + 1, str(error)) from error
        except ValueError as error:
            if "Expected more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"a micro-batch of {len(batch['images']) // context.accumulate} image is too few for this network's"
                " BatchNorm: lower accumulate, or raise global_batch_size"
            ) from None
        self.step += 1
        self.unread.append((self.step, Later(runner.optim_wrapper.numbers())))
        self.settle(but=1)

    def settle(self, but: int = 0) -> None:
        """Reads the numbers of the steps so far, waiting for the device if need be.

        Args:
            but: how many of the newest steps stay unread.

        Raises:
            FloatingPointError: one of the steps was not finite. The device has skipped it and all steps since.
        """
        while len(self.unread) > but:
            step, numbers = self.unread.popleft()
            read = numbers.read()
            problem = self.runner.optim_wrapper.problem_of(read)
            if problem:
                raise self._stopped(step, problem)
            self.norms.append((step, read[0]))

    def _stopped(self, step: int, problem: str) -> FloatingPointError:
        return FloatingPointError(
            f"step {step}: {problem}; stopped before the weights changed, {self.runner.run.last_good()};"
            " try a lower optimizer.base_lr, clip_grad=1.0 or amp=None"
        )


class TrainRunner(Runner):
    """Runner over parts that are built already.

    Args:
        run: the `Run` that they belong to.
        context: what a step needs to know of this process.
        optim_wrapper: a StepWrapper.
        hooks: name -> hook, in the order in which hooks of one priority are called.
        resume_from: where the run goes on, or None.
        division: of the model over the processes, or None.
    """

    def __init__(
        self,
        run,
        context: StepContext,
        optim_wrapper: OptimWrapper,
        hooks: dict[str, Hook],
        resume_from: ResumePoint | None = None,
        division: Division | None = None,
    ):
        self.run, self.context, self.named_hooks, self.resume_point = run, context, hooks, resume_from
        self.division = division
        backends = loggers.configs(run.settings.log)
        loggers.stay_local(run.settings.log)
        super().__init__(
            model=run.task.model,
            work_dir=str(run.claimed / ("logs" if context.rank == 0 else f"logs-{context.rank}")),
            train_dataloader=run.loader,
            train_cfg={},  # the loop is built below
            optim_wrapper=optim_wrapper,
            default_hooks=dict.fromkeys(
                ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
            ),
            custom_hooks=list(hooks.values()),
            resume=resume_from is not None,
            launcher="pytorch" if torch.distributed.is_initialized() else "none",
            log_level="WARNING",
            visualizer={"type": "Visualizer", "vis_backends": backends} if backends else None,
            default_scope=SCOPE,
            randomness={"seed": context.seed},
            experiment_name=f"{run.folder.name}-{next(_runs)}",  # mmengine keys its globals by this name
            cfg=Config({"settings": run.settings.model_dump(mode="json"), "work_dir": str(run.claimed)})
            if backends
            else None,
        )
        for folder in (Path(self._log_dir), Path(self.work_dir)):  # mmengine makes them in any case, on each process
            with suppress(OSError):  # TensorBoard's files lie there
                folder.rmdir()

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **options: Any) -> MMLogger:
        """A logger of the screen alone: the run's log is log.jsonl, and mmengine's file would stay empty."""
        return MMLogger.get_instance(name=self._experiment_name, log_level=log_level, **options)

    @property
    def inner_model(self) -> torch.nn.Module:
        """The model itself, whatever is wrapped around it."""
        model: torch.nn.Module = self.model
        return getattr(model, "module", model)

    @property
    def averaged(self) -> torch.nn.Module:
        """The model with the averaged weights, where they are kept, else the model itself; divided as the model is."""
        if "ema" not in self.named_hooks:
            return self.inner_model
        return self.hook("ema", AveragingHook).ema_model.module

    def whole(self, averaged: bool = False) -> AbstractContextManager[Any]:
        """The model, or that with the averaged weights, with all weights, for work beside the training.

        It is the model itself, or, where that is divided, a copy for the time of the block. All processes must come
        here in the same order.
        """
        model = self.averaged if averaged else self.inner_model
        return nullcontext(model) if self.division is None else self.division.whole.of(model, self.context.device)

    def hook(self, name: str, kind: type[SomeHook]) -> SomeHook:
        """The hook of that name, which must be of that class."""
        found = self.named_hooks[name]
        assert isinstance(found, kind)
        return found

    def build_train_loop(self, loop) -> TrainLoop:
        if not isinstance(loop, TrainLoop):
            loop = TrainLoop(self, self.run.loader, self.run.max_steps)
        return loop

    def wrap_model(self, model_wrapper_cfg, model):
        """mmengine moves every model to the GPU where there is one, and needs a GPU for several processes; we obey
        --device.
        """
        model.to(self.context.device)
        if not self.distributed or self.division is not None:
            return model
        ids = [self.context.device.index] if self.context.device.type == "cuda" else None
        buffers = {BUFFERS: False}  # each process gathers BatchNorm's statistics for itself
        return MMDistributedDataParallel(module=model, device_ids=ids, gradient_as_bucket_view=True, **buffers)

    def load_or_resume(self) -> None:
        if self.resume_point is not None:
            restore(self, self.resume_point.checkpoint)
            self.resume_point = None  # its tensors are copied; a second set of weights stays in memory otherwise

    def _init_model_weights(self) -> None:
        """timm has done it."""

    def _log_env(self, env_cfg: dict) -> None:
        """Ours is two lines in summary.json; mmengine's starts compilers to ask for their versions."""

    def dump_config(self) -> None:
        """Written by the run, in a form that can be given to it again."""
