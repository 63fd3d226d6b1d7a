"""Every cell of a planned comparison, seed by seed, and the answer that is made of them."""

from __future__ import annotations

from functools import partial

import numpy as np

from a2mim.engine.report import say
from a2mim.engine.report_hook import write_page
from a2mim.engine.worth import answer
from a2mim.engine.worth.answer import cell_name, slug
from a2mim.engine.worth.budget import SHARES, Budget
from a2mim.engine.worth.cells import Arm, Bench, curve_steps, source_of
from a2mim.engine.worth.planning import time_line, time_taken
from a2mim.engine.worth.survey import Survey, part_of
from a2mim.evaluation.evaluate import evaluate
from a2mim.evaluation.subsets import draw_subset, write_list
from a2mim.files import write_json, write_text


class Comparison:
    """All cells of one request, and the answer.

    Args:
        bench: where and how cells are computed.
        survey: the data and its splits; its labelled images are cut to the plan's number.
        arms: ways to begin.
        plan: what `settle_plan` returned.
    """

    def __init__(self, bench: Bench, survey: Survey, arms: list[Arm], plan: dict):
        self.bench, self.survey, self.arms, self.plan = bench, survey, arms, plan
        self.budget = Budget.of(plan["budget"])
        self.seeds = [plan["asked"]["seed"] + i for i in range(self.budget.seeds)]
        self.cells: dict[str, dict] = {}
        if self.budget.finetune:
            survey.keep_labels(self.budget.finetune[SHARES[-1]].images)

    # --- the cells

    def run(self) -> dict:
        """All cells, seed by seed, then the answer."""
        curves: dict[str, list[dict]] = {}
        for seed in self.seeds:
            self._write_share(seed)
            for arm in self.arms:
                name = run_name(arm, seed)
                if arm.pretrained:
                    self._pretrain(arm, seed)
                source = source_of(arm, self.bench.run_folder(name))
                for share in SHARES:
                    self._judge(arm, source, share, seed)
                if arm.pretrained:
                    if seed == self.seeds[0]:
                        curves[arm.name] = self._curve(arm, seed)
                    self.bench.give_up_checkpoints(name, keep_newest=seed == self.seeds[0])
        return self._answer(curves)

    def _write_share(self, seed: int) -> None:
        """Lists the images that this seed's small share of the labels consists of."""
        few = self.survey.labelled(SHARES[0], seed)
        path = self.bench.folder / "splits" / f"train-{SHARES[0].rstrip('%')}-seed{seed}.tsv"
        write_list(few, np.arange(len(few)), path)

    def _pretrain(self, arm: Arm, seed: int) -> dict:
        """The cell of a pre-training; anew where its weights are gone and a cell that needs them is missing."""
        name, bench = run_name(arm, seed), self.bench
        pool, schedule = self.survey.pool, self.budget.pretrain
        if schedule.images < len(pool):
            pool = part_of(pool, draw_subset(np.zeros(len(pool), np.int64), schedule.images, seed))
        needing = [cell_name(mode, arm, share, seed) for mode in answer.MODES for share in SHARES]
        if bench.has(name) and not bench.checkpoints(name) and not all(map(bench.has, needing)):
            bench.forget(name)

        def compute() -> dict:
            summary = bench.pretrain(name, arm, pool, schedule, seed, curve=seed == self.seeds[0])
            return {"steps": summary["steps"], "loss": summary["loss"], "images": len(pool)}

        self.cells[name] = bench.once(name, "pretrain", compute)
        return self.cells[name]

    def _judge(self, arm: Arm, source: str, share: str, seed: int) -> None:
        test, bench = self.survey.test, self.bench
        assert test is not None
        train, schedule = self.survey.labelled(share, seed), self.budget.finetune[share]
        name = cell_name("frozen", arm, share, seed)
        self.cells[name] = bench.judge_frozen(name, source, train, test, seed)
        tuned = cell_name("finetune", arm, share, seed)
        self.cells[tuned] = bench.once(
            tuned, "finetune", lambda: bench.finetune(tuned, source, train, test, schedule, seed)
        )

    def _curve(self, arm: Arm, seed: int) -> list[dict]:
        """Frozen features after parts of the pre-training, with all labels: from what it began with to its end."""
        train, test, bench, name = self.survey.train, self.survey.test, self.bench, run_name(arm, seed)
        assert train is not None and test is not None
        before = next(a for a in self.arms if a.name == arm.baseline)
        step = self.plan["measured_seconds"]["pretrain_step"]
        points = [(0, self.cells[cell_name("frozen", before, SHARES[-1], seed)])]
        paths = dict(bench.checkpoints(name))
        for steps in curve_steps(self.budget.pretrain):
            point = f"{name}-{steps}"
            if bench.has(point) or steps in paths:  # checkpoints are given up once the cells are there
                source = str(paths.get(steps, ""))
                self.cells[point] = bench.judge_frozen(point, source, train, test, seed, "curve")
                points.append((steps, self.cells[point]))
        points.append((self.budget.pretrain.steps, self.cells[cell_name("frozen", arm, SHARES[-1], seed)]))
        return [
            {"steps": steps, "minutes": steps * step / 60, "top1": cell["top1"]}
            | dict(zip(("low", "high"), cell["interval"], strict=True))
            for steps, cell in points
        ]

    # --- the answer

    def _answer(self, curves: dict[str, list[dict]]) -> dict:
        facts, worth = self.survey.facts, self.plan["asked"]["worth"]
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
            "time": time_taken(self.plan, self.cells),
            "plan": self.plan,
        }
        lines = [*answer.table_lines(rows), time_line(result["time"]), "", *(one["sentence"] for one in judged)]
        return self._write(result, lines, curves)

    def _minutes(self, arm: Arm) -> float:
        if not arm.pretrained:
            return 0.0
        return self.budget.pretrain.steps * self.plan["measured_seconds"]["pretrain_step"] / 60

    def label_free(self) -> dict:
        """Without labels: whether the network learned to fill in, and the rank of its features; no answer."""
        lines, rows = [], []
        seed, arm = self.seeds[0], self.arms[0]
        name = run_name(arm, seed)
        loss = self._pretrain(arm, seed)["loss"]
        for source, told in ((arm.start or arm.network, "before"), (str(self.bench.run_folder(name)), "after")):
            cell = f"{name}-rank-{told}"
            found = self.bench.once(cell, "frozen", partial(self._measures, cell, source, seed))
            rows += [{"when": told, **row} for row in found["measures"]]
            lines += [f"  {told:>6}  {row['protocol']}: {row['value']:.2f}" for row in found["measures"]]
            note = found["note"]
        said = _without_labels(loss)
        result = {"status": "finished", "answer": "no labels", "sentence": said, "measures": rows, "plan": self.plan}
        return self._write(result, [*lines, f"  note     {note}", "", said], {})

    def _measures(self, name: str, source: str, seed: int) -> dict[str, list]:
        with self.bench.quiet(name):
            found = evaluate(
                source, ["label-free"], self.survey.pool, img_size=self.bench.img_size, seed=seed,
                device=self.bench.device, num_workers=self.bench.num_workers or 0,
            )  # fmt: skip
        kept = [
            {"protocol": r["protocol"], "value": r["top1_last"], "interval": list(r["interval"])}
            | {"images": r["n_test"], "channels": r["channels"]}
            for r in found
        ]
        return {"measures": kept, "note": found[0]["note"]}

    def _write(self, result: dict, lines: list[str], curves: dict) -> dict:
        folder = self.bench.folder
        first = next(arm for arm in self.arms if arm.pretrained)
        run = self.bench.run_folder(run_name(first, self.seeds[0]))
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


def run_name(arm: Arm, seed: int) -> str:
    """The name of a pre-training: of its cell, and of its folder."""
    return f"seed{seed}-{slug(arm.name)}-pretrain"


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
