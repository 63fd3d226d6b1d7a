"""The run's page: report.html, written while the run goes on and at its end."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from mmengine.hooks import Hook

from a2mim.report import write_report

NAME = "report.html"
SHARE = 0.01  # of the time since the start, at most
_GUESS = 2.0  # seconds that the first page takes: matplotlib's start, and a dozen figures


def write_page(folder: Path, running: bool = False) -> Path | None:
    """Writes report.html in the run's folder, as a whole. Returns None, with a warning, where that fails.

    A page never ends a run: whatever goes wrong here, `a2mim report` shows with its cause later.
    """
    try:
        return write_report([folder], folder / NAME, running)
    except Exception as error:
        told = f"{type(error).__name__}: {error}".rstrip(": ")
        warnings.warn(f"{folder / NAME} was not written ({told}); try a2mim report {folder}", stacklevel=2)
        return None


class ReportHook(Hook):
    """Writes the page at each picture and each end of an epoch, on the first process, within SHARE of the time.

    The cost of all pages, including the next one, stays under SHARE of the time. A page that would exceed it is
    skipped.
    """

    priority = 85  # after the log's line, the picture and the k-NN, before the checkpoint

    def __init__(self) -> None:
        self.cost = _GUESS  # seconds, of the last page
        self.spent = self.began = 0.0

    def before_train(self, runner) -> None:
        self.began = time.perf_counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.rank == 0 and self._something_new(runner) and runner.iter < runner.max_iters:
            self.write(runner.run.folder)

    def _something_new(self, runner) -> bool:
        pictures = runner.named_hooks.get("pictures")
        return (pictures is not None and pictures.drawn == runner.iter) or runner.run.loader.ends(runner.iter, 1)

    def write(self, folder: Path) -> None:
        """Writes the page, unless that would take too large a share of the time."""
        started = time.perf_counter()
        if self.spent + self.cost > SHARE * (started - self.began):
            return
        write_page(folder, running=True)
        self.cost = time.perf_counter() - started
        self.spent += self.cost
