"""Masked image modelling as one module: a method is a choice of parts, and a part keeps a short contract."""

from a2mim.mim.model import MIM

__all__ = ["MIM"]
