"""What methods bring at equal cost: rows x networks x seeds, each trained for as many core-minutes, frozen, and judged.

python benchmarks/rows.py --out runs/rows [--data TRAIN --test-data TEST] [--minutes 6] [--seeds 0 1 2]
    [--rows a2mim mae hog distill] [--networks xcit_nano_12_p16_224 resnet18 vit_tiny_patch16_224]
    [--label-fraction 0.1] [--table]

Each cell is one run of `a2mim pretrain`. Its recipe is the row at laptop scale on the network; its epochs are as many
as fit into the minutes, from the processor time of a few steps measured first. Untrained and trained network are
calibrated and judged alike: k-NN, linear and attentive probe with 95 % intervals, paired differences. With
--label-fraction both are also fine-tuned on that share of the labels, by `small-data` at 64 px. Finished cells are
lines of OUT/rows.jsonl and are not run again, so a stopped table goes on, and finished cells are fine-tuned when
--label-fraction is given later. --table prints what there is, and the means over seeds.
"""

import argparse
import itertools
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

import a2mim
from a2mim.engine.assembly import build_mim
from a2mim.engine.config import load_config
from a2mim.evaluation.results import read_results, unpack
from a2mim.protocols.intervals import difference

NETWORKS = ["xcit_nano_12_p16_224", "resnet18", "vit_tiny_patch16_224"]
# row -> kind of network -> the recipe whose laptop scale is run
ROWS = {
    "a2mim": {"xcit": "a2mim_xcit", "resnet": "a2mim_resnet18", "vit": "a2mim_vit_small"},
    "mae": {"xcit": "simmim_vit_base", "resnet": "spark_resnet50", "vit": "mae_vit_small"},
    "hog": {"xcit": "fastmim_xcit_small", "resnet": "fastmim_resnet50", "vit": "maskfeat_vit_base"},
    "distill": {"xcit": "distill_xcit_small", "resnet": "distill_resnet50", "vit": "distill_xcit_small"},
}
NAMES = {  # as a run's differences have them
    "knn": "k-NN",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "finetuned": "fine-tuned",
}
PROBES = ("knn", "linear", "attentive")
WARM, TIMED = 2, 4  # steps
TUNED_SIDE = 64  # pixels, for every row: the rows of a network share the untrained network's result


def recipe_of(row: str, network: str) -> tuple[str, dict]:
    """(the recipe's name, options that put it on the network)."""
    kind = next(kind for kind in ("xcit", "resnet", "vit") if network.startswith(kind))
    options = {"model.encoder.name": network}
    if (row, kind) == ("mae", "xcit"):  # it has no sequence to leave patches out of: SimMIM, with the mean as fill
        options |= {"model.encoder.site": "auto", "model.fill": "mean"}
    return ROWS[row][kind], options


def step_seconds(recipe: str, options: dict) -> tuple[float, int]:
    """(processor seconds of a training step, images of a step)."""
    settings = load_config(recipe, options, laptop=True)
    model = build_mim(settings).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch, side = settings.global_batch_size, settings.data.img_size
    images = torch.randint(0, 256, (batch, settings.data.in_chans, side, side), dtype=torch.uint8)
    for step in range(WARM + TIMED):
        if step == WARM:
            started = time.process_time()
        sum(model(images, generator=torch.Generator().manual_seed(step)).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - started) / TIMED, batch


