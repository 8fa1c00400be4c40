"""The rate over a run: shares and epochs of the settings resolved into steps (docs/method.md, 9.2 and 9.3)."""

from typing import Any, NamedTuple

from schemas.settings import REFERENCE_BATCH, TrainSettings

WARMUP_START = 1 / 30
"""Share of the rate at which the warm-up begins (docs/method.md, 9.3)."""
WARMUP_SHARE = 1 / 4
"""The warm-up takes at most this share of a run's steps; a longer one is cut (docs/method.md, 9.3)."""
DECAY = 0.1
"""Factor of the rate at each decay (docs/method.md, 9.3)."""


class Schedule(NamedTuple):
    """What the rate does over a run. It follows from the settings once, at the start, and is kept in checkpoints.

    Attributes:
        full: the rate after the warm-up, scaled with the batch.
        warmup_steps: optimiser steps before the full rate is reached.
        decays: passes over the chips after which the rate is divided by ten, ascending; 4.5 is amid the fifth pass.
    """

    full: float
    warmup_steps: int
    decays: tuple[float, ...]

    def rate(self, step: int, progress: float) -> float:
        """Return the rate of one optimiser step, a pure function of where the step stands.

        Args:
            step: optimiser steps before this one; the warm-up is linear in it.
            progress: passes over the chips before this step, with the share of the one at hand.
        """
        full = self.full * DECAY ** sum(progress >= decay for decay in self.decays)
        if step >= self.warmup_steps:
            return full
        return full * (WARMUP_START + (1 - WARMUP_START) * step / self.warmup_steps)

    def kept(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: what the settings alone do not tell."""
        return {"warmup_steps": self.warmup_steps, "decays": list(self.decays)}


def make_schedule(options: TrainSettings, epoch_steps: int) -> Schedule:
    """Resolve the settings of a run that begins.

    Args:
        options: the settings of the run.
        epoch_steps: optimiser steps of one pass over the chips.
    """
    longest = int(options.epochs * epoch_steps * WARMUP_SHARE)
    decays = tuple(decay if decay >= 1 else decay * options.epochs for decay in options.decay_epochs)
    full = options.learning_rate * options.batch_size / REFERENCE_BATCH
    return Schedule(full, min(options.warmup_steps, longest), decays)


def resumed_schedule(
    new: Schedule, kept: dict[str, Any], progress: float, *, same_warmup: bool, same_decays: bool
) -> Schedule:
    """Keep of an earlier schedule what has been passed already, so that more epochs do not change the past.

    Args:
        new: as `make_schedule` gives it for the settings now.
        kept: as `Schedule.kept` gave it for the settings of before.
        progress: passes over the chips so far, with the share of the one at hand.
        same_warmup, same_decays: the setting is the one of before; a new one counts as it is given.
    """
    warmup_steps = kept["warmup_steps"] if same_warmup else new.warmup_steps
    decays = new.decays
    if same_decays:
        pairs = zip(kept["decays"], new.decays, strict=True)
        decays = tuple(before if before < progress else after for before, after in pairs)
    return new._replace(warmup_steps=warmup_steps, decays=decays)
