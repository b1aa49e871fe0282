"""The only broad ``except`` of the project: what goes wrong in here is reported once and never disturbs the caller.

Everything that runs inside a user's training call goes through :func:`attempt` or :func:`run`. ``KeyboardInterrupt``,
``SystemExit`` and ``GeneratorExit`` are not errors of ours and always pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import logging

T = TypeVar("T")

#: Every swallowed error of this process, oldest first. Tests assert that it stays empty.
swallowed: list[tuple[str, BaseException]] = []

_KEEP = 100
_reported: set[tuple[str, type[BaseException]]] = set()


def logger() -> logging.Logger:
    """Return the logger that everything of ours is said through."""
    import logging  # Milliseconds, in a process that may never have anything to say.

    return logging.getLogger("autolog")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What became of a guarded call: its `value`, or the `error` that was caught."""

    value: T | None
    error: Exception | None


def attempt(function: Callable[..., T], *args: Any, **kwargs: Any) -> Outcome[T]:
    """Call `function` and return its value or its error; nothing is reported."""
    errors: list[Exception] = []
    value = run(errors.append, function, *args, **kwargs)
    return Outcome(value, errors[0] if errors else None)


def run(what: str | Callable[[Exception], object], function: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
    """Call `function`; on an error report it once and return None.

    what: a phrase for people that completes "mlflow-autolog could not ...", or what takes the error instead.
    """
    # Several times per training step: so nothing is made here, neither an Outcome nor a closure.
    try:
        return function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - this is the one place
        if isinstance(what, str):
            report(what, error)
        else:
            what(error)
        return None


def report(what: str, error: BaseException) -> None:
    """Say once per (`what`, error type) that something was not recorded; training goes on unaffected."""
    key = (what, type(error))
    if key not in _reported:
        _reported.add(key)
        logger().warning(
            "mlflow-autolog could not %s (%s: %s). Training is not affected; everything else is recorded.",
            what,
            type(error).__name__,
            error,
        )
        logger().debug("where it happened:", exc_info=error)
    if len(swallowed) < _KEEP:
        # Its frames hold what was at work: the copy of a model, a file that takes its room until it is closed.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        swallowed.append((what, error))


def say_once(key: str, message: str, *args: object) -> None:
    """Log `message` at warning level, the first time that `key` is seen in this process."""
    if first_time(key):
        logger().warning(message, *args)


def first_time(key: str) -> bool:
    """Return whether nothing of this key was said yet, and note that it is now."""
    marker = (key, Warning)
    if marker in _reported:
        return False
    _reported.add(marker)
    return True


def say_problem(kind: str, message: str) -> None:
    """Say once what the sender could not do; kind: "store" where it tries again, else what was refused for good."""
    if kind == "store":
        say_once(
            message,
            "mlflow-autolog: %s. Training is not affected; what is recorded is kept on disk and delivered as soon "
            "as the store answers, or later with: autolog sync",
            message,
        )
    else:
        say_once(message, "mlflow-autolog: %s. Everything else is recorded.", message)


def reset() -> None:
    """Forget what was reported, so that it would be said again."""
    swallowed.clear()
    _reported.clear()
