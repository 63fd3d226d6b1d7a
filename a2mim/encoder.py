"""Any timm model as feature maps (B, D, h, w), with the mask token inserted at a chosen map.

Invariant: the timm model keeps timm's keys. Without a mask, its features equal plain timm's bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from a2mim.masking.cells import expand_mask, pool_mask
from a2mim.masking.token import check_mode, insert_token, mix_token
from a2mim.registry import MODELS, check_names, check_number, check_size, check_whole
from a2mim.wiring.final_norm import NAME, lack_norm, normed
from a2mim.wiring.hiding import HIDING, Dropping, Sparse, check_cells, check_counts, check_shape, hiding_faults
from a2mim.wiring.layout import Layout, leaves, replace_leaves
from a2mim.wiring.networks import build_model, can_rebuild
from a2mim.wiring.sites import FeatureMaps, study
from a2mim.wiring.visible_stats import sum_over_visible

__all__ = ["MapTensor", "MaskedEncoder", "insert_token"]


@dataclass(frozen=True)
class MapTensor:
    """One feature map among the output tensors of hooked modules.

    Attributes:
        path: the number of the module in the encoder's list, then the path in its output.
        layout: positions of the cells.
        strides: pixels per cell (vertical, horizontal).
        channels: D.
    """

    path: tuple
    layout: Layout
    strides: tuple[float, float]
    channels: int


def _map_tensors(modules: list[FeatureMaps]) -> tuple[MapTensor, ...]:
    return tuple(
        MapTensor((i, *path), layout, strides, channels)
        for i, maps in enumerate(modules)
        for (path, layout), strides, channels in zip(maps.layouts.items(), maps.strides, maps.channels, strict=True)
    )


@MODELS.register_module()
class MaskedEncoder(nn.Module):
    """A network whose hidden cells carry a learned token, from a chosen feature map on.

    Args:
        name: any name that timm.create_model takes; or a network of your own, as an nn.Module or by its dotted path
            ("torchvision.models.resnet18", "my_package.MyNet"), see `a2mim.wiring.networks`.
        site: the module whose output takes the token, e.g. "layer3", "blocks.5", "patch_embed". "auto" is the last map
            with half the final stride in a hierarchical network, and the middle block of an isotropic one. With several
            names, each site has its own token.
        token: "add", "replace" or "scaled", see `insert_token`; "none": only the fill marks hidden cells.
        img_size: pixels, one number or (height, width); None is the model's own size.
        in_chans: channels of the images.
        mask_patch_size: side of a hidden square in pixels; "auto" prefers a site whose cells are no larger.
        maps: the modules whose outputs are returned, each for its own decoder; "auto" is the maps that
            `forward_features` returns, or the last map if it returns none. Parameters after the last map are frozen.
        model_args: further arguments of timm.create_model, or of your own network; plain values.
        drop_path_rate: stochastic depth in pre-training.
        pretrained: start from timm's published weights, which it downloads.
        token_std: of the truncated normal that initialises the token; 0 starts it at exactly 0, as the reference's
            ConvNeXt does.
        visible_stats: leave hidden tokens out of the sums over tokens of XCiT, X-ViT and LinGlo, in every block; see
            `a2mim.wiring.visible_stats`. ValueError for an architecture without such sums.
        hide: how hidden cells are kept from the network. "token": a learned token enters at `site`. "drop": hidden
            patches leave the sequence (MAE; plain transformers). "sparse": hidden cells are 0 in every feature map
            and statistics pass over them (SparK; CNNs). With the last two there is no token here, `site` and `token`
            mean nothing, the maps are 0 in hidden cells, and the decoder fills them.

    Raises:
        ValueError: the network cannot be hidden from in that way; the sentence says why.

    Attributes:
        model: timm's, with num_classes=0, or `OwnNetwork`.
        site: name of the module that takes the token, or a tuple of several.
        channels, strides: of each map that forward returns; strides in pixels, a float if the cells do not divide the
            image (CrossViT's second branch sees 240 px as 224).
        img_size: (H, W) in pixels.
        frozen: parameters of `model` that no loss on the maps reaches (class attention, the norm of a head). They
            require no gradient: weight decay does not shrink them and DistributedDataParallel does not wait for them.
        lacking: of each module whose output is decoded, whether the tokens of a masked image pass through the norm that
            timm puts behind average pooling (`fc_norm`), see `a2mim.wiring.final_norm`. So pre-training trains it.
        study: what was measured on the network, see `a2mim.wiring.sites.Study`.
        sites, outputs: the map tensors that take a token, and those that forward returns.
        tokens, gammas: one vector (D,) for each of `sites`.

    A network may resize the image before it embeds it (CrossViT does for its second branch). Interpolation would mix
    visible pixels into hidden cells. So the hidden cells are filled again after the resize, with the colours that
    `images` has there.

    Gradient checkpointing runs the site a second time, in backward. For this, the mask of the last forward is kept. It
    is used only inside a backward pass: `encoder.model(images)` alone never inserts a token. So with checkpointing,
    backward must come before the next forward, as in any training step and in gradient accumulation.

    Examples:
        >>> encoder = a2mim.MaskedEncoder("test_vit", img_size=64, mask_patch_size=16)
        >>> encoder.site, encoder(torch.zeros(1, 3, 64, 64))[0].shape
        ('blocks.2', torch.Size([1, 64, 4, 4]))
    """

    def __init__(
        self,
        name: str | nn.Module,
        site: str | Sequence[str] = "auto",
        token: str = "add",
        img_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        mask_patch_size: int = 32,
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        token_std: float = 0.02,
        visible_stats: bool = False,
        maps: str | Sequence[str] = "auto",
        model_args: dict | None = None,
        hide: str = "token",
    ):
        super().__init__()
        kind = type(self).__name__
        check_size(kind, img_size)
        check_names(kind, site=site, maps=maps)
        check_whole(kind, in_chans=in_chans, mask_patch_size=mask_patch_size)
        check_number(kind, token_std=token_std)
        check_number(kind, most=1, drop_path_rate=drop_path_rate)
        if not isinstance(name, str | nn.Module) or not isinstance(model_args, dict | None):
            raise ValueError(f"{kind}: name={name!r} must be a name or a network, and model_args={model_args!r} a dict")
        for flag, value in (("pretrained", pretrained), ("visible_stats", visible_stats)):
            if not isinstance(value, bool):
                raise ValueError(f"{kind}: {flag}={value!r} must be True or False")
        if token != "none":
            check_mode(token)
        if hide not in HIDING:
            raise ValueError(f"hide={hide!r} is not one of {', '.join(map(repr, HIDING))}")
        if hide != "token" and site != "auto":
            raise ValueError(f"hide={hide!r} puts no token into the encoder, so leave site={site!r} out")
        self.hide = hide
        self.token_mode = token
        built = build_model(name, img_size, in_chans, drop_path_rate, pretrained, model_args)
        self.name, self.model, self.img_size = built.name, built.model, built.img_size
        self.model_args = dict(built.model_args)
        self.in_chans = self.model_args.get("in_chans", in_chans)
        wired = _study(self.model, self.img_size, self.in_chans, site, mask_patch_size, maps)

        if hide != "token" or token == "none":
            wired.sites.clear()
        self.study = wired  # for the certificate
        self.site = wired.sites[0].name if len(wired.sites) == 1 else tuple(s.name for s in wired.sites)
        self.sites, self.outputs = _map_tensors(wired.sites), _map_tensors(wired.finals)
        # The layouts are registered as modules, so that their tables move to the encoder's device.
        self.layouts = nn.ModuleList(point.layout for point in (*self.sites, *self.outputs))
        self.channels = [point.channels for point in self.outputs]
        self.strides = [max(point.strides) for point in self.outputs]

        self.tokens, self.gammas = nn.ParameterList(), nn.ParameterList()
        for width in (point.channels for point in self.sites):
            start = nn.init.trunc_normal_(torch.empty(width), std=token_std) if token_std else torch.zeros(width)
            self.tokens.append(nn.Parameter(start))
            if token == "scaled":
                self.gammas.append(nn.Parameter(torch.full((width,), 1e-6)))

        self.lacking = lack_norm(self.model, wired.finals)
        self.frozen = [key for key in wired.frozen if not (any(self.lacking) and key.startswith(f"{NAME}."))]
        for parameter in self.frozen:
            self.model.get_parameter(parameter).requires_grad_(False)
        if wired.pool and can_rebuild(self.name, self.model, {**self.model_args, "global_pool": wired.pool}):
            self.model.reset_classifier(0, wired.pool)
            self.model_args["global_pool"] = wired.pool

        # Bound methods, so that a deep copy of the encoder (EMA) connects its own model to its own tokens.
        self._images: Tensor | None = None
        self._mask: Tensor | None = None
        self._hidden_cells: int | None = None  # of `_mask`
        self._inserting = False
        self._tapped: dict[int, Any] = {}
        for i, point in enumerate(wired.sites):
            self.model.get_submodule(point.module).register_forward_hook(partial(self._insert, i))
        self.tapping = [point.module for point in wired.finals if point.module]
        for i, module in enumerate(self.tapping):
            self.model.get_submodule(module).register_forward_hook(partial(self._tap, i))
        for module in wired.resized:
            self.model.get_submodule(module).register_forward_pre_hook(self._refill)
        if visible_stats:
            sum_over_visible(self.model, self.name, self.img_size, self._hidden_share)
        self._hide_cells(mask_patch_size)

    def _hide_cells(self, mask_patch_size: int) -> None:
        """Prepares "drop" and "sparse", and proves on noise that hidden pixels change nothing."""
        grid = self.outputs[0].layout.grid
        of_mask = self._current_mask, self._known_cells
        self.dropping = Dropping(self.model, self.name, grid, *of_mask) if self.hide == "drop" else None
        self.sparse = Sparse(*of_mask) if self.hide == "sparse" else None
        if self.hide != "token" and not next(self.model.parameters()).is_meta:
            hiding_faults(self, mask_patch_size)

    def install_hooks(self) -> None:
        """Puts sparse hiding's hooks on modules that lack them, such as converted norms; call it before compiling."""
        if self.sparse is not None:
            self.sparse.install(self.model)

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        with_prefixes: bool = False,
        hidden_cells: int | None = None,
    ) -> list[Tensor] | tuple[list[Tensor], list[Tensor | None]]:
        """images: (B, C, H, W) float; mask: (B, rows, cols) bool, True = hidden. Returns maps, each (B, D, h, w);
        with_prefixes also the class and register tokens in front of each map's, (B, P, D) or None.

        hidden_cells: how many cells of `mask` are True; with hide="drop" and "sparse" the host need not wait for the
        device to learn it.

        Raises:
            ValueError: images or mask do not fit the encoder. Unequal counts of hidden cells are found on the CPU
                alone, where looking makes nobody wait.
        """
        if tuple(images.shape[2:]) != self.img_size:
            given, built = (" x ".join(str(side) for side in size) for size in (images.shape[2:], self.img_size))
            raise ValueError(
                f"images of {given} px given to an encoder built for {built} px; build it with that img_size."
            )
        if mask is not None and not torch.compiler.is_compiling():
            self._check_mask(mask, len(images), hidden_cells)
        if self.sparse is not None and mask is not None:
            if not torch.compiler.is_compiling():  # a compiled step has them: see `install_hooks`
                self.install_hooks()
            self.sparse.forget()  # else a compiled step would depend on the mask before
            images = images.masked_fill(expand_mask(mask, *self.img_size), 0.0)
        self._images, self._mask, self._inserting, self._hidden_cells = images, mask, True, hidden_cells
        try:
            if self.dropping is not None and mask is not None:
                output = self.dropping.run(self.model, images)
            else:
                output = self.model.forward_features(images)
        finally:
            self._images, self._inserting = None, False
        outputs, self._tapped = (self._tapped if self.tapping else {0: output}), {}
        if mask is not None:
            outputs = {i: self._norm(i, one) for i, one in outputs.items()}
        tensors = {path: tensor for i, one in outputs.items() for path, tensor in leaves(one, (i,))}
        maps = [self._to_map(tensors[output_map.path], output_map.layout, mask) for output_map in self.outputs]
        if not with_prefixes:
            return maps
        return maps, [output_map.layout.prefix(tensors[output_map.path]) for output_map in self.outputs]

    def _norm(self, number: int, output):
        """The output of a module that is decoded, normed where it lacks the norm that the network has."""
        if not self.lacking[number]:
            return output
        return normed(output, self.model.get_submodule(NAME), self.study.finals[number])

    def _check_mask(self, mask: Tensor, batch: int, hidden_cells: int | None) -> None:
        """Raises ValueError for a mask that does not fit this encoder."""
        check_shape(self.name, mask, batch)
        if self.sparse is not None:
            check_cells(self.name, mask, self.img_size, [output.layout.grid for output in self.outputs])
        if self.hide != "token":
            equal = self.sparse is None or self.sparse.by_image(self.model)
            check_counts(self.name, self.hide, mask, hidden_cells, equal)

    def _to_map(self, tensor: Tensor, layout: Layout, mask: Tensor | None) -> Tensor:
        """(B, D, h, w); hidden cells are 0 where they were dropped or run sparse."""
        if self.dropping is not None and mask is not None:
            tensor = self.dropping.restore(tensor, layout, mask)
        features = layout.to_map(tensor)
        if self.sparse is not None and mask is not None:
            visible = self.sparse.visible(layout.grid, mask)
            assert visible is not None  # `check_cells` refuses masks that do not fit the map's grid
            features = features.masked_fill(~visible[:, None], 0.0)
        return features

    def arguments(self) -> dict:
        """Plain values. `build_model` rebuilds `model` from name, img_size, in_chans and model_args. For a timm model,
        timm.create_model(name, num_classes=0, **model_args) does the same.
        """
        return {
            "name": self.name,
            "img_size": list(self.img_size),
            "in_chans": self.in_chans,
            "model_args": dict(self.model_args),
            "frozen": list(self.frozen),
            "site": self.site if isinstance(self.site, str) else list(self.site),
        }

    def _current_mask(self) -> Tensor | None:
        """The mask of the running forward, or of the forward that checkpointing repeats in backward; else None."""
        # torch.utils.checkpoint uses the same function to find out whether it runs inside a backward pass.
        if not self._inserting and (torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1):
            return None
        return self._mask

    def _known_cells(self) -> int | None:
        """How many cells of the current mask are hidden, if the caller of `forward` has said so."""
        return self._hidden_cells

    def _hidden_share(self, grid: tuple[int, int], strides: tuple[float, float]) -> Tensor | None:
        """The current mask on a grid, see `pool_mask`; None without a mask."""
        mask = self._current_mask()
        return None if mask is None else pool_mask(mask, grid, strides, self.img_size)

    def _insert(self, number: int, module, inputs, output):
        """Forward hook of a site."""
        mask = self._current_mask()
        if mask is None:
            return None
        features, new = dict(leaves(output, (number,))), {}
        for i, site in enumerate(self.sites):
            if site.path[0] != number:
                continue
            layout = site.layout
            hidden = layout.spread(pool_mask(mask, layout.grid, site.strides, self.img_size))
            token = layout.write_channels(self.tokens[i])
            gamma = layout.write_channels(self.gammas[i]) if self.token_mode == "scaled" else None
            new[site.path] = mix_token(features[site.path], token, hidden, self.token_mode, gamma)
        return replace_leaves(output, new, (number,))

    def _tap(self, number: int, module, inputs, output):
        """Forward hook of a map that `forward_features` does not return."""
        if self._inserting:
            self._tapped[number] = output

    def _refill(self, module, inputs):
        """Forward pre-hook of a module that receives the image resized: fills its hidden pixels from the image."""
        if self._mask is None or self._images is None or not self._inserting:
            return None
        resized, *others = inputs
        size = resized.shape[-2:]
        hidden = F.interpolate(self._mask[:, None].to(resized.dtype), size, mode="nearest-exact") > 0
        return torch.where(hidden, F.interpolate(self._images, size, mode="nearest-exact"), resized), *others


def _study(model: nn.Module, img_size: tuple[int, int], in_chans: int, site, mask_patch_size: int, maps):
    """`a2mim.wiring.sites.study` on noise images, drawn from a generator of their own."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, in_chans, *img_size, generator=generator, device="cpu").to(next(model.parameters()))
    return study(model, images, site, mask_patch_size, maps)
