"""What may run user code must leave no trace: random states, attributes, warnings."""

from __future__ import annotations

import copy
import random
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Types that hold neither, met most often.
_PLAIN = {type(None), bool, int, float, str, dict}
#: How deep estimators are looked for inside each other.
_DEPTH = 6


@contextmanager
def untouched(estimator: Any) -> Iterator[None]:
    """Leave the estimator's attributes, all random states and Python's warnings as they were before.

    For calls of an estimator's own methods that the user did not make: some draw random numbers when they predict
    (``DummyClassifier``), some keep what they were called with, some warn.
    """
    attributes = dict(vars(estimator)) if hasattr(estimator, "__dict__") else {}
    # The trees of nearest neighbours count what they are asked, and their pickles hold the counts. Their state shares
    # its arrays with them: nothing is copied.
    trees = [(each, each.__getstate__()) for each in _held(estimator, 0) if hasattr(each, "reset_n_calls")]
    with kept_random_states(estimator), _no_warnings():
        try:
            yield
        finally:
            for tree, state in trees:
                tree.__setstate__(state)
            if attributes and not _same(attributes, vars(estimator)):
                vars(estimator).clear()
                vars(estimator).update(attributes)


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(after[name] is value for name, value in before.items())


@contextmanager
def kept_random_states(estimator: Any) -> Iterator[None]:
    """Restore the random states of numpy, of Python, and of the generators that an estimator holds."""
    import numpy as np

    held = [(each, copy.deepcopy(each.state)) for each in _held(estimator, 0) if not hasattr(each, "reset_n_calls")]
    # numpy's own global generator is never replaced, only set.
    legacy = np.random.get_state(legacy=False)
    plain = random.getstate()
    try:
        yield
    finally:
        for holder, state in held:
            holder.state = state
        # Written only where they were drawn from: another thread may be drawing meanwhile.
        if not _equal_states(legacy, np.random.get_state(legacy=False)):
            np.random.set_state(legacy)
        if random.getstate() != plain:
            random.setstate(plain)


def _equal_states(one: Any, other: Any) -> bool:
    same = one["state"]["pos"] == other["state"]["pos"] if one["bit_generator"] == "MT19937" else False
    return (
        same and one["has_gauss"] == other["has_gauss"] and bool((one["state"]["key"] == other["state"]["key"]).all())
    )


def _held(value: Any, depth: int) -> Iterator[Any]:
    """Yield numpy's bit generators and the trees of nearest neighbours that an estimator and those inside it hold."""
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind in (list, tuple):
        for each in value:
            yield from _held(each, depth + 1)
    elif hasattr(value, "get_params") and hasattr(value, "__dict__") and depth < _DEPTH:
        for each in vars(value).values():
            yield from _held(each, depth + 1)
    elif hasattr(value, "reset_n_calls"):
        yield value
    else:
        generator = getattr(value, "_bit_generator", None) or getattr(value, "bit_generator", None)
        if hasattr(generator, "state"):
            yield generator


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Show none of this thread's warnings, and have Python forget that it met them, so that the user's come through.

    ``warnings.catch_warnings`` would reset what was shown before, in all threads.
    """
    me = threading.get_ident()
    before = warnings.showwarning

    def show(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        if threading.get_ident() != me:
            before(message, category, filename, lineno, file, line)
        else:
            _forget(str(message), category, filename, lineno)

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = before


def _forget(text: str, category: Any, filename: str, lineno: int) -> None:
    """Take a warning back from the registry of the module that it was raised in."""
    frame = sys._getframe(1)
    while frame is not None and not (frame.f_code.co_filename == filename and frame.f_lineno == lineno):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is not None:
        frame.f_globals.get("__warningregistry__", {}).pop((text, category, lineno), None)
