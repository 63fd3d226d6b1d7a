"""Measures the layouts of feature tensors: by timm's own maps, by coded impulses, or by stripes on the image.

Invariant: `Layout.evidence` says how a layout was measured, or that it is a guess.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2mim.wiring.layout import Layout, leaves, replace_leaves
from a2mim.wiring.model_type import TimmModel

MATCH = 0.3  # least agreement with the stripes for a tensor to count as a map of the image


@dataclass(frozen=True)
class HookPoint:
    """A module's output, and the layouts that its shape allows."""

    module: str
    guesses: dict[tuple, list[Layout]]


def read_intermediates(model: nn.Module, images: Tensor, points: list[HookPoint]) -> list[dict[tuple, Layout]]:
    """Measures layouts against timm's own `forward_intermediates`, which returns NCHW maps, usually in one forward.

    Each flat position of a hook point is overwritten with its own number. timm's map shows the number at the raster
    cell of this position. Layouts that timm's maps do not show stay guesses.

    Args:
        images: (1, C, H, W).

    Returns:
        for each hook point, path -> layout.
    """
    layouts = [{path: candidates[0] for path, candidates in point.guesses.items()} for point in points]
    if images.is_meta or not hasattr(model, "forward_intermediates"):
        return layouts
    unread = {(i, path): list(guess) for i, point in enumerate(points) for path, guess in point.guesses.items()}
    while unread:
        trial = {key: candidates.pop(0) for key, candidates in unread.items()}
        for (i, path), layout in _show_numbers(model, images, [point.module for point in points], trial).items():
            layouts[i][path] = layout
            del unread[i, path]
        unread = {key: candidates for key, candidates in unread.items() if candidates}
    return layouts


def _show_numbers(model: TimmModel, images: Tensor, modules: list[str], layouts: dict) -> dict:
    """(index of the hook point, path) -> the layout that timm's maps show, if they show it."""
    starts, handles, start = {}, [], 1
    for key, layout in layouts.items():
        starts[key], start = start, start + math.prod(layout.shape)

    def overwrite(i: int):
        def hook(module, inputs, output):
            tensors, new = dict(leaves(output)), {}
            for (point, path), layout in layouts.items():
                if point == i:
                    numbers = torch.arange(math.prod(layout.shape), device=images.device) + starts[point, path]
                    shown = layout.write(numbers[None]).to(tensors[path].dtype).expand_as(tensors[path])
                    new[path] = shown.clone()  # an in-place operation may follow
            return replace_leaves(output, new)

        return hook

    for i, name in enumerate(modules):
        handles.append(model.get_submodule(name).register_forward_hook(overwrite(i)))
    try:
        with torch.no_grad():
            maps = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    finally:
        for handle in handles:
            handle.remove()
    shown = {}
    for _, feature_map in leaves(maps):
        numbers = feature_map[0, 0].flatten()
        if not (feature_map[0].flatten(1) == numbers).all():
            continue
        for key, layout in layouts.items():
            positions = (numbers - starts[key]).long().cpu()
            inside = (positions >= 0) & (positions < math.prod(layout.shape))
            if inside.all() and len(positions.unique()) == len(positions):
                table = torch.full((math.prod(layout.shape),), -1, dtype=torch.long, device="cpu")
                table[positions] = torch.arange(len(positions), device="cpu")
                grid = feature_map.shape[-2], feature_map.shape[-1]
                shown[key] = Layout(layout.channel, layout.positions, layout.shape, grid, table)
                shown[key].evidence = "timm's maps"
    return shown


def verify_outputs(
    model: nn.Module, images: Tensor, module: str, known: dict[tuple, Layout], guesses: dict[tuple, list[Layout]]
) -> dict[tuple, Layout]:
    """Measures the layouts of `forward_features`' output, by coded impulses on the last map whose layout is known.

    Cells of the known map are disturbed in the second of two equal samples. First a random half of the cells is
    disturbed. If an output does not respond in raster order, then the cells whose number has bit 0, 1, 2, ... set are
    disturbed in turn; this takes log2(cells) forwards.

    Args:
        images: (2, C, H, W).
        module: name of the module whose output holds the known map.
        known: path -> layout there; the first is used.

    Returns:
        path -> layout. Outputs that do not respond cell by cell (a later stage mixes them) keep the likeliest guess.
    """
    path, layout = next(iter(known.items()))
    best = {key: candidates[0] for key, candidates in guesses.items()}
    if images.is_meta or not guesses:
        return best
    number = math.prod(layout.grid)
    generator = torch.Generator().manual_seed(2)
    half = torch.rand(number, generator=generator, device="cpu") < 0.5
    half[0], half[-1] = True, False
    answers = _disturb(model, images, module, path, layout, half, best)
    permuted = []
    for key, candidates in guesses.items():
        fits = [g for g in candidates if g.grid == layout.grid and answers[key][_cells(g)].equal(half)]
        if fits:
            best[key] = fits[0]
            best[key].evidence = "impulses"
        elif len(answers[key]) >= number and answers[key].sum() in range(int(half.sum()), number):
            permuted.append(key)
    if not permuted:
        return best
    codes = torch.arange(1, number + 1, device="cpu")
    bits = [(codes >> k) & 1 for k in range(int(number + 1).bit_length())]
    read = [_disturb(model, images, module, path, layout, bit.bool(), best) for bit in bits]
    for key in permuted:
        table = sum(answer[key].long() << k for k, answer in enumerate(read)) - 1
        table[table >= number] = -1  # prefix tokens respond to every bit
        if table[table >= 0].sort().values.equal(torch.arange(number, device="cpu")):
            old = best[key]
            best[key] = Layout(old.channel, old.positions, old.shape, layout.grid, table)
            best[key].evidence = "impulses"
    return best