def run_cell(row: str, network: str, seed: int, chosen) -> dict:
    """Trains and judges one cell; its line of rows.jsonl."""
    recipe, options = recipe_of(row, network)
    seconds, batch = step_seconds(recipe, options)
    images = len(a2mim.open_dataset(chosen.data, "train"))
    epochs = max(1, round(60 * chosen.minutes / (seconds * (images // batch))))
    folder = chosen.out / f"{row}-{network}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    options |= {"seed": seed, "schedule.epochs": epochs, "schedule.warmup_epochs": 0.1 * epochs}
    options |= {"judge.every_epochs": None, "export": [], "checkpoint.keep": 1, "schedule.decay_epochs": []}
    if load_config(recipe, {}, laptop=True).schedule.type == "step":
        options |= {"schedule.type": "cosine"}
    started = time.process_time()
    summary = a2mim.pretrain(
        recipe, chosen.data, folder, test_data=chosen.test_data, laptop=True, num_workers=0, device="cpu", **options
    )
    if "judged" not in summary:
        raise SystemExit(f"{folder} was stopped; the same command trains this cell anew")
    judged = summary["judged"]
    line = {"row": row, "network": network, "seed": seed, "recipe": recipe, "epochs": epochs}
    line |= {"minutes": chosen.minutes, "seconds": round(time.process_time() - started, 1), "data": str(chosen.data)}
    line |= {"loss": [summary["loss"]["first"], summary["loss"]["last"], summary["loss"]["baseline"]]}
    for when in ("before", "after"):
        line[when] = {probe: round(judged[when][probe]["top1"], 2) for probe in PROBES if probe in judged[when]}
    line["differences"] = judged["differences"]
    return line


def tune_cell(line: dict, chosen) -> dict:
    """A finished cell's line, with the run and the untrained network fine-tuned on a share of the labels."""
    run = chosen.out / f"{line['row']}-{line['network']}-{line['seed']}"
    scratch, tuned = (fine_tuned(line["network"], source, line["seed"], chosen) for source in (None, run))
    answers = [unpack(result["correct"]) == 1 for result in (scratch, tuned)]
    return line | {
        "label_fraction": chosen.label_fraction,
        "before": line["before"] | {"finetuned": scratch["top1_last"]},
        "after": line["after"] | {"finetuned": tuned["top1_last"]},
        "differences": [*line["differences"], asdict(difference(NAMES["finetuned"], *answers))],
    }


def fine_tuned(network: str, run: Path | None, seed: int, chosen) -> dict:
    """The result of fine-tuning a run's encoder, or the untrained network, on a share of the labels."""
    folder = run / "finetuned" if run else chosen.out / f"scratch-{network}-{seed}"
    if not (folder / "results.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        options = {"seed": seed, "labels.subset": f"{100 * chosen.label_fraction:g}%", "labels.seed": seed}
        options |= {"data.img_size": TUNED_SIDE, "data.test_size": TUNED_SIDE}
        options |= {"evaluate.every_epochs": 1000, "log.report": False}  # judged once, at the end
        a2mim.finetune(
            "finetune/small_data",
            run or network,
            chosen.data,
            folder,
            test_data=chosen.test_data,
            laptop=True,
            num_workers=0,
            device="cpu",
            **options,
        )
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return read_results(folder)[-1]


def finished(path: Path) -> dict[tuple, dict]:
    """The lines of rows.jsonl by their cell. A later line of a cell takes the place of an earlier one."""
    lines = [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []
    return {(line["row"], line["network"], line["seed"], line["minutes"], line["data"]): line for line in lines}


def write(line: dict, path: Path) -> None:
    """Appends a line to rows.jsonl."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def table(path: Path) -> str:
    """The cells that there are, as a Markdown table."""
    lines = finished(path).values()
    rows = [f"| row | network | seed | epochs | {' | '.join(NAMES.values())} |", "|---|---|---|---|---|---|---|---|"]
    for line in lines:
        changes = {change["name"]: change for change in line["differences"]}
        cells = []
        for probe, name in NAMES.items():
            change = changes.get(name)
            if change is None:
                cells.append("–")
                continue
            spread = f"({change['low']:+.1f} to {change['high']:+.1f})"
            cells.append(f"{line['before'][probe]:.1f} → {line['after'][probe]:.1f} {spread}")
        about = (
            f"`{line['recipe']}`" if line["recipe"].startswith(line["row"]) else f"{line['row']}, `{line['recipe']}`"
        )
        rows.append(f"| {about} | {line['network']} | {line['seed']} | {line['epochs']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def over_seeds(path: Path) -> str:
    """The means over seeds of the cells that there are, as a Markdown table; ± is the 95 % interval over seeds (t)."""
    groups: dict[tuple, list[dict]] = {}
    for line in finished(path).values():
        groups.setdefault((line["network"], line["row"], line["recipe"]), []).append(line)
    rows = [f"| network | row | seeds | {' | '.join(NAMES.values())} |", "|---|---|---|---|---|---|---|"]
    for (network, row, recipe), lines in sorted(groups.items()):
        cells = []
        for probe in NAMES:
            pairs = [(one["before"][probe], one["after"][probe]) for one in lines if probe in one["after"]]
            if len(pairs) < 2:
                cells.append("–")
                continue
            before, after = np.array(pairs).T
            half = student.ppf(0.975, len(pairs) - 1) * np.std(after - before, ddof=1) / len(pairs) ** 0.5
            gain = f"{np.mean(after - before):+.1f} ± {half:.1f}"
            cells.append(f"{np.mean(before):.1f} → {np.mean(after):.1f} ({gain})")
        rows.append(f"| {network} | {row}, `{recipe}` | {len(lines)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rows"))
    parser.add_argument("--data", default="photos")
    parser.add_argument("--test-data", help="labelled images (default: the test split of --data)")
    parser.add_argument("--minutes", type=float, default=6.0, help="processor minutes of training a cell (6)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--label-fraction", type=float, help="also fine-tune on this share of the labels, e.g. 0.1")
    parser.add_argument("--table", action="store_true", help="run nothing, print the table")
    chosen = parser.parse_args()
    path = chosen.out / "rows.jsonl"
    if chosen.table:
        print(table(path), over_seeds(path), sep="\n\n")
        return
    torch.set_num_threads(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for seed, network, row in itertools.product(chosen.seeds, chosen.networks, chosen.rows):
        line = finished(path).get((row, network, seed, chosen.minutes, str(chosen.data)))
        if line is None:
            line = run_cell(row, network, seed, chosen)
            write(line, path)
        if chosen.label_fraction and "finetuned" not in line["after"]:
            write(tune_cell(line, chosen), path)
    print(table(path), over_seeds(path), sep="\n\n")


if __name__ == "__main__":
    main()
