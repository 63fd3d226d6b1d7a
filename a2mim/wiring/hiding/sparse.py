"""A CNN that sees visible cells alone: hidden cells are 0 in every feature map, and statistics pass over them.

Hooks on the network's own layers multiply what each hands on by the mask, gather the visible cells for each norm that
takes statistics over cells (BatchNorm, GroupNorm, InstanceNorm, EvoNorm, filter response norm), and correct what
channel attention and `nn.AdaptiveAvgPool2d(1)` average. The network itself is not changed.
"""

import copy
from collections.abc import Callable

import torch
from timm import layers
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models.hgnet import EseModule
from timm.models.senet import SEModule
from torch import Tensor, nn

from a2mim.wiring.hiding.mask_check import counts_of
from a2mim.wiring.layout import leaves
from a2mim.wiring.model_type import TimmModel

# gate(mean of the map) times the map: the mean is over visible cells
AVERAGING = (
    layers.SEModule, layers.EffectiveSEModule, layers.EcaModule, layers.CecaModule, SqueezeExcite, SEModule, EseModule,
)  # fmt: skip
# channel attention and routing of other kinds, whose statistics over zeros nobody corrects here
UNKNOWN = tuple(
    getattr(layers, kind)
    for kind in (
        "GatherExcite", "CbamModule", "LightCbamModule", "SelectiveKernel", "SplitAttn", "LambdaLayer",
        "BottleneckAttn", "HaloAttn", "NonLocalAttn", "BatNonLocalAttn", "CoordAttn", "StripAttn",
        "CondConv2d",
    )
    if hasattr(layers, kind)
)  # fmt: skip
BY_IMAGE = (  # statistics of one image; EvoNorm-B's are of the batch, too
    nn.GroupNorm, nn.modules.instancenorm._InstanceNorm,
    layers.EvoNorm2dB0, layers.EvoNorm2dB1, layers.EvoNorm2dB2,
    layers.EvoNorm2dS0, layers.EvoNorm2dS1, layers.EvoNorm2dS2,
    layers.FilterResponseNormTlu2d, layers.FilterResponseNormAct2d,
)  # fmt: skip
GATHERED = (nn.modules.batchnorm._BatchNorm, *BY_IMAGE)
POOLING = (
    nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d,
    layers.BlurPool2d,
)  # fmt: skip
SPREADING = (nn.modules.conv._ConvNd, *POOLING)  # what hands on cells that it made of their neighbours, channels first


