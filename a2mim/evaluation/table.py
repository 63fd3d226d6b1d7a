"""Results as a table of plain text."""

from __future__ import annotations


def table(results: list[dict]) -> str:
    """One line a result: protocol, number, interval, best epoch where there is one, and what the number describes."""
    head = ("protocol", "metric", "last", "95 % interval", "best on test", "top-5", "images", "detail")
    lines = [head, *(_line(result) for result in results)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([rows[0], "  ".join("-" * width for width in widths), *rows[1:]])


def circumstances(result: dict) -> str:
    """A few lines below a table of one result: the sets, the view, what was left out."""
    height, width = result["img_size"]
    view = f"{height} px of a short side of {result.get('resize')} px"
    if height != width:
        view = f"{height} x {width} px, whose longer side has {result.get('resize')} px with its margin"
    lines = [
        f"  training set  {result['data']}, {result['n_train']:,} images of {result['n_classes']} classes",
        f"  test set      {result['test_data']}, {result['n_test']:,} images",
        f"  view          {view}, {result.get('interpolation')}",
    ]
    constants = {key: value for key, value in result["constants"].items() if isinstance(value, str | int | float)}
    lines.append(f"  constants     {', '.join(f'{key} {value}' for key, value in constants.items())}")
    if result["batchnorm_calibrated_on"]:
        lines.append(f"  BatchNorm     calibrated on {result['batchnorm_calibrated_on']:,} training images")
    if result["unreadable"]:
        told = ", ".join(f"{count} {reason}" for reason, count in result["unreadable"].items())
        lines.append(f"  left out      images that cannot be read: {told}")
    return "\n".join(lines)


def _line(result: dict) -> tuple[str, ...]:
    low, high = result["interval"]
    changes = ", ".join(f"{key}={used}" for key, (_, used) in result.get("overridden", {}).items())
    best = result.get("top1_best")
    epoch = f" (epoch {result['best_epoch']})" if "best_epoch" in result else ""
    return (
        result["protocol"] + (" *" if changes else ""),
        result.get("metric", "top-1 %"),
        f"{result['top1_last']:.2f}",
        f"{low:.2f}–{high:.2f}",
        "" if best is None else f"{best:.2f}{epoch}",
        f"{result['top5']:.2f}" if "top5" in result else "",
        str(result["n_test"]),
        _detail(result, changes),
    )


def _detail(result: dict, changes: str) -> str:
    """The few choices that decide the number, then what was overridden."""
    told = []
    if "subset" in result:
        told.append(f"{result['subset']} of labels, {result['constants']['classifier']}")
    for key in ("k", "C", "base_lr", "head", "pooling"):
        if key in result:
            told.append(f"{key} {result[key]:g}" if isinstance(result[key], float) else f"{key} {result[key]}")
    if len(result.get("by_k", ())) > 1:
        told.append(", ".join(f"{pair[0]:.2f} at k {k}" for k, pair in result["by_k"].items() if k != str(result["k"])))
    return "; ".join(told + ([f"* with {changes}"] if changes else []))
