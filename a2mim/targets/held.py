"""Networks that a target carries along without being part of the model that is trained."""

import copy

import torch
from torch import Tensor, nn

LEAST_SPREAD = 0.1  # share of a random target's deviation that must lie within images


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


class RandomTeacher(Held):
    """A held network with random weights. Such networks smooth: where the target hardly differs within images, the loss
    falls and nothing is learned.

    So every target before `after_step` is first called is looked at: of the noise by which `MIM` tries its parts, and
    of the first images of training. At least a tenth of the target's deviation must lie within images.
    """

    def __init__(self):
        super().__init__()
        self.checked = False  # whether a step was taken on targets that differ within images
        self.spread: tuple[Tensor, Tensor] | None = None  # of the last target in a compiled step

    def look(self, target: Tensor) -> Tensor:
        """Returns the target (B, C, h, w). Raises ValueError where it hardly differs between the cells of an image."""
        if torch.compiler.is_compiling():  # a graph raises nothing: `after_step` looks
            self.spread = spread_of(target)
        elif not self.checked and not target.is_meta:
            check_spread(spread_of(target), type(self).__name__)
        return target

    def look_again(self) -> None:
        """The next batch is looked at."""
        self.checked, self.spread = False, None

    def after_step(self, encoder, step: int, steps: int) -> None:
        """Looks at the target of a first step that was compiled; later ones are not looked at."""
        if not self.checked and self.spread is not None:
            check_spread(self.spread, type(self).__name__)
        self.checked, self.spread = True, None


def check_spread(spread: tuple[Tensor, Tensor], name: str) -> None:
    """Raises ValueError for a target of this `spread_of` that hardly differs between the cells of an image."""
    within, total = (float(value) for value in spread)
    if not within > LEAST_SPREAD * total:
        share = within / total if total else 0.0
        raise ValueError(
            f"{name}: only {share:.1%} of the target's deviation lies within images (at least {LEAST_SPREAD:.0%} is"
            " needed): the loss would fall and nothing be learned; take fewer layers, finer cells or other images"
        )


def spread_of(target: Tensor) -> tuple[Tensor, Tensor]:
    """(deviation over the places of an image, deviation over places and images) of (B, C, h, w), averaged over the
    channels; 0-d tensors.
    """
    places = target.float().var(dim=(2, 3), correction=0).mean(dim=0)
    total = target.float().var(dim=(0, 2, 3), correction=0)
    return places.mean().sqrt(), total.mean().sqrt()
