"""Where a loader is: one integer, whatever has been shown and however long the epochs before were."""

OLDER = {"repeats": 1}  # what states had that do not say it


class Progress:
    """What loaders that train have in common: positions, and the epochs that they are of.

    `position` counts the batches handed out since the first epoch. The loader has a length, the steps of an epoch, and
    `_identity()`, what must be the same for a position to mean the same.
    """

    position = 0
    _began = 0, 0  # a position, and the epoch that begins there

    @property
    def epoch(self) -> int:
        return self._place()[0]

    def _place(self) -> tuple[int, int]:
        """(epoch, step of it) at the current position."""
        position, epoch = self._began
        further, step = divmod(self.position - position, len(self))
        return epoch + further, step

    def epochs_done(self, position: int) -> float:
        """Of which the position is the end; an epoch cut short by new data counts as a whole one."""
        began, epoch = self._began
        return epoch + (position - began) / len(self)

    def ends(self, position: int, every: int = 1) -> bool:
        """Whether an epoch ends there, and as many as a multiple of `every` are done."""
        done = self.epochs_done(position)
        return done == int(done) and int(done) % every == 0

    def position_of(self, epoch: int) -> int:
        """Where an epoch begins: steps x epochs, unless new data came in between."""
        position, first = self._began
        return position + (epoch - first) * len(self)

    def seek(self, step: int) -> None:
        """The next batch will be number `step`, counted from the first of epoch 0. Takes effect at the next `iter`."""
        if step < 0 or self.epochs_done(step) < 0:
            raise ValueError(f"step={step} must not be negative, nor of an epoch before the data changed")
        self.position = int(step)

    def _position(self) -> dict:
        """For a state."""
        epoch, step = self._place()
        return {"position": self.position, "epoch": epoch, "step": step}

    def _take_up(self, state: dict, next_epoch: bool) -> list[str]:
        """See `TrainLoader.load_state_dict`."""
        epoch, step = state["epoch"], state["step"]
        position = state.get("position", epoch * len(self) + step)  # older states have none
        changed = [field for field, now in self._identity().items() if state.get(field, OLDER.get(field)) != now]
        if changed and not next_epoch:
            field = changed[0]
            raise ValueError(
                f"the data cannot be resumed: {field} was {state.get(field)!r} when the state was saved and is"
                f" {self._identity()[field]!r} now; resume with what it was, start anew, or give up the rest of the"
                " epoch and start the next one with what is now: --next-epoch"
            )
        self._began = (position, epoch + (step > 0)) if changed else (position - step, epoch)
        self.position = position
        if not changed:
            return []
        cut = f"epoch {epoch} ends after {step} batches, " if step else ""
        return [f"the data's {', '.join(changed)}: {cut}epoch {self.epoch} begins with what is now"]
