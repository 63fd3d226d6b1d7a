"""`a2mim measure-stats` and `a2mim bench-data`: what data are like, and how fast they come."""

from __future__ import annotations

from a2mim.commands.arguments import (
    DATA_HELP,
    access_of,
    add_access,
    add_debug,
    add_img_size,
    add_reading,
    one_or_list,
    reading_of,
    size_of,
)
from a2mim.data.access import DEFAULT


def add_measure_stats(commands) -> None:
    p = commands.add_parser("measure-stats", help="mean and std of each channel, for a recipe", allow_abbrev=False)
    _add_data(p)
    p.add_argument("--split", default="train", choices=("train", "test"), help="(train)")
    p.add_argument("--num-workers", type=int, default=0, help="data processes (0)")
    add_access(p)
    add_debug(p)
    p.set_defaults(run=run_measure_stats)


def add_bench_data(commands) -> None:
    p = commands.add_parser("bench-data", help="how fast data come, and what limits that", allow_abbrev=False)
    _add_data(p)
    add_img_size(p, "224")
    p.add_argument("--interpolation", default="bilinear", choices=("bilinear", "bicubic"))
    p.add_argument("--images", type=int, default=1024, help="to read for each measurement (1024)")
    p.add_argument("--batch-size", type=int, default=64, help="(64)")
    p.add_argument("--workers", type=int, help="measure 0, 1, 2, 4, … up to so many (default: one for each core)")
    add_access(p)
    add_debug(p)
    p.set_defaults(run=run_bench_data)


def _add_data(parser) -> None:
    parser.add_argument("data", nargs="+", help=DATA_HELP)
    parser.add_argument("--in-chans", type=int, default=3, help="channels (3)")
    add_reading(parser)


def _open(chosen, split: str):
    from a2mim.data import open_dataset

    return open_dataset(
        one_or_list(chosen.data), split, chosen.in_chans, access_of(chosen), **reading_of(chosen).arguments()
    )


def run_measure_stats(chosen) -> None:
    from a2mim.data.prepare.stats import measure_stats

    if chosen.num_workers < 0:
        raise ValueError(f"--num-workers {chosen.num_workers} must be at least 0")
    found = measure_stats(_open(chosen, chosen.split), chosen.num_workers)
    told = ("images", "pixels", "bits", "mean", "std", "least", "greatest", "faults")
    chosen.result = {name: getattr(found, name) for name in told}
    print("\n".join(found.lines(chosen.value_range, chosen.exif, chosen.nodata, chosen.fill)))


def run_bench_data(chosen) -> None:
    size = size_of(chosen) or 224
    for name in ("images", "batch_size"):
        if getattr(chosen, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(chosen, name)} must be at least 1")
    if chosen.workers is not None and chosen.workers < 0:
        raise ValueError(f"--workers {chosen.workers} must be at least 0")
    from a2mim.data.prepare.stages import measure_stages, measure_workers, what_limits

    dataset, cores = _open(chosen, "train"), DEFAULT.workers
    print(dataset.describe(), flush=True)
    stages = measure_stages(dataset, size, chosen.images, chosen.interpolation)
    print("ms an image, one thread: " + ", ".join(f"{name} {ms:.3f}" for name, ms in stages.items()), flush=True)
    most, speeds = cores if chosen.workers is None else chosen.workers, []
    for workers in sorted({0, *(2**k for k in range(most.bit_length()) if 2**k <= most), most}):
        sizes = dataset, size, chosen.images, workers, chosen.batch_size, chosen.interpolation
        speeds.append(measure_workers(*sizes))
        print(
            f"{workers} workers: {speeds[-1].images_per_second:7.1f} images/s, wait {speeds[-1].wait:.3f} ms an image,"
            f" {speeds[-1].cpu:.3f} ms of processor time an image",
            flush=True,
        )
    limit = what_limits(stages, speeds, cores)
    chosen.result = {"stages_ms": stages, "workers": speeds, "limit": limit}
    print(limit)
