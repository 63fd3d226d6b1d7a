"""The texts of a run: its first lines, its summary, its last lines."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmengine.dist import is_main_process

import a2mim
from a2mim.compat import torchvision_needs_mending
from a2mim.data.decode import LENIENT, REDUCED
from a2mim.data.faults import Faults
from a2mim.data.request import public_request
from a2mim.engine.facts import data_facts, run_facts
from a2mim.engine.hooks import LogHook, faults_of_all
from a2mim.engine.loggers import destinations
from a2mim.text import one_line

FEW_STEPS = 300  # a pre-training of fewer teaches little


def say(*lines: str) -> None:
    """Prints on the first process. A reader that has gone away (`| head`) never ends a run."""
    if not is_main_process():
        return
    try:
        print("\n".join(map(one_line, lines)), flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process


def announce(run) -> None:
    """The first lines: what runs, on what, and how to run it as written."""
    settings, task = run.settings, run.task
    scale = " at laptop scale" if run.request.laptop else ""
    lines = [f"a2mim {a2mim.__version__}: {run.request.name}{scale}, on {run.device}"]
    if run.request.data is None:
        lines += [
            "  no --data given: this is the recipe's laptop scale on built-in photographs, not the recipe as written;",
            "  for that, add --data FOLDER or --data 'shards-{000000..000099}.tar'",
        ]
    epochs, batch = settings.schedule.epochs, settings.global_batch_size
    lines += [
        f"  data     {task.train_set.describe()}",
        *task.opening(),
        f"  plan     {epochs} epochs = {run.max_steps} steps of {batch} images{left_out(run.loader.left_out)}",
    ]
    say(*lines, *_too_short(run), *destinations(settings.log, f"{run.folder or 'runs/' + run.request.name}/logs"))


def _too_short(run) -> list[str]:
    """A line for a pre-training of so few steps that its verdict would say nothing; the number of epochs that helps."""
    if run.task.command != "pretrain" or run.max_steps >= FEW_STEPS:
        return []
    epochs = math.ceil(run.settings.schedule.epochs * FEW_STEPS / run.max_steps)
    return [
        f"  short    {run.max_steps} steps teach little: with few images take more epochs, such as --cfg-options"
        f" schedule.epochs={epochs}"
    ]


def left_out(images: int) -> str:
    """What the announcement says of images that fill no batch."""
    return f"; each epoch leaves {images} out, others each time" if images else ""


def describe_run(runner, started: float) -> dict:
    """The part of summary.json that every run has."""
    run, task, log = runner.run, runner.run.task, runner.hook("log", LogHook)
    first, last = log.first or {}, log.last
    facts, faults = task.facts(last), Faults(faults_of_all(runner))
    return {
        "asked": public_request(run.request.given()),
        "changes": run.changes,
        "steps": runner.iter,
        "of_steps": runner.max_iters,
        "seconds": round(time.time() - started, 1),
        "loss": {"first": first.get("loss"), "last": last.get("loss"), **facts.pop("loss", {})},
        "images_per_second": last.get("images_per_second"),
        "data": {
            **data_facts(run),
            "unreadable": dict(faults.unreadable),
            "damaged_but_decoded": faults[LENIENT],
            "reduced_to_8_bits": faults[REDUCED],
            "first_unreadable": run.loader.faults.names,
            "duplicates": task.train_set.duplicates,
            "incomplete": task.train_set.incomplete,
            "skipped_shards": list(task.train_set.skipped),
        },
        **facts,
        **run_facts(run, runner.world_size),
    }


def report(summary: dict, runner, page: Path | None) -> None:
    """The last lines on the screen; the page comes first."""
    folder = runner.run.folder
    if summary["status"] == "stopped":
        say(*stopped_lines(summary, runner.run.task.command, folder, page))
    else:
        taken = f"finished {summary['steps']} steps in {summary['seconds']:.0f} s"
        say(taken, *damage_lines(summary["data"]), *page_line(page), *runner.run.task.closing(summary, folder))


def damage_lines(data: dict) -> list[str]:
    """A line on images that could not be read, by what summary.json says of the data; no line if all could."""
    lost = sum(data["unreadable"].values())
    if not lost:
        return []
    first = "; ".join(data["first_unreadable"])
    return [f"  warning  {lost:,} reads of unreadable images were replaced by other images; the first: {first}"]


def page_line(page: Path | None) -> list[str]:
    """A line with the path of the page, or no line if it was not written."""
    return [] if page is None else [f"  report   {page}"]


def stopped_lines(summary: dict, command: str, folder: Path, page: Path | None = None) -> list[str]:
    return [
        f"stopped by a signal after step {summary['steps']} of {summary['of_steps']}, saved in {summary['checkpoint']}",
        *page_line(page),
        f"go on with: {again(command, summary['asked']['config'], folder)}",
    ]


def again(command: str, config: str, folder: Path) -> str:
    """The command line that goes on with a run, with as many processes as now."""
    recipe = ["--recipe", config] if command == "refine" else [config]  # where others have it, refine has its source
    words = [*command_line(command, alone=False), *recipe, "--work-dir", str(folder), "--resume"]
    if int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1:
        return f"the torchrun of this run on every node, with the last words {shlex.join(words[-len(recipe) - 3 :])}"
    return shlex.join(words)


PROBES = (("linear probe", "linear"), ("attentive probe", "attentive"), ("k-NN", "knn"))  # name, key of the result


def probes(*results: dict) -> list[tuple[str, str]]:
    """(name, key) of the probes that all these results have: a network without a map has no attentive one."""
    return [(name, key) for name, key in PROBES if all(key in result for result in results)]


def command_line(command: str, alone: bool = True) -> list[str]:
    """The first words of a command as the user typed this one: a script in tools/, the module, or `a2mim`.

    Args:
        alone: for one process; otherwise under torchrun, where this process is.
    """
    program, python, torchrun = Path(sys.argv[0]), ["python"], []
    if not alone and "TORCHELASTIC_RUN_ID" in os.environ:
        torchrun = ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]
        python = []
    if program.parent.name == "tools" and program.with_name("pretrain.py").is_file():
        return [*torchrun, *python, str(program.with_name(f"{command.replace('-', '_')}.py"))]
    if program.name == "cli.py" and program.parent.name == "a2mim":
        return [*torchrun, *python, "-m", "a2mim.cli", command]
    return [*torchrun, *(["--no-python"] if torchrun else []), "a2mim", command]


def timm_lines(folder: Path, classes: int | None = None) -> list[str]:
    """Lines of Python that load a folder in this environment, and a word where plain timm cannot be imported in it.

    Args:
        classes: of a new classifier; None: the folder's own.
    """
    new = "" if classes is None else f", num_classes={classes}"
    mended = torchvision_needs_mending()
    modules, name = "a2mim, timm" if mended else "timm", f"local-dir:{folder}"
    lines = [f"  import {modules}; timm.create_model({name!r}, pretrained=True{new})"]
    if mended:
        lines.append(
            "  (plain `import timm` fails in this environment: its torchvision was built for another torch. Import"
            " a2mim first, as above, or install the matching torchvision: docs/install.md)"
        )
    return lines


def judging_lines(summary: dict, source: str, protocols: Sequence[str]) -> list[str]:
    """The commands that judge a run's encoder on its data. Without test images it is `evaluate`, which splits some off.

    Args:
        source: as commands name the encoder.
        protocols: the commands that a run with test images is told of.
    """
    asked = summary["asked"]
    data = words("photos" if asked["data"] is None else asked["data"])
    if not summary["judged"] and not asked["test_data"]:
        return ["  " + shlex.join([*command_line("evaluate"), source, *data])]
    sets = ["--data", *data, "--test-data", *(words(asked["test_data"]) if asked["test_data"] else data)]
    return ["  " + shlex.join([*command_line(name), source, *sets]) for name in protocols]


def sentence(results: dict) -> str:
    """Every probe with its 95 % interval."""
    return ", ".join(
        f"{name} {results[key]['top1']:.1f} % ({results[key]['interval'][0]:.1f}–{results[key]['interval'][1]:.1f})"
        for name, key in probes(results)
    )


def words(source) -> list[str]:
    """A source as the command line takes it."""
    return [str(part) for part in source] if isinstance(source, list | tuple) else [str(source)]
