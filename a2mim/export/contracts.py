"""What each target's documentation asks of keys and shapes, written down apart from the code that maps keys to them.

Invariant: nothing here looks at an encoder; a contract is a function of the plain arguments that the target itself is
given. So a wrong map of keys cannot agree with it, and a file is checked where the target is not installed.
"""

from collections.abc import Callable

import timm
import torch

from a2mim.export.check import describe_keys

Shapes = dict[str, tuple[int, ...]]


def of_timm(architecture: str, model_args: dict) -> Shapes:
    """timm is always there, so it is asked."""
    with torch.device("meta"):
        model = timm.create_model(architecture, pretrained=False, num_classes=0, **model_args)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


CONTRACTS: dict[str, Callable[..., Shapes]] = {"timm": of_timm}


def check_contract(contract: tuple[str, dict] | None, tensors: dict[str, dict]) -> str:
    """What of the stated tensors (key -> {"shape": …}) is not what the contract asks for, in words; "" if nothing."""
    if contract is None:
        return ""
    name, arguments = contract
    asked = CONTRACTS[name](**arguments)
    keys = {
        "missing": [key for key in asked if key not in tensors],
        "unexpected": [key for key in tensors if key not in asked],
        "of another shape": [k for k in asked if k in tensors and tuple(tensors[k]["shape"]) != tuple(asked[k])],
    }
    problem = describe_keys(keys)
    return f"the documented keys of {name} are not met: {problem}" if problem else ""
