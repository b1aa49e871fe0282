"""Imports in a process of the sender's own, which are most of what it does before the first record is delivered.

MLflow, SQLAlchemy and scikit-learn bring half a million objects that live as long as the process. Python's garbage
collector looks through all of them again and again while they come, and each time that it looks through everything
afterwards: a quarter of the processor's time until the first run can be read.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_own = False
_first = True


def own_process() -> None:
    """Say that the process is the sender's own, so that its garbage collection may be changed."""
    global _own
    _own = True


@contextmanager
def uncollected(*, before_a_store: bool = False) -> Iterator[None]:
    """Look for no garbage while modules are imported inside; nothing changes in the user's own process.

    before_a_store: whether a store is opened next. The first time, what is there by then is never looked through again;
        not later, since what is left of a failed attempt may hold the store's lock until it is collected.
    """
    global _first
    if not _own or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if before_a_store and _first:
            gc.freeze()
            _first = False
        gc.enable()
