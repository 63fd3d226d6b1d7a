"""Where the cells of the image are in a feature tensor, whatever the axes and the order of its positions.

Invariant: `Layout.to_map` and `Layout.spread` read one table, so that what `spread` writes at a cell is what `to_map`
shows there.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def leaves(output, path: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """The tensors in nested lists, tuples and dicts, each with its path from the root."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, list | tuple):
        for i, item in enumerate(output):
            yield from leaves(item, (*path, i))
    elif isinstance(output, dict):
        for key, item in output.items():
            yield from leaves(item, (*path, key))


def replace_leaves(output, new: dict[tuple, Tensor], path: tuple = ()):
    """The same nest with the tensors at the paths in `new` replaced."""
    if isinstance(output, Tensor):
        return new.get(path, output)
    if isinstance(output, list | tuple):
        items = [replace_leaves(item, new, (*path, i)) for i, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    if isinstance(output, dict):
        return type(output)((key, replace_leaves(item, new, (*path, key))) for key, item in output.items())
    return output


class Layout(nn.Module):
    """The channel axis, the position axes, and which raster cell of the grid each flat position holds.

    Args:
        channel: axis of the channels in the feature tensor; axis 0 is the batch.
        positions: the other axes, in the order in which they are flattened.
        shape: lengths of the position axes.
        grid: (h, w) of the feature map.
        table: (P,) long, P = product of `shape`: raster cell of each flat position, -1 for none (class token,
            registers). Every cell occurs once.

    NCHW, NHWC, tokens with a prefix and permuted or windowed tokens differ in these values only. Runs of cells in
    raster order (nearly all architectures) are sliced; other orders are gathered.
    """

    def __init__(
        self, channel: int, positions: Sequence[int], shape: Sequence[int], grid: tuple[int, int], table: Tensor
    ):
        super().__init__()
        self.channel, self.positions, self.shape = channel, tuple(positions), tuple(shape)
        self.grid = (int(grid[0]), int(grid[1]))
        cells = torch.argsort(table, stable=True)[-math.prod(self.grid) :]  # flat position of each raster cell
        assert table[cells].equal(torch.arange(math.prod(self.grid), device="cpu")), (
            "every cell must occur exactly once"
        )
        self.first = int(cells[0])
        self.raster = bool((cells == self.first + torch.arange(len(cells), device="cpu")).all())
        self.register_buffer("cells", None if self.raster else cells, persistent=False)
        self.register_buffer("table", None if self.raster else table, persistent=False)

    def to_map(self, features: Tensor) -> Tensor:
        """Any layout -> (B, D, h, w); prefix tokens are left out."""
        flat = features.movedim(self.channel, 1).flatten(2)
        number = math.prod(self.grid)
        if self.raster:
            flat = flat if flat.shape[2] == number else flat[:, :, self.first : self.first + number]
        else:
            flat = flat[:, :, self.cells]
        return rearrange(flat, "b d (h w) -> b d h w", h=self.grid[0])

    def spread(self, values: Tensor) -> Tensor:
        """(B, h, w) -> the same values where the tensor holds these cells, 0 elsewhere; broadcasts over channels."""
        flat = values.flatten(1)
        number = math.prod(self.shape)
        if not self.raster:
            flat = torch.where(self.table >= 0, flat[:, self.table.clamp(min=0)], torch.zeros_like(flat[:, :1]))
        elif flat.shape[1] != number:
            flat = F.pad(flat, (self.first, number - self.first - flat.shape[1]))
        return self.write(flat)

    def write(self, flat: Tensor) -> Tensor:
        """(B, P) one value per flat position -> broadcastable to the feature tensor."""
        shape = [flat.shape[0]] + [1] * (len(self.shape) + 1)
        for axis, length in zip(self.positions, self.shape, strict=True):
            shape[axis] = length
        return flat.reshape(shape)

    def write_channels(self, vector: Tensor) -> Tensor:
        """(D,) -> broadcastable to the feature tensor."""
        shape = [1] * (len(self.shape) + 2)
        shape[self.channel] = -1
        return vector.reshape(shape)


def raster_table(number: int, prefix: int = 0, positions: int | None = None) -> Tensor:
    """`prefix` positions without a cell, then `number` cells in raster order, then none up to `positions`."""
    table = torch.full((positions or prefix + number,), -1, dtype=torch.long, device="cpu")
    table[prefix : prefix + number] = torch.arange(number, device="cpu")
    return table


def guess_layouts(shape: Sequence[int], img_size: tuple[int, int], prefix: int = 0) -> list[Layout]:
    """Layouts that the shape of a tensor allows, likeliest first; none for a tensor that is no map of the image.

    Args:
        shape: of the whole tensor, batch first.
        img_size: (H, W) in pixels.
        prefix: the number of prefix tokens that the model declares (timm's `num_prefix_tokens`).

    A guess is not knowledge (Hiera's tokens are permuted): `read_intermediates` and `verify_outputs` measure.
    """
    found = []
    if len(shape) == 4:
        for channel, positions in ((1, (2, 3)), (3, (1, 2))):
            grid = tuple(shape[axis] for axis in positions)
            if _plausible(grid, img_size):
                found.append(Layout(channel, positions, grid, grid, raster_table(math.prod(grid))))
    elif len(shape) == 3:
        for number_before in dict.fromkeys((prefix, 0, 1, 2, 5)):
            for grid in _grids(shape[1] - number_before, img_size):
                found.append(Layout(2, (1,), shape[1:2], grid, raster_table(math.prod(grid), number_before)))
    return found


def _plausible(grid: tuple[int, int], img_size: tuple[int, int]) -> bool:
    """Whether one stride, 1 or about 2 to 128 pixels, explains both sides of the grid, rounded up or down."""
    if min(grid) < 1 or (img_size[0] == img_size[1] and grid[0] != grid[1]):
        return False
    sides = list(zip(img_size, grid, strict=True))
    least = max(size / (cells + 1) for size, cells in sides)
    most = min(size / max(cells - 1, 1e-9) for size, cells in sides)
    return least < most and all(cells == size or 1.9 <= size / cells <= 128 for size, cells in sides)


def _grids(number: int, img_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids of `number` cells that tile the image plausibly, squarest cells first."""
    if number < 1:
        return []
    rows = [h for h in range(1, number + 1) if number % h == 0 and _plausible((h, number // h), img_size)]
    ideal = math.sqrt(number * img_size[0] / img_size[1])
    return [(h, number // h) for h in sorted(rows, key=lambda h: abs(math.log(h / ideal)))]


def cell_stride(size: int, cells: int, declared: Sequence[int] = ()) -> float:
    """Pixels per feature cell along one axis of `size` pixels.

    Args:
        declared: the model's own strides (feature_info), which decide when the size is no multiple: a grid may be the
            ceiling (XCiT: 72 px -> 5 cells of 16) or the floor (ViT: 72 px -> 4 cells of 16) of size / stride.
    """
    for stride in declared:
        if cells in (math.ceil(size / stride), size // stride):
            return stride
    if size % cells == 0:
        return size // cells
    stride = 2 ** round(math.log2(size / cells))
    return stride if cells in (math.ceil(size / stride), size // stride) else size / cells


def guess_all(output, images: Tensor, model: nn.Module) -> dict[tuple, list[Layout]]:
    """Path -> guessed layouts, for the tensors of a module's output that can be maps of `images`."""
    prefix, img_size = getattr(model, "num_prefix_tokens", 0), tuple(images.shape[-2:])
    guesses = {path: guess_layouts(t.shape, img_size, prefix) for path, t in leaves(output) if len(t) == len(images)}
    return {path: found for path, found in guesses.items() if found}


@dataclass
class Place:
    """A module's output with what is guessed about it."""

    module: str
    guesses: dict[tuple, list[Layout]]


def read_intermediates(model: nn.Module, images: Tensor, places: list[Place]) -> list[dict[tuple, Layout]]:
    """Measures layouts against timm's own `forward_intermediates`, which returns NCHW maps, as a rule in one forward.

    Every flat position of a place is overwritten with its own number; the raster cell of timm's map that shows the
    number is where this position belongs. What timm does not show is left as guessed.

    Args:
        images: (1, C, H, W).

    Returns:
        for each place, path -> layout.
    """
    layouts = [{path: found[0] for path, found in place.guesses.items()} for place in places]
    if images.is_meta or not hasattr(model, "forward_intermediates"):
        return layouts
    unread = {(i, path): list(found) for i, place in enumerate(places) for path, found in place.guesses.items()}
    while unread:
        trial = {key: found.pop(0) for key, found in unread.items()}
        for (i, path), layout in _show_numbers(model, images, [place.module for place in places], trial).items():
            layouts[i][path] = layout
            del unread[i, path]
        unread = {key: found for key, found in unread.items() if found}
    return layouts


def _show_numbers(model: nn.Module, images: Tensor, modules: list[str], layouts: dict) -> dict:
    """(place, path) -> the layout that timm's maps show, for those that they show."""
    starts, handles, start = {}, [], 1
    for key, layout in layouts.items():
        starts[key], start = start, start + math.prod(layout.shape)

    def overwrite(i: int):
        def hook(module, inputs, output):
            tensors, new = dict(leaves(output)), {}
            for (place, path), layout in layouts.items():
                if place == i:
                    numbers = torch.arange(math.prod(layout.shape), device=images.device) + starts[place, path]
                    new[path] = layout.write(numbers[None]).to(tensors[path].dtype).expand_as(tensors[path])
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
                shown[key] = Layout(layout.channel, layout.positions, layout.shape, feature_map.shape[-2:], table)
    return shown


def verify_outputs(
    model: nn.Module, images: Tensor, module: str, known: dict[tuple, Layout], guesses: dict[tuple, list[Layout]]
) -> dict[tuple, Layout]:
    """Measures the layouts of `forward_features`' output with coded impulses on the last map of known layout.

    Cells of the known map are disturbed in the second of two equal samples, first a random half of them, then, for an
    output that does not answer in raster order, those whose number has bit 0, 1, 2, ... set: log2(cells) forwards.

    Args:
        images: (2, C, H, W).
        module: name of the module whose output holds the known map.
        known: path -> layout there; the first is used.

    Returns:
        path -> layout; outputs that do not answer cell by cell (a later stage mixes them) keep their likeliest guess.
    """
    path, layout = next(iter(known.items()))
    best = {key: found[0] for key, found in guesses.items()}
    if images.is_meta or not guesses:
        return best
    number = math.prod(layout.grid)
    generator = torch.Generator().manual_seed(2)
    half = torch.rand(number, generator=generator, device="cpu") < 0.5
    half[0], half[-1] = True, False
    answers = _disturb(model, images, module, path, layout, half, best)
    permuted = []
    for key, found in guesses.items():
        fits = [g for g in found if g.grid == layout.grid and answers[key][_cells(g)].equal(half)]
        if fits:
            best[key] = fits[0]
        elif len(answers[key]) >= number and answers[key].sum() in range(int(half.sum()), number):
            permuted.append(key)
    if not permuted:
        return best
    codes = torch.arange(1, number + 1, device="cpu")
    bits = [(codes >> k) & 1 for k in range(int(number + 1).bit_length())]
    read = [_disturb(model, images, module, path, layout, bit.bool(), best) for bit in bits]
    for key in permuted:
        table = sum(answer[key].long() << k for k, answer in enumerate(read)) - 1
        table[table >= number] = -1  # prefix tokens answer to every bit
        if table[table >= 0].sort().values.equal(torch.arange(number, device="cpu")):
            old = best[key]
            best[key] = Layout(old.channel, old.positions, old.shape, layout.grid, table)
    return best


def _cells(layout: Layout) -> Tensor | slice:
    """What picks the raster cells out of the flat positions."""
    return slice(layout.first, layout.first + math.prod(layout.grid)) if layout.raster else layout.cells


def _disturb(model: nn.Module, images: Tensor, module: str, path: tuple, layout: Layout, cells: Tensor, outputs: dict):
    """Path -> (P,) bool: which flat positions of the output change when these cells of the map are disturbed."""

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
            try:  # one image, doubled by the hook, saves half of the time
                output = dict(leaves(model.forward_features(images[:1])))
                doubled = all(len(output[key]) == 2 for key in outputs)
            except RuntimeError:  # the model remembers the batch size
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
