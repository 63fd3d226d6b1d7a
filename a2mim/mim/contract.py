"""What `MIM` expects of its parts: decoders built to fit, shapes tried once before training.

`model` stands for a `MIM` throughout.
"""

import inspect

import torch
from timm.layers import PatchDropout
from torch import Tensor, nn

from a2mim.decoders import EachMap, make_decoder
from a2mim.decoders.each_map import tell
from a2mim.masking import FILLS, expand_mask
from a2mim.registry import takes
from a2mim.targets import TARGETS

# what a part is called with, beside the arguments that it may leave out
CALLS = {
    "mask": "batch_size, height, width, generator=None, device=None",
    "fill": "images, hidden",
    "target": "images",
    "loss": "recon, target, hidden",
    "decoder": "maps, mask",
}
# what a part is given where it has an argument of that name
OFFERED = {"mask": ("images",), "decoder": ("prefix", "prefixes", "grid", "hidden_cells")}


def check_call(what: str, part) -> None:
    """Raises ValueError for a part that cannot be called as `CALLS` has it; nothing is called.

    Args:
        what: one of `CALLS`.
    """
    call = CALLS[what]
    kind = getattr(part, "__name__", type(part).__name__)
    if inspect.isclass(part) or not callable(part):
        told = f"the class {kind}; give an object" if inspect.isclass(part) else repr(part)
        known = {"fill": [*FILLS], "target": [*TARGETS]}.get(what)
        names = f", or be one of {', '.join(map(repr, known))}" if known else ""
        raise ValueError(f"the {what} is {told}; it must be called as {what}({call}){names}")
    words = [word.split("=") for word in call.split(", ")]
    given = [word[0] for word in words if len(word) == 1], {word[0]: None for word in words if len(word) > 1}
    given[1].update({name: None for name in OFFERED.get(what, ()) if takes(part, name)})
    try:
        signature = inspect.signature(part.forward if isinstance(part, nn.Module) else part)
    except ValueError:  # a function in C tells none
        return
    try:
        signature.bind(*given[0], **given[1])
    except TypeError as error:
        raise ValueError(f"the {what} {kind} cannot be called as {what}({call}): {error}") from error


def check_encoder(encoder) -> None:
    """Raises ValueError for what is no encoder, and for one that leaves out random tokens of its own."""
    if not isinstance(encoder, nn.Module) or not hasattr(encoder, "channels"):
        raise ValueError(f"the encoder is {encoder!r}; give a MaskedEncoder, or dict(type='MaskedEncoder', name=…)")
    if any(isinstance(module, PatchDropout) and module.prob for module in encoder.modules()):
        raise ValueError(
            "patch_drop_rate of timm leaves out patches that no mask knows of; leave it out of model_args: hide='drop'"
            " leaves out the patches that the mask hides"
        )


def build_decoder(decoder, encoder, target, out_channels: int, out_stride: int) -> nn.Module:
    """A name, a config or a decoder -> a module called as (maps, mask, prefix=None).

    Where the encoder leaves hidden cells out, the decoder gets a mask token; an object that reads all maps has its own.

    Raises:
        ValueError: what was made is no module.
    """
    shapes = encoder.channels, encoder.strides, out_channels, out_stride
    token = left_out(encoder)
    if not isinstance(decoder, nn.Module):
        made = make_decoder(decoder, *shapes, mask_token=token, target_cells=getattr(target, "cells", None))
        if not isinstance(made, nn.Module):
            raise ValueError(f"the decoder {type(made).__name__} is no torch.nn.Module; let its class inherit from it")
        if not isinstance(made, EachMap):
            check_call("decoder", made)
        return made
    many = len(inspect.signature(decoder.forward).parameters) > 1
    if many:
        check_call("decoder", decoder)
    return decoder if many else EachMap(lambda **_: decoder, *shapes, mask_token=token)


def left_out(encoder) -> bool:
    """Whether hidden cells never enter the encoder."""
    return getattr(encoder, "hide", "token") != "token"


class PlainLoss(nn.Module):
    """A loss that is no module, as one. name: the loss's own."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.name = loss, loss.name

    def forward(self, recon: Tensor, target: Tensor, hidden: Tensor) -> Tensor | dict[str, Tensor]:
        """What the loss answers."""
        return self.loss(recon, target, hidden)

    def after_step(self, encoder: nn.Module, step: int, steps: int) -> None:
        """The loss's own, where it has one."""
        tell([self.loss], encoder, step, steps)