def _cells(layout: Layout) -> Tensor | slice:
    """Index of the raster cells among the flat positions."""
    return slice(layout.first, layout.first + math.prod(layout.grid)) if layout.raster else layout.cells


def _disturb(model: TimmModel, images: Tensor, module: str, path: tuple, layout: Layout, cells: Tensor, outputs: dict):
    """Path -> (P,) bool: the flat positions of the output that change when these cells of the map are disturbed."""

    def hook(submodule, inputs, output):
        first = {key: t[:1] for key, t in leaves(output)}
        new = {key: torch.cat([t, t]) for key, t in first.items()}
        features = first[path]
        generator = torch.Generator().manual_seed(3)
        vector = torch.randn(features.shape[layout.channel], generator=generator, device="cpu").to(features)
        where = layout.spread(cells.to(features).view(1, *layout.grid))
        impulse = 3 * features.std() * layout.write_channels(vector) * where
        return replace_leaves(output, new | {path: torch.cat([features, features + impulse])})

    handle = model.get_submodule(module).register_forward_hook(hook)
    try:
        with torch.no_grad():
            try:  # one image, which the hook doubles, takes half of the time
                output = dict(leaves(model.forward_features(images[:1])))
                doubled = all(len(output[key]) == 2 for key in outputs)
            except RuntimeError:  # the model stored the batch size
                doubled = False
            if not doubled:
                output = dict(leaves(model.forward_features(images)))
    finally:
        handle.remove()
    changed = {}
    for key, guess in outputs.items():
        difference = (output[key][1] - output[key][0]).abs().movedim(guess.channel - 1, 0).flatten(1).amax(0)
        changed[key] = (difference > 1e-3 * difference.max()).cpu()
    return changed


def observe(call: Callable[[Tensor], object], model: nn.Module, modules: list[str], images: Tensor) -> dict:
    """(module, path) -> tensor in the outputs of modules during `call(images)`; module "" is the call's own output."""
    seen, handles = {}, []

    def note(name: str):
        return lambda module, inputs, output: seen.update({(name, path): t for path, t in leaves(output)})

    for name in modules:
        if name:
            handles.append(model.get_submodule(name).register_forward_hook(note(name)))
    try:
        with torch.no_grad():
            seen.update({("", path): t for path, t in leaves(call(images))})
    finally:
        for handle in handles:
            handle.remove()
    return seen


def read_stripes(run: Callable[[Tensor], dict], images: Tensor, guesses: dict) -> dict:
    """Measures layouts by structured light. Noise is added on stripes of the image, 2, 4 and 8 per axis in Gray code.
    The positions that change when a stripe of the image changes are the cells of that stripe. Nothing is needed from
    the model.

    Args:
        run: images (2, C, H, W) -> {key: tensor}.
        images: (1, C, H, W), to which the noise is added.
        guesses: key -> layouts that the shape allows.

    Returns:
        key -> the layout that agrees best; of nearly equal ones, the likelier. Its evidence is "stripes" if the
        agreement (a cosine) is at least MATCH, else "shape". Maps of random networks measure 0.5 to 1, Hiera's permuted
        tokens 0.05. Grids under 4 x 4, and networks that mix the whole image, give weak evidence.
    """
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(4), device="cpu").to(images)
    patterns = _gray_stripes(*images.shape[-2:]).to(images)
    still = run(images.expand(2, -1, -1, -1))
    answers: dict[tuple, list[Tensor]] = {
        (key, i): [] for key, candidates in guesses.items() for i in range(len(candidates))
    }
    for pattern in patterns:
        lit = run(torch.cat([images + noise * pattern, images + noise * (1 - pattern)]))
        for key, i in answers:
            change = (lit[key] - still[key]).float().movedim(guesses[key][i].channel, 1).flatten(2)
            on, off = change.square().sum(1).sqrt()
            contrast = (on - off) / (on + off).clamp(min=1e-20)
            answers[key, i].append(contrast - contrast.mean())
    best = {}
    for key, candidates in guesses.items():
        scores = [_agreement(torch.stack(answers[key, i]), layout, patterns) for i, layout in enumerate(candidates)]
        chosen = next(i for i, score in enumerate(scores) if score >= max(scores) - 0.05)
        best[key] = candidates[chosen]
        best[key].evidence = "stripes" if scores[chosen] >= MATCH else "shape"
    return best


def _gray_stripes(height: int, width: int, bits: int = 3) -> Tensor:
    """(2 * bits, H, W) of 0 and 1: each bit of the Gray code of the eighth that a row, then a column, lies in."""
    patterns = []
    for axis, size in enumerate((height, width)):
        number = torch.arange(size, device="cpu") * 2**bits // size
        gray = number ^ (number >> 1)
        for bit in range(bits):
            stripes = ((gray >> bit) & 1).float()
            patterns.append((stripes[:, None] if axis == 0 else stripes[None]).expand(height, width))
    return torch.stack(patterns)


def _agreement(contrast: Tensor, layout: Layout, patterns: Tensor) -> float:
    """Cosine between the contrast (K, P) of the positions and the stripes at their cells."""
    expected = 2 * F.adaptive_avg_pool2d(patterns, layout.grid).flatten(1) - 1
    measured = contrast[:, _cells(layout)]
    return float((measured * expected).sum() / (measured.norm() * expected.norm()).clamp(min=1e-20))
