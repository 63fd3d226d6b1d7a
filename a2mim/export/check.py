"""Runs the lines that load an export in a fresh process, and compares: python check.py < request.json

The request is {"folder": …, "lines": …} and what a receipt keeps under "check" and "tensors"; the answer is one line of
JSON. The lines are those of the request: nothing of README.md is ever run.
Nothing of a2mim is imported here, and the lines cannot import it either unless the request allows it, so that
this file also runs under another environment's interpreter, and so that an export that needs our code cannot pass
without saying so. Most loaders log wrong keys and go on: keys and values are compared here, not by asking the loader.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pickle
import platform
import sys
from pathlib import Path
from typing import Any

NAMED = 3  # keys that a problem spells out


def check(request: dict) -> dict:
    """The outcome as plain values; "problem" is empty where all is well."""
    folder = Path(request["folder"])
    os.chdir(folder)
    outcome: dict = {"mode": "loaded", "problem": "", "largest_difference": None, "keys": None}
    withheld = set(request.get("withheld", ()))  # what the user did not name is not imported, nor looked for
    absent = [name for name in request["packages"] if name in withheld or not is_installed(name)]
    try:
        if request["weights"]:
            held = strip(read_weights(Path(request["weights"])), request["file_prefix"])
            outcome["keys"] = keys = compare_tensors(held, request["tensors"])
            if problem := describe_keys(keys):
                return outcome | {"problem": f"the keys of {request['weights']} do not agree: {problem}"}
        if absent and not request["weights"]:
            return outcome | {"problem": f"{', '.join(absent)} is not installed, without which nothing can be checked"}
        if absent:
            return outcome | {"mode": "contract only", "not_installed": absent, "versions": versions([])}
        found = run_lines(request["lines"])
        return compare_loaded(request, outcome, found) | {"versions": versions(request["packages"])}
    except Exception as error:
        text = (str(error).strip() or "no message").splitlines()[0]
        return outcome | {"problem": f"loading raised {type(error).__name__}: {text}"}


def is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # sys.modules holds it without a spec
        return False


def run_lines(lines: str) -> dict:
    """The variables that the lines leave behind."""
    found: dict = {"__name__": "readme"}
    exec(compile(lines, "README.md", "exec"), found)
    return found


def compare_loaded(request: dict, outcome: dict, found: dict) -> dict:
    """The outcome, with the loaded tensors, the scaling of the preprocessing, and the computed features."""
    if request["tensors"]:
        state = {key: value for key, value in found["model"].state_dict().items() if key not in request["left_random"]}
        keys = compare_tensors(strip(state, request["model_prefix"]), request["tensors"])
        outcome |= {"keys": keys}
        if problem := describe_keys(keys):
            return outcome | {"problem": f"keys do not agree: {problem}"}
    if "preprocess" in found and (problem := compare_preprocessing(found["preprocess"], request["preprocessing"])):
        return outcome | {"problem": problem}
    if isinstance(found.get("reached"), str):  # how far the lines came where they can do without a part
        outcome["reached"] = found["reached"]
    difference = largest_difference(found, read_reference(Path("reference.npz")))
    outcome["largest_difference"] = difference
    if difference is None:
        outcome["problem"] = "features are not finite, of another shape, or none at all"
    elif difference > request["tolerance"]:
        outcome["problem"] = f"features differ by {difference:.1e} of the largest, more than {request['tolerance']:.0e}"
    return outcome


def read_weights(path: Path) -> dict:
    """Key -> tensor from *.safetensors, *.pth (with or without "state_dict"), *.pt with a module under "model", or
    detectron2's *.pkl.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            content = _ArraysOnly(file).load()
        return {key: torch.from_numpy(value) for key, value in content["model"].items()}
    with torch.serialization.safe_globals([torch.nn.Module, torch.nn.Sequential, set]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content.get("model"), torch.nn.Module):
        return content["model"].state_dict()
    return content.get("state_dict", content)


class _ArraysOnly(pickle.Unpickler):
    """A pickle may run code when it is read; one of plain values and numpy arrays needs only these names."""

    def find_class(self, module, name):
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "_frombuffer", "ndarray", "dtype"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")


def read_reference(path: Path) -> dict:
    """{"images": …, "pooled": …}: the fixed images, and what the source's model makes of them."""
    import numpy as np
    import torch

    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def strip(tensors: dict, prefix: str) -> dict:
    """Without the prefix; a key that does not have it keeps its name, in angle brackets, and so fits nothing."""
    return {k.removeprefix(prefix) if k.startswith(prefix) else f"<{k}>": value for k, value in tensors.items()}


