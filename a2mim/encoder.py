"""Any timm model as feature maps (B, D, h, w), with the mask token put in at a chosen map.

Invariant: the timm model stays timm's, key for key; without a mask the features equal plain timm's bit for bit.
"""

import difflib
import math

import timm
import torch
from torch import Tensor, nn

from a2mim.layout import cell_stride, leaves, replace_leaves
from a2mim.registry import MODELS
from a2mim.sites import feature_modules, study
from a2mim.visible_stats import sum_over_visible

TOKEN_MODES = ("add", "replace", "scaled")


def insert_token(
    features: Tensor, token: Tensor, mask: Tensor, mode: str = "add", gamma: Tensor | None = None
) -> Tensor:
    """Puts the mask token on the hidden cells of a feature map.

    Args:
        features: (B, D, h, w).
        token: (D,) or (1, D, 1, 1).
        mask: (B, h, w) bool, True = hidden; or float, the hidden fraction of each cell in [0, 1], which blends.
        mode: "add": z + token; "replace": token (SimMIM); "scaled": gamma * z + token (A²MIM's CNNs).
        gamma: as `token`; "scaled" only.

    Source: A²MIM, https://arxiv.org/abs/2205.13943.
    """
    check_mode(mode)
    if mode == "scaled" and gamma is None:
        raise ValueError('token mode "scaled" needs gamma, one factor per channel (A²MIM starts it at 1e-6).')
    token, gamma = (None if vector is None else vector.reshape(1, -1, 1, 1) for vector in (token, gamma))
    return _mix(features, token, mask[:, None], mode, gamma)


def _mix(features: Tensor, token: Tensor, hidden: Tensor, mode: str, gamma: Tensor | None) -> Tensor:
    """`insert_token` in any layout: token, hidden and gamma broadcast over `features`, whose dtype the result keeps."""
    inside = token.to(features.dtype)
    if mode == "add":
        inside = features + inside
    elif mode == "scaled":
        inside = features * gamma.to(features.dtype) + inside
    if hidden.dtype == torch.bool:
        return torch.where(hidden, inside, features)
    return torch.lerp(features, inside.expand_as(features), hidden.to(features.dtype))


def check_mode(mode: str) -> None:
    if mode not in TOKEN_MODES:
        raise ValueError(f"token {mode!r} is no mode of the mask token; choose one of {', '.join(TOKEN_MODES)}.")


