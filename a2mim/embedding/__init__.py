"""Embeddings as data: one row an image, in a file that others read."""

from a2mim.embedding.run import embed, is_damaged

__all__ = ["embed", "is_damaged"]
