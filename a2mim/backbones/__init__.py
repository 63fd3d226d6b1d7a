"""Architectures that timm lacks, as timm models: importing this package registers X-ViT and LinGlo in timm.

`import a2mim` does so as soon as timm is there, before or after; nothing here needs to be called.
"""

from a2mim.backbones import linglo, xvit

__all__ = ["linglo", "xvit"]