@MODELS.register_module()
class MaskedEncoder(nn.Module):
    """A timm model whose hidden cells carry a learned token from a chosen feature map on.

    Args:
        name: any name that timm.create_model takes.
        site: the module whose output takes the token, e.g. "layer3", "blocks.5", "patch_embed"; "auto" is the last map
            of half the final stride in a hierarchical network, the middle block of an isotropic one.
        token: "add", "replace" or "scaled", see `insert_token`.
        img_size: pixels, one number or (height, width); None is the model's own size.
        in_chans: channels of the images.
        mask_patch_size: side of a hidden square in pixels; "auto" prefers a site whose cells are no larger.
        drop_path_rate: stochastic depth in pre-training.
        pretrained: start from timm's published weights, which it downloads.
        token_std: of the truncated normal that the token starts from; 0 starts it at exactly 0, as the reference's
            ConvNeXt does.
        visible_stats: leave hidden tokens out of the sums over tokens of XCiT, X-ViT and LinGlo, in every block; see
            `a2mim.visible_stats`. ValueError for an architecture without such sums.

    Attributes:
        model: timm's, with num_classes=0.
        site: name of the module that takes the token.
        channels, strides: of each map that forward returns; strides in pixels.
        img_size: (H, W) in pixels.
        frozen: parameters of `model` that no loss on the maps reaches (class attention, a head's norm). They ask for no
            gradient, so that weight decay does not shrink them and DistributedDataParallel does not wait for them.
        tokens, gammas: one vector (D,) for each map tensor at the site.

    Gradient checkpointing runs the site a second time, in backward. The mask of the last forward is kept for that and
    used only inside a backward pass: `encoder.model(images)` alone never sees a token. So with checkpointing on,
    backward must come before the next forward, as it does in any training step and in gradient accumulation.
    """

    def __init__(
        self,
        name: str,
        site: str = "auto",
        token: str = "add",
        img_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        mask_patch_size: int = 32,
        drop_path_rate: float = 0.0,
        pretrained: bool = False,
        token_std: float = 0.02,
        visible_stats: bool = False,
    ):
        super().__init__()
        check_mode(token)
        self.name, self.in_chans, self.token_mode = name, in_chans, token
        self.model, self.img_size, self.model_args = build_model(name, img_size, in_chans, drop_path_rate, pretrained)
        found = _study(self.model, self.img_size, in_chans, site, mask_patch_size)

        self.site = found.site
        self.site_paths, self.final_paths = list(found.site_layouts), list(found.final_layouts)
        self.site_layouts = nn.ModuleList(found.site_layouts.values())
        self.final_layouts = nn.ModuleList(found.final_layouts.values())
        self.site_strides = [self._strides(layout) for layout in self.site_layouts]
        self.channels = found.channels
        self.strides = [math.ceil(max(self._strides(layout))) for layout in self.final_layouts]

        self.tokens, self.gammas = nn.ParameterList(), nn.ParameterList()
        for width in found.site_widths:
            start = nn.init.trunc_normal_(torch.empty(width), std=token_std) if token_std else torch.zeros(width)
            self.tokens.append(nn.Parameter(start))
            if token == "scaled":
                self.gammas.append(nn.Parameter(torch.full((width,), 1e-6)))

        self.frozen = found.frozen
        for parameter in self.frozen:
            self.model.get_parameter(parameter).requires_grad_(False)
        if found.pool and _can_rebuild(name, self.model, {**self.model_args, "global_pool": found.pool}):
            self.model.reset_classifier(0, found.pool)
            self.model_args["global_pool"] = found.pool

        # Bound methods, so that a deep copy of the encoder (EMA) hooks its own model to its own tokens.
        self._mask, self._inserting, self._tapped = None, False, None
        self.model.get_submodule(found.site_module).register_forward_hook(self._insert)
        self.tapping = bool(found.final_module)
        if self.tapping:
            self.model.get_submodule(found.final_module).register_forward_hook(self._tap)
        if visible_stats:
            sum_over_visible(self.model, name, self.img_size, self._hidden_share)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """images: (B, C, H, W) float; mask: (B, rows, cols) bool, True = hidden. Returns maps, each (B, D, h, w)."""
        if tuple(images.shape[2:]) != self.img_size:
            given, built = (" x ".join(str(side) for side in size) for size in (images.shape[2:], self.img_size))
            raise ValueError(
                f"images of {given} px given to an encoder built for {built} px; build it with that img_size."
            )
        self._mask, self._inserting = mask, True
        try:
            output = self.model.forward_features(images)
        finally:
            self._inserting = False
        if self.tapping:
            output, self._tapped = self._tapped, None
        tensors = dict(leaves(output))
        return [layout.to_map(tensors[path]) for path, layout in zip(self.final_paths, self.final_layouts, strict=True)]

    def arguments(self) -> dict:
        """Plain values; timm.create_model(name, num_classes=0, **model_args) rebuilds `model`."""
        return {
            "name": self.name,
            "img_size": list(self.img_size),
            "in_chans": self.in_chans,
            "model_args": dict(self.model_args),
            "frozen": list(self.frozen),
            "site": self.site,
        }

    def _strides(self, layout) -> tuple[float, float]:
        declared = [stride for _, stride in feature_modules(self.model)]
        return tuple(cell_stride(size, cells, declared) for size, cells in zip(self.img_size, layout.grid, strict=True))

    def _current_mask(self) -> Tensor | None:
        """The mask of the forward that runs, or that checkpointing runs again in backward; None without one."""
        # torch.utils.checkpoint asks the same function whether it runs inside a backward pass.
        if not self._inserting and (torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1):
            return None
        return self._mask

    def _hidden_share(self, grid: tuple[int, int], strides: tuple[float, float]) -> Tensor | None:
        """The current mask on a grid, see `pool_mask`; None without one."""
        mask = self._current_mask()
        return None if mask is None else pool_mask(mask, grid, strides, self.img_size)

    def _insert(self, module, inputs, output):
        """Forward hook of the site."""
        mask = self._current_mask()
        if mask is None:
            return None
        features, new = dict(leaves(output)), {}
        for i, (path, layout) in enumerate(zip(self.site_paths, self.site_layouts, strict=True)):
            hidden = layout.spread(pool_mask(mask, layout.grid, self.site_strides[i], self.img_size))
            token = layout.write_channels(self.tokens[i])
            gamma = layout.write_channels(self.gammas[i]) if self.token_mode == "scaled" else None
            new[path] = _mix(features[path], token, hidden, self.token_mode, gamma)
        return replace_leaves(output, new)

    def _tap(self, module, inputs, output):
        """Forward hook of the last map, for models whose `forward_features` returns none."""
        self._tapped = output


