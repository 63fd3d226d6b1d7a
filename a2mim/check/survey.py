"""Tries every architecture that timm builds: wires all names on the meta device, and proves one of each family.

A family is a module of timm.models. Its smallest member is certified with real weights and takes two training steps.
Records are lines of JSON, so that a stopped survey can continue. docs/backbones.md is generated from them.
"""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from a2mim.check.certificate import certify, takes
from a2mim.encoder import MaskedEncoder
from a2mim.losses import FourierLoss, MaskedL1
from a2mim.mim import MIM
from a2mim.text import ProgressBar
from a2mim.wiring.layout import leaves

OWN = ("xvit", "linglo")  # the modules that a2mim adds to timm


def wire(name: str) -> dict:
    """Wires one name on the meta device: where the token enters and the maps that come out. Errors are raised."""
    record = {"name": name}
    with torch.device("meta"), torch.no_grad():
        with torch.enable_grad():
            model = mim_of(name)
        encoder = model.encoder
        height, width = encoder.img_size
        images, mask = torch.empty(2, encoder.in_chans, height, width), torch.empty(2, 1, 1, dtype=torch.bool)
        recon = model.decode(encoder(images, mask), height, width)
    if recon.shape != images.shape:
        raise ValueError(f"{name} decodes {tuple(recon.shape)} for {tuple(images.shape)}.")
    total = sum(p.numel() for p in encoder.model.parameters())
    return record | {
        "class": type(encoder.model).__name__,
        "img_size": list(encoder.img_size),
        "parameters": total,
        "site": encoder.site,
        "site_strides": [max(place.strides) for place in encoder.sites],
        "site_layouts": [place.layout.kind for place in encoder.sites],
        "channels": encoder.channels,
        "strides": encoder.strides,
        "layouts": [place.layout.kind for place in encoder.outputs],
        "tapped": bool(encoder.tapping),
    }


def mim_of(name: str, img_size=None) -> MIM:
    """A²MIM on a network, with cells of about 32 px."""
    encoder = MaskedEncoder(name, token="scaled", img_size=img_size)
    return MIM(encoder, cell_mask(encoder.img_size), [MaskedL1(), FourierLoss()])


def cell_mask(img_size: tuple[int, int]):
    """A masking function for any image size: the cells tile the image, with sides nearest to 32 px."""
    rows, cols = (min((n for n in range(1, s + 1) if s % n == 0), key=lambda n: abs(s / n - 32)) for s in img_size)

    def draw(batch_size, height, width, generator=None, device=None) -> Tensor:
        order = torch.rand(batch_size, rows * cols, generator=generator, device=device).argsort(dim=1)
        return (order < max(1, round(0.6 * rows * cols))).view(batch_size, rows, cols)

    return draw


def prove(name: str, img_size=None) -> dict:
    """Proves one name with real weights: its certificate, and the faults of two training steps."""
    seen = certify(name, img_size)
    return {
        "name": name,
        "img_size": list(seen.img_size),
        "parameters": seen.parameters,
        "sites": [[s.name, s.stride, s.layout, s.evidence] for s in seen.sites],
        "depths": seen.depths,
        "leaks": seen.leaks,
        "maps": [[m.channels, m.stride, m.layout, m.evidence] for m in seen.maps],
        "token_parameters": seen.token_parameters,
        "frozen_share": seen.frozen_share,
        "resized": seen.resized,
        "checkpointing": seen.checkpointing,
        "difference": seen.difference,
        "sizes": seen.sizes,
        "faults": faults_of_training(mim_of(name, img_size)),
    }


