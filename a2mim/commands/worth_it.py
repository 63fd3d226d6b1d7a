"""`a2mim worth-it`: does pre-training pay on these images?"""

from __future__ import annotations

from a2mim.commands.arguments import DATA_HELP, SOURCE_HELP, add_machine, exit_status, machine_of, one_or_list


def add_worth_it(commands) -> None:
    p = commands.add_parser(
        "worth-it",
        help="measure whether pre-training helps on your images, and answer in one sentence",
        allow_abbrev=False,
    )
    p.add_argument("data", nargs="+", metavar="DATA", help=DATA_HELP)
    p.add_argument(
        "--labels", help="a labelled set of such images, e.g. a list of lines 'path label' (default: DATA's)"
    )
    p.add_argument(
        "--with", dest="sources", nargs="+", action="extend", default=[], metavar="SOURCE",
        help=f"weights to compare with and to pre-train further: {SOURCE_HELP.rpartition(', or')[0]}",
    )  # fmt: skip
    p.add_argument(
        "--test-data", nargs="+", action="extend", help="labelled images to test on (default: a test/ there, or a part)"
    )
    p.add_argument("--minutes", type=float, default=30.0, help="how long the whole may take (30)")
    p.add_argument("--seed", type=int, default=0, help="of the first repetition (0)")
    p.add_argument("--out", metavar="DIR", help="plan, cells, results; given again, it goes on there")
    p.add_argument("--network", help="timm's name, where no SOURCE names one (resnet18)")
    p.add_argument("--recipe", help="of pre-training, at its laptop scale (default: by the network)")
    p.add_argument("--img-size", type=int, default=64, help="pixels (64)")
    p.add_argument("--worth", type=float, default=3.0, metavar="POINTS", help="a smaller gain counts as none (3)")
    add_machine(p, num_workers=None)
    p.set_defaults(run=run_worth_it)


def run_worth_it(chosen) -> int:
    from a2mim.engine.worth.worth_it import worth_it

    result = worth_it(
        one_or_list(chosen.data),
        chosen.labels,
        chosen.sources,
        chosen.minutes,
        chosen.seed,
        chosen.out,
        test_data=one_or_list(chosen.test_data),
        network=chosen.network,
        recipe=chosen.recipe,
        img_size=chosen.img_size,
        worth=chosen.worth,
        **machine_of(chosen),
    )
    chosen.result = result
    return exit_status(result)
