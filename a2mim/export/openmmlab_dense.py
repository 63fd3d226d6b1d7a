"""Encoders as backbones of mmdet and mmseg: OpenMMLab's own classes where they fit, else maps that timm takes.

Invariant: the maps that the library has to give are read by hooks on the encoder (`levels.read_maps`) or known from its
last map. They never come from the class that is checked.
"""

import inspect

from a2mim.export import graphs, openmmlab_native
from a2mim.export.contracts import of_timm_maps
from a2mim.export.facts import TIMM_MAPS
from a2mim.export.levels import Level, read_maps
from a2mim.export.openmmlab_native import Native
from a2mim.export.target import RESCALES, Neck, Subject
from a2mim.wiring.sites import hook_target
from a2mim.wiring.tracing import feature_modules

PYRAMIDS = ("ResNet", "ResNeXt", "SwinTransformer", "ConvNeXt")  # OpenMMLab's own classes with four maps
CROP = 512  # pixels, where the network takes any size


def backbone(subject: Subject, library: str) -> tuple[Native, Neck, tuple[str, ...]]:
    """(the backbone with four maps, what stands behind it, keys of the backbone's layers that are new).

    Raises:
        ValueError: why the library cannot take this encoder.
    """
    found = openmmlab_native.native(subject)
    if found is not None and found.config["type"] in PYRAMIDS:
        native, left_random = own_class(found, subject, library)
        rows = subject.model.feature_info
        channels = [row["num_chs"] for row in getattr(rows, "info", rows)][-4:]
        return native, Neck(tuple(channels), (), CROP), left_random
    return *_by_timm(subject, library), ()


def own_class(found: Native, subject: Subject, library: str) -> tuple[Native, tuple[str, ...]]:
    """With all four maps, by mmdet's and mmseg's arguments; and the keys of the layers that are new with them."""
    config, stages = dict(found.config) | {"out_indices": (0, 1, 2, 3)}, range(3)
    maps = found.maps
    left_random: tuple[str, ...] = ()
    if config["type"] == "ResNeXt":
        config["base_width"] = config.pop("width_per_group")
    if config["type"] in ("SwinTransformer", "ConvNeXt"):
        # mmdet and mmseg have no ConvNeXt. Their Swin shifts the windows of a map that is one window; mmpretrain's
        # and timm's do not.
        left_random = tuple(f"norm{stage}.{part}" for stage in stages for part in ("weight", "bias"))
        if config["type"] == "ConvNeXt":
            config["gap_before_final_norm"] = False
            maps = (openmmlab_native.normed_map(subject),)
        config["type"] = f"mmpretrain.{config['type']}"
    return Native(config, found.tensors, maps), left_random


def _by_timm(subject: Subject, library: str) -> tuple[Native, Neck]:
    """mmpretrain's TIMMBackbone with four of timm's own maps, and the neck that makes a pyramid of them."""
    model = subject.model
    levels = subject.levels
    rescales = _rescales(levels)
    modules = [hook_target(model, name) for name, _ in feature_modules(model)]
    chosen = [modules.index(level.module) for level in levels if level.module in modules]
    if len(set(chosen)) < len(levels) or not hasattr(model, "forward_intermediates"):
        raise ValueError("timm gives fewer than four maps of it")
    arguments = {"model_name": subject.name, **subject.model_args}
    if subject.input_size[0] != 3:
        arguments["in_channels"] = subject.input_size[0]
    arguments.pop("in_chans", None)
    free_size = "dynamic_img_size" in inspect.signature(type(model).__init__).parameters
    if free_size:
        arguments["dynamic_img_size"] = True
    height, width = subject.preprocessing.img_size
    if not free_size and not graphs.accepts(model, subject):
        if library == "mmdet" or height != width:
            raise ValueError(
                f"it takes images of {height} x {width} px alone, and {library} gives it images of many sizes"
            )
        crop = height
    else:
        crop = CROP
    config = {"type": TIMM_MAPS, **arguments, "features_only": True, "feature_cls": "getter", "out_indices": chosen}
    kept = of_timm_maps(subject.name, subject.model_args, chosen)
    tensors = {f"timm_model.{key}": subject.tensors[key.removeprefix("model.")] for key in kept}
    maps = tuple(read_maps(model, levels, subject.images))
    return Native(config, tensors, maps), Neck(tuple(level.channels for level in levels), rescales, crop)


def _rescales(levels: list[Level]) -> tuple[float, ...]:
    """Feature2Pyramid's argument; () where the maps are a pyramid already."""
    rescales = tuple(level.own_stride / level.stride for level in levels)
    if set(rescales) == {1.0}:
        return ()
    if rescales not in RESCALES or len({level.channels for level in levels}) > 1:
        strides = ", ".join(f"{level.own_stride:.4g}" for level in levels)
        raise ValueError(
            f"its maps have strides of {strides} px; four maps of 4, 8, 16 and 32 px, of 8 px or of 16 px go"
        )
    return rescales
