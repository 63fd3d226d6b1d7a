"""Which methods a network can be pre-trained with: every row of parts tried on it, two training steps each.

A row's parts are those of its recipe. What belongs to the recipe's own network (its name, sites, maps, sizes of cells)
is chosen anew for the network that is tried; decoders are made small. Invariant: every answer is "proven", or a
sentence that says why not.
"""

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from a2mim.check.certificate import reload_difference, takes
from a2mim.check.survey import faults_of_training
from a2mim.encoder import MaskedEncoder
from a2mim.masking import expand_mask
from a2mim.mim import MIM
from a2mim.registry import MODELS
from a2mim.wiring.hiding import leak_of
from a2mim.wiring.tracing import feature_modules

SIZES = (64, 96, 128, 160, 192)  # pixels, the smallest that a network takes is tried
EMBEDDINGS = ("patch_embed", "stem")  # modules that make an image into cells, in the order of preference
TEACHER = "test_vit"  # with random weights: what a frozen teacher knows is of no matter here
LEAST_DIFFERENCE = 1e-6  # of features after strict loading, as a share of the largest
ROUNDING = 1e-4  # share of the largest feature by which maps may differ where sums run in another order
SMALL = {"embed_dim": 64, "depth": 1, "num_heads": 4, "width": 64}  # arguments of decoders
FEW = {"min_cells": 1}  # arguments of masks that assume many cells


@dataclass(frozen=True)
class Method:
    """Rows that differ in numbers only, and count as one.

    Args:
        name: of the first row. rows: their names. parts: `model` of the first row's recipe.
    """

    name: str
    rows: list[str]
    parts: dict[str, Any]


@dataclass
class Tried:
    """What came of one method on one network.

    Attributes:
        verdict: "proven", "refused" (by a part, or because hidden pixels get through), or "failed": a fault of a2mim.
        reason: one sentence for the last two.
        img_size, cell: pixels. site: of the token; "" for none.
    """

    network: str
    method: str
    verdict: str
    reason: str = ""
    img_size: list[int] = field(default_factory=list)
    cell: int = 0
    site: str | list[str] = ""


class Refused(ValueError):
    """A method that does not suit a network, although its parts can be put together."""


def kind_of(part) -> str:
    """The name of a part, given as a name or as a config."""
    return part if isinstance(part, str) else str(part["type"])


def group(rows: dict[str, dict]) -> list[Method]:
    """Row -> `model` of its recipe, as methods: rows that hide, mask, fill, decode and compare by the same parts are
    one.
    """
    methods: dict[str, Method] = {}
    for name, parts in rows.items():
        encoder = parts["encoder"]
        alike = [
            *(encoder.get("hide", "token"), encoder.get("token", "add"), at_embedding(encoder), "maps" in encoder),
            *(kind_of(parts.get(key, other)) for key, other in DEFAULTS.items()),
            sorted(kind_of(loss) for loss in parts["losses"]),
        ]
        methods.setdefault(json.dumps(alike), Method(name, [], parts)).rows.append(name)
    return list(methods.values())


DEFAULTS = {"masking": "", "fill": "mean", "decoder": "linear", "target": "pixels"}


def at_embedding(encoder: dict) -> bool:
    """Whether a row's token enters right behind the patch embedding."""
    return encoder.get("site") in EMBEDDINGS