def as_loss(loss) -> nn.Module:
    """Anything that is called as loss(recon, target, hidden) and has a name, as a module.

    Raises:
        ValueError: it is a class, cannot be called, or has no name.
    """
    if inspect.isclass(loss):
        raise ValueError(f"losses holds the class {loss.__name__}; give an object, {loss.__name__}()")
    kind = getattr(loss, "__name__", type(loss).__name__)
    if not callable(loss) or not isinstance(getattr(loss, "name", None), str):
        raise ValueError(
            f"the loss {kind} must be called as loss(recon, target, hidden) and have an attribute name, such as"
            " name = 'mine': its values are logged as loss_mine"
        )
    check_call("loss", loss)
    return loss if isinstance(loss, nn.Module) else PlainLoss(loss)


@torch.no_grad()
def check_parts(model) -> None:
    """Tries mask, fill, target, decoder and losses on two images of noise; the encoder is not run.

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
        grid = height // model.target_stride, width // model.target_stride
        if not all(grid):
            raise ValueError(
                f"the target {type(model.target).__name__} has cells of {model.target_stride} px, larger than the image"
                f" of {height}x{width} px; choose a smaller stride"
            )
        target = model.target(images.to(device))
        expected = 2, model.target_channels, *grid
        answer = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        if answer != expected:
            raise ValueError(
                f"the target {type(model.target).__name__} answers {answer} for 2 images of"
                f" {height}x{width} px; it states {model.target_channels} channels and a stride of"
                f" {model.target_stride} px, so {expected} is expected"
            )
        mask = mask.to(device)
        if hasattr(model.encoder, "outputs"):
            check_cells(model, mask)
            check_decoder(model, mask)
        if device.type != "meta":  # there is nothing that a part could look at
            flat = mask if mask.ndim == 3 else mask[:, 0]
            check_fill(model, images.to(device), expand_mask(flat, height, width))
            check_losses(model, target, expand_mask(flat, *grid))


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
    check_counts(model, mask)


def check_counts(model, mask: Tensor) -> None:
    """Raises ValueError where the encoder drops cells and images (B, rows, cols) have unequally many hidden ones."""
    if getattr(model.encoder, "hide", "token") != "drop":
        return
    counts = mask.flatten(-2).sum(-1).flatten().tolist()
    if len(set(counts)) > 1:
        shown = f"{counts}" if len(counts) <= 8 else f"between {min(counts)} and {max(counts)}"
        raise ValueError(
            f"the mask part {type(model.masking).__name__} hides {shown} cells of {len(mask)} images; with hide='drop'"
            " every image must have as many hidden cells as the others"
        )


def check_cells(model, mask: Tensor) -> None:
    """Raises ValueError where hidden cells are left out and do not hold whole cells of every map."""
    rows, cols = mask.shape[-2:]
    for place in model.encoder.outputs:
        grid = place.layout.grid
        if left_out(model.encoder) and (grid[0] % rows or grid[1] % cols):
            raise ValueError(
                f"the mask part {type(model.masking).__name__} answers {rows}x{cols} cells, and a map of"
                f" {model.encoder.name} has {grid[0]}x{grid[1]}; with hide={model.encoder.hide!r} a mask cell must hold"
                " whole cells of every map: choose a larger mask_patch_size or other maps"
            )


def check_fill(model, images: Tensor, hidden: Tensor) -> None:
    """Raises ValueError for a fill that answers another shape than that of the images (B, C, H, W)."""
    found = model.fill(images, hidden)
    if not isinstance(found, Tensor) or found.shape != images.shape:
        answer = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        kind = getattr(model.fill, "__name__", type(model.fill).__name__)
        raise ValueError(f"the fill {kind} answers {answer} for images of {tuple(images.shape)}; the same is expected")


def check_losses(model, target: Tensor, hidden: Tensor) -> None:
    """Raises ValueError for a loss that answers neither a scalar nor scalars by name, tried on a recon of 0."""
    training = model.losses.training
    model.losses.eval()
    try:
        for loss in model.losses:
            found = loss(torch.zeros_like(target), target, hidden)
            values = list(found.values()) if isinstance(found, dict) else [found]
            if not values or any(not isinstance(value, Tensor) or value.ndim for value in values):
                told = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in values]
                raise ValueError(
                    f"the loss {loss.name} answers {', '.join(map(str, told)) or 'no value'}; a scalar tensor, or"
                    " {term: scalar tensor}, is expected"
                )
    finally:
        model.losses.train(training)


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
