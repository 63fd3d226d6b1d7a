"""The types that a setting can have, and the words for what each of them allows.

Numbers are strict: True, "3", inf and nan are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AfterValidator, AllowInfNan, BaseModel, ConfigDict, Strict
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Must:
    """The words for what a value must be, where they cannot be derived from its type."""

    words: str


def _ascending(pair: tuple) -> tuple:
    if pair[0] > pair[1]:
        raise ValueError("the least comes first")
    return pair


def _two_apart(pair: tuple) -> tuple:
    if pair[0] == pair[1]:
        raise ValueError("the two are equal")
    return pair


def _one_number(pair: tuple) -> int | tuple:
    return pair[0] if pair[0] == pair[1] else pair


Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Integer = Annotated[int, Strict(), Lt(2**63)]  # what 64 bits hold
Number = Union[Integer, Annotated[float, Strict(), AllowInfNan(False)]]  # noqa: UP007  an alias that mypy reads
Count = Annotated[Integer, Ge(1)]
Side = Annotated[Integer, Ge(1), Le(2**14)]  # of an image, in pixels
NonNegative = Annotated[Number, Ge(0)]
Positive = Annotated[Number, Gt(0)]
Share = Annotated[Number, Ge(0), Le(1)]
PositiveShare = Annotated[Number, Gt(0), Le(1)]
ShareBelowOne = Annotated[Number, Ge(0), Lt(1)]
Range = Annotated[tuple[Number, Number], AfterValidator(_ascending), AfterValidator(_two_apart)]
Shares = Annotated[tuple[PositiveShare, PositiveShare], AfterValidator(_ascending)]
Size = Annotated[
    Union[Side, Annotated[tuple[Side, Side], AfterValidator(_one_number)]],  # noqa: UP007  as Number
    Must("a whole number of at least 1, or (height, width)"),
]
Ratios = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]


class Group(BaseModel):
    """Settings that belong together: a dict of a recipe, whose keys are the fields. It cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def words_of(field: FieldInfo) -> str:
    """What a value of this field must be, as the tail of a sentence, e.g. "a whole number of at least 1"."""
    return _words(field.annotation, field.metadata)


def _words(annotation: Any, metadata: list | tuple = ()) -> str:
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        return _words(inner, [*own, *metadata])
    if said := [part.words for part in metadata if isinstance(part, Must)]:
        return said[-1]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        kinds = [_words(kind, metadata) for kind in arguments if kind is not NoneType]
        kind = "a number" + _bounds(metadata) if len(kinds) > 1 else kinds[0]
        return f"None or {kind}" if NoneType in arguments else kind
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    names = {bool: "one of True, False", int: "a whole number", float: "a number", str: "a text", list: "a list"}
    return names.get(origin or annotation, "a dict") + _bounds(metadata)


def _bounds(metadata: list | tuple) -> str:
    text = ""
    for part in metadata:
        match part:
            case Ge(ge=least):
                text += f" of at least {least}"
            case Gt(gt=least):
                text += f" above {least}"
            case Le(le=most):
                text += f" and at most {most}"
            case Lt(lt=most) if most != 2**63:
                text += f" and below {most}"
    return text
