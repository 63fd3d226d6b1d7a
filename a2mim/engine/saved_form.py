"""The form of a checkpoint that a run goes on from. Its plain values are checked before anything is built from them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from a2mim.text import quoted, shortened

Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Loader(_Part):
    epoch: Count
    step: Count
    position: Count = 0
    faults: dict[str, Count]


class _Meta(_Part):
    step: Count


class _Saved(_Part):
    state_dict: dict[str, Any]
    optimizer: dict[str, Any]
    loader: _Loader
    meta: _Meta


def check_form(path: Path, checkpoint: dict) -> None:
    """Raises ValueError where a part of the checkpoint is missing or is no value of its kind. The sentence names the
    file and the part.
    """
    try:
        _Saved.model_validate(checkpoint)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        found = "it is missing" if first["type"] == "missing" else f"it is {quoted(first['input'])}"
        raise ValueError(
            f"{path} cannot be resumed, its {shortened(place)} is damaged ({found}): delete this checkpoint to go on"
            " from the one before it, or start a new run in another --work-dir"
        ) from error
