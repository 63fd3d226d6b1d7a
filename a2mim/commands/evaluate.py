"""`a2mim knn` and `a2mim linear-probe`: how good the features of a frozen encoder are."""

from __future__ import annotations

import json

from a2mim.commands.arguments import add_judged, one_or_list


def add_knn(commands) -> None:
    p = commands.add_parser("knn", help="judge an encoder by DINO's k-NN", allow_abbrev=False)
    add_judged(p)
    p.add_argument("--k", type=int, default=20, help="neighbours (20)")
    p.add_argument("--temperature", type=float, default=0.07, help="of the votes (0.07)")
    p.add_argument("--pooling", default="default", choices=("default", "cls", "avg"), help="default: timm's own")
    p.set_defaults(run=run_knn)


def add_linear_probe(commands) -> None:
    p = commands.add_parser("linear-probe", help="judge an encoder by a linear classifier", allow_abbrev=False)
    add_judged(p)
    p.add_argument("--protocol", default="dino-linear", choices=("dino-linear", "linear-cached"))
    p.add_argument("--epochs", type=int, default=100, help="(100)")
    p.add_argument(
        "--n-last-blocks", type=int, help="class tokens to join, dino-linear on ViT (default: DINO's choice)"
    )
    p.add_argument("--seed", type=int, default=0, help="of every random number (0)")
    p.set_defaults(run=run_linear_probe)


def bench(chosen):
    from a2mim.evaluation.bench import Bench

    return Bench(
        chosen.source,
        one_or_list(chosen.data),
        one_or_list(chosen.test_data),
        device=chosen.device,
        img_size=chosen.img_size,
        batch_size=chosen.batch_size,
        num_workers=chosen.num_workers,
    )


def run_knn(chosen) -> None:
    from a2mim.evaluation import bench as benches

    show(benches.run_knn(bench(chosen), chosen.k, chosen.temperature, chosen.pooling), chosen.out)


def run_linear_probe(chosen) -> None:
    from a2mim.evaluation import bench as benches

    found = benches.run_linear(bench(chosen), chosen.protocol, chosen.epochs, chosen.n_last_blocks, chosen.seed)
    show(found, chosen.out)


def show(result: dict, out: str | None) -> None:
    """The number first, then every constant that decides it."""
    low, high = result["interval"]
    interval = f"95 % interval {low:.2f}–{high:.2f}"
    print(f"{result['protocol']}: top-1 {result['top1']:.2f} % ({interval}), top-5 {result['top5']:.2f} %")
    rest = {key: value for key, value in result.items() if key not in ("protocol", "top1", "top5", "interval")}
    print(", ".join(f"{key} {value}" for key, value in rest.items()))
    if out:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
