"""Images per second, peak memory and MFU of the whole step, beside the bare backbone in the same run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from a2mim.engine.memory import is_out_of_memory
from a2mim.text import first_line

from .isolation import Findings
from .scale import Network, Scale, card_of, peak_of
from .steps import alternate, bare_step, forget, operations, peak_gb, recipe_of, seconds, warm, whole_step

FIRST_GUESS = {"eager": 10.0, "encoder": 70.0, "step": 80.0}  # seconds of a row, before one like it was measured
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    network: Network
    compiled: str
    precision: str
    layout: str

    @property
    def label(self) -> str:
        return f"{self.network.name}, {self.compiled}, {self.precision}, {self.layout}"


def rows(scale: Scale) -> list[Row]:
    """The rows, most telling first: a part that is out of time leaves the last ones out."""
    best = {net: "channels_last" if net.convolutional else "contiguous" for net in scale.networks}
    other = {net: next(name for name in FORMATS if name != best[net]) for net in scale.networks}
    eager = [Row(net, "eager", "bf16", best[net]) for net in scale.networks]
    compiled = [Row(net, how, "bf16", best[net]) for how in ("encoder", "step") for net in scale.networks]
    formats = [Row(net, "eager", "bf16", other[net]) for net in scale.networks]
    single = [Row(net, "eager", "tf32", best[net]) for net in scale.networks]
    if scale.dry:
        return [eager[0], compiled[2], compiled[5], formats[2], single[1]]
    return eager + formats + compiled + single


def run(scale: Scale, findings: Findings) -> None:
    """Measures row after row while there is time."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    device = scale.where
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        findings.add("bf16", note="this card does not compute in bf16; its bf16 rows are emulated")
    product = matmul_rate(scale)
    findings.add("a large bf16 matrix product", tflops=round(product / 1e12, 2))
    costs, work = dict(FIRST_GUESS), {}
    for row in rows(scale):
        before = findings.left()
        if not scale.dry and before < costs[row.compiled]:
            findings.add(row.label, left_out="no time was left")
            continue
        try:
            if row.network not in work:
                work[row.network] = operations(row.network, scale.px, device)
            findings.add(row.label, **measure(row, scale, work[row.network]))
        except Exception as error:
            findings.add(row.label, error=f"{type(error).__name__}: {first_line(error)}", good=False)
        forget(device)
        costs[row.compiled] = 1.2 * (before - findings.left())


def measure(row: Row, scale: Scale, work: float) -> dict:
    """The row's figures, at the largest batch of 1, 1/2, 1/4 … of the scale's that the memory holds."""
    batch = scale.batch
    while True:
        try:
            return measure_at(row, scale, batch, work)
        except Exception as error:
            if not is_out_of_memory(error) or batch < 8:
                raise
        forget(scale.where)
        batch //= 2


def measure_at(row: Row, scale: Scale, batch: int, work: float) -> dict:
    """The row's figures at one batch size. work: operations of the backbone for one image."""
    device, layout = scale.where, FORMATS[row.layout]
    forget(device)
    settings = recipe_of(row.network, scale.px, scale.cell)
    whole, model = whole_step(settings, scale, batch, row.precision, layout, row.compiled)
    warm(whole, device)
    peak = peak_gb(device)
    bare = bare_step(row.network, scale, batch, row.precision, layout, row.compiled, set(model.encoder.frozen))
    warm(bare, device)
    whole_s, bare_s, ratio = alternate(whole, bare, scale.steps, device)
    top = peak_of(card_of(device), row.precision)
    return {
        "batch": batch,
        "images_per_s": round(batch / whole_s, 1),
        "bare_images_per_s": round(batch / bare_s, 1),
        "whole_over_bare": round(ratio, 3),
        "peak_gb": peak,
        "gflop_an_image": round(work / 1e9, 2),
        "mfu": top and round(work * batch / whole_s / top, 3),
        "bare_mfu": top and round(work * batch / bare_s / top, 3),
        "tflops": round(work * batch / whole_s / 1e12, 3),
    }


def matmul_rate(scale: Scale) -> float:
    """FLOP/s of one large product of bf16 matrices: what a step could reach at most."""
    side = 256 if scale.dry else 8192
    a = torch.randn(side, side, device=scale.where, dtype=torch.bfloat16)
    warm(lambda: a @ a, scale.where)
    return 2 * side**3 / seconds(lambda: a @ a, 2 if scale.dry else 20, scale.where)
