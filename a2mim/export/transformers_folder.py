"""transformers: the timm folder, which AutoModel and AutoImageProcessor read through transformers' own wrapper of timm.

The trap: transformers gives the number of classes to timm itself, so that config.json must not have one in model_args.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from a2mim.export import timm_folder
from a2mim.export.target import Subject, Target, Written

CODE = """\
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel

{import_a2mim}images = torch.from_numpy(np.load("reference.npz")["images"])  # yours: normalised, float32 (B, {size})
model = AutoModel.from_pretrained(".").eval()
preprocess = AutoImageProcessor.from_pretrained(".")  # preprocess(image)["pixel_values"]
with torch.no_grad():
    output = model(images)
pooled = output.pooler_output  # (B, {width})
unpooled = output.last_hidden_state
"""
NOTES = """\
`AutoModelForImageClassification.from_pretrained(".", num_labels=10)` puts a new classifier on top. Mind that
transformers only reports keys that do not fit. The same folder is one that `timm.create_model("local-dir:.",
pretrained=True)` loads, and, once uploaded as it is, `timm.create_model("hf-hub:ORGANISATION/NAME", pretrained=True)`.
"""


def write(subject: Subject, folder: Path) -> Written:
    written = timm_folder.write(subject, folder)
    return replace(
        written,
        packages=("transformers", *written.packages),
        model_prefix="timm_model.",
        notes=NOTES,
    )


TARGET = Target("transformers", write, partial(timm_folder.fill, CODE))
