"""`a2mim pretrain`: a recipe becomes an encoder."""

from __future__ import annotations

from a2mim.commands.arguments import DATA_HELP, SOURCE_HELP, access_of, add_machine, one_or_list


def add_pretrain(commands) -> None:
    p = commands.add_parser("pretrain", help="pre-train an encoder from a recipe", allow_abbrev=False)
    p.add_argument("config", help="a recipe, e.g. configs/a2mim_xcit.py")
    p.add_argument(
        "--data", nargs="+", action="extend", help=f"{DATA_HELP}; none: laptop scale, on built-in photographs"
    )
    p.add_argument(
        "--test-data", nargs="+", action="extend", help="labelled images to judge the encoder on, before and after"
    )
    p.add_argument("--laptop", action="store_true", default=None, help="the recipe's laptop scale, also with --data")
    p.add_argument("--init-from", metavar="SOURCE", help=f"weights that the encoder starts from: {SOURCE_HELP}")
    p.add_argument("--allow-partial", action="store_true", help="start also from a file that lacks some of them")
    p.add_argument("--work-dir", help="the run's folder (default: the first free runs/<recipe>)")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    p.add_argument(
        "--next-epoch", action="store_true", help="with --resume: where the data changed, start the next epoch with it"
    )
    p.add_argument(
        "--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="settings to change, dotted"
    )
    p.add_argument("--seed", type=int, help="of every random number (default: the recipe's)")
    add_machine(p, num_workers=None)
    p.set_defaults(run=run_pretrain)


def run_pretrain(chosen) -> int:
    from a2mim.engine.config import load_config, parse_options

    options = parse_options(chosen.cfg_options)
    if chosen.seed is not None:
        options["seed"] = chosen.seed
    if chosen.init_from is not None:
        options["init_from"] = chosen.init_from
    if chosen.allow_partial:
        options["allow_partial"] = True
    if not chosen.resume:  # mistakes are answered before torch is imported
        load_config(chosen.config, options, chosen.laptop or chosen.data is None)

    from a2mim.engine.run import pretrain

    summary = pretrain(
        chosen.config,
        one_or_list(chosen.data),
        chosen.work_dir,
        test_data=one_or_list(chosen.test_data),
        laptop=chosen.laptop,
        resume=chosen.resume,
        next_epoch=chosen.next_epoch,
        num_workers=chosen.num_workers,
        device=chosen.device,
        access=access_of(chosen),
        **options,
    )
    return 128 + summary["signal"] if summary["status"] == "stopped" else 0
