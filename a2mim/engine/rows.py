"""The rows of parts that ship with a2mim, by the name of their recipe."""

from __future__ import annotations

from a2mim.engine.config import load_config
from a2mim.engine.recipes import shipped_recipes


def shipped_rows() -> dict[str, dict]:
    """Recipe -> its `model`, for every pre-training recipe."""
    names = [recipe for recipe in shipped_recipes() if "/" not in recipe.name]
    return {recipe.name: load_config(recipe.path).model for recipe in names}
