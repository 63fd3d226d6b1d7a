"""Protocols by name. Each is a TOML file here: its constants, where they come from, and published numbers.

A number means something only with these constants. So they are printed, hashed, and stored with every result. Your own
protocol is a TOML file of the same form, given by its path.
"""

import ast
import hashlib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from a2mim.text import nearest

FOLDER = Path(__file__).parent
KINDS = (
    "knn",
    "linear",
    "linear-cached",
    "mae-linear",
    "attentive",
    "logreg",
    "low-shot",
    "finetune",
    "davis",
    "copydays",
    "segmentation",
    "label-free",
    "robustness",
)
_KEYS = {"kind", "summary", "sources", "reference", "constants", "variants"}


@dataclass(frozen=True)
class Protocol:
    """A name and everything that decides its numbers."""

    name: str
    kind: str  # which code runs it
    constants: dict  # plain values, overrides applied
    summary: str = ""
    sources: tuple[str, ...] = ()
    reference: dict = field(default_factory=dict)  # published numbers, in percent
    overridden: dict = field(default_factory=dict)  # key -> [as published, as used]

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of the kind and the constants; the name and the prose do not count."""
        content = json.dumps([self.kind, self.constants], sort_keys=True, ensure_ascii=True)
        return hashlib.blake2b(content.encode(), digest_size=6).hexdigest()

    @property
    def title(self) -> str:
        """The name, with the constants that differ from the named protocol."""
        changes = ", ".join(f"{key}={used}" for key, (_, used) in self.overridden.items())
        return f"{self.name} with {changes}" if changes else self.name


SIZES = ("train_size", "test_size")  # pixels: one number, or height and width


def protocol_names(kind: str | None = None) -> list[str]:
    names = sorted(path.stem for path in FOLDER.glob("*.toml"))
    return [name for name in names if kind is None or read_protocol(name).kind == kind]


def read_protocol(name: str, overrides: dict | None = None) -> Protocol:
    """The protocol of that name, or in that TOML file.

    Args:
        overrides: constants by name, as values or as text. "variant" takes the constants of one of the protocol's
            variants first (a size of model, mostly).

    Raises:
        ValueError: an unknown name, constant or variant (with the nearest ones), or a value of another type.
        FileNotFoundError: a path that does not exist.
    """
    content = _read(name)
    constants, asked = dict(content["constants"]), dict(overrides or {})
    variants = content.get("variants", {})
    if "variant" in asked and variants:
        chosen = asked.pop("variant")
        if chosen not in variants and chosen != constants["variant"]:
            raise ValueError(f"{name} has no variant {chosen!r}: choose {', '.join([constants['variant'], *variants])}")
        constants |= variants.get(chosen, {}) | {"variant": chosen}
    overridden = {}
    for key, given in asked.items():
        if key not in constants:
            raise ValueError(f"{name} has no constant {key!r}{nearest(key, constants)}")
        value = _typed(name, key, given, constants[key])
        if value != constants[key]:
            overridden[key] = [constants[key], value]
            constants[key] = value
    return Protocol(
        Path(name).stem,
        content["kind"],
        constants,
        content.get("summary", ""),
        tuple(content.get("sources", ())),
        content.get("reference", {}),
        overridden,
    )


def _read(name: str) -> dict:
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise FileNotFoundError(f"{name} does not exist: give a protocol's name or an existing TOML file.")
        raise ValueError(f"protocol {name!r} is not known{nearest(name, protocol_names())}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None
    if unknown := set(content) - _KEYS:
        raise ValueError(f"{path} has the unknown key {min(unknown)!r}: a protocol has {', '.join(sorted(_KEYS))}.")
    if content.get("kind") not in KINDS or not isinstance(content.get("constants"), dict):
        raise ValueError(f"{path} needs [constants] and a kind, one of {', '.join(KINDS)}.")
    return content


def _typed(name: str, key: str, given, default):
    """`given` as the type of `default`; "auto" may become anything, a whole number may stand for a real one."""
    value = given
    if isinstance(given, str) and not (isinstance(default, str) and default != "auto"):
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(given, given))
        except (ValueError, SyntaxError):
            value = given
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if isinstance(default, list) and not isinstance(value, list):
        value = [value]
    if key in SIZES and isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value):
        return value
    if default != "auto" and value != "auto" and type(value) is not type(default):
        raise ValueError(f"{key}={given!r} of {name} must be like {default!r}, of type {type(default).__name__}.")
    return value