class Bench:
    """Tries methods on one network; encoders that several methods share are wired once.

    Args:
        name: timm's name, or the dotted path of a network of the user's own.
        img_size: pixels; None takes the smallest of `SIZES` that the network takes, else its own.
        in_chans: channels of the images.
        model_args: what else the constructor takes.
    """

    def __init__(
        self,
        name: str,
        img_size: int | tuple[int, int] | None = None,
        in_chans: int = 3,
        model_args: dict | None = None,
    ):
        self.name, self.in_chans, self.model_args = name, in_chans, model_args
        taken = [img_size] if img_size else [s for s in SIZES if takes(name, s, in_chans, model_args)]
        self.sizes: list[int | tuple[int, int] | None] = [*taken] or [None]
        self.img_size = self.sizes[0]
        self.encoders: dict[str, MaskedEncoder | ValueError] = {}
        self.differences: dict[str, float] = {}  # by how hidden cells are kept from the network

    def try_method(self, method: Method) -> Tried:
        """The verdict; never an error."""
        tried = Tried(self.name, method.name, "proven")
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = self.build(method, tried)
                faults = self.prove(model)
            if faults:
                tried.verdict, tried.reason = "failed", "; ".join(faults[:3])
        except (ValueError, FloatingPointError) as error:  # the second: a teacher that answers a constant
            tried.verdict, tried.reason = "refused", str(error)
        except Exception as error:  # no cell stays silent
            tried.verdict, tried.reason = "failed", f"{type(error).__name__}: {error}"
        tried.reason = " ".join(tried.reason.split())[:400]
        return tried

    def build(self, method: Method, tried: Tried) -> MIM:
        """The method on this network; notes in `tried` what was chosen."""
        parts = copy.deepcopy(method.parts)
        encoder = parts.pop("encoder")
        plain = self.plain()
        tried.img_size = list(plain.img_size)
        problem: ValueError | None = None
        average = (0.5,) * self.in_chans
        for cell in cells_for(plain):
            try:
                built = copy.deepcopy(self.encoder_of(encoder, cell))
                row = fit_parts(parts, built, cell)
                model = MODELS.build({"type": "MIM", "encoder": built, "mean": average, "std": average, **row})
            except ValueError as error:
                problem = problem or error
                continue
            assert isinstance(model, MIM)
            tried.cell = cell
            tried.site = built.site if isinstance(built.site, str) else list(built.site)
            return model
        raise problem or ValueError(
            f"{self.name} has cells of {max(plain.strides):g} px, and none that hold whole ones divide its images of"
            f" {plain.img_size[0]} x {plain.img_size[1]} px into four or more"
        )

    def plain(self) -> MaskedEncoder:
        """The encoder of the first size that holds four cells or more, else of the largest size."""
        while not cells_for(self.encoder()) and self.img_size != self.sizes[-1]:
            self.img_size = self.sizes[self.sizes.index(self.img_size) + 1]
            self.encoders.clear()
        return self.encoder()

    def encoder_of(self, row: dict, cell: int) -> MaskedEncoder:
        """The encoder as a row has it, with this network's own sites and maps."""
        hide, token = row.get("hide", "token"), row.get("token", "add")
        maps = spread_maps(self.encoder(), len(row["maps"])) if "maps" in row else "auto"
        if hide != "token":
            try:
                return self.encoder(hide=hide, maps=maps, mask_patch_size=cell)
            except ValueError as error:
                if maps == "auto" or not str(error).startswith("maps"):
                    raise
                return self.encoder(hide=hide, maps="auto", mask_patch_size=cell)  # timm names what is no module
        if token != "none" and at_embedding(row):
            try:
                return self.encoder(site=embedding_of(self.encoder()), token=token, maps=maps)
            except ValueError:  # the embedding is no module of one map
                return self.encoder(token=token, maps=maps)
        return self.encoder(token=token, maps=maps)

    def encoder(self, **arguments) -> MaskedEncoder:
        """A wired encoder, built once; its ValueError is raised each time."""
        key = json.dumps(arguments)
        if key not in self.encoders:
            given = {"img_size": self.img_size, "in_chans": self.in_chans, "model_args": self.model_args}
            try:
                self.encoders[key] = MaskedEncoder(self.name, **given, **arguments)  # type: ignore[arg-type]
            except ValueError as error:
                self.encoders[key] = error
        found = self.encoders[key]
        if isinstance(found, ValueError):
            raise found
        return found

    def prove(self, model: MIM) -> list[str]:
        """Faults after two steps; raises `Refused` where hidden pixels reach the maps."""
        generator = torch.Generator().manual_seed(3)
        images = torch.randn(2, self.in_chans, *model.encoder.img_size, generator=generator)
        refuse_leak(model, images, generator)
        hide = model.encoder.hide
        if hide not in self.differences:
            self.differences[hide] = reload_difference(copy.deepcopy(model.encoder).eval(), images)
        faults = faults_of_training(model, self.in_chans)
        if self.differences[hide] > LEAST_DIFFERENCE:
            told = f"{self.differences[hide]:.1g}"
            faults.append(f"features differ by {told} after strict loading into the plain network")
        return faults


