"""`a2mim evaluate`, `compare`, `knn` and `linear-probe`: how good the features of a frozen encoder are."""

from __future__ import annotations

import argparse

from a2mim.commands.arguments import (
    DATA_HELP,
    SOURCE_HELP,
    CommaList,
    add_contradictions,
    add_debug,
    add_img_size,
    add_judged,
    add_machine,
    add_reading,
    machine_of,
    one_or_list,
    reading_of,
    size_of,
)
from a2mim.processes.errors import started_as


def add_evaluate(commands) -> None:
    p = commands.add_parser(
        "evaluate",
        help="judge an encoder by protocols, by name",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Judges an encoder by one or more protocols, from one pass over the images.\n\n"
        "  a2mim evaluate RUN DATA\n"
        "  a2mim evaluate RUN --protocol dino-knn,logreg --data TRAIN --test-data TEST --out results\n\n"
        "Without --protocol it takes those that suit the images: with labels, with masks, or with neither. Without\n"
        "--test-data it takes the test part of DATA, or splits one off and writes which images these are.\n"
        "`a2mim evaluate --list` names the protocols; docs/evaluation.md says what they are.",
    )
    p.add_argument("source", nargs="?", help=SOURCE_HELP)
    p.add_argument("words", nargs="*", metavar="DATA", help="the images, as with --data")
    p.add_argument("--list", action="store_true", help="name the protocols and leave")
    p.add_argument(
        "--protocol",
        action=CommaList,
        default=[],
        metavar="NAMES",
        help="names or TOML files, with commas between (default: those that suit the images)",
    )
    p.add_argument(
        "--data",
        nargs="+",
        action="extend",
        help=f"training images: {DATA_HELP}; the folder of davis, copydays; images/ and masks/, or textures, of seg-*",
    )
    p.add_argument("--test-data", nargs="+", action="extend", help="labelled test images")
    p.add_argument("--out", help="folder for results.json and results.csv, which grows")
    p.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="another constant; the result says so",
    )
    add_img_size(p, "the encoder's")
    p.add_argument("--batch-size", type=int, default=64, help="images a forward pass (64)")
    p.add_argument("--seed", type=int, default=0, help="of the weights, where the source is only a name (0)")
    p.add_argument("--allow-partial", action="store_true", help="take weights that are not all of the encoder's")
    add_contradictions(p)
    p.add_argument("--feature-cache", help="folder of cached features (default: ~/.cache/a2mim/features)")
    p.add_argument("--feature-cache-gb", type=float, default=20.0, help="what it may hold; the oldest goes first (20)")
    p.add_argument("--no-feature-cache", action="store_true", help="keep features for this run only")
    add_reading(p)
    add_machine(p, num_workers=0)
    p.set_defaults(run=run_evaluate, several="share")


def add_compare(commands) -> None:
    p = commands.add_parser("compare", help="pair results on the same test images", allow_abbrev=False)
    p.add_argument(
        "results", nargs="+", help="runs, folders that evaluate wrote, or results.json files; the first is the baseline"
    )
    p.add_argument("--protocol", help="only results of this protocol")
    p.add_argument("--anyway", action="store_true", help="also where protocol, constants or training data differ")
    add_debug(p)
    p.set_defaults(run=run_compare)


def add_knn(commands) -> None:
    p = commands.add_parser("knn", help="judge an encoder by DINO's k-NN", allow_abbrev=False)
    add_judged(p)
    p.add_argument("--k", type=int, default=20, help="neighbours (20)")
    p.add_argument("--temperature", type=float, default=0.07, help="of the votes (0.07)")
    p.add_argument("--pooling", default="default", choices=("default", "cls", "avg"), help="default: timm's own")
    p.set_defaults(run=run_knn, several="share")


def add_linear_probe(commands) -> None:
    p = commands.add_parser("linear-probe", help="judge an encoder by a linear classifier", allow_abbrev=False)
    add_judged(p)
    p.add_argument("--protocol", default="dino-linear", choices=("dino-linear", "linear-cached"))
    p.add_argument("--epochs", type=int, default=100, help="(100)")
    p.add_argument(
        "--n-last-blocks", type=int, help="class tokens to join, dino-linear on ViT (default: DINO's choice)"
    )
    p.add_argument("--seed", type=int, default=0, help="of every random number (0)")
    p.set_defaults(run=run_linear_probe, several="share")


