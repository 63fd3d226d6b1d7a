"""Networks that a target carries along without being part of the model that is trained."""

import copy

from torch import Tensor, nn


class Held(nn.Module):
    """Keeps networks out of parameters(), buffers(), training mode and deep copies.

    They follow the module to its device. Their weights, and the plain values of `memory`, are in the state dictionary
    as extra state, so that a checkpoint carries them. A deep copy (averaged weights) shares them.
    """

    def __init__(self):
        super().__init__()
        self._held: dict[str, nn.Module] = {}

    def hold(self, name: str, network: nn.Module) -> nn.Module:
        """Keeps a network under a name, in evaluation mode and without gradient."""
        self._held[name] = network.eval().requires_grad_(False)
        return network

    def held(self, name: str) -> nn.Module | None:
        """The network of that name, or None."""
        return self._held.get(name)

    def networks(self) -> dict[str, nn.Module]:
        """All of them, by name."""
        return dict(self._held)

    def separate(self) -> None:
        """Gives a deep copy networks of its own."""
        self._held = copy.deepcopy(self._held)

    def memory(self) -> dict:
        """Further plain values that a resumed run needs."""
        return {}

    def remember(self, memory: dict) -> None:
        """The inverse of `memory`."""

    def get_extra_state(self) -> dict:
        """Weights of the networks held, and `memory`."""
        networks = {name: dict(network.state_dict()) for name, network in self._held.items()}
        return {"networks": networks, "memory": self.memory()}

    def set_extra_state(self, state: dict) -> None:
        """The inverse of `get_extra_state`, strict.

        Raises:
            RuntimeError: the state is of other networks, as load_state_dict has it.
        """
        given, own = sorted(state["networks"]), sorted(self._held)
        if given != own:
            raise RuntimeError(f"{type(self).__name__} holds {own or 'no network'}, the checkpoint has {given}")
        for name, tensors in state["networks"].items():
            self._held[name].load_state_dict(tensors)
        self.remember(state["memory"])

    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        for network in self._held.values():
            network._apply(fn)
        return self

    def __deepcopy__(self, memo: dict) -> "Held":
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        memo[id(self._held)] = self._held
        twin.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return twin


def spread_of(target: Tensor) -> tuple[Tensor, Tensor]:
    """(deviation over the places of an image, deviation over places and images) of (B, C, h, w), averaged over the
    channels; 0-d tensors.
    """
    places = target.float().var(dim=(2, 3), correction=0).mean(dim=0)
    total = target.float().var(dim=(0, 2, 3), correction=0)
    return places.mean().sqrt(), total.mean().sqrt()