def faults_of_training(model: MIM, in_chans: int = 3) -> list[str]:
    """Faults after two training steps on random images; [] for a network that is wired correctly.

    Checked: the loss is finite in both steps; the token, the decoders and every live parameter of the encoder get a
    gradient that is not zero in at least one step; no frozen parameter gets one; the token changes hidden positions
    only. A bias whose weight gets a gradient is not checked: in front of BatchNorm (ReXNet) its gradient is zero.
    """
    encoder, faults = model.encoder, []
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, in_chans, *encoder.img_size, generator=generator)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    moved, model = set(), model.train()
    for step in range(2):
        loss = sum(model(images, generator=generator).values())
        if not torch.isfinite(loss):
            return [f"the loss of step {step + 1} is {loss.item()}"]
        optimizer.zero_grad()
        loss.backward()
        moved |= {key for key, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        model.after_step(step + 1, 2)
    live = {key for key, p in model.named_parameters() if p.requires_grad}
    frozen = {f"encoder.model.{key}" for key in encoder.frozen}
    shadowed = {key for key in live if key.endswith(".bias") and key.removesuffix("bias") + "weight" in moved}
    faults += [f"no gradient in {key}" for key in sorted(live - moved - shadowed)]
    faults += [f"gradient in the frozen {key}" for key in sorted(frozen & moved)]
    for name, network in held_networks(model.target):
        faults += [f"gradient in the {name}'s {key}" for key, p in network.named_parameters() if p.grad is not None]
    return faults + faults_of_token(encoder.eval(), images)


def held_networks(target) -> list[tuple[str, nn.Module]]:
    """The networks that a target holds, by name."""
    return list(target.networks().items()) if hasattr(target, "networks") else []


@torch.no_grad()
def faults_of_token(encoder: MaskedEncoder, images: Tensor) -> list[str]:
    """Hides one quarter of the first image, and compares the positions of each site's output that change with the token
    to those that the layout says are hidden.
    """
    mask = torch.zeros(len(images), 2, 2, dtype=torch.bool)
    mask[0, 0, 1] = True
    faults = []
    for i, place in enumerate(encoder.study.sites):
        outputs = []
        for shift in (0, 1):  # the two outputs differ only by this site's token
            tokens = [t for t, at in zip(encoder.tokens, encoder.sites, strict=True) if at.path[0] == i]
            for token in tokens:
                token += shift
            outputs.append(output_of(encoder, place.module, images, mask, i))
        for token in tokens:
            token -= 1
        for path, layout in place.layouts.items():
            before, after = (found[i, *path] for found in outputs)
            moved = (before != after).any(dim=layout.channel).flatten(1)
            hidden = layout.spread(_touched(mask, layout.grid, encoder)).flatten(1).bool()
            if (moved & ~hidden).any():
                faults.append(f"the token moves visible positions of {place.name}")
            if (hidden & ~moved).any():
                faults.append(f"the token does not change hidden positions of {place.name}")
    return faults


def _touched(mask: Tensor, grid: tuple[int, int], encoder: MaskedEncoder) -> Tensor:
    """(B, h, w) bool: cells that contain a hidden pixel, computed pixel by pixel."""
    strides = next(place.strides for place in encoder.sites if place.layout.grid == grid)
    hidden = torch.zeros(len(mask), *grid, dtype=torch.bool)
    height, width = encoder.img_size
    for b, row, col in mask.nonzero().tolist():
        rows = {int(y // strides[0]) for y in range(height * row // 2, -(-height * (row + 1) // 2))}
        cols = {int(x // strides[1]) for x in range(width * col // 2, -(-width * (col + 1) // 2))}
        for r in rows & set(range(grid[0])):
            hidden[b, r, [c for c in sorted(cols) if c < grid[1]]] = True
    return hidden


def output_of(encoder: MaskedEncoder, module: str, images: Tensor, mask: Tensor, number: int) -> dict[tuple, Tensor]:
    """(number, path) -> the output tensors of a module in a forward, with the token added."""
    seen = {}

    def note(module, inputs, output):
        seen.update({path: t.clone() for path, t in leaves(output, (number,))})

    handle = encoder.model.get_submodule(module).register_forward_hook(note)
    try:
        encoder(images, mask)
    finally:
        handle.remove()
    return seen


def survey(path: Path, names: Iterable[str], examine: Callable[[str], dict]) -> dict[str, dict]:
    """Examines every name that `path` has no record of, and appends one line each; returns all records by name."""
    known, names = read_records(path), list(names)
    with path.open("a", encoding="utf-8") as file:
        for name in ProgressBar([n for n in names if n not in known], desc=path.stem, unit="model"):
            started = time.time()
            try:
                known[name] = examine(name)
            except Exception as error:  # recorded; the survey continues
                known[name] = {"name": name, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
            known[name]["seconds"] = round(time.time() - started, 2)
            file.write(json.dumps(known[name]) + "\n")
            file.flush()
    return {name: known[name] for name in names}


def read_records(path: Path) -> dict[str, dict]:
    """The records of a file, the last one of each name; {} without a file."""
    if not path.is_file():
        return {}
    try:
        return {record["name"]: record for record in map(json.loads, path.read_text(encoding="utf-8").splitlines())}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} holds a line that is no record ({error}); delete the line, or the file") from None


def families() -> dict[str, list[str]]:
    """Module of timm.models (or of ours) -> its names."""
    found = {module: timm.list_models(module=module) for module in timm.list_modules()}
    return {module: names for module, names in sorted(found.items()) if names}


def survey_all(folder: Path, wire_names: bool = True) -> tuple[dict[str, dict], dict[str, dict]]:
    """(records of all names on the meta device, records of each family's smallest member with real weights). Both
    continue from the files in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, wired = families(), read_records(folder / "wired.jsonl")
    if wire_names:
        wired = survey(folder / "wired.jsonl", [name for names in found.values() for name in names], wire)
    smallest = [
        min(names, key=lambda name: wired.get(name, {}).get("parameters", float("inf"))) for names in found.values()
    ]
    return wired, survey(folder / "proved.jsonl", smallest, prove_small)


def prove_small(name: str) -> dict:
    """`prove` at 128 px if the network accepts that; it takes a third of the time."""
    return prove(name, 128 if takes(name, 128) else None)
