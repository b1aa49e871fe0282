"""When to take a snapshot of a model while it trains, and which ones to keep."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

_SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
_EVERY = re.compile(r"(\d+)\s*(step|epoch|round|s|sec|second|min|minute|h|hour)s?")

#: "auto": seconds between snapshots at least, and how many times longer training must take than the snapshots.
AUTO_SECONDS, AUTO_SHARE = 60.0, 100.0


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The policy for step-indexed checkpoints.

    every: "auto" (about once a minute, and never more than 1 % of the training time; always one at the end),
        "<n> steps" (boosting rounds are steps), "<n> s|min|h", or "end" for the last one only. "epoch" and "<n> epochs"
        are understood; no flavor follows epochs yet, so that they keep the last one only.
    keep_last: how many of the latest to keep; None keeps all.
    keep_best: how many of the best by `monitor` to keep besides.
    monitor: name of the metric that decides what is best.
    mode: "min" or "max".

    Raises: ValueError for values that mean nothing.
    """

    every: str = "auto"
    keep_last: int | None = 3
    keep_best: int = 1
    monitor: str = "val_loss"
    mode: str = "min"
    #: (amount, unit) of `every`, unit one of auto, end, step, epoch, second.
    interval: tuple[float, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", _parse(self.every))
        if self.keep_last is not None and self.keep_last < 1:
            raise ValueError(f"keep_last must be at least 1 or None for all, not {self.keep_last}")
        if self.keep_best < 0:
            raise ValueError(f"keep_best must not be negative, not {self.keep_best}")
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

    def due_at_epoch(self) -> bool:
        """Count an epoch and return whether a snapshot is due at its end."""
        self._epochs += 1
        amount, unit = self.policy.interval
        return unit == "epoch" and self._epochs % amount == 0

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

    def add(self, model: str, score: float | None) -> tuple[str, ...]:
        """Add a checkpoint with the monitored metric's value at that time; return those no longer kept."""
        self._kept.append((model, score))
        if self.policy.keep_last is None:
            return ()
        keep = {key for key, _ in self._kept[-self.policy.keep_last :]}
        scored = [(value, key) for key, value in self._kept if value is not None and value == value]
        scored.sort(reverse=self.policy.mode == "max", key=lambda pair: pair[0])
        keep |= {key for _, key in scored[: self.policy.keep_best]}
        dropped = tuple(key for key, _ in self._kept if key not in keep)
        self._kept = [(key, value) for key, value in self._kept if key in keep]
        return dropped
