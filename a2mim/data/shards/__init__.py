"""Tar shards: their index, their cache, and the data set that reads single samples from them."""