def pool_mask(mask: Tensor, grid: tuple[int, int], strides: tuple[float, float], img_size: tuple[int, int]) -> Tensor:
    """(B, rows, cols) bool mask -> (B, h, w): bool where cells and grid align, else the hidden share of each cell.

    Args:
        strides: pixels per feature cell (vertical, horizontal); the last cell may reach over the edge of the image.
        img_size: (H, W) in pixels, tiled by the cells of the mask.
    """
    sides = [size / cells for size, cells in zip(img_size, mask.shape[1:], strict=True)]
    repeats = [side / stride for side, stride in zip(sides, strides, strict=True)]
    exact = [r == int(r) and r * n == g for r, n, g in zip(repeats, mask.shape[1:], grid, strict=True)]
    if all(exact):
        return mask.repeat_interleave(int(repeats[0]), dim=1).repeat_interleave(int(repeats[1]), dim=2)
    rows, cols = (
        _overlap(size, stride, cells, side, number, mask.device)
        for size, stride, cells, side, number in zip(img_size, strides, grid, sides, mask.shape[1:], strict=True)
    )
    return torch.einsum("hr,brc,wc->bhw", rows, mask.float(), cols)


def _overlap(size: int, stride: float, cells: int, side: float, number: int, device) -> Tensor:
    """(cells, number): the fraction of each feature cell that each mask cell covers, along one axis."""
    start = torch.arange(cells, device=device)[:, None] * stride
    end = (start + stride).clamp(max=size)
    left = torch.arange(number, device=device)[None] * side
    shared = torch.minimum(end, left + side) - torch.maximum(start, left)
    return shared.clamp(min=0) / (end - start)


def unknown_model(name: str, what: str = "not a model that timm knows") -> ValueError:
    """The error to raise for a name, with the nearest that timm knows."""
    near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=4, cutoff=0.3)
    return ValueError(f"{name!r} is {what}" + (f"; the nearest names: {', '.join(near)}." if near else "."))


def build_model(name: str, img_size=None, in_chans: int = 3, drop_path_rate: float = 0.0, pretrained: bool = False):
    """The timm model without classifier, (H, W), and the create_model arguments it needs beyond its name."""
    if ":" not in name and not timm.is_model(name):
        raise unknown_model(name)
    model_args = {} if in_chans == 3 else {"in_chans": in_chans}
    training = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}

    def create(**size):
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **model_args, **training, **size)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            raise ValueError(f"{name} has no stochastic depth; leave drop_path_rate at 0.") from error

    if img_size is None:
        model = create()
        return model, tuple(model.pretrained_cfg["input_size"][1:]), model_args
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    try:
        return create(img_size=size), size, {**model_args, "img_size": list(size)}
    except (AssertionError, RuntimeError, TypeError, ValueError):
        # No such argument, or a size that only the argument refuses (XCiT takes any): whether the network itself takes
        # it shows when it is traced.
        return create(), size, model_args


def _study(model: nn.Module, img_size: tuple[int, int], in_chans: int, site: str, mask_patch_size: int):
    """`a2mim.sites.study` on noise images from a stream of their own."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, in_chans, *img_size, generator=generator, device="cpu").to(next(model.parameters()))
    return study(model, images, site, mask_patch_size)


def _can_rebuild(name: str, model: nn.Module, model_args: dict) -> bool:
    """Whether timm builds the same keys and shapes from these arguments."""
    with torch.device("meta"):
        other = timm.create_model(name, num_classes=0, **model_args)
    shapes = [{key: value.shape for key, value in m.state_dict().items()} for m in (model, other)]
    return shapes[0] == shapes[1]
