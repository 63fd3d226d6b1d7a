"""Data before a run: writes, checks, lists and reshards shards, and measures statistics."""
