"""The encoder that refinement trains: built from its source, or from what a checkpoint says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from a2mim.encoder import MaskedEncoder
from a2mim.engine.refine.refiner import encoder_with_last_maps
from a2mim.engine.refine_settings import RefineSettings
from a2mim.evaluation.features import pooling_name
from a2mim.weights.loading import Source, initialise
from a2mim.weights.trust import check_arguments, check_names, check_pixels, settle_name
from a2mim.wiring.networks import can_rebuild
from a2mim.wiring.timm_models import is_registered

LEFT_OUT = ("img_size", "in_chans", "drop_path_rate")  # of a source's arguments: the recipe says these


def build_encoder(source: Source, named: str, settings: RefineSettings) -> tuple[MaskedEncoder, dict | None]:
    """(the encoder with the source's weights, the report of what was loaded; None for random weights).

    Args:
        source: read, not built. named: as the user typed it.

    Raises:
        ValueError: weights that do not fit.
    """
    data = settings.data
    arguments = {key: value for key, value in source.model_args.items() if key not in LEFT_OUT}
    assert data.img_size is not None and data.in_chans is not None  # `complete_pixels` filled them in
    shape: dict[str, Any] = {"img_size": data.img_size, "in_chans": data.in_chans}
    encoder = encoder_with_last_maps(source.name, settings.heads.maps, model_args=arguments, **shape)
    report = None
    if source.tensors is not None:
        report = initialise(encoder.model, encoder.model_args, named, settings.allow_partial).as_dict()
    average_places(encoder)
    return encoder, report


def rebuild_encoder(saved: dict, named: str | None) -> MaskedEncoder:
    """The same encoder from a checkpoint's `meta`, with random weights. All that the file says is checked.

    Args:
        named: the run's source, which alone may name a network that is code.
    """
    told, where = saved["encoder"], Path("the checkpoint")
    own = named is not None and not is_registered(told["name"])
    name = settle_name(told["name"], str(named).partition(":")[0] if own else None, where)
    arguments = check_arguments(name, told["model_args"], where)
    height, width = check_pixels({"img_size": told["img_size"]}, where)["img_size"]
    maps = check_names(saved["maps"], where) or "last"
    rest = {key: value for key, value in arguments.items() if key not in LEFT_OUT}
    return encoder_with_last_maps(name, maps, img_size=(height, width), in_chans=told["in_chans"], model_args=rest)


def average_places(encoder: MaskedEncoder) -> None:
    """Makes the mean over places what a network with a class token hands on, where timm can build it so.

    The heads read means of maps; the class token of a masked encoder has learned nothing of images.
    """
    if not is_registered(encoder.name) or pooling_name(encoder.model, "default") != "token":
        return
    for arguments in ({"global_pool": "avg", "fc_norm": False}, {"global_pool": "avg"}):
        try:
            fits = can_rebuild(encoder.name, encoder.model, {**encoder.model_args, **arguments})
        except (AssertionError, RuntimeError, TypeError, ValueError):
            continue
        if fits:
            encoder.model.reset_classifier(0, "avg")
            encoder.model_args |= arguments
            return
