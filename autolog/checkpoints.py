"""When to take a snapshot of a model while it trains, and which ones to keep."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass, field

_SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
_EVERY = re.compile(r"(\d+)\s*(step|epoch|round|s|sec|second|min|minute|h|hour)s?")

#: "auto": seconds between snapshots at least, and how many times longer training must take than the snapshots.
AUTO_SECONDS, AUTO_SHARE = 60.0, 100.0


#: The tag of a model that a training can go on from: what it holds the state of, joined by commas.
RESUMABLE = "autolog.training_state"


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The policy for step-indexed checkpoints.

    every: "auto" (about once a minute and whenever `monitor` has become better, never more than 1 % of the training
        time), "epoch" or "<n> epochs", "<n> steps" (boosting rounds are steps), "<n> s|min|h", or "end". There is
        always one at the end besides. One that comes while those before it are still being written is skipped.
    keep_last: how many of the latest to keep; None keeps all.
    keep_best: how many of the best by `monitor` to keep besides.
    monitor: name of the metric that decides what is best.
    mode: "min" or "max".
    optimizer: save with each the state of optimizer, scheduler and gradient scaler, so that :func:`autolog.resume` can
        go on from it; Adam's state is twice as large as the model. Random states and counts are always saved.

    Raises: ValueError for values that mean nothing.
    """

    every: str = "auto"
    keep_last: int | None = 3
    keep_best: int = 1
    monitor: str = "val_loss"
    mode: str = "min"
    optimizer: bool = True
    #: (amount, unit) of `every`, unit one of auto, end, step, epoch, second.
    interval: tuple[float, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", _parse(self.every))
        if self.keep_last is not None and self.keep_last < 1:
            raise ValueError(f"keep_last must be at least 1 or None for all, not {self.keep_last}")
        if self.keep_best < 0:
            raise ValueError(f"keep_best must not be negative, not {self.keep_best}")
        if not isinstance(self.optimizer, bool):
            raise TypeError(f"optimizer must be True or False, not {self.optimizer!r}")
        if self.mode not in ("min", "max"):
            raise ValueError(f'mode must be "min" or "max", not {self.mode!r}')


def _parse(every: str) -> tuple[float, str]:
    text = every.strip().lower()
    if text in ("auto", "end"):
        return 0.0, text
    found = _EVERY.fullmatch(text if text[:1].isdigit() else f"1 {text}")
    if found is None or int(found[1]) < 1:
        raise ValueError(
            f'every must be "auto", "end", "epoch" or a number with a unit such as "500 steps", "2 epochs" or '
            f'"10 min", not {every!r}'
        )
    amount, unit = float(found[1]), found[2]
    if unit in _SECONDS:
        return amount * _SECONDS[unit], "second"
    return amount, "step" if unit == "round" else unit


@dataclass(slots=True)
class Schedule:
    """One training's view of a policy: asks at each step and epoch end whether a snapshot is due."""

    policy: Checkpoints
    _started: float = field(default_factory=lambda: time.monotonic())
    _last: float = field(default_factory=lambda: time.monotonic())
    _spent: float = 0.0
    _last_step: int = 0
    _epochs: int = 0

    def begin(self, steps: int, epochs: int) -> None:
        """Go on after so many steps and epochs, of an earlier training."""
        amount, unit = self.policy.interval
        self._last_step = int(steps - steps % amount) if unit == "step" else steps
        self._epochs = epochs

    def due_at_step(self, steps: int) -> bool:
        """Return whether a snapshot is due after `steps` steps in all."""
        amount, unit = self.policy.interval
        if unit == "step":
            return steps - self._last_step >= amount
        if unit == "second":
            return time.monotonic() - self._last >= amount
        if unit == "auto":
            now = time.monotonic()
            return now - self._last >= AUTO_SECONDS and now - self._started >= self._spent * AUTO_SHARE
        return False

    def steps_left(self, steps: int) -> int | None:
        """Return how many more steps there are until one is due, after `steps` of them; None where others decide."""
        amount, unit = self.policy.interval
        return int(self._last_step + amount) - steps if unit == "step" else None

    def seconds_left(self) -> float:
        """Return in how many seconds :meth:`due_at_step` is true at the earliest; infinity where others decide."""
        amount, unit = self.policy.interval
        now = time.monotonic()
        if unit == "auto":
            return max(self._last + AUTO_SECONDS - now, self._started + self._spent * AUTO_SHARE - now)
        return self._last + amount - now if unit == "second" else math.inf

    def due_at_epoch(self) -> bool:
        """Count an epoch and return whether a snapshot is due at its end."""
        self._epochs += 1
        amount, unit = self.policy.interval
        return unit == "epoch" and self._epochs % amount == 0

    def affordable(self) -> bool:
        """Return whether one more, that nothing but its score asks for, keeps the time spent below 1 %."""
        return self.policy.interval[1] == "auto" and time.monotonic() - self._started >= self._spent * AUTO_SHARE

    def spent(self, seconds: float) -> None:
        """Note that training was blocked for `seconds` by a snapshot that is not one of the schedule's."""
        self._spent += seconds

    def skipped(self, steps: int) -> None:
        """Note that the snapshot due after `steps` steps is not taken."""
        self._last = time.monotonic()
        self._last_step = steps

    def taken(self, steps: int, seconds: float) -> None:
        """Note that a snapshot after `steps` steps blocked training for `seconds`."""
        self._last = time.monotonic()
        self._last_step = steps
        self._spent += seconds


@dataclass(slots=True)
class Shelf:
    """The checkpoints of one training that are kept, oldest first."""

    policy: Checkpoints
    _kept: list[tuple[str, float | None]] = field(default_factory=list)
    #: Scores of checkpoints that are still to be added.
    _early: dict[str, float] = field(default_factory=dict)

    def add(self, model: str, score: float | None) -> tuple[str, ...]:
        """Add a checkpoint with the monitored metric's value at that time; return those no longer kept."""
        self._kept.append((model, self._early.pop(model, score)))
        return self._thin()

    def score(self, model: str, score: float) -> tuple[str, ...]:
        """Note the monitored metric's value of a checkpoint, known after it was taken; return those no longer kept.

        It may come before :meth:`add`: an evaluation can be over before the checkpoint is written.
        """
        if all(key != model for key, _ in self._kept):
            self._early[model] = score
            return ()
        self._kept = [(key, score if key == model else known) for key, known in self._kept]
        return self._thin()

    def _thin(self) -> tuple[str, ...]:
        if self.policy.keep_last is None:
            return ()
        keep = {key for key, _ in self._kept[-self.policy.keep_last :]}
        scored = [(value, key) for key, value in self._kept if value is not None and value == value]
        scored.sort(reverse=self.policy.mode == "max", key=lambda pair: pair[0])
        keep |= {key for _, key in scored[: self.policy.keep_best]}
        dropped = tuple(key for key, _ in self._kept if key not in keep)
        self._kept = [(key, value) for key, value in self._kept if key in keep]
        return dropped
