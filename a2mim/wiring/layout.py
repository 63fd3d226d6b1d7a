"""The positions of image cells in a feature tensor, for any axes and any order of positions.

Invariant: `Layout.to_map` and `Layout.spread` use the same table. What `spread` writes at a cell, `to_map` shows there.
"""

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def leaves(output, path: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """Yields the tensors in nested lists, tuples and dicts, each with its path from the root."""
    if isinstance(output, Tensor):
        yield path, output
    elif isinstance(output, list | tuple):
        for i, item in enumerate(output):
            yield from leaves(item, (*path, i))
    elif isinstance(output, dict):
        for key, item in output.items():
            yield from leaves(item, (*path, key))


def replace_leaves(output, new: dict[tuple, Tensor], path: tuple = ()):
    """The same nested structure with the tensors at the paths in `new` replaced."""
    if isinstance(output, Tensor):
        return new.get(path, output)
    if isinstance(output, list | tuple):
        items = [replace_leaves(item, new, (*path, i)) for i, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    if isinstance(output, dict):
        return type(output)((key, replace_leaves(item, new, (*path, key))) for key, item in output.items())
    return output


class Layout(nn.Module):
    """The channel axis, the position axes, and the raster cell of the grid at each flat position.

    Args:
        channel: axis of the channels in the feature tensor; axis 0 is the batch.
        positions: the other axes, in the order in which they are flattened.
        shape: lengths of the position axes.
        grid: (h, w) of the feature map.
        table: (P,) long, P = product of `shape`: raster cell at each flat position, -1 for none (class token,
            registers). Every cell occurs once.

    NCHW, NHWC, tokens with a prefix, and permuted or windowed tokens differ only in these values. Cells in raster order
    (nearly all architectures) are sliced; other orders are gathered.

    Attributes:
        evidence: how the layout is known: "shape" (a guess), or measured by "timm's maps", "impulses" or "stripes".
    """

    def __init__(
        self, channel: int, positions: Sequence[int], shape: Sequence[int], grid: tuple[int, int], table: Tensor
    ):
        super().__init__()
        self.evidence = "shape"
        self.channel, self.positions, self.shape = channel, tuple(positions), tuple(shape)
        self.grid = (int(grid[0]), int(grid[1]))
        self.cells: Tensor
        self.table: Tensor
        cells = torch.argsort(table, stable=True)[-math.prod(self.grid) :]  # flat position of each raster cell
        assert table[cells].equal(torch.arange(math.prod(self.grid), device="cpu")), (
            "every cell must occur exactly once"
        )
        self.first = int(cells[0])
        self.raster = bool((cells == self.first + torch.arange(len(cells), device="cpu")).all())
        self.register_buffer("cells", None if self.raster else cells, persistent=False)
        self.register_buffer("table", None if self.raster else table, persistent=False)

    @property
    def kind(self) -> str:
        """A short name: NCHW, NHWC, tokens, or tokens with channels first."""
        if len(self.shape) == 2:
            return "NCHW" if self.channel == 1 else "NHWC"
        name = "tokens" if self.channel == 2 else "tokens, channels first"
        extra = math.prod(self.shape) - math.prod(self.grid)
        return name + (f" + {extra}" if extra else "") + ("" if self.raster else ", permuted")

    def to_map(self, features: Tensor) -> Tensor:
        """Features of this layout -> (B, D, h, w), without prefix tokens."""
        flat = features.movedim(self.channel, 1).flatten(2)
        number = math.prod(self.grid)
        if self.raster:
            flat = flat if flat.shape[2] == number else flat[:, :, self.first : self.first + number]
        else:
            flat = flat[:, :, self.cells]
        return rearrange(flat, "b d (h w) -> b d h w", h=self.grid[0])

    def prefix(self, features: Tensor) -> Tensor | None:
        """The tokens in front of the first cell (class token, registers), (B, P, D); None where there are none."""
        if len(self.shape) != 1 or not self.raster or not self.first:
            return None
        return features.movedim(self.channel, 2)[:, : self.first]

    def spread(self, values: Tensor) -> Tensor:
        """(B, h, w) -> the values at the positions of these cells, 0 elsewhere; broadcasts over channels."""
        flat = values.flatten(1)
        number = math.prod(self.shape)
        if not self.raster:
            flat = torch.where(self.table >= 0, flat[:, self.table.clamp(min=0)], torch.zeros_like(flat[:, :1]))
        elif flat.shape[1] != number:
            flat = F.pad(flat, (self.first, number - self.first - flat.shape[1]))
        return self.write(flat)

    def write(self, flat: Tensor) -> Tensor:
        """(B, P), one value per flat position -> a tensor that broadcasts to the feature tensor."""
        shape = [flat.shape[0]] + [1] * (len(self.shape) + 1)
        for axis, length in zip(self.positions, self.shape, strict=True):
            shape[axis] = length
        return flat.reshape(shape)

    def write_channels(self, vector: Tensor) -> Tensor:
        """(D,) -> a tensor that broadcasts to the feature tensor."""
        shape = [1] * (len(self.shape) + 2)
        shape[self.channel] = -1
        return vector.reshape(shape)


def raster_table(number: int, prefix: int = 0, positions: int | None = None) -> Tensor:
    """`prefix` positions without a cell, then `number` cells in raster order, then no cells up to `positions`."""
    table = torch.full((positions or prefix + number,), -1, dtype=torch.long, device="cpu")
    table[prefix : prefix + number] = torch.arange(number, device="cpu")
    return table


def guess_layouts(
    shape: Sequence[int], img_size: tuple[int, int], prefix: int = 0, unknown: bool = False
) -> list[Layout]:
    """Layouts that the shape of a tensor allows, the likeliest first; [] if the tensor cannot be a map of the image.

    Args:
        shape: of the whole tensor, batch first.
        img_size: (H, W) in pixels.
        prefix: number of prefix tokens that the model declares (timm's `num_prefix_tokens`).
        unknown: the model is not timm's, so other numbers of prefix tokens, and channels before tokens, are possible.

    A guess can be wrong (Hiera's tokens are permuted). `read_intermediates` and `verify_outputs` measure the layout.
    """
    layouts = []
    if len(shape) == 4:
        for channel, positions in ((1, (2, 3)), (3, (1, 2))):
            grid = shape[positions[0]], shape[positions[1]]
            if _plausible(grid, img_size):
                layouts.append(Layout(channel, positions, grid, grid, raster_table(math.prod(grid))))
    elif len(shape) == 3:
        for number_before in dict.fromkeys((prefix, *((0, 1, 2, 3, 4, 5, 8, 9) if unknown else (0, 1, 2, 5)))):
            for grid in _grids(shape[1] - number_before, img_size):
                layouts.append(Layout(2, (1,), shape[1:2], grid, raster_table(math.prod(grid), number_before)))
        for grid in _grids(shape[2], img_size) if unknown and shape[1] > 1 else ():
            layouts.append(Layout(1, (2,), shape[2:3], grid, raster_table(math.prod(grid))))
    return layouts


def _plausible(grid: tuple[int, int], img_size: tuple[int, int]) -> bool:
    """True if one stride, 1 or about 2 to 128 pixels, explains both sides of the grid, rounded up or down."""
    if min(grid) < 1 or (img_size[0] == img_size[1] and grid[0] != grid[1]):
        return False
    sides = list(zip(img_size, grid, strict=True))
    least = max(size / (cells + 1) for size, cells in sides)
    most = min(size / max(cells - 1, 1e-9) for size, cells in sides)
    return least < most and all(cells == size or 1.9 <= size / cells <= 128 for size, cells in sides)


def _grids(number: int, img_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Grids of `number` cells that tile the image plausibly, those with the squarest cells first. A grid has at least
    2 x 2 cells: a single token is a summary (PiT's class token) and not a map.
    """
    if number < 1:
        return []
    rows = [h for h in range(2, number // 2 + 1) if number % h == 0 and _plausible((h, number // h), img_size)]
    ideal = math.sqrt(number * img_size[0] / img_size[1])
    return [(h, number // h) for h in sorted(rows, key=lambda h: abs(math.log(h / ideal)))]


def cell_stride(size: int, cells: int, declared: Sequence[int] = ()) -> float:
    """Pixels per feature cell along one axis of `size` pixels.

    Args:
        declared: the model's own strides (feature_info). They decide if the size is no multiple, because a grid may be
            the ceiling (XCiT: 72 px -> 5 cells of 16) or the floor (ViT: 72 px -> 4 cells of 16) of size / stride.
    """
    for stride in declared:
        if cells in (math.ceil(size / stride), size // stride):
            return stride
    if size % cells == 0:
        return size // cells
    stride = 2 ** round(math.log2(size / cells))
    return stride if cells in (math.ceil(size / stride), size // stride) else size / cells


def distinct(layouts: dict[tuple, Layout], tensors: dict[tuple, Tensor]) -> dict[tuple, Layout]:
    """Drops paths that repeat a tensor. EfficientViM's last stage returns its map twice."""
    first: dict[int, tuple] = {}
    for path in layouts:
        first.setdefault(id(tensors[path]), path)
    return {path: layouts[path] for path in first.values()}


def guess_all(output, images: Tensor, model: nn.Module) -> dict[tuple, list[Layout]]:
    """Path -> guessed layouts, for the tensors in a module's output that can be maps of `images`."""
    prefix, img_size = getattr(model, "num_prefix_tokens", 0), (images.shape[-2], images.shape[-1])
    unknown = not hasattr(model, "feature_info")
    guesses = {
        path: guess_layouts(t.shape, img_size, prefix, unknown)
        for path, t in leaves(output)
        if t.is_floating_point() and t.ndim > 2 and len(t) == len(images)
    }
    return {path: layouts for path, layouts in guesses.items() if layouts}
