"""`a2mim embed`: the embeddings of images, as a file."""

from __future__ import annotations

from a2mim.commands.arguments import (
    DATA_HELP,
    SOURCE_HELP,
    add_img_size,
    add_machine,
    add_reading,
    machine_of,
    one_or_list,
    reading_of,
    size_of,
)


def add_embed(commands) -> None:
    p = commands.add_parser("embed", help="write the embeddings of images to a file", allow_abbrev=False)
    p.add_argument("source", help=SOURCE_HELP)
    p.add_argument("data", nargs="+", help=DATA_HELP)
    p.add_argument("--out", required=True, help="file to write: *.parquet, *.npz or *.csv")
    p.add_argument("--pooling", default="default", choices=("default", "cls", "avg"), help="default: timm's own")
    p.add_argument("--split", default="train", choices=("train", "test"), help="of a source that has both (train)")
    add_img_size(p, "the encoder's")
    p.add_argument("--batch-size", type=int, default=64, help="images a forward pass (64)")
    p.add_argument("--no-calibrate", action="store_true", help="leave BatchNorm's statistics as the encoder has them")
    p.add_argument("--allow-partial", action="store_true", help="take weights that are not all of the encoder's")
    p.add_argument("--overwrite", action="store_true", help="give up a file, or unfinished work, that is there")
    add_reading(p)
    add_machine(p, num_workers=0)
    p.set_defaults(run=run_embed, several="share")


def run_embed(chosen) -> None:
    from a2mim.embedding import embed

    chosen.result = about = embed(
        chosen.source,
        one_or_list(chosen.data),
        chosen.out,
        pooling=chosen.pooling,
        split=chosen.split,
        img_size=size_of(chosen),
        batch_size=chosen.batch_size,
        calibrate=False if chosen.no_calibrate else None,
        allow_partial=chosen.allow_partial,
        overwrite=chosen.overwrite,
        reading=reading_of(chosen),
        **machine_of(chosen),
    )
    print(
        f"{chosen.out}: {about['images']:,} embeddings of {about['width']} numbers ({about['pooled']}), {about['data']}"
    )
    if about["batchnorm_calibrated_on"]:
        print(f"  BatchNorm's statistics were taken from {about['batchnorm_calibrated_on']:,} of these images first")
    if about["unreadable"]:
        first = "; ".join(f"{row['key']} ({row['reason']})" for row in about["unreadable"][:3])
        print(
            f"  {len(about['unreadable'])} could not be read and have an empty row, all in {chosen.out}.json: {first}"
        )