def compare_tensors(found: dict, stated: dict) -> dict:
    """How many of the stated tensors are there, bit for bit, and the keys for which that is not so.

    Args:
        found: key -> tensor.
        stated: key -> {"shape": …, "sha256": …}, from the receipt.
    """
    shapes = {key: list(found[key].shape) for key in stated if key in found}
    reshaped = [key for key, shape in shapes.items() if shape != list(stated[key]["shape"])]
    changed = [key for key in shapes if key not in reshaped and hash_tensor(found[key]) != stated[key]["sha256"]]
    return {
        "loaded": len(shapes) - len(reshaped) - len(changed),
        "missing": [key for key in stated if key not in found],
        "unexpected": [key for key in found if key not in stated],
        "of another shape": reshaped,
        "of another value": changed,
    }


def describe_keys(keys: dict) -> str:
    """The differences, in words; "" if there are none."""
    wrong = {word: found for word, found in keys.items() if isinstance(found, list) and found}
    parts = (
        f"{len(found)} {word} ({', '.join(found[:NAMED])}{', …' if len(found) > NAMED else ''})"
        for word, found in wrong.items()
    )
    return "; ".join(parts)


def hash_tensor(tensor) -> str:
    """sha256 of type, shape and bytes."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def largest_difference(found: dict, reference: dict) -> float | None:
    """The largest absolute difference of all features, as a share of the largest of its tensor; None where one is not
    finite or has another shape, or where there is none to compare.
    """
    import torch

    worst = None
    for name, expected in reference.items():
        if name == "images":
            continue
        value = select(found, name).detach().float().cpu()
        if value.shape != expected.shape:
            return None
        scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        difference = ((value - expected).abs().max() / scale).item()
        if not difference < float("inf"):
            return None
        worst = max(worst or 0.0, difference)
    return worst


def select(found: dict, name: str):
    """The tensor called e.g. "unpooled.0": the first part is a variable, the others places inside it."""
    first, *places = name.split(".")
    value = found[first]
    for place in places:
        value = value[place] if isinstance(value, dict) else value[int(place)]
    if not hasattr(value, "detach"):  # an array
        import torch

        value = torch.as_tensor(value)
    return value


def compare_preprocessing(preprocess, stated: dict) -> str:
    """What is wrong with what it makes of an image of one colour; "" where that is as the receipt states."""
    import torch
    from PIL import Image

    height, width = stated["img_size"]
    colour = (200, 100, 50)
    if len(stated["mean"]) != len(colour):
        return ""
    pixels = preprocess(Image.new("RGB", (2 * width, 2 * height), colour))
    pixels = pixels["pixel_values"] if hasattr(pixels, "keys") else pixels
    pixels = torch.as_tensor(pixels).float().reshape(-1, *torch.as_tensor(pixels).shape[-3:])[0]
    mean, std = torch.tensor(stated["mean"]), torch.tensor(stated["std"])
    expected = ((torch.tensor(colour) / 255 - mean) / std).view(-1, 1, 1).expand(-1, height, width)
    if pixels.shape != expected.shape:
        return f"the preprocessing gives {tuple(pixels.shape)}, not {tuple(expected.shape)}"
    if not torch.allclose(pixels, expected, rtol=1e-4, atol=1e-4):
        return "the preprocessing has another mean, deviation or order of channels"
    return ""


def versions(packages: list[str]) -> dict:
    """Versions of Python, of torch and of the packages that the lines import."""
    import torch

    told = {"python": platform.python_version(), "torch": torch.__version__}
    distributions = importlib.metadata.packages_distributions()
    for name in packages:
        for distribution in sorted(set(distributions.get(name, ()))):
            told[distribution] = importlib.metadata.version(distribution)
    return told


def prepare(request: dict) -> None:
    """Keeps a2mim out unless it is allowed, and mends a torchvision whose operators do not load (a2mim/compat.py)."""
    here = Path(__file__).resolve().parent
    folders = {here, Path(request["folder"]).resolve()}  # a file of the export is no module, whatever its name
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() not in folders]
    spec = importlib.util.spec_from_file_location("compat", here.parent / "compat.py")
    assert spec is not None and spec.loader is not None
    compat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compat)
    compat.mend_torchvision_when_imported()
    if "a2mim" in request["packages"]:
        sys.path.append(str(here.parents[1]))
    else:
        forbidden: Any = None  # Python's own way to forbid an import
        sys.modules["a2mim"] = forbidden


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    prepare(asked)
    print(json.dumps(check(asked)))
