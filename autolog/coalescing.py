"""Long histories: beyond a budget of points, several consecutive points of a metric become one.

Up to ``max_points`` points of a metric are kept as they are. From there on a window of them becomes one point, at the
step and time of its first: ``<name>`` is their mean; ``<name>.min``, ``<name>.max`` and ``<name>.last`` say the rest
where they differ. So nothing is sampled: each value is in exactly one mean, and no extreme is lost. Windows begin with
two points, and become twice as long each time that half the budget has been made of them: the number of points grows
with the logarithm of the number of steps. A window is closed after a second at the latest, so that slow metrics stay as
they are, and little is lost where the process is killed.

Points that are linked to a model or a dataset are always kept as they are.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any

from autolog.records import Block, Points, Record, Tags

#: Seconds after which a window is closed with the points that it has.
LONGEST = 1.0
#: The tag of a run some of whose metrics are coalesced.
COALESCED = "autolog.coalesced"


class _Window:
    """The points of one metric that become one."""

    __slots__ = ("budget", "count", "last", "maximum", "minimum", "opened", "sent", "size", "step", "time", "total")

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.size = 2
        self.sent = 0
        self.open()

    def open(self) -> None:
        self.count = 0
        self.total = 0.0
        self.minimum, self.maximum = math.inf, -math.inf
        self.last = math.nan
        self.step = self.time = 0
        self.opened = 0.0

    def add(self, value: float, step: int, at: int) -> None:
        if not self.count:
            self.opened = time.monotonic()
            # Not the last's: a training's last values are recorded again, exact, for its model.
            self.step, self.time = step, at
        self.count += 1
        self.total += value
        # Neither is ever NaN: that the mean is says enough.
        if value < self.minimum:
            self.minimum = value
        if value > self.maximum:
            self.maximum = value
        self.last = value

    def close(self, run: str, name: str) -> Points:
        values = {name: self.last if self.count == 1 or self.minimum == self.maximum else self.total / self.count}
        if self.count > 1 and self.minimum < self.maximum:
            values |= {f"{name}.min": self.minimum, f"{name}.max": self.maximum, f"{name}.last": self.last}
        if math.isnan(self.total):
            values[name] = math.nan
        point = Points(run, self.step, self.time, values)
        self.sent += 1
        if self.sent * 2 >= self.budget:
            self.size, self.sent = self.size * 2, 0
        self.open()
        return point


class Coalescer:
    """All runs of this process, on the writer thread."""

    def __init__(self) -> None:
        #: How many points of a metric are kept as they are, by run; None for all.
        self.budgets: dict[str, int | None] = {}
        #: A budget for all runs while there is too little room; None while there is enough.
        self.tight: int | None = None
        self._counts: dict[str, dict[str, int]] = {}
        self._windows: dict[str, dict[str, _Window]] = {}

    def feed(self, record: Points | Block) -> list[Record]:
        """Return what is to be written for `record` now."""
        budget = self.budgets.get(record.run)
        if self.tight is not None:
            budget = self.tight if budget is None else min(budget, self.tight)
        if budget is None or (type(record) is Points and (record.model or record.dataset)):
            return [record]
        counts = self._counts.get(record.run)
        if counts is None:
            counts = self._counts[record.run] = {}
        most = 0
        if type(record) is Points:
            for name in record.values:
                count = counts[name] = counts.get(name, 0) + 1
                if count > most:
                    most = count
            return [record] if most <= budget else list(self._coalesced(record, counts, budget))
        assert isinstance(record, Block)
        times, columns = record.take()
        for name in columns:
            most = max(most, counts.get(name, 0) + len(times))
        if most <= budget:
            for name in columns:
                counts[name] = counts.get(name, 0) + len(times)
            return [record]
        found: list[Record] = []
        for i, at in enumerate(times):
            found += self.feed(Points(record.run, record.step + i, at, {n: column[i] for n, column in columns.items()}))
        return found

    def _coalesced(self, record: Points, counts: dict[str, int], budget: int) -> Iterator[Record]:
        windows = self._windows.setdefault(record.run, {})
        exact: dict[str, Any] = {}
        for name, value in record.values.items():
            if counts[name] <= budget:
                exact[name] = value
                continue
            window = windows.get(name)
            if window is None:
                window = windows[name] = _Window(budget)
                says = {"max_points": budget, "metrics": sorted(windows)}
                yield Tags(record.run, {COALESCED: json.dumps(says)})
            window.add(float(value), record.step, record.time)
            if window.count >= window.size:
                yield window.close(record.run, name)
        if exact:
            yield record._replace(values=exact)

    @property
    def holds(self) -> bool:
        """Whether a window is open."""
        return any(window.count for windows in self._windows.values() for window in windows.values())

    def close(self, run: str | None = None, *, older: float = 0.0) -> list[Record]:
        """Close the windows of `run`, or of all runs, that have been open for `older` seconds or more."""
        if not self._windows:
            return []
        before = time.monotonic() - older
        found: list[Record] = []
        for key in list(self._windows) if run is None else [run]:
            for name, window in self._windows.get(key, {}).items():
                if window.count and window.opened <= before:
                    found.append(window.close(key, name))
        return found

    def forget(self, run: str) -> list[Record]:
        """Close the windows of a run that ends."""
        found = self.close(run)
        self._windows.pop(run, None)
        self._counts.pop(run, None)
        self.budgets.pop(run, None)
        return found


__all__ = ["COALESCED", "LONGEST", "Coalescer"]
