"""Builds a network from a name: timm's by name, any other by dotted path.

Invariant: the result has timm's `forward_features` and `forward_head`. Its state dictionary has the network's own keys,
so that weights can be loaded back without a2mim.
"""

import importlib
import inspect
import os
import sys
import typing

import torch
from torch import Tensor, nn

from a2mim.wiring.layout import Layout, distinct, guess_all, leaves
from a2mim.wiring.measure import observe, read_stripes
from a2mim.wiring.sites import hook_target
from a2mim.wiring.timm_models import BuiltModel, build_timm, fetched, is_timm, on_meta, shapes_of, unknown_model
from a2mim.wiring.tracing import trace, trial_copy

SIZE_ARGUMENTS = ("img_size", "image_size", "input_size")  # names that networks use
CHANNEL_ARGUMENTS = ("in_chans", "in_channels", "num_channels", "input_channels", "in_ch")


def build_model(
    name: str | nn.Module,
    img_size: int | tuple[int, int] | list[int] | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    pretrained: bool = False,
    model_args: dict | None = None,
) -> BuiltModel:
    """Builds a network: timm's without its classifier, any other whole, with timm's methods added.

    Args:
        name: timm's name, a dotted path, or a network. A dotted path is imported, so it must come from the user and
            never from a file.
        img_size: pixels; None is the network's own size.
        model_args: further arguments of its constructor.

    Raises:
        ValueError: the network does not exist, or does not accept this size or number of channels.
        OSError: the published weights could not be fetched.
    """
    if isinstance(name, str) and is_timm(name):
        channels = None if in_chans == 3 else in_chans
        arguments = name, img_size, channels, 0, drop_path_rate, pretrained, model_args
        return fetched(name, lambda: build_timm(*arguments)) if pretrained else build_timm(*arguments)
    if isinstance(name, str):
        find_class(name)  # reports a wrong name before other mistakes
    if drop_path_rate or pretrained:
        raise ValueError(f"drop_path_rate and pretrained are for timm's models; use model_args for {name}.")
    size = None if img_size is None else (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    return _build_own(name, size, in_chans, dict(model_args or {}))


def can_rebuild(name: str, model: nn.Module, model_args: dict) -> bool:
    """True if timm builds a model with the same keys and shapes from these arguments."""
    return shapes_of(on_meta(name, **model_args)) == shapes_of(model)


def _build_own(name: str | nn.Module, size, in_chans: int, model_args: dict) -> BuiltModel:
    """Like `build_model`. Size and number of channels are passed under the first name that the constructor accepts."""
    if isinstance(name, nn.Module):
        network, name = name, f"{type(name).__module__}.{type(name).__qualname__}"
        network, model_args = (network.network if isinstance(network, OwnNetwork) else network), {}
    else:
        network, model_args = construct(name, size, in_chans, model_args)
    size = size or _own_size(network)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, in_chans, *size, generator=generator, device="cpu").to(next(network.parameters()))
    return BuiltModel(name, OwnNetwork(network, images, name), size, model_args)


def construct(name: str, size, in_chans: int, model_args: dict) -> tuple[nn.Module, dict]:
    """The network at a dotted path, and the arguments that were passed to it."""
    make = find_class(name)
    sizes = [{key: size[0] if size[0] == size[1] else list(size)} for key in SIZE_ARGUMENTS if size] + [{}]
    channels = [{}] if in_chans == 3 else [{key: in_chans} for key in CHANNEL_ARGUMENTS]
    if set(SIZE_ARGUMENTS) & set(model_args):
        sizes = [{}]
    if set(CHANNEL_ARGUMENTS) & set(model_args):
        channels = [{}]
    problem = None
    for extra in [{**c, **s} for c in channels for s in sizes]:
        arguments = {**extra, **model_args}
        try:
            return make(**arguments), arguments
        except (AttributeError, TypeError) as error:  # the constructor refused an argument, or failed on it later
            if problem is None or not any(key in str(error) for key in extra):
                problem = error
    given = ", ".join(f"{key}={value!r}" for key, value in model_args.items()) or "no arguments"
    if len(channels) > 1 and channels != [{}]:
        given += f" and {in_chans} channels as one of {', '.join(CHANNEL_ARGUMENTS)}"
    raise ValueError(f"{name} cannot be built with {given} ({problem}); put what it needs into model_args.")


def find_class(name: str):
    """Imports what a dotted path names: an nn.Module class, or a function annotated to return one.

    Nothing else is accepted, so that a recipe or a checkpoint cannot call other code. A class of transformers is called
    through its configuration, with plain arguments.
    """
    if "." not in name:
        raise unknown_model(name)
    named, problem = None, ""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a script's path is its own folder
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            named = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            problem = str(error)
            if not f"{name}.".startswith(f"{error.name}."):  # the module exists, but one of its imports fails
                break
            continue
        except ValueError as error:  # an empty part
            problem = str(error)
            break
        for part in parts[cut:]:
            named, problem = getattr(named, part, None), f"{'.'.join(parts[:cut])} has no {'.'.join(parts[cut:])}"
        break
    if named is None:
        raise unknown_model(name, f"neither a model that timm knows nor a class that Python can import ({problem})")
    returned = named
    if inspect.isfunction(named):
        returned = typing.get_type_hints(named).get("return")
    if not (inspect.isclass(returned) and issubclass(returned, nn.Module)):
        raise ValueError(f"{name} is neither an nn.Module nor a function annotated to return one (-> nn.Module).")
    if not is_configured(returned):
        return named
    return lambda **arguments: named(_configure(returned.config_class, arguments))


def is_configured(kind: type) -> bool:
    """True for a class of transformers, which is made from a configuration."""
    return getattr(kind, "config_class", None) is not None


