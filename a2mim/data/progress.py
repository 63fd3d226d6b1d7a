"""Loader position: the number of batches yielded since epoch 0."""

from typing import Any

from a2mim.text import quoted

OLDER = {"repeats": 1, "views": 1}  # defaults for keys that older states lack


class Progress:
    """Positions and epochs of a training loader.

    `position` is the number of batches yielded since epoch 0. A subclass has a length (the steps of an epoch) and
    `_identity()` (the settings that must not change, so that a position keeps its meaning).
    """

    position = 0
    _began = 0, 0  # (a position, the epoch that begins there)

    def __len__(self) -> int:
        raise NotImplementedError

    def _identity(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        return self._place()[0]

    def _place(self) -> tuple[int, int]:
        """(epoch, step within it) at the current position."""
        position, epoch = self._began
        further, step = divmod(self.position - position, len(self))
        return epoch + further, step

    def epochs_done(self, position: int) -> float:
        """Number of epochs that are done at a position. An epoch that new data cut short counts as a whole one."""
        began, epoch = self._began
        return epoch + (position - began) / len(self)

    def ends(self, position: int, every: int = 1) -> bool:
        """True if an epoch ends at the position and the number of epochs done is a multiple of `every`."""
        done = self.epochs_done(position)
        return done == int(done) and int(done) % every == 0

    def position_of(self, epoch: int) -> int:
        """Position at which an epoch begins. Assumes that every epoch is as long as the current one."""
        position, first = self._began
        return position + (epoch - first) * len(self)

    def seek(self, step: int) -> None:
        """Sets the position to `step`, counted from the start of epoch 0. It takes effect at the next `iter`."""
        if step < 0 or self.epochs_done(step) < 0:
            raise ValueError(f"step={step} must not be negative, nor in an epoch before the data changed")
        self.position = int(step)

    def _position(self) -> dict:
        """The position's part of a state."""
        epoch, step = self._place()
        return {"position": self.position, "epoch": epoch, "step": step}

    def _take_up(self, state: dict, next_epoch: bool) -> list[str]:
        """See `TrainLoader.load_state_dict`."""
        epoch, step = state["epoch"], state["step"]
        position: int = state.get("position", epoch * len(self) + step)  # older states have none
        changed = [field for field, now in self._identity().items() if state.get(field, OLDER.get(field)) != now]
        if changed and not next_epoch:
            field = changed[0]
            raise ValueError(
                f"the data cannot be resumed: {field} was {quoted(state.get(field))} when the state was saved"
                f" and is {self._identity()[field]!r} now; restore the old value, start a new run, or skip the rest of"
                " the epoch and start the next one with the new value: --next-epoch"
            )
        self._began = (position, epoch + (step > 0)) if changed else (position - step, epoch)
        self.position = position
        if not changed:
            return []
        cut = f"epoch {epoch} ends after {step} batches, " if step else ""
        return [f"the data's {', '.join(changed)} changed: {cut}epoch {self.epoch} begins with the new value"]
