"""What `MIM` expects of its parts: decoders built to fit, shapes tried once before training.

`model` stands for a `MIM` throughout.
"""

import inspect

import torch
from torch import Tensor, nn

from a2mim.decoders import EachMap, make_decoder


def build_decoder(decoder, encoder, out_channels: int, out_stride: int) -> nn.Module:
    """A name, a config or a decoder -> a module called as (maps, mask, prefix=None).

    Where the encoder leaves hidden cells out, the decoder gets a mask token.
    """
    shapes = encoder.channels, encoder.strides, out_channels, out_stride
    if not isinstance(decoder, nn.Module):
        return make_decoder(decoder, *shapes, mask_token=getattr(encoder, "hide", "token") != "token")
    many = len(inspect.signature(decoder.forward).parameters) > 1
    return decoder if many else EachMap(lambda **_: decoder, *shapes)


@torch.no_grad()
def check_parts(model) -> None:
    """Tries mask, target and decoder on two images of noise; the encoder is not run.

    Raises:
        ValueError: a part answers with another shape; the sentence names the part and the shape that is expected.
    """
    height, width = model.encoder.img_size
    generator = torch.Generator("cpu").manual_seed(0)
    images = torch.randn(2, len(model.pixels[0]), height, width, generator=generator, device="cpu")
    mask = model.draw_mask(images, generator)
    check_mask(mask, 2, height, width, model)
    with torch.random.fork_rng(devices=[]):
        device = model.mean.device
        target = model.target(images.to(device))
        grid = height // model.target_stride, width // model.target_stride
        expected = 2, model.target_channels, *grid
        if tuple(target.shape) != expected:
            raise ValueError(
                f"the target {type(model.target).__name__} answers {tuple(target.shape)} for 2 images of"
                f" {height}x{width} px; it states {model.target_channels} channels and a stride of"
                f" {model.target_stride} px, so {expected} is expected"
            )
        if hasattr(model.encoder, "outputs"):
            check_decoder(model, mask.to(device))


def check_mask(mask: Tensor, batch: int, height: int, width: int, model) -> None:
    """Raises ValueError for a mask that is not (batch, rows, cols) bool on a grid that both image and target have."""
    name = type(model.masking).__name__
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim not in (3, 4) or len(mask) != batch:
        told = f"{tuple(mask.shape)} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"the mask part {name} answers {told} for {batch} images; expected is ({batch}, rows, cols) torch.bool,"
            " True = hidden"
        )
    rows, cols = mask.shape[-2:]
    stride = model.target_stride
    for tall, wide, what in (
        (height, width, f"the image of {height}x{width} pixels"),
        (height // stride, width // stride, f"the target's grid of {height // stride}x{width // stride} cells"),
    ):
        if tall % rows or wide % cols:
            raise ValueError(
                f"the mask part {name} answers {rows}x{cols} cells, which do not divide {what}; choose a"
                " mask_patch_size that divides the image and is a multiple of the target's stride"
                f" ({stride} px)"
            )
    counts = mask.flatten(-2).sum(-1)
    if getattr(model.encoder, "hide", "token") == "drop" and int(counts.min()) != int(counts.max()):
        raise ValueError(
            f"the mask part {name} hides {counts.flatten().tolist()} cells of {batch} images; with hide='drop' every"
            " image must have as many hidden cells as the others"
        )


def check_decoder(model, mask: Tensor) -> None:
    """Decodes maps of zeros, so that `MIM.decode` raises ValueError for a decoder that answers another shape."""
    training = model.decoders.training
    maps = [
        torch.zeros(2, width, *layout.grid, device=model.mean.device)
        for width, layout in ((place.channels, place.layout) for place in model.encoder.outputs)
    ]
    model.decoders.eval()
    try:
        model.decode(maps, *model.encoder.img_size, mask=mask if mask.ndim == 3 else mask[:, 0])
    finally:
        model.decoders.train(training)
