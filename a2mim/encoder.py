"""Any timm model as feature maps (B, D, h, w), with the mask token put in at a chosen map.

Invariant: the timm model stays timm's, key for key; without a mask the features equal plain timm bit for bit.
"""

import difflib
import math

import timm
import torch
from torch import Tensor, nn

from a2mim.layout import Layout, cell_stride, guess_layouts, leaves, pool_mask, replace_leaves
from a2mim.sites import choose_site, feature_modules, find_site, hook_target, trace, trial_copy, unreached

TOKEN_MODES = ("add", "replace", "scaled")


def insert_token(
    features: Tensor, token: Tensor, mask: Tensor, mode: str = "add", gamma: Tensor | None = None
) -> Tensor:
    """Puts the mask token on the hidden cells of a feature map.

    Args:
        features: (B, D, h, w).
        token: (D,) or (1, D, 1, 1).
        mask: (B, h, w) bool, True = hidden, or the hidden fraction of each cell in [0, 1], which blends.
        mode: "add": z + token; "replace": token (SimMIM); "scaled": gamma * z + token (A²MIM's CNNs, gamma from 1e-6).
        gamma: as `token`; for "scaled" only.

    Source: A²MIM, https://arxiv.org/abs/2205.13943.
    """
    check_mode(mode)
    vectors = [None if v is None else v.reshape(1, -1, 1, 1) for v in (token, gamma)]
    return _mix(features, vectors[0], mask[:, None], mode, vectors[1])


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
        raise ValueError(f"token {mode!r} is not a mode of the mask token; choose one of {', '.join(TOKEN_MODES)}.")


class MaskedEncoder(nn.Module):
    """A timm model whose hidden cells carry a learned token from a chosen feature map on.

    Args:
        name: any name that timm.create_model takes.
        site: the module whose output takes the token, e.g. "layer3", "blocks.5", "patch_embed"; "auto" is the last map of half
            the final stride of a hierarchical network, the middle block of an isotropic one.
        token: "add", "replace" or "scaled", see `insert_token`.
        img_size: pixels, one number or (height, width); None is the model's own size.
        in_chans: channels of the images.
        mask_patch_size: side of a hidden square in pixels; "auto" prefers a site whose cells are no larger.
        drop_path_rate: stochastic depth while pre-training.
        pretrained: start from timm's published weights (downloads).

    Attributes: `model` (timm's, num_classes=0), `site`, `channels` and `strides` (pixels) of the maps, `img_size` (H, W),
    `frozen`: parameters of `model` that no loss on the maps reaches (class attention, heads): they ask for no gradient, so
    that weight decay does not shrink them and DistributedDataParallel does not wait for them.

    Gradient checkpointing runs the site again during backward, after forward has ended; the mask of the last forward is kept for that
    and used only inside a backward pass, so `encoder.model(images)` alone never sees a token. With checkpointing on, one
    forward must be followed by its backward before the next masked forward.
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
    ):
        super().__init__()
        check_mode(token)
        self.name, self.in_chans, self.token_mode = name, in_chans, token
        self.model, self.img_size, self.model_args = build_model(name, img_size, in_chans, drop_path_rate, pretrained)
        trial = trial_copy(self.model)
        weight = next(trial.parameters())
        images = torch.randn(2, in_chans, *self.img_size, generator=torch.Generator().manual_seed(0), device="cpu").to(
            weight
        )
        calls, output = trace(trial, images)
        declared = [reduction for _, reduction in feature_modules(self.model)]
        prefix = getattr(self.model, "num_prefix_tokens", 0)

        outputs = {path: (guess_layouts(t.shape, self.img_size, prefix), t) for path, t in leaves(output)}
        outputs = {path: (found[0], t) for path, (found, t) in outputs.items() if found}
        self.output_paths = list(outputs)
        self.output_layouts = nn.ModuleList(layout for layout, _ in outputs.values())
        maps = [layout.to_map(t) for layout, t in outputs.values()]
        self.channels = [m.shape[1] for m in maps]
        self.strides = [math.ceil(cell_stride(self.img_size[0], m.shape[2], declared)) for m in maps]

        if site == "auto":
            call = choose_site(trial, calls, max(self.strides), mask_patch_size, self.img_size)
        else:
            call = find_site(trial, calls, site)
        self.site = call.name
        self.site_paths = list(call.layouts)
        self.site_layouts = nn.ModuleList(found[0] for found in call.layouts.values())
        self._mask = self._active = None
        self.tokens, self.gammas = nn.ParameterList(), nn.ParameterList()
        for path, layout in zip(self.site_paths, self.site_layouts, strict=True):
            width = call.shapes[path][layout.channel]
            self.tokens.append(nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02)))
            if token == "scaled":
                self.gammas.append(nn.Parameter(torch.full((width,), 1e-6)))
        self.site_strides = [
            tuple(cell_stride(s, g, declared) for s, g in zip(self.img_size, layout.grid, strict=True))
            for layout in self.site_layouts
        ]

        self.frozen = unreached(trial, maps)
        for parameter_name in self.frozen:
            self.model.get_parameter(parameter_name).requires_grad_(False)
        self.model.get_submodule(hook_target(self.model, self.site)).register_forward_hook(self._insert)

    def _insert(self, module, inputs, output):
        recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if self._mask is None or not (self._active or recomputing):
            return None
        features, new = dict(leaves(output)), {}
        for i, (path, layout) in enumerate(zip(self.site_paths, self.site_layouts, strict=True)):
            hidden = layout.spread(pool_mask(self._mask, layout.grid, self.site_strides[i], self.img_size))
            token = layout.write_channels(self.tokens[i])
            gamma = layout.write_channels(self.gammas[i]) if self.gammas else None
            new[path] = _mix(features[path], token, hidden, self.token_mode, gamma)
        return replace_leaves(output, new)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """images: (B, C, H, W) float; mask: (B, rows, cols) bool, True = hidden. Returns maps, each (B, D, h, w)."""
        if tuple(images.shape[-2:]) != self.img_size:
            given = " x ".join(map(str, images.shape[-2:]))
            raise ValueError(
                f"images of {given} px given to an encoder built for {self.img_size}; build it with that img_size."
            )
        self._mask, self._active = mask, mask is not None
        try:
            output = dict(leaves(self.model.forward_features(images)))
        finally:
            self._active = False
        return [
            layout.to_map(output[path]) for path, layout in zip(self.output_paths, self.output_layouts, strict=True)
        ]

    def arguments(self) -> dict:
        """Plain values: timm.create_model(name, num_classes=0, **model_args) rebuilds `model`."""
        return {
            "name": self.name,
            "img_size": list(self.img_size),
            "in_chans": self.in_chans,
            "model_args": dict(self.model_args),
            "frozen": list(self.frozen),
            "site": self.site,
        }


def build_model(name: str, img_size=None, in_chans: int = 3, drop_path_rate: float = 0.0, pretrained: bool = False):
    """(timm model without classifier, (H, W), the create_model arguments that it needs beyond its name)."""
    if ":" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=4, cutoff=0.3)
        raise ValueError(f"{name!r} is not a model that timm knows; the nearest names: {', '.join(near)}.")
    model_args = {} if in_chans == 3 else {"in_chans": in_chans}
    extra = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}

    def create(**kwargs):
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **model_args, **extra, **kwargs)

    if img_size is None:
        model = create()
        return model, tuple(model.pretrained_cfg["input_size"][1:]), model_args
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    try:
        model = create(img_size=size)
        return model, size, {**model_args, "img_size": list(size)}
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return create(), size, model_args
