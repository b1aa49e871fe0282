"""One call of a carried function: its run, its end, and the name that all attempts at it have in common."""

from __future__ import annotations

import inspect
import os
import sys
import uuid
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from autolog import endings, guard, registry, runtime, scope, uris
from autolog.carry import active
from autolog.records import now
from autolog.run import ElsewhereRun, Run

if TYPE_CHECKING:
    from autolog.carry import Parent, Ticket
    from autolog.config import Config

#: Arguments that are recorded as parameters of the call, where their text is no longer than this.
_LONGEST_ARGUMENT = 250
#: Seconds that a call waits at its end until its record is safe from the end of the worker process.
_SAFE_SECONDS = 10.0


class CallRun(Run):
    """The run of one call: what trains in it says its end, but only the call ends it."""

    __slots__ = ()

    def end(self, status: str = "FINISHED", error: BaseException | None = None) -> None:
        """Do nothing; see :meth:`close`."""

    def close(self, status: str, error: BaseException | None) -> None:
        """End the run with its call."""
        super().end(status, error)


class Call:
    """One call that is recorded; `away` says that it is made in another process than the driver's."""

    def __init__(self, run: CallRun, *, away: bool) -> None:
        self._run = run
        self._away = away
        self._host = scope.Host(run, active())

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Be the call that is under way, and end with what is inside."""
        try:
            with scope.hosted(self._host):
                yield
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def through(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Drive the user's generator: the call is under way while it runs, not while its consumer does."""
        given = None
        while True:
            try:
                with scope.hosted(self._host):
                    value = steps.send(given)
            except StopIteration as done:
                self._end(None)
                return done.value
            except BaseException as error:
                self._end(error)
                raise
            try:
                given = yield value
            except BaseException as error:
                steps.close()
                # A consumer that closes it has what it wants.
                self._end(None if isinstance(error, GeneratorExit) else error)
                raise

    def _end(self, error: BaseException | None) -> None:
        guard.run("end the run of a carried call", self._close, error)

    def _close(self, error: BaseException | None) -> None:
        self._host.closed = True
        for flavor in registry.loaded():
            flavor.finish_adopted(self._run.key)
        self._run.close("FINISHED" if error is None else endings.status_of(error), error)
        if self._away:
            # An engine may kill its worker processes as soon as they have returned the result.
            seconds = max(_SAFE_SECONDS, runtime.config.exit_timeout)
            if not runtime.get_writer().handed_over(seconds):
                guard.say_once(
                    "carried", "mlflow-autolog: the record of a carried call was not safe within %g s.", seconds
                )


def begin(name: str, parent: Parent, ticket: Ticket | None, given: Mapping[str, str], *, away: bool) -> Call:
    """Open the run of a call of function `name`, a child of `parent`.

    ticket: what came with the function, where it was sent; given: the call's parameters; away: as :class:`Call`.
    """
    place = dict(parent.place)
    place |= {"parent_id": parent.remote, "ends_parent": parent.ours}
    if ticket is not None:
        call, attempt = _name(ticket.id)
        own = (os.environ.get("AUTOLOG_TRACKING_URI"), os.environ.get("MLFLOW_TRACKING_URI"))
        place |= {
            "tracking_uri": uris.with_credentials(place["tracking_uri"], own),
            "call": call,
            "attempt": attempt,
        }
    elif parent.run is None:
        place["call"] = uuid.uuid4().hex  # The parent is the user's own; no record of this process says where it is.
    of = parent.run or ElsewhereRun(parent.key)
    run = CallRun(runtime.get_writer(), runtime.config, "carry", opening=place, parent=of, name=name)
    run.host = run.key
    run.tags({**runtime.config.extra_tags, **(ticket.tags if ticket is not None else runtime.source())})
    run.params(given)
    return Call(run, away=away)


def switch_on(config: Config) -> bool:
    """Record in this process with the settings of the driver; return False where its environment or rank forbids it."""
    if scope.is_muted() or runtime.is_other_rank():
        return False
    if not runtime.enabled or runtime.config != config:
        from autolog import api

        # Without `disable`: AUTOLOG_DISABLE in the worker's environment has the last word.
        given = {item.name: getattr(config, item.name) for item in fields(config)}
        flavors = given.pop("flavors")
        del given["disable"]
        api.autolog(*flavors, **given)
    return runtime.recording()


_calls: dict[str, tuple[str, int]] = {}


def _name(sending: str) -> tuple[str, int]:
    """Return a name for this call that another attempt at it has, too, and the number of the attempt.

    0 where nothing says whether a call is one more attempt at an earlier one: it is a call of its own then.
    """
    task = runtime.spark_task()
    if task is not None:
        # Unique in an application, and growing: Spark numbers attempts anew in each attempt at a stage.
        attempt = task.taskAttemptId() + 1
        place = f"{task.stageId()}.{task.partitionId()}"
    elif os.environ.get("TORCHELASTIC_RUN_ID"):
        attempt, place = now(), "torchrun"
    else:
        return uuid.uuid4().hex, 0
    name = f"{sending}.{place}"
    at = name if task is None else f"{name}.{attempt}"
    before, count = _calls.get(sending, ("", 0))
    count = count + 1 if before == at else 0
    _calls[sending] = (at, count)
    return f"{name}.{count}", attempt


def arguments(
    name: str, signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, str]:
    """Return the arguments of function `name` that are plain values, such as a group's key: ``<name>.<argument>``."""
    bound = None if signature is None else guard.attempt(signature.bind, *args, **kwargs).value
    texts: dict[str, str] = {}
    for argument, given in (bound.arguments if bound is not None else {}).items():
        # A tuple, such as the key of a group, has a number for each part: `train.key.0`.
        parts = enumerate(given) if isinstance(given, tuple) and len(given) <= 10 else ((None, given),)
        for number, value in parts:
            text = _text(value)
            if text is not None:
                texts[f"{name}.{argument}" if number is None else f"{name}.{argument}.{number}"] = text
    return texts


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str | int | float) and not _is_numpy_scalar(value):
        return None
    text = str(value)
    return text if len(text) <= _LONGEST_ARGUMENT else None


def _is_numpy_scalar(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)
