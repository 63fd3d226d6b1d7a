"""`a2mim check-model`: what is known of a network before it is trained."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from a2mim.commands.arguments import add_debug, add_img_size, size_of


def add_check_model(commands) -> None:
    p = commands.add_parser(
        "check-model", help="where the mask token goes in a network, and proofs", allow_abbrev=False
    )
    p.add_argument("name", help="a timm name, or the dotted path of a network of your own")
    add_img_size(p, "the network's own")
    p.add_argument("--in-chans", type=int, default=3, help="channels of the images (3)")
    p.add_argument("--site", nargs="+", action="extend", help="modules that take the token (default: by rule)")
    p.add_argument("--mask-patch-size", type=int, help="side of a hidden square, pixels (32)")
    p.add_argument(
        "--model-args",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="what else its constructor takes",
    )
    p.add_argument(
        "--methods",
        action="store_true",
        help="try every method that ships with a2mim on it instead, two training steps each",
    )
    add_debug(p)
    p.set_defaults(run=run_check_model)


def run_check_model(chosen) -> int:
    """Prints the certificate, or with --methods a verdict a method; 1 where a method has a fault of ours."""
    from a2mim.check.certificate import certify
    from a2mim.engine.config import parse_options

    size = size_of(chosen)
    model_args = parse_options(chosen.model_args, "--model-args")
    if chosen.methods:
        if chosen.site or chosen.mask_patch_size is not None:
            raise ValueError(
                "--methods chooses site and cells for each method: leave --site and --mask-patch-size out, or --methods"
            )
        chosen.result, status = check_methods(chosen.name, size, chosen.in_chans, model_args)
        return status
    site, patch = chosen.site or "auto", 32 if chosen.mask_patch_size is None else chosen.mask_patch_size
    chosen.result = certify(chosen.name, size, chosen.in_chans, site, mask_patch_size=patch, model_args=model_args)
    print(chosen.result)
    return 0


def check_methods(
    name: str, size: int | tuple[int, int] | None, in_chans: int, model_args: dict
) -> tuple[list[dict[str, Any]], int]:
    """Tries the methods on one network and prints each verdict; returns a dict for each method, and the exit status."""
    from a2mim.check.matrix import describe_tried
    from a2mim.check.methods import group, try_methods
    from a2mim.engine.rows import shipped_rows

    methods = group(shipped_rows())
    tried = try_methods(name, methods, size, in_chans, model_args)
    print(describe_tried(tried, methods))
    rows = {method.name: method.rows for method in methods}
    result = [asdict(one) | {"rows": rows[one.method]} for one in tried]
    return result, int(any(one.verdict == "failed" for one in tried))
