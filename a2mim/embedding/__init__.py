"""Embeddings as data: one row per image, in a file format that other programs read."""

from a2mim.embedding.run import embed, is_damaged

__all__ = ["embed", "is_damaged"]
