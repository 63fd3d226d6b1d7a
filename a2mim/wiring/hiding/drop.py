"""Hidden patches leave the sequence of a plain transformer before its first block.

Which families can do without some of their tokens is a table; that no hidden pixel reaches the output is measured on
the network itself (`Dropping.leak`), and must hold exactly.
"""

from collections.abc import Callable

import torch
from timm.models.cait import Cait
from timm.models.convit import GPSA, ConVit
from timm.models.eva import Eva
from timm.models.hiera import Hiera
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from a2mim.wiring.layout import Layout
from a2mim.wiring.model_type import TimmModel

# the module whose output is the sequence, positions included
HOOKED = {VisionTransformer: "patch_drop", Cait: "pos_drop", ConVit: "pos_drop"}
# timm calls `patch_drop` for (tokens, indices kept) and picks the rotary positions itself
CALLED = (Eva, NaFlexVit)
REASONS = {
    "beit": "its tables of relative positions are made for the whole grid",
    "vision_transformer_relpos": "its tables of relative positions are made for the whole grid",
    "vision_transformer_sam": "its tokens stay on a grid of windows",
    "xcit": "its depthwise convolutions need the whole grid",
    "xvit": "its depthwise convolutions need the whole grid",
    "mlp_mixer": "its weights mix all tokens of the whole grid",
}


