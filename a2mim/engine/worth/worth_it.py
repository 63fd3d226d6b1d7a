"""Does pre-training pay on these images? One comparison from the look at the data to the answer.

Invariant: plan.json is written before the first cell, and from then on nothing depends on time: the same folder gives
the same answer, however often it was stopped. Every cell is computed once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from a2mim.data import Access
from a2mim.data.remote.addresses import public_name
from a2mim.engine.report import say
from a2mim.engine.worth.cells import Bench, Stopped, arms_of, network_of
from a2mim.engine.worth.comparison import Comparison
from a2mim.engine.worth.planning import plan_lines, settle_plan
from a2mim.engine.worth.survey import look_at
from a2mim.evaluation.identity import hash_of
from a2mim.files import make_own_folder, open_lock
from a2mim.processes.errors import refuse_several


def worth_it(
    data,
    labels=None,
    sources: list[str] | None = None,
    minutes: float = 30.0,
    seed: int = 0,
    out=None,
    *,
    test_data=None,
    network: str | None = None,
    recipe: str | None = None,
    img_size: int = 64,
    worth: float = 3.0,
    device: str | None = None,
    num_workers: int | None = None,
    access: Access | None = None,
) -> dict:
    """Compares training from scratch, from given weights, and from both pre-trained on these images.

    Args:
        data: images, see `open_dataset`.
        labels: a labelled set of such images, for data without labels; None: the labels of `data`.
        sources: weights to compare with and to pre-train further.
        minutes: how long the whole may take. They become steps once, by a measurement; a folder with a plan keeps it.
        seed: of the first repetition; the others follow.
        out: folder of plan, cells and results; None: runs/worth-it-<what was asked>. A folder that holds the same
            request is gone on with.
        test_data: labelled images to test on; None: the test part of the labelled set, or a part that is split off.
        network: timm's name, where no source names one (default: resnet18).
        recipe: of pre-training, at its laptop scale; None chooses by the network.
        img_size: pixels.
        worth: a gain below so many points counts as none.
        device, num_workers, access: as in `a2mim.pretrain`.

    Returns:
        what results.json holds; {"status": "stopped", "signal": n} where a signal ended it.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything is trained; several processes of a torchrun.
    """
    refuse_several("worth_it")
    if not minutes > 0 or not np.isfinite(minutes):
        raise ValueError(f"minutes={minutes} must be a number above 0, e.g. 30")
    if not worth > 0 or seed < 0 or img_size < 16:
        raise ValueError(f"worth={worth}, seed={seed}, img_size={img_size}: give worth > 0, seed >= 0, img_size >= 16")
    started = time.perf_counter()
    if recipe and not network and not sources:
        network = network_of(recipe)
    arms = arms_of(list(sources or []), network)
    named = {"data": data, "labels": labels, "test_data": test_data}
    asked: dict[str, Any] = {key: None if value is None else public_name(str(value)) for key, value in named.items()}
    asked |= {"with": list(sources or []), "minutes": minutes, "seed": seed, "network": network, "recipe": recipe}
    asked |= {"img_size": img_size, "worth": worth}
    folder = Path(out) if out else Path("runs") / f"worth-it-{hash_of(asked)[:8]}"
    make_own_folder(folder)
    try:
        lock = open_lock(folder / ".lock", wait=False)
    except BlockingIOError:
        raise ValueError(f"another process works in {folder}; wait for it, or choose another --out") from None
    with lock:
        bench = Bench(folder, img_size, device, num_workers, recipe, say)
        say(f"worth-it: does pre-training pay on {asked['data']}? Folder: {folder}")
        survey = look_at(data, labels, folder / "splits", access, say, test_data)
        if survey.train is None:
            arms = [arm for arm in arms if arm.pretrained][-1:]
        try:
            found = settle_plan(bench, survey, arms, asked, started)
            comparison = Comparison(bench, survey, arms, found)
            say(*plan_lines(found, survey), *(f"  note     {note}" for note in survey.notes))
            return comparison.label_free() if survey.train is None else comparison.run()
        except Stopped as stop:
            say(f"stopped; run the same command again to go on in {folder}")
            return {"status": "stopped", "signal": stop.signal}
