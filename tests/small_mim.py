"""A small method, of which a test changes one part."""

import torch

from a2mim.encoder import MaskedEncoder
from a2mim.losses import MaskedL1
from a2mim.masking import BlockMask
from a2mim.mim import MIM


def build(**changes):
    torch.manual_seed(0)
    encoder = MaskedEncoder("xcit_nano_12_p16_224", img_size=64)
    arguments = {"encoder": encoder, "masking": BlockMask(16, 0.5), "losses": [MaskedL1()]} | changes
    return MIM(**arguments)


def images(batch=2, side=64):
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
