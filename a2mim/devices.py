"""The device that a user named, or the default one; numbers that come from a device without anyone waiting for it."""

import torch


def choose_device(name: str | None = None) -> torch.device:
    """The device with that name; None is CUDA if available, else the CPU.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not known; give cpu, cuda or cuda:0") from None
    if device.type == "cuda":
        _refuse_missing_gpu(name, device)
    elif device.type != "cpu":
        _refuse_unusable(name, device)
    return device


def _refuse_missing_gpu(name: str, device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was requested, but torch finds no CUDA GPU; give cpu, or leave it out")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"device {name!r} was requested, but there are {count} GPUs, numbered from cuda:0")


def _refuse_unusable(name: str, device: torch.device) -> None:
    """Accepts another kind of device if torch can store a number on it and read it back."""
    try:
        torch.ones(1, device=device).item()
    except Exception:  # what a missing backend raises depends on the backend
        raise ValueError(f"device {name!r} cannot be used here; give cpu, cuda or cuda:0") from None


class Later:
    """Numbers of a device, on their way to the host.

    Args:
        numbers: 1-d; the copy starts now, behind what the device has been told to do so far.
    """

    def __init__(self, numbers: torch.Tensor):
        self.numbers, self.copied = numbers, None
        if numbers.is_cuda:
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.copied = torch.cuda.Event()
            self.copied.record()

    def read(self) -> list[float]:
        """The numbers. Waits for their copy, and for nothing that the device was told to do after it."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.numbers.tolist()
