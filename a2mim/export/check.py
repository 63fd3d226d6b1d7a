"""Loads an export as its user will, in a fresh process: python -m a2mim.export.check FOLDER REFERENCE.

Prints one line of JSON: the problem (empty if none), the largest difference of the features, the keys, the versions.
timm logs wrong keys and goes on, so the keys are compared here, not by asking timm.
"""

import json
import platform
import sys
from pathlib import Path

import safetensors
import timm
import torch
from safetensors.torch import load_file

from a2mim import __version__
from a2mim.export.receipt import TOLERANCE
from a2mim.export.reference import largest_difference


def check(folder: Path, reference: Path) -> dict:
    """The outcome as plain values; see the module's first lines."""
    name, stored = f"local-dir:{folder}", load_file(folder / "model.safetensors")
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "safetensors": safetensors.__version__,
        "a2mim": __version__,
    }
    outcome = {"problem": "", "largest_difference": None, "versions": versions}
    try:
        expected = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
        outcome["keys"] = keys = _keys(stored, expected)
        wrong = {word: found for word, found in keys.items() if isinstance(found, list) and found}
        if wrong:
            parts = (f"{len(found)} {word} ({', '.join(found[:3])})" for word, found in wrong.items())
            return outcome | {"problem": f"keys do not agree: {'; '.join(parts)}"}
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        return outcome | {"problem": f"timm.create_model raised {type(error).__name__}: {error}".splitlines()[0]}
    unloaded = [key for key, value in model.state_dict().items() if not _same(value, stored[key])]
    keys["loaded"] -= len(unloaded)
    if unloaded:
        return outcome | {"problem": f"{len(unloaded)} tensors were not taken over ({', '.join(unloaded[:3])})"}
    outcome["largest_difference"] = difference = largest_difference(model, reference)
    if difference != difference:
        outcome["problem"] = "features are not finite, or of another shape"
    elif difference > TOLERANCE:
        outcome["problem"] = f"features differ by {difference:.1e} of the largest, more than {TOLERANCE:.0e}"
    return outcome


def _keys(stored: dict, expected: dict) -> dict:
    """How many keys fit, and the lists of those that do not."""
    reshaped = [key for key in expected if key in stored and stored[key].shape != expected[key].shape]
    return {
        "loaded": sum(key in stored for key in expected) - len(reshaped),
        "missing": [key for key in expected if key not in stored],
        "unexpected": [key for key in stored if key not in expected],
        "of another shape": reshaped,
    }


def _same(loaded: torch.Tensor, stored: torch.Tensor) -> bool:
    return torch.equal(loaded.nan_to_num(), stored.to(loaded.dtype).nan_to_num())


if __name__ == "__main__":
    print(json.dumps(check(Path(sys.argv[1]), Path(sys.argv[2]))))