def cells_for(encoder: MaskedEncoder) -> list[int]:
    """Sides of mask cells to try, in pixels: they divide the image, and hold whole cells of every map first."""
    height, width = encoder.img_size
    least = max(encoder.strides)
    sides = [c for c in range(1, min(height, width) // 2 + 1) if height % c == width % c == 0 and c >= least]
    whole = [c for c in sides if all(c % stride == 0 for stride in encoder.strides)]
    return [*whole, *(c for c in sides if c not in whole)][:3]


def fit_parts(parts: dict, encoder: MaskedEncoder, cell: int) -> dict:
    """A row's parts but the encoder, for cells of `cell` pixels and images of another size."""
    row = copy.deepcopy(parts)
    row["masking"] |= {"mask_patch_size": cell} | {k: v for k, v in FEW.items() if k in row["masking"]}
    if kind_of(row["masking"]) == "BEiTBlocks":
        row["masking"] |= FEW
    decoder = row.get("decoder")
    inner = decoder.get("decoder") if isinstance(decoder, dict) else None
    for part in (decoder, inner, row.get("target")):
        if not isinstance(part, dict):
            continue
        if kind_of(part) in ("TransformerDecoder", "LightDecoder"):
            part.update({key: value for key, value in SMALL.items() if key in part})
        if "patch_size" in part:
            part["patch_size"] = cell
        if "source" in part:
            part.clear()
            part.update(type="FrozenFeatures", source=TEACHER)
        if kind_of(part) == "MovingAverage" and "maps" in part:
            part.update(maps=last_maps(encoder), momentum="auto")
        if kind_of(part) == "HOG" and "cells" in part:
            part["cells"] = part["cells"][: len(encoder.channels)]
    return row


def embedding_of(encoder: MaskedEncoder) -> str:
    """The module that makes the image into cells, or "auto"."""
    return next((name for name in EMBEDDINGS if hasattr(encoder.model, name)), "auto")


def spread_maps(encoder: MaskedEncoder, most: int) -> list[str] | str:
    """Up to `most` maps from early to last where all have one stride, else the last of each stride from 4 px on."""
    found = feature_modules(encoder.model)
    if len(found) < 2:
        return "auto"
    last_of = {stride: name for name, stride in found if stride >= 4}
    if len(last_of) > 1:
        return list(last_of.values())
    names = [name for name, _ in found]
    number = min(most, len(names))
    return list(dict.fromkeys(names[round(i * (len(names) - 1) / (number - 1))] for i in range(number)))


def last_maps(encoder: MaskedEncoder) -> list[str] | str:
    """The later half of the maps of the last one's width and stride, or "auto"."""
    info = getattr(encoder.model, "feature_info", None) or []
    told = [item for item in info if isinstance(item, dict) and {"module", "num_chs", "reduction"} <= set(item)]
    shapes = [(item["num_chs"], item["reduction"]) for item in told]
    modules = dict(encoder.model.named_modules())  # timm names what is none, of some networks
    alike = [item["module"] for item, shape in zip(told, shapes, strict=True) if shape == shapes[-1]]
    alike = [name for name in alike if name in modules]
    return alike[len(alike) // 2 :] if len(alike) > 1 else "auto"


@torch.no_grad()
def refuse_leak(model: MIM, images: Tensor, generator: torch.Generator) -> None:
    """Raises `Refused` where what is hidden changes the maps.

    Hidden pixels change places within their cell, which keeps the image's mean: a fill may know that.
    """
    encoder, training = model.encoder, model.training
    mask = model.draw_mask(images, generator)
    if encoder.hide != "token":
        leak = leak_of(encoder, images, mask)
        if leak:
            raise Refused(f"{encoder.name}: hidden pixels change its maps by {leak:.2g} with hide={encoder.hide!r}")
        return
    hidden = expand_mask(mask, *encoder.img_size)
    rows, cols = mask.shape[1:]
    cells = images.unflatten(3, (cols, -1)).unflatten(2, (rows, -1))  # (B, C, rows, p, cols, q)
    other = torch.where(hidden, cells.flip(3, 5).flatten(4, 5).flatten(2, 3), images)
    model.eval()
    maps, changed = (encoder(model.fill(shown, hidden), mask) for shown in (images, other))
    model.train(training)
    worst = max(
        float((one - two).abs().max() / one.abs().max().clamp_min(1e-20))
        for one, two in zip(maps, changed, strict=True)
    )
    if not worst <= ROUNDING:
        where = repr(encoder.site) if encoder.sites else "no site"
        raise Refused(
            f"{encoder.name}: hidden pixels change its maps by {worst:.1%} of the largest feature, because they pass by"
            f" the token ({where}) and nothing fills them; fill='mean' keeps them out"
        )


def try_methods(
    name: str,
    methods: list[Method],
    img_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    model_args: dict | None = None,
) -> list[Tried]:
    """Every method on one network, see `Bench`.

    Raises:
        ValueError: the network cannot be built, or has no map of the image.
    """
    bench = Bench(name, img_size, in_chans, model_args)
    bench.encoder()  # what is wrong with the network itself is one sentence, not one a method
    return [bench.try_method(method) for method in methods]
