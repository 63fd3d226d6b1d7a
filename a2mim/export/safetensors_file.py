"""safetensors: one file of tensors by timm's keys, whose header says which architecture they are of."""

import json
from functools import partial
from pathlib import Path

from safetensors.torch import save

from a2mim.export import timm_folder
from a2mim.export.target import Subject, Target, Written

CODE = """\
import json

import numpy as np
import timm
import torch
from safetensors import safe_open

{import_a2mim}with safe_open("encoder.safetensors", "pt") as file:
    tensors = {{key: file.get_tensor(key) for key in file.keys()}}
    header = {{key: json.loads(value) for key, value in file.metadata().items() if key != "format"}}
images = torch.from_numpy(np.load("reference.npz")["images"])  # yours: normalised, float32 (B, {size})
model = timm.create_model(header["architecture"], num_classes=0, **header["model_args"]).eval()
model.load_state_dict(tensors)  # strict
with torch.no_grad():
    pooled = model(images)  # (B, {width})
    unpooled = model.forward_features(images)
"""
NOTES = "The header also holds `mean`, `std`, `img_size` ([H, W]) and `interpolation`; every value of it is JSON."


def write(subject: Subject, folder: Path) -> Written:
    model_args = timm_folder.full_model_args(subject.model, subject.model_args, subject.input_size[0])
    facts = {"architecture": subject.name, "model_args": model_args, **subject.preprocessing.to_dict()}
    header = {"format": "pt", **{key: json.dumps(value) for key, value in facts.items()}}
    # not save_file, which gives the file to its owner alone whatever the umask
    (folder / "encoder.safetensors").write_bytes(save(subject.tensors, metadata=header))
    return Written(
        subject.outputs,
        ("safetensors", "timm", *timm_folder.ours(subject)),
        subject.tensors,
        "encoder.safetensors",
        contract=("timm", {"architecture": subject.name, "model_args": model_args}),
        notes=NOTES,
    )


TARGET = Target("safetensors", write, partial(timm_folder.fill, CODE))
