"""Named features of one forward pass, so that several protocols share the pass.

"default" is what timm hands to a classifier, "cls" the class token, "avg" the mean over patch tokens or over the last
map. "cls-i" is the class token after the i-th last block of a plain ViT, through the final norm; "map-i" the mean over
the i-th last block or stage of any model whose intermediate maps timm can return. "cells" is the last map, cell after
cell in float16, and "cells:NAME" the map of a named module.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from a2mim.evaluation.cells import MapReader, flat_cells
from a2mim.evaluation.features import average_tokens, frozen, pooling_of
from a2mim.wiring.model_type import TimmModel

SMALL_WIDTH = 384  # of ViT-S: up to here DINO takes four class tokens, above it one and the mean patch token
POOLED = ("default", "cls", "avg")
CELLS = "cells"


def is_plain_vit(model: nn.Module) -> bool:
    """Whether its blocks all see the class token; those of XCiT and CaiT never do."""
    late_class_token = hasattr(model, "cls_attn_blocks")
    return getattr(model, "cls_token", None) is not None and hasattr(model, "blocks") and not late_class_token


def tap(
    model: nn.Module, parts: Iterable[str], readers: Mapping[str, MapReader] | None = None
) -> Callable[[Tensor], dict[str, Tensor]]:
    """The function from normalised images (B, C, H, W) to {part: (B, D) float32}, in one forward pass.

    Args:
        readers: of each part that is made of cells; such a part comes as (B, N·D) float16.

    Raises:
        ValueError: a part that this model does not have.
    """
    parts, readers = tuple(dict.fromkeys(parts)), readers or {}
    deep = [part for part in parts if part not in POOLED and not is_cells(part)]
    depth = max((int(part.partition("-")[2]) for part in deep), default=0)
    for part in set(parts) & {"cls"}:
        pooling_of(model, part)  # refuses
    if deep and not hasattr(model, "forward_intermediates"):
        raise ValueError(f"{type(model).__name__} does not let its blocks be looked into: take the last block alone.")
    if any(part.startswith("cls-") for part in deep):
        _refuse_depth(model, depth)

    def run(images: Tensor) -> dict[str, Tensor]:
        tokens = any(part.startswith("cls-") for part in deep)
        with contextlib.ExitStack() as hooks:
            wanted = {part: hooks.enter_context(readers[part]) for part in parts if is_cells(part)}
            final, blocks = _forward(model, images, depth, tokens, deep != list(parts))
            found = {part: flat_cells(reader.read(final)) for part, reader in wanted.items()}
        return {part: found[part] if part in found else _part(model, part, final, blocks).float() for part in parts}

    return run


def is_cells(part: str) -> bool:
    return part.partition(":")[0] == CELLS


def dino_parts(model: TimmModel, blocks: int | None = None) -> tuple[tuple[str, ...], str]:
    """(parts to join, what they are) of DINO's linear protocol.

    A plain ViT gives the class tokens of its last blocks: four up to width 384; above it the last one beside the mean
    of its patch tokens. Everything else (XCiT, CNNs) gives timm's pooled output.

    Args:
        blocks: overrides the number of blocks of a plain ViT; not for other models.
    """
    if not is_plain_vit(model):
        if blocks is not None:
            raise ValueError(f"n_last_blocks={blocks} means nothing for {type(model).__name__}: leave it out.")
        return ("default",), "pooled output"
    small = model.num_features <= SMALL_WIDTH
    number = blocks if blocks is not None else (min(4, len(model.blocks)) if small else 1)
    _refuse_depth(model, number)
    words = "class token of the last block" if number == 1 else f"class tokens of the last {number} blocks"
    parts = tuple(f"cls-{i}" for i in range(number, 0, -1))
    if blocks is None and not small:
        return (*parts, "avg"), words + " and the mean of its patch tokens"
    return parts, words


def grid_parts(model: TimmModel, images: Tensor, blocks: Iterable[int]) -> dict[str, tuple[str, ...]]:
    """{name: parts to join}: the inputs of DINOv2's grid, each number of blocks with and without the mean patch token.

    A plain ViT gives class tokens. Other models give their pooled output, and above one block the means of the maps
    before it; where the mean patch token is the pooled output, or cannot be had, there is no second variant.

    Args:
        images: (B, C, H, W), normalised: used to find out which parts this model has.
    """
    found, before = {}, None
    for number in blocks:
        vit = is_plain_vit(model)
        number = min(number, len(model.blocks)) if vit else number
        parts = tuple(f"cls-{i}" for i in range(number, 0, -1)) if vit else _maps(model, images, number)
        if parts == before:
            continue
        before = parts
        name = "1 block" if len(parts) == 1 else f"{len(parts)} blocks"
        found[name] = parts
        if _has_own_mean(model, images):
            found[f"{name} and mean patch token"] = (*parts, "avg")
    return found


def _maps(model: nn.Module, images: Tensor, number: int) -> tuple[str, ...]:
    """The means of up to number - 1 maps before the last, then the pooled output."""
    for depth in range(number, 1, -1):
        parts = tuple(f"map-{i}" for i in range(depth, 1, -1))
        try:
            with frozen(model):
                tap(model, parts)(images)
            return (*parts, "default")
        except (ValueError, RuntimeError, AssertionError, IndexError, TypeError, KeyError):
            continue  # models differ in their number of maps and in the error for too many
    return ("default",)


def _has_own_mean(model: nn.Module, images: Tensor) -> bool:
    try:
        with frozen(model):
            found = tap(model, ("default", "avg"))(images)
    except (ValueError, RuntimeError, AttributeError, TypeError):
        return False
    return found["default"].shape != found["avg"].shape or not torch.allclose(found["default"], found["avg"])


def _forward(model: TimmModel, images: Tensor, depth: int, tokens: bool, final: bool):
    """(output of forward_features or None, the last `depth` blocks: (map, prefix tokens) for tokens, else maps)."""
    if not depth:
        return model.forward_features(images), []
    options = {"output_fmt": "NLC", "return_prefix_tokens": True, "norm": True} if tokens else {"output_fmt": "NCHW"}
    if final:
        return model.forward_intermediates(images, indices=depth, **options)
    return None, model.forward_intermediates(images, indices=depth, intermediates_only=True, **options)


def _part(model: TimmModel, part: str, final, blocks: list) -> Tensor:
    if part == "default":
        return model.forward_head(final, pre_logits=True)
    if part == "cls":
        return final[:, 0]
    if part == "avg":
        return average_tokens(model, final)
    kind, _, place = part.partition("-")
    block = blocks[-int(place)]
    return block[1][:, 0] if kind == "cls" else block.mean(dim=(2, 3))


def _refuse_depth(model: TimmModel, number: int) -> None:
    if not is_plain_vit(model):
        raise ValueError(f"{type(model).__name__} has no class token in its blocks: take its pooled output.")
    if not 1 <= number <= len(model.blocks):
        raise ValueError(f"n_last_blocks={number} was given: the model has {len(model.blocks)} blocks.")
