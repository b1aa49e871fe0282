"""``Estimator.fitMultiple`` called by the user: one run, and a child run for each model that is taken from it.

It returns an iterator that fits a model whenever one is asked for, on whatever thread asks.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Generator
from typing import Any

from autolog import guard, runtime, scope
from autolog.patching import Call
from autolog.run import Run

_local = threading.local()


class Group:
    """The run of one call of ``fitMultiple``; it ends with the last model, or when nobody can ask for one any more.

    name: what the user calls the data.
    """

    def __init__(self, run: Run, count: int, name: str) -> None:
        self.run = run
        self.name = name
        self._left = count
        self._lock = threading.Lock()

    def one_less(self) -> None:
        """Say that a model was asked for, and is there or has failed."""
        with self._lock:
            self._left -= 1
            left = self._left
        if left == 0:
            self.end()

    def end(self) -> None:
        """End the run; harmless when repeated."""
        self.run.end()
        runtime.closed(self.run)


_groups: weakref.WeakKeyDictionary[Any, Group] = weakref.WeakKeyDictionary()


def current() -> Group | None:
    """Return the group that the model which this thread is fitting belongs to."""
    group: Group | None = getattr(_local, "group", None)
    return group


def follow(models: Any, run: Run, count: int, name: str) -> None:
    """Remember that taking `count` models from the iterator `models` belongs to `run`; name: of the data."""
    group = Group(run, count, name)
    _groups[models] = group
    weakref.finalize(models, guard.run, "end the run", group.end).atexit = False
    if not count:
        group.end()


def next_model(call: Call) -> Generator[None, Any, None]:
    """Hook for the iterator's ``__next__``: the fit inside belongs to the group."""
    group = _groups.get(call.instance) if scope.current() is None else None
    if group is None or group.run.ended:
        yield
        return
    _local.group = group
    try:
        yield
    finally:
        _local.group = None
        group.one_less()