class Sparse:
    """The hooks of one network.

    Args:
        mask: the current mask (B, rows, cols) bool, or None; a bound method of the encoder, so that a deep copy asks
            its own.
        hidden_cells: how many cells of the mask are hidden in the whole batch; None: not known without looking.

    Source: SparK, https://arxiv.org/abs/2301.03580, by hooks in place of its layers. Attention inside hybrid networks
        (EdgeNeXt, FocalNet, CoAtNet) still reads the zeros.
    """

    def __init__(self, mask: Callable[[], Tensor | None], hidden_cells: Callable[[], int | None] = lambda: None):
        self.mask, self.hidden_cells = mask, hidden_cells
        # by grid, for the mask of the last forward
        self._index: dict[tuple, Tensor] = {}
        self._places: dict[tuple, Tensor] = {}
        self._visible: dict[tuple, Tensor | None] = {}
        self._known: Tensor | None = None
        # between the two hooks of a norm: the shape of what it was given, and the places, where the channels stay first
        self._given: dict[int, tuple[torch.Size, Tensor | None]] = {}

    def install(self, model: nn.Module) -> None:
        """Hooks every layer that has no hooks yet: also those that replace others later (SyncBatchNorm).

        These hooks come before those of others, who must see the layer's output with its hidden cells at 0: a decoded
        map may be the output of a BatchNorm (DenseNet).
        """
        inside: set[nn.Module] = set()
        for module in model.modules():
            if module in inside:
                continue
            hooked = any(getattr(hook, "__self__", None) is self for hook in module._forward_hooks.values())
            if isinstance(module, GATHERED):
                inside |= set(module.children())
                if not hooked:
                    module.register_forward_pre_hook(self._gather)
                    module.register_forward_hook(self._scatter, prepend=True)
            elif isinstance(module, AVERAGING) and not hooked:
                module.register_forward_pre_hook(self._raise_mean)
                module.register_forward_hook(self._lower_mean, prepend=True)
            elif isinstance(module, layers.GlobalContext) and module.conv_attn is not None:
                inside.add(module.conv_attn)
                if not hooked:
                    module.conv_attn.register_forward_hook(self._leave_out, prepend=True)
                    module.register_forward_hook(self._hide, prepend=True)
            elif isinstance(module, nn.AdaptiveAvgPool2d) and not hooked:
                module.register_forward_hook(self._mean_of_visible, prepend=True)
            elif hands_on_cells(module) and not hooked:
                module.register_forward_hook(self._hide, prepend=True)

    @staticmethod
    def by_image(model: nn.Module) -> bool:
        """Whether a norm takes the statistics of one image: then every image must show as many cells."""
        return any(isinstance(module, BY_IMAGE) for module in model.modules())

    def visible(self, shape: tuple[int, int], mask: Tensor | None = None) -> Tensor | None:
        """(B, h, w) bool on a grid that is a whole multiple of the mask's; None for any other, and for single cells.

        mask: None takes the current one.
        """
        mask = self.mask() if mask is None else mask
        if mask is None or shape == (1, 1):
            return None
        self._forget_others(mask)
        if shape not in self._visible:
            self._visible[shape] = self._on_grid(shape, mask)
        return self._visible[shape]

    def _forget_others(self, mask: Tensor) -> None:
        """Drops what was worked out for another mask."""
        if self._known is not mask:
            self.forget()
            self._known = mask

    def forget(self) -> None:
        """Drops what was worked out for the last mask."""
        self._known, self._index, self._places, self._visible = None, {}, {}, {}

    def _on_grid(self, shape: tuple[int, int], mask: Tensor) -> Tensor | None:
        ratios = [cells / number for cells, number in zip(shape, mask.shape[1:], strict=True)]
        if ratios[0] != ratios[1] or ratios[0] != int(ratios[0]) or ratios[0] < 1:
            return None
        return ~mask.repeat_interleave(int(ratios[0]), dim=1).repeat_interleave(int(ratios[0]), dim=2)

    def index(self, visible: Tensor) -> Tensor:
        """(N,) flat places of the visible cells of the batch, the same for all layers of one grid."""
        key = tuple(visible.shape)
        if key not in self._index:
            mask, hidden, flat = self.mask(), self.hidden_cells(), visible.flatten()
            if mask is None or hidden is None:
                self._index[key] = flat.nonzero()[:, 0]
            else:  # the host knows how many there are, and does not wait
                number = (mask.numel() - hidden) * flat.numel() // mask.numel()
                self._index[key] = torch.nonzero_static(flat, size=number)[:, 0]
        return self._index[key]

    def places(self, visible: Tensor, channels: int) -> Tensor:
        """(B, channels, N) places of the visible cells in their own image, where all images have as many."""
        key = tuple(visible.shape)
        if key not in self._places:
            starts = torch.arange(len(visible), device=visible.device)[:, None] * visible[0].numel()
            self._places[key] = self.index(visible).view(len(visible), 1, -1) - starts[:, None]
        return self._places[key].expand(-1, channels, -1)

    def _counts_are_equal(self) -> bool:
        """Whether all images of the current mask are known to show as many cells: not in a compiled step, nor where the
        host would wait to learn it.
        """
        mask = self.mask()
        counts = None if mask is None or torch.compiler.is_compiling() else counts_of(mask)
        return counts is not None and bool((counts == counts[0]).all())

    def of_output(self, module: nn.Module, output: Tensor) -> Tensor | None:
        """The visible cells of a layer's output, broadcastable to it; None where it is no feature map."""
        mask = self.mask()
        if mask is None or not isinstance(output, Tensor) or output.ndim != 4 or len(output) != len(mask):
            return None
        for axis in channel_axes(module):
            first = 2 if axis == 1 else 1
            visible = self.visible((output.shape[first], output.shape[first + 1]))
            if visible is not None:
                return visible.unsqueeze(axis)
        return None

    def _hide(self, module: nn.Module, inputs: tuple, output):
        """Forward hook of a layer: hidden cells are 0."""
        visible = self.of_output(module, output)
        return None if visible is None else torch.where(visible, output, 0.0)

    def _leave_out(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        """Forward hook of GlobalContext's scores, (B, 1, h, w): hidden cells get no weight in the softmax."""
        visible = self.of_output(module, output)
        return None if visible is None else output.masked_fill(~visible, torch.finfo(output.dtype).min)

    def _gather(self, module: nn.Module, inputs: tuple):
        """Forward pre-hook of a norm: the visible cells, as (B, C, cells, 1) where all images are known to have as many
        (norms of one image need that), else as (cells, C, 1, 1).
        """
        features, *others = inputs
        visible = self.visible((features.shape[2], features.shape[3])) if features.ndim == 4 else None
        if visible is None or len(visible) != len(features):
            return None
        alike = isinstance(module, BY_IMAGE) or self._counts_are_equal()
        places = self.places(visible, features.shape[1]) if alike else None
        self._given[id(module)] = features.shape, places
        if places is not None:
            return features.flatten(2).gather(2, places)[..., None], *others
        return features.movedim(1, -1).flatten(0, 2)[self.index(visible)][:, :, None, None], *others

    def _scatter(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        """Forward hook of a norm: the cells back on their grid, 0 elsewhere."""
        if id(module) not in self._given:
            return None
        shape, places = self._given.pop(id(module))
        batch, channels, height, width = shape
        if places is not None:
            full = output.new_zeros(batch, channels, height * width)
            return full.scatter_(2, places, output[..., 0]).view(shape)
        visible = self.visible((height, width))
        assert visible is not None  # the cells were gathered on this grid
        full = output.new_zeros(batch * height * width, channels)
        full = full.index_copy_(0, self.index(visible), output.flatten(1))
        return full.view(batch, height, width, channels).movedim(-1, 1)

    def _raise_mean(self, module: nn.Module, inputs: tuple):
        """Forward pre-hook of channel attention: times cells / visible cells, so its mean is that of visible ones."""
        share = self._share(inputs[0])
        return None if share is None else (inputs[0] / share, *inputs[1:])

    def _lower_mean(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        """Forward hook: undoes `_raise_mean` in what was multiplied by the gate."""
        share = self._share(output)
        return None if share is None else output * share

    def _mean_of_visible(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        """Forward hook of an average pooling: a mean over the whole map becomes that over its visible cells."""
        if output.shape[-2:] != (1, 1):
            return self._hide(module, inputs, output)
        share = self._share(inputs[0])
        return None if share is None else output / share

    def _share(self, features: Tensor) -> Tensor | None:
        """(B, 1, 1, 1) visible share of the cells."""
        visible = self.visible((features.shape[2], features.shape[3])) if features.ndim == 4 else None
        if visible is None:
            return None
        return visible.flatten(1).to(features.dtype).mean(1).clamp_min(1e-6).view(-1, 1, 1, 1)


def hands_on_cells(module: nn.Module) -> bool:
    """Whether a layer may hand on something other than 0 in hidden cells: it has parameters, or reads neighbours.

    Activations, dropout and the like keep zeros; what they hand on may be no map at all (attention's weights).
    """
    if list(module.children()):
        return False
    return isinstance(module, POOLING) or "Pool" in type(module).__name__ or bool(list(module.parameters()))


def channel_axes(module: nn.Module) -> tuple[int, ...]:
    """The axes that may hold the channels in a layer's output (B, C, h, w) or (B, h, w, C), likeliest first."""
    if isinstance(module, nn.Linear) or (isinstance(module, nn.LayerNorm) and not type(module).__name__.endswith("2d")):
        return (3,)
    if isinstance(module, (*SPREADING, *GATHERED)):
        return (1,)
    return (3, 1) if getattr(module, "channel_dim", 1) == -1 else (1, 3)


def refuse_unfit(model: TimmModel, name: str, images: Tensor, mask: Tensor, maps: list[str]) -> None:
    """Runs a hooked copy on masked images and raises ValueError where hidden cells do not stay 0.

    Args:
        images: (B, C, H, W); mask: (B, rows, cols) bool with hidden and visible cells in every image.
        maps: modules whose outputs must be 0 in hidden cells, as that of the network itself must.
    """
    for inner, module in model.named_modules():
        if isinstance(module, UNKNOWN):
            told = f"{inner} ({type(module).__name__}) takes statistics over the whole map"
            raise ValueError(_sentence(name, told))
    trial = copy.deepcopy(model).train()
    sparse = Sparse(lambda: mask)
    sparse.install(trial)
    problems: list[str] = []
    for inner, module in trial.named_modules():
        module.register_forward_hook(_watch(sparse, inner, len(images), inner in maps, problems))
    shown = sparse.visible((images.shape[2], images.shape[3]))
    assert shown is not None  # the pixels of an image are a multiple of the mask's cells
    hidden = ~shown[:, None]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        output = trial.forward_features(images.masked_fill(hidden, 0.0))
    del trial
    for _, tensor in leaves(output):
        problems += _not_zero(sparse, "the final map", nn.Identity(), tensor)
    if problems:
        raise ValueError(_sentence(name, problems[0]))


def _not_zero(sparse: Sparse, name: str, module: nn.Module, output: Tensor) -> list[str]:
    """What is wrong with a feature map that must be 0 in hidden cells."""
    if output.ndim != 4:
        return [f"{name} is a sequence of tokens, whose attention and sums see hidden ones"]
    visible = sparse.of_output(module, output)
    if visible is None or bool(torch.where(visible, 0.0, output).any()):
        return [f"{name} is not 0 in hidden cells"]
    return []


def _watch(sparse: Sparse, name: str, batch: int, is_map: bool, problems: list[str]) -> Callable:
    """A forward hook that notes what hands on hidden cells that are not 0, or cells that are not the image's."""

    def watch(module: nn.Module, inputs: tuple, output) -> None:
        told = f"{name} ({type(module).__name__})"
        if isinstance(module, GATHERED) and inputs[0].ndim == 3:
            problems.append(f"{told} normalises over tokens, hidden ones included")
        if not isinstance(output, Tensor) or output.ndim not in (3, 4) or not output.is_floating_point():
            return
        if is_map:
            problems.extend(_not_zero(sparse, name, module, output))
        if list(module.children()) or output.shape[-2:] == (1, 1):
            return
        if len(output) > batch and len(output) % batch == 0:
            problems.append(f"{told} sees cells that were moved into windows")
        elif (
            output.ndim == 4
            and isinstance(module, SPREADING)
            and sparse.visible((output.shape[2], output.shape[3])) is None
        ):
            mask = sparse.mask()
            assert mask is not None  # `refuse_unfit` sets one
            rows, cols = mask.shape[1:]
            grid = f"{output.shape[2]}x{output.shape[3]}"
            problems.append(f"{told} hands on {grid} cells, no multiple of the mask's {rows}x{cols}")

    return watch


def _sentence(name: str, why: str) -> str:
    return (
        f"{name} cannot be run on visible cells alone: {why}; hide='token' works with every network, and the network's"
        " total stride as mask_patch_size, or an image size that is a multiple of it, may help"
    )