def run_evaluate(chosen) -> None:
    from a2mim.protocols import protocol_names, read_protocol

    if chosen.list:
        chosen.result = {name: read_protocol(name).summary for name in protocol_names()}
        for name, summary in chosen.result.items():
            print(f"{name:26} {summary}")
        return
    data = [*chosen.words, *(chosen.data or ())]
    if chosen.source is None or not data:
        raise ValueError("evaluate needs SOURCE and DATA, an encoder and images; --list names the protocols.")
    from a2mim.evaluation.cache import Cache
    from a2mim.evaluation.evaluate import evaluate
    from a2mim.evaluation.table import table

    cache = None if chosen.no_feature_cache else Cache(most_bytes=1e9 * chosen.feature_cache_gb)
    if chosen.feature_cache and cache:
        cache.root = chosen.feature_cache
    results = evaluate(
        chosen.source,
        chosen.protocol or None,
        one_or_list(data),
        one_or_list(chosen.test_data),
        out=chosen.out,
        overrides=_pairs(chosen.set),
        cache=cache,
        img_size=size_of(chosen),
        batch_size=chosen.batch_size,
        reading=reading_of(chosen),
        **machine_of(chosen),
        allow_partial=chosen.allow_partial,
        seed=chosen.seed,
        say=_say,
        allow_contradictions=chosen.allow_contradictions,
    )
    chosen.result = results
    print(results[0]["loaded"])
    print(table(results))
    _print_notes(results)
    if chosen.out:
        print(f"written to {chosen.out}/results.json and results.csv")


def _say(line: str) -> None:
    print(line, flush=True)


def _print_notes(results: list[dict]) -> None:
    for note in dict.fromkeys(result["note"] for result in results if "note" in result):
        print(f"note: {note}")


def run_compare(chosen) -> None:
    from a2mim.evaluation.compare import compare_all
    from a2mim.evaluation.results import read_results

    results = [result for path in chosen.results for result in read_results(path)]
    if chosen.protocol:
        results = [result for result in results if result["protocol"] == chosen.protocol]
    sentences = compare_all(results, chosen.anyway)
    chosen.result = [{"sentence": sentence, **sentence.facts} for sentence in sentences]
    print("\n".join(sentences))


def run_knn(chosen) -> None:
    overrides = {"k": chosen.k, "temperature": chosen.temperature, "pooling": chosen.pooling}
    _judge_one(chosen, "dino-knn", overrides)


def run_linear_probe(chosen) -> None:
    overrides = {"epochs": chosen.epochs, "seed": chosen.seed}
    if chosen.n_last_blocks is not None:
        if chosen.protocol != "dino-linear":
            raise ValueError(f"--n-last-blocks is for dino-linear: leave it out with {chosen.protocol}.")
        overrides["blocks"] = chosen.n_last_blocks
    _judge_one(chosen, chosen.protocol, overrides)


def _judge_one(chosen, protocol: str, overrides: dict) -> None:
    """One protocol without a cache."""
    from a2mim.evaluation.evaluate import evaluate
    from a2mim.evaluation.table import circumstances, table

    (result,) = evaluate(
        chosen.source,
        [protocol],
        one_or_list(chosen.data),
        one_or_list(chosen.test_data),
        overrides=overrides,
        img_size=size_of(chosen),
        batch_size=chosen.batch_size,
        **machine_of(chosen),
        reading=reading_of(chosen),
        say=_say,
        allow_contradictions=chosen.allow_contradictions,
    )
    chosen.result = result
    print(result["loaded"])
    low, high = result["interval"]
    interval = f"95 % interval {low:.2f}–{high:.2f}"
    print(f"{result['protocol']}: top-1 {result['top1']:.2f} % ({interval}), top-5 {result['top5']:.2f} %")
    print(table([result]))
    _print_notes([result])
    print(circumstances(result))
    if chosen.out and not started_as()[0]:
        from a2mim.evaluation.results import pack
        from a2mim.files import write_json

        write_json(chosen.out, result | {"correct": pack(result["correct"])})


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"--set takes KEY=VALUE, got {text!r}.")
        pairs[key] = value
    return pairs
