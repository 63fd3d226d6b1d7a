"""Does pre-training pay on these images? One comparison from the look at the data to the answer.

Invariant: plan.json is written before the first cell, and from then on nothing depends on time: the same folder gives
the same answer, however often it was stopped. Every cell is computed once.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from a2mim.data import Access
from a2mim.data.remote.addresses import public_name
from a2mim.engine.report import say
from a2mim.engine.report_hook import write_page
from a2mim.engine.worth import answer
from a2mim.engine.worth.answer import cell_name, slug
from a2mim.engine.worth.budget import SEEDS, SHARES, Budget, Measured, Schedule, Work, plan
from a2mim.engine.worth.cells import FINETUNE, PROBE, Arm, Bench, Stopped, arms_of, network_of, recipe_for, source_of
from a2mim.engine.worth.survey import Survey, look_at, part_of
from a2mim.evaluation.evaluate import evaluate
from a2mim.evaluation.identity import hash_of
from a2mim.evaluation.subsets import write_list
from a2mim.files import make_own_folder, open_lock, read_json, write_json, write_text

VERSION = 1
MEASURED_STEPS = 12
BATCH = int(str(FINETUNE["global_batch_size"]))


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
        ValueError, FileNotFoundError: bad input, before anything is trained.
    """
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
        comparison = Comparison(bench, survey, arms, asked)
        try:
            comparison.make_plan(started)
            return comparison.label_free() if survey.train is None else comparison.run()
        except Stopped as stop:
            say(f"stopped; run the same command again to go on in {folder}")
            return {"status": "stopped", "signal": stop.signal}


