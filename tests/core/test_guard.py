"""What goes wrong in here is kept to be shown, and nothing else with it."""

from __future__ import annotations

import gc
import weakref

import pytest

from autolog import guard


class Copy:
    """As of a model, or a file on a full disk."""


def test_an_error_that_was_swallowed_holds_nothing_that_was_at_work() -> None:
    made: list[weakref.ref[Copy]] = []

    def save() -> None:
        copy = Copy()
        made.append(weakref.ref(copy))
        try:
            raise OSError("first")
        except OSError as error:
            raise RuntimeError("no room") from error

    gc.disable()
    try:
        guard.run("save the model", save)
        assert made[0]() is None
    finally:
        gc.enable()
    ((what, error),) = guard.swallowed
    assert (what, str(error)) == ("save the model", "no room")
    guard.swallowed.clear()


def test_the_users_own_error_keeps_its_traceback() -> None:
    def fail() -> None:
        raise KeyError("ours")

    with pytest.raises(ValueError, match="theirs") as caught:
        try:
            raise ValueError("theirs")
        except ValueError:
            guard.run("look at it", fail)
            raise
    assert caught.tb is not None and caught.value.__context__ is None
    assert caught.traceback[0].frame.code.name == "test_the_users_own_error_keeps_its_traceback"
    guard.swallowed.clear()