def _configure(settings, arguments: dict):
    """Makes a configuration of transformers. It would accept any argument, so unknown ones are refused here."""
    config = settings()
    for key in arguments:
        if not hasattr(config, key):
            raise TypeError(f"{settings.__name__} has no {key}")
    return settings(**arguments)


def _own_size(network: nn.Module) -> tuple[int, int]:
    """The size that the network's attributes or its config state, else 224 px."""
    for holder in (network, getattr(network, "config", None)):
        for key in SIZE_ARGUMENTS:
            size = getattr(holder, key, None)
            if isinstance(size, int):
                return size, size
            if isinstance(size, list | tuple) and len(size) == 2:
                return tuple(size)
    return 224, 224


class OwnNetwork(nn.Module):
    """Any network, with timm's `forward_features` (B, D, h, w) and `forward_head` (the mean over the map).

    The feature map is the network's return value if that is a map of the image. Otherwise it is the output of the
    module that finished last among those that return a map; a classifier after it gets no gradient. The dictionaries of
    children and parameters are the network's own, so keys, devices and deep copies are those of the network.

    Args:
        network: takes images (B, C, H, W) as its first argument.
        images: (2, C, H, W) on which the map is measured; on the meta device only its shape is used.
        name: dotted path, for errors and the state of a run.

    Raises:
        ValueError: the network does not accept the images, or returns no map of them.
    """

    def __init__(self, network: nn.Module, images: Tensor, name: str):
        super().__init__()
        self.network: nn.Module
        self.__dict__["network"] = network
        for shared in ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules"):
            self.__dict__[shared] = getattr(network, shared)
        module, self.layouts, self.num_features = _find_map(network, images, name)
        self.tapping, self._tapped, self.global_pool = bool(module), None, "avg"
        self.pretrained_cfg = {"architecture": name, "input_size": tuple(images.shape[1:])}
        if module:
            network.get_submodule(hook_target(network, module)).register_forward_hook(self._tap)

    @property
    def training(self) -> bool:
        """The network's own flag, so that there is only one."""
        return self.__dict__["network"].training if "network" in self.__dict__ else True

    @training.setter
    def training(self, mode: bool) -> None:
        if "network" in self.__dict__:
            self.__dict__["network"].training = mode

    def _tap(self, module, inputs, output):
        self._tapped = output

    def forward_features(self, images: Tensor) -> Tensor | list[Tensor]:
        """(B, C, H, W) -> (B, D, h, w), or a list if the network returns several maps."""
        output = _run(self.network)(images)
        if self.tapping:
            output, self._tapped = self._tapped, None
        tensors = dict(leaves(output))
        maps = [layout.to_map(tensors[path]) for path, layout in self.layouts.items()]
        return maps if len(maps) > 1 else maps[0]

    def forward_head(self, features: Tensor | list[Tensor], pre_logits: bool = True) -> Tensor:
        """Map or maps -> (B, D): their means, concatenated."""
        maps = features if isinstance(features, list) else [features]
        return torch.cat([feature_map.mean((2, 3)) for feature_map in maps], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return self.forward_head(self.forward_features(images))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches gradient checkpointing in the network by timm's or transformers' method."""
        for name in ("set_grad_checkpointing", f"gradient_checkpointing_{'enable' if enable else 'disable'}"):
            if hasattr(self.network, name):
                getattr(self.network, name)(*([enable] if name.startswith("set") else []))
                return
        if enable:
            raise ValueError(f"{self.pretrained_cfg['architecture']} has no gradient checkpointing.")


def _run(network: nn.Module):
    """The function from images to features: timm's `forward_features` if there is one, else the network itself."""
    return getattr(network, "forward_features", network)


def _find_map(network: nn.Module, images: Tensor, name: str) -> tuple[str, dict[tuple, Layout], int]:
    """("" or the module whose output is the final map, path in it -> layout, number of channels)."""
    trial = trial_copy(network)
    try:
        seen = trace(trial, images, _run(trial))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    trial.eval()
    candidates = {("", path): layouts for path, layouts in guess_all(seen.output, images, trial).items()}
    tensors, shapes = {"": dict(leaves(seen.output)), **seen.tensors}, set[tuple]()
    for call in reversed(seen.calls):
        for path, layouts in call.guesses.items():
            shape = tensors[call.name][path].shape
            if call.depth >= 0.5 and shape not in shapes and len(shapes) < 8:
                shapes.add(shape)
                candidates[call.name, path] = layouts
    candidates = {key: [g for g in layouts if min(g.grid) > 1] for key, layouts in candidates.items()}
    candidates = {key: layouts for key, layouts in candidates.items() if layouts}
    if images.is_meta or not candidates:
        measured = {key: layouts[0] for key, layouts in candidates.items()}
    else:
        modules = list(dict.fromkeys(module for module, _ in candidates))
        measured = read_stripes(lambda lit: observe(_run(trial), trial, modules, lit), images[:1], candidates)
    # A map with two axes is hardly ambiguous, and small grids give weak evidence. Tokens need evidence of their order.
    chosen = {
        key: layout
        for key, layout in measured.items()
        if layout.evidence == "stripes" or len(layout.shape) == 2 or images.is_meta
    }
    if not chosen:
        raise ValueError(
            f"{name} has no module that returns a feature map of the image (B, D, h, w), (B, h, w, D) or (B, N, D);"
            " return one from its forward."
        )
    module = next(iter(chosen))[0]
    of_module = {path: layout for (owner, path), layout in chosen.items() if owner == module}
    of_module = distinct(of_module, tensors[module])
    widths = [tensors[module][path].shape[layout.channel] for path, layout in of_module.items()]
    return module, of_module, sum(widths)
