"""README.md of an export: the lines that load it, which the proof executes, and the model card that hubs read."""

from html import escape
from pathlib import Path, PurePath

from a2mim import __version__
from a2mim.data.remote.addresses import is_remote, public_name
from a2mim.data.request import public_request
from a2mim.export.target import Subject, Target, Written
from a2mim.files import read_json, write_text
from a2mim.text import code_span, one_line, yaml_value

NAMED = 8  # frozen parameters that the card spells out


def write_card(target: Target, subject: Subject, written: Written, lines: str, batchnorm: dict, path: Path) -> None:
    """The whole file."""
    torch = ["torch"] if "import torch" in lines else []
    needs = ", ".join([*torch, *(name for name in written.packages if name != "a2mim")])
    ours = " and `import a2mim`, which makes the architecture known" if "a2mim" in written.packages else ""
    sections = [
        _front_matter(target, subject),
        f"# {one_line(subject.name)} for {target.name}",
        f"An image encoder without a classifier, exported for {target.name} by a2mim."
        f" Loading it needs {needs}{ours}. Run in this folder:",
        f"```python\n{lines.strip()}\n```",
        written.notes.strip(),
        f"## Input\n\n{_input(subject)}",
        f"## Training\n\n{_training(subject, batchnorm)}",
        f"## Proof\n\n{PROOF}",
    ]
    write_text(path, "\n\n".join(filter(None, sections)) + "\n")


PROOF = """\
The lines above were run in a fresh process when this folder was written, and what they compute was compared with what
the encoder computed, on the fixed images in `reference.npz`. `receipt.json` states the largest difference, the keys,
the versions and the hashes, or that the target was not installed ("contract only"). `a2mim verify .` repeats it."""


def _front_matter(target: Target, subject: Subject) -> str:
    lines = ["---", *([f"license: {yaml_value(subject.license)}"] if subject.license else [])]
    if target.name in ("timm", "transformers"):
        lines += [f"library_name: {target.name}", "pipeline_tag: image-feature-extraction"]
    tags = ["image-feature-extraction", "masked-image-modeling", "a2mim", target.name]
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _input(subject: Subject) -> str:
    channels, height, width = subject.input_size
    what, order = ("RGB", ", in the order red, green, blue") if channels == 3 else (f"{channels} channels", "")
    pixels = subject.preprocessing
    mean, std = (", ".join(f"{v:.6g}" for v in values) for values in (pixels.mean, pixels.std))
    return (
        f"{height} × {width} pixels, {what}{order}, resized with {pixels.interpolation}"
        f" interpolation, scaled to 0..1, then (x − mean) / std with mean {mean} and std {std}."
    )


def _training(subject: Subject, batchnorm: dict) -> str:
    sentences = [
        subject.trained
        or f"What it was trained on is not known: it was exported from {code_span(published(subject.source))}."
    ]
    if subject.frozen:
        shown = ", ".join(code_span(name) for name in subject.frozen[:NAMED])
        more = f" and {len(subject.frozen) - NAMED} more, see `receipt.json`" if len(subject.frozen) > NAMED else ""
        sentences.append(
            f"Pre-training never reached these parameters, which are as they were initialised: {shown}{more}."
        )
    if batchnorm["recalibrated"]:
        sentences.append(f"BatchNorm's statistics were taken anew from {batchnorm['images']} whole images.")
    elif not batchnorm.get("clean", True):
        sentences.append("BatchNorm's statistics are those of masked images: take them anew before features are used.")
    if not subject.license:
        sentences.append("No licence was chosen for these weights: state one before you publish them.")
    return "\n".join(sentences)


def published(place: object) -> str:
    """A path or address as a page or receipt may show it: a path's last part, an address without its secrets."""
    text = str(place)
    return public_name(text) if is_remote(text) or "://" in text else PurePath(text).name or text


def _data_name(data: str | list) -> str:
    return ", ".join(map(published, data)) if isinstance(data, list) else published(data)


def tell_training(source: str | Path) -> str:
    """What the run says of itself, from its summary.json, as a sentence; "" where the source is of no run."""
    path = Path(source)
    for folder in (path, path.parent, path.parent.parent):  # a run, its encoder/ or export/timm/, a checkpoint
        try:
            summary = read_json(folder / "summary.json")
            asked = public_request(summary["asked"])
            recipe, data = asked["config"], asked["data"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue
        told = "Masked-image-modelling pre-training"
        if "source" in asked:
            told = f"Fine-tuning of {code_span(published(asked['source'] or 'random weights'))}"
        versions = summary.get("versions")
        version = one_line((versions if isinstance(versions, dict) else {}).get("a2mim", __version__))[:40]
        scale = " at laptop scale" if asked.get("laptop") else ""
        images = "the built-in photographs" if data is None else code_span(_data_name(data))
        steps = f", {summary['steps']} steps" if isinstance(summary.get("steps"), int) else ""
        recipe = code_span(published(recipe))
        return f"{told} with a2mim {escape(version)}: the recipe {recipe}{scale}, on {images}{steps}."
    return ""
