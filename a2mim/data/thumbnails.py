"""A few images of a data set as HTML, for a notebook."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from a2mim.data.pixel_format import UnreadableImage

NUMBER, SIDE = 8, 96  # images, and pixels of their longer side


def show(dataset: Any) -> str:
    """The line of the log, and up to `NUMBER` images spread over an `ImageDataset`, each with the name of its class."""
    figures = []
    for i in np.unique(np.linspace(0, len(dataset) - 1, NUMBER).astype(np.int64)).tolist() if len(dataset) else ():
        try:
            picture = _picture(dataset.read(i))
        except UnreadableImage:
            continue
        label, names = int(dataset.labels[i]), dataset.class_names
        told = str(names[label]) if names and 0 <= label < len(names) else dataset.name(i)
        figures.append(
            f'<figure style="display:inline-block;margin:4px"><img src="{picture}" alt="{escape(dataset.name(i))}">'
            f"<figcaption>{escape(told)}</figcaption></figure>"
        )
    return f"<p>{escape(dataset.describe())}</p>{''.join(figures)}"


def _picture(pixels: np.ndarray) -> str:
    """(H, W, C) -> the address of a small PNG: the first three channels, or the first in grey."""
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    shown = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    image = Image.fromarray(np.ascontiguousarray(shown))
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
