"""The tables for docs/performance.md, from the findings alone."""

from __future__ import annotations

SPEED = {
    "batch": "batch",
    "images_per_s": "images/s",
    "bare_images_per_s": "bare images/s",
    "whole_over_bare": "whole / bare",
    "peak_gb": "peak GiB",
    "mfu": "MFU",
    "bare_mfu": "bare MFU",
}
RIVALS = {
    "batch": "batch",
    "images_per_s": "images/s",
    "their_images_per_s": "their images/s",
    "ours_over_theirs": "our step / theirs",
}
DATA = {"workers": "workers", "images_per_s": "images/s", "waiting": "waiting", "peak_gb": "peak GiB"}
TITLES = {
    "parity": "Relative difference from float32 on the CPU",
    "waits": "Times that the host waits for the device",
    "rivals": "Beside other implementations of the same method",
    "resuming": "Killed and resumed",
    "data": "Waiting for data",
    "speed": "A step",
}
COLUMNS = {"speed": SPEED, "rivals": RIVALS, "data": DATA}
LEFT_OUT = ("what", "good", "where")
NOTES = ("left_out", "error", "note", "tflops")  # shown where a row has nothing else


def markdown(result: dict) -> str:
    """Every part as a table, and one sentence for each part that did not end well."""
    machine = next(iter(result["parts"].get("machine", {}).get("found", [])), {})
    facts = [f"{key} {machine[key]}" for key in ("card", "cores", "torch", "a2mim") if key in machine]
    facts += [f"{result['seconds']:.0f} s in all", *(["a dry run"] if result["dry"] else [])]
    blocks = [", ".join(facts)]
    for name, part in result["parts"].items():
        if name == "machine" and part["status"] == "done":
            continue
        block = [f"### {TITLES.get(name, name)}"]
        if part["status"] != "done":
            block.append(f"This part: {part['status']}" + (f" ({part['error']})" if part["error"] else "") + ".")
        if part["found"]:
            block.append(grid(part["found"], COLUMNS.get(name)))
        blocks.append("\n\n".join(block))
    return "\n\n".join(blocks) + "\n"


def grid(found: list[dict], columns: dict[str, str] | None) -> str:
    """A Markdown table of findings. columns: key -> heading; None takes every key that a finding has."""
    keys = columns or {key: key.replace("_", " ") for row in found for key in row if key not in LEFT_OUT}
    rows = [["", *keys.values()], ["---"] * (len(keys) + 1)]
    for row in found:
        other = "; ".join(f"{key.replace('_', ' ')}: {row[key]}" for key in NOTES if key in row)
        cells = [shown(row.get(key)) for key in keys]
        if other and not any(cell != "–" for cell in cells):
            cells[0] = other
        rows.append([f"{row['what']}{'' if row.get('good', True) else ' (FAILED)'}", *cells])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def shown(value: object) -> str:
    """A cell."""
    return "–" if value is None else str(value).replace("|", "/")