class Dropping:
    """Leaves the hidden tokens of one network out while a mask is set.

    Args:
        model: timm's.
        name: of it, for errors.
        grid: (h, w) of its tokens.
        mask: the current mask (B, rows, cols) bool, or None; a bound method of the encoder, so that a deep copy asks
            its own.
        hidden_cells: how many cells of the mask are hidden in the whole batch; None: not known without looking.

    Raises:
        ValueError: the architecture needs all tokens; the sentence names the reason.
    """

    def __init__(
        self,
        model: TimmModel,
        name: str,
        grid: tuple[int, int],
        mask: Callable[[], Tensor | None],
        hidden_cells: Callable[[], int | None] = lambda: None,
    ):
        self.name, self.mask, self.hidden_cells, self.grid, self.prefix = name, mask, hidden_cells, grid, 0
        if isinstance(model, Hiera):
            rows, cols = model.mask_spatial_shape
            self.grid = (rows, cols)
            return
        kind = next((k for k in (*HOOKED, *CALLED) if isinstance(model, k)), None)
        if kind is None:
            raise ValueError(refusal(model, name))
        if getattr(getattr(model, "patch_embed", None), "backbone", None) is not None:
            raise ValueError(
                f"{name} cannot leave hidden patches out: its convolutional stem mixes their pixels with visible ones;"
                " hide='token' works with every network"
            )
        if kind not in (Cait, ConVit):
            self.prefix = model.num_prefix_tokens
        if kind in HOOKED:
            model.get_submodule(HOOKED[kind]).register_forward_hook(self._gather_output)
        self._offsets: dict[int, Tensor] = {}  # of a layer's whole grid, between its two hooks
        for layer in (module for module in model.modules() if isinstance(module, GPSA)):
            layer.register_forward_pre_hook(self._take_offsets)  # also where a backward pass runs the layer again
            layer.register_forward_hook(self._give_offsets_back, always_call=True)

    def visible(self) -> Tensor:
        """(B, N) bool: which units of the network's grid are shown."""
        mask = self.mask()
        assert mask is not None  # the hooks ask only while a mask is set
        ratios = [cells / number for cells, number in zip(self.grid, mask.shape[1:], strict=True)]
        if any(ratio != int(ratio) for ratio in ratios):
            raise ValueError(
                f"{self.name} leaves out whole units of {self.grid[0]}x{self.grid[1]} an image, and the mask has"
                f" {mask.shape[1]}x{mask.shape[2]} cells, which do not hold whole units; choose a mask_patch_size that"
                " is a multiple of a unit's side (the patch_size of a ViT)"
            )
        repeated = mask.repeat_interleave(int(ratios[0]), dim=1).repeat_interleave(int(ratios[1]), dim=2)
        return ~repeated.flatten(1)

    def number(self, visible: Tensor, mask: Tensor) -> int | None:
        """How many units are shown in each row of (B, N), a whole multiple of the mask's cells; None: not known."""
        hidden = self.hidden_cells()
        if hidden is None:
            return None
        cells = mask[0].numel()
        return (cells - hidden // len(mask)) * visible.shape[1] // cells

    def kept(self) -> Tensor:
        """(B, K) the units that are shown, in raster order."""
        visible, mask = self.visible(), self.mask()
        assert mask is not None
        return indices(visible, self.number(visible, mask))

    def gather(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, P + N, D) -> (prefix and visible tokens in raster order, indices (B, K) of those)."""
        kept = self.kept()
        inner = tokens[:, self.prefix :].gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))
        return torch.cat([tokens[:, : self.prefix], inner], dim=1), kept

    def _gather_output(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        """Forward hook."""
        return None if self.mask() is None else self.gather(output)[0]

    def run(self, model: TimmModel, images: Tensor):
        """forward_features with the current mask."""
        if isinstance(model, Hiera):
            return model.forward_features(images, mask=self.visible())
        if not isinstance(model, CALLED):
            return model.forward_features(images)
        training, own = model.training, "patch_drop" in model.__dict__
        given = model.__dict__.get("patch_drop")
        model.__dict__["patch_drop"] = self.gather
        # NaFlexViT asks for it in training only; its children keep their own mode
        model.training = training or isinstance(model, NaFlexVit)
        try:
            return model.forward_features(images)
        finally:
            model.training = training
            model.__dict__.pop("patch_drop")
            if own:
                model.__dict__["patch_drop"] = given

    def _take_offsets(self, layer: GPSA, inputs: tuple) -> None:
        """Forward pre-hook: ConViT's positional attention reads the offsets between all tokens; here those between the
        kept ones.
        """
        if self.mask() is None:
            return
        if self.grid[0] != self.grid[1]:
            raise ValueError(f"{self.name} knows square grids of tokens alone, not {self.grid[0]}x{self.grid[1]}")
        kept = self.kept()
        offsets = layer.get_rel_indices(self.grid[0] * self.grid[1])[0].to(kept.device)  # (N, N, 3)
        self._offsets[id(layer)] = layer.rel_indices
        layer.rel_indices = offsets[kept[:, :, None], kept[:, None, :]]

    def _give_offsets_back(self, layer: GPSA, inputs: tuple, output: Tensor) -> None:
        """Forward hook."""
        if id(layer) in self._offsets:
            layer.rel_indices = self._offsets.pop(id(layer))

    def restore(self, tokens: Tensor, layout: Layout, mask: Tensor) -> Tensor:
        """Kept tokens (B, P + K, D) -> (B, P + N, D) in the layout of the full grid, 0 at hidden cells."""
        ratios = [cells // number for cells, number in zip(layout.grid, mask.shape[1:], strict=True)]
        shown = ~mask.repeat_interleave(ratios[0], dim=1).repeat_interleave(ratios[1], dim=2)
        flat = layout.spread(shown).flatten(1)
        kept = indices(flat, self.number(flat, mask))
        prefix = tokens.shape[1] - kept.shape[1]
        full = tokens.new_zeros(len(tokens), flat.shape[1], tokens.shape[2])
        full = full.scatter_(1, kept[..., None].expand(-1, -1, tokens.shape[2]), tokens[:, prefix:])
        return torch.cat([tokens[:, :prefix], full[:, prefix:]], dim=1) if prefix else full


def indices(chosen: Tensor, number: int | None = None) -> Tensor:
    """(B, N) bool with as many True in every row -> (B, K) their places in order. number: K; None: counted, for which
    the host waits.
    """
    if number is None:
        number = int(chosen[0].sum())
    return chosen.int().argsort(dim=1, descending=True, stable=True)[:, :number]


def refusal(model: nn.Module, name: str) -> str:
    """Why a network needs all of its tokens."""
    module = type(model).__module__.rpartition(".")[2]
    known = "only plain transformers (ViT, EVA, NaFlexViT, Hiera, CaiT, ConViT) are known to do without some tokens"
    why = REASONS.get(module, known)
    use = "hide='token' works with every network, hide='sparse' with CNNs"
    return f"{name} cannot leave hidden patches out: {why}; {use}"