class Comparison:
    """All cells of one request, and the answer.

    Args:
        bench: where and how cells are computed.
        survey: the data and its splits.
        arms: ways to begin.
        asked: the request, as plan.json keeps it.
    """

    def __init__(self, bench: Bench, survey: Survey, arms: list[Arm], asked: dict):
        self.bench, self.survey, self.asked = bench, survey, asked
        self.arms = arms if survey.train is not None else [arm for arm in arms if arm.pretrained][-1:]
        self.cells: dict[str, dict] = {}

    # --- the plan

    def make_plan(self, started: float) -> None:
        """Takes the folder's plan, or measures, divides the minutes and writes one; prints it.

        Raises:
            ValueError: the folder's plan is of other data or another request.
        """
        path = self.bench.folder / "plan.json"
        identity = {"version": VERSION, "asked": self.asked, "data": self.survey.facts}
        if path.is_file():
            try:
                self.plan = read_json(path)
                kept = {key: self.plan[key] for key in identity}
                self.budget = _budget(self.plan["budget"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} is damaged ({error}); choose another --out") from None
            if kept != json.loads(json.dumps(identity)):
                differ = [key for key in self.asked if kept["asked"].get(key) != self.asked[key]] or ["the data"]
                raise ValueError(
                    f"{self.bench.folder} holds the answer to another request ({', '.join(differ)} differ);"
                    " choose another --out, or repeat that request"
                )
            say(f"  plan     that of {path}")
        else:
            measured = self._measure(started)
            pool, arms = len(self.survey.pool), len(self.arms)
            labelled = {s: len(self.survey.labelled(s, 0)) for s in SHARES} if self.survey.train is not None else {}
            work = Work(arms, sum(arm.pretrained for arm in self.arms), pool, labelled, BATCH)
            self.budget = plan(work, measured, self.asked["minutes"], SEEDS if labelled else (1,))
            recipes = {arm.network: self.bench.recipe or recipe_for(arm.network) for arm in self.arms}
            self.plan = identity | {
                "arms": [asdict(arm) for arm in self.arms],
                "recipes": recipes,
                "finetune": FINETUNE,
                "probe": PROBE,
                "measured_seconds": asdict(measured),
                "budget": asdict(self.budget),
            }
            write_json(path, self.plan)
        if self.budget.finetune:
            self.survey.keep_labels(self.budget.finetune[SHARES[-1]].images)
        self.seeds = [self.asked["seed"] + i for i in range(self.budget.seeds)]
        say(*self._plan_lines(), *(f"  note     {note}" for note in self.survey.notes))

    def _plan_lines(self) -> list[str]:
        budget, measured = self.budget, self.plan["measured_seconds"]
        pre = budget.pretrain
        lines = [
            f"  arms     {'; '.join(arm.name for arm in self.arms)}; seeds {self.seeds[0]}–{self.seeds[-1]}",
            f"  pretrain {pre.steps:,} steps of {pre.batch}: {pre.epochs} epochs over {pre.images:,} images,"
            f" {pre.steps * measured['pretrain_step'] / 60:.1f} minutes each",
        ]
        if self.survey.train is not None:
            each = "; ".join(
                f"{share} = {s.images:,} images, {s.steps:,} steps" for share, s in budget.finetune.items()
            )
            lines += [
                f"  labels   {each}; tested on {self.survey.facts['test_images']:,} images;"
                f" each frozen ({PROBE}) and fine-tuned",
            ]
        late = budget.expected > 1.05 * self.asked["minutes"]
        more = f": more than the {self.asked['minutes']:g} asked for, as fewer steps would tell nothing" if late else ""
        return [*lines, f"  time     about {budget.expected:.0f} minutes in all{more}"]

    def _measure(self, started: float) -> Measured:
        """Seconds of a step and of what is around it, by short runs whose results are thrown away."""
        say("  measuring how long a step takes here")
        place = self.bench.folder / "measuring"
        shutil.rmtree(place, ignore_errors=True)
        bench, arm = Bench(place, *self._how()), next(arm for arm in self.arms if arm.pretrained)
        pool = part_of(self.survey.pool, np.arange(min(len(self.survey.pool), 4 * BATCH)))
        short = _short(len(pool))
        pre = self._timed(bench, "pretrain", short, lambda: bench.pretrain("pretrain", arm, pool, short, 0))
        tuned, probe = (0.0, 0.0), {SHARES[-1]: 0.0}
        if self.survey.train is not None and self.survey.test is not None:
            train, test = self.survey.train, self.survey.test
            few = part_of(train, np.arange(min(len(train), 4 * BATCH)))
            short = _short(len(few))
            tuned = self._timed(
                bench, "finetune", short, lambda: bench.finetune("finetune", arm.network, few, test, short, 0)
            )
            some = self.survey.labelled(SHARES[0], 0)
            clock = time.perf_counter()
            bench.probe("probe", arm.network, some, test, 0)
            first = time.perf_counter() - clock
            larger = (len(train) + len(test)) / (len(some) + len(test))
            probe = {SHARES[0]: first, SHARES[-1]: first * larger}
        shutil.rmtree(place, ignore_errors=True)
        return Measured(pre[0], max(tuned[0], 1e-6), pre[1], tuned[1], probe, time.perf_counter() - started)

    def _how(self) -> tuple:
        b = self.bench
        return b.img_size, b.device, b.num_workers, b.recipe, b.say

    @staticmethod
    def _timed(bench: Bench, name: str, schedule: Schedule, run) -> tuple[float, float]:
        """(seconds a step, seconds beside the steps) of a short run, by its own log."""
        clock = time.perf_counter()
        run()
        whole = time.perf_counter() - clock
        lines = [json.loads(line) for line in (bench.run_folder(name) / "log.jsonl").read_text().splitlines()]
        rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
        step = schedule.batch / max(rates[-1], 1e-9)
        return step, max(0.0, whole - step * schedule.steps)

    # --- the cells

    def run(self) -> dict:
        """All cells, seed by seed, then the answer."""
        curves: dict[str, list[dict]] = {}
        for seed in self.seeds:
            self._write_share(seed)
            for arm in self.arms:
                name = f"seed{seed}-{slug(arm.name)}-pretrain"
                if arm.pretrained:
                    self._pretrain(name, arm, seed)
                source = source_of(arm, self.bench.run_folder(name))
                for share in SHARES:
                    self._judge(arm, source, share, seed)
                if arm.pretrained:
                    if seed == self.seeds[0]:
                        curves[arm.name] = self._curve(name, arm, seed)
                    shutil.rmtree(self.bench.run_folder(name) / "checkpoints", ignore_errors=True)
        return self._answer(curves)

    def _write_share(self, seed: int) -> None:
        """Lists the images that this seed's small share of the labels consists of."""
        few = self.survey.labelled(SHARES[0], seed)
        path = self.bench.folder / "splits" / f"train-{SHARES[0].rstrip('%')}-seed{seed}.tsv"
        write_list(few, np.arange(len(few)), path)

    def _pretrain(self, name: str, arm: Arm, seed: int) -> dict:
        pool, schedule = self.survey.pool, self.budget.pretrain
        if schedule.images < len(pool):
            order = np.argsort(np.random.PCG64(seed).random_raw(len(pool)), kind="stable")
            pool = part_of(pool, np.sort(order[: schedule.images]))

        def compute() -> dict:
            summary = self.bench.pretrain(name, arm, pool, schedule, seed)
            return {"steps": summary["steps"], "loss": summary["loss"], "images": len(pool)}

        self.cells[name] = self.bench.once(name, compute)
        return self.cells[name]

    def _judge(self, arm: Arm, source: str, share: str, seed: int) -> None:
        test, bench = self.survey.test, self.bench
        assert test is not None
        train = self.survey.labelled(share, seed)
        name = cell_name("frozen", arm, share, seed)
        self.cells[name] = bench.once(name, lambda: bench.probe(name, source, train, test, seed))
        tuned = cell_name("finetune", arm, share, seed)
        schedule = self.budget.finetune[share]
        self.cells[tuned] = bench.once(tuned, lambda: bench.finetune(tuned, source, train, test, schedule, seed))

    def _curve(self, name: str, arm: Arm, seed: int) -> list[dict]:
        """Frozen features after parts of the pre-training, with all labels: from what it began with to its end."""
        train, test, bench = self.survey.train, self.survey.test, self.bench
        assert train is not None and test is not None
        before = next(a for a in self.arms if a.name == arm.baseline)
        step = self.plan["measured_seconds"]["pretrain_step"]
        last = self.budget.pretrain.steps
        points = [(0, self.cells[cell_name("frozen", before, SHARES[-1], seed)])]
        # asked of the cells first: a comparison that goes on may have given up the checkpoints
        kept = bench.once(f"{name}-curve", lambda: {"steps": [s for s, _ in bench.checkpoints(name) if s < last]})
        paths = dict(bench.checkpoints(name))
        for steps in kept["steps"]:
            point = f"{name}-{steps}"
            source = str(paths.get(steps, ""))  # given up after the first time, when the cell is there
            points.append((steps, bench.once(point, partial(bench.probe, point, source, train, test, seed))))
        points.append((last, self.cells[cell_name("frozen", arm, SHARES[-1], seed)]))
        return [
            {"steps": steps, "minutes": steps * step / 60, "top1": cell["top1"]}
            | dict(zip(("low", "high"), cell["interval"], strict=True))
            for steps, cell in points
        ]

    # --- the answer

    def _answer(self, curves: dict[str, list[dict]]) -> dict:
        facts, worth = self.survey.facts, self.asked["worth"]
        rows = answer.table(self.cells, self.arms, self.seeds)
        named = {arm.name: arm for arm in self.arms}
        judged = []
        # first the question that was asked: does pre-training here add to the best start there is
        order = sorted((a for a in self.arms if a.baseline), key=lambda a: (not a.pretrained, a.start is None))
        for arm in order:
            before = named[arm.baseline]
            verdict = answer.compare(self.cells, before, arm, self.seeds, facts["commonest"], worth)
            said = answer.sentence(verdict, before, arm, self._minutes(arm), facts, worth)
            judged.append(answer.verdict_facts(verdict, before, arm, said))
        result = {
            "status": "finished",
            "answer": judged[0]["answer"],
            "sentence": judged[0]["sentence"],
            "comparisons": judged,
            "table": rows,
            "curves": curves,
            "plan": self.plan,
        }
        return self._write(result, [*answer.table_lines(rows), "", *(one["sentence"] for one in judged)], curves)

    def _minutes(self, arm: Arm) -> float:
        if not arm.pretrained:
            return 0.0
        return self.budget.pretrain.steps * self.plan["measured_seconds"]["pretrain_step"] / 60

    def label_free(self) -> dict:
        """Without labels: whether the network learned to fill in, and the rank of its features; no answer."""
        lines, rows = [], []
        seed, arm = self.seeds[0], self.arms[0]
        name = f"seed{seed}-{slug(arm.name)}-pretrain"
        loss = self._pretrain(name, arm, seed)["loss"]
        for source, told in ((arm.start or arm.network, "before"), (str(self.bench.run_folder(name)), "after")):
            cell = f"{name}-rank-{told}"
            found = self.bench.once(cell, partial(self._measures, cell, source, seed))
            rows += [{"when": told, **row} for row in found["measures"]]
            lines += [f"  {told:>6}  {row['protocol']}: {row['value']:.2f}" for row in found["measures"]]
        said = _without_labels(loss)
        result = {"status": "finished", "answer": "no labels", "sentence": said, "measures": rows, "plan": self.plan}
        return self._write(result, [*lines, "", said], {})

    def _measures(self, name: str, source: str, seed: int) -> dict[str, list]:
        with self.bench.quiet(name):
            found = evaluate(
                source, ["label-free"], self.survey.pool, img_size=self.bench.img_size, seed=seed,
                device=self.bench.device, num_workers=self.bench.num_workers or 0,
            )  # fmt: skip
        kept = [{"protocol": r["protocol"], "value": r["top1_last"], "interval": list(r["interval"])} for r in found]
        return {"measures": kept}

    def _write(self, result: dict, lines: list[str], curves: dict) -> dict:
        folder = self.bench.folder
        first = next(arm for arm in self.arms if arm.pretrained)
        run = self.bench.run_folder(f"seed{self.seeds[0]}-{slug(first.name)}-pretrain")
        shown = answer.figures(curves, result.get("comparisons", []))
        if shown:
            (run / "analysis").mkdir(exist_ok=True)
            write_json(run / "analysis" / "worth-it.json", {"figures": shown})
        write_json(folder / "results.json", result)
        write_text(folder / "answer.txt", "\n".join(lines) + "\n")
        say(*lines)
        page = write_page(run)
        say(f"  results  {folder / 'results.json'}", *([f"  report   {page}"] if page else []))
        return result


def _without_labels(loss: dict) -> str:
    """What reconstruction alone allows one to say."""
    last, mean = loss["last"], loss["mean_colour"]
    colour, against = "by each image's mean colour", f"(loss {last:.4f} against {mean:.4f})"
    if last < mean:
        can = f"hidden parts are filled in with {100 * (1 - last / mean):.0f} % less error than {colour}"
        can += f" {against}: it learned something about these images, which does not show that this is useful"
    else:
        can = f"hidden parts are not yet filled in better than {colour} {against}: give more --minutes"
    return (
        f"There are no labels, so whether pre-training helps cannot be answered. What can be said: {can}. What would"
        " change this: labels for some hundred images (--labels)."
    )


def _short(images: int) -> Schedule:
    batch = max(1, min(BATCH, images))
    return Schedule(images, batch, max(2, MEASURED_STEPS // (images // batch)))


def _budget(plain: dict) -> Budget:
    finetune = {share: Schedule(**each) for share, each in plain["finetune"].items()}
    return Budget(plain["seeds"], Schedule(**plain["pretrain"]), finetune, plain["expected"])
