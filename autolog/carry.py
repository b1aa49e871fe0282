"""carry(function): recording goes where the function goes, into worker processes of any engine.

What travels with the pickled function is a :class:`Ticket`: the settings, where to record, and the key of the driver's
run. In the worker process it switches autologging on, and each call becomes a child run of that run, recorded in the
worker's own spool by its own sender. No credentials travel; the worker has them from its own environment.

An engine may try a call several times. Where it says which task this is (Spark's task context, torchrun's
environment), all attempts at a call are known by one name, and the senders keep the one that stands
(:mod:`autolog.calls`, :mod:`autolog.attempts`).
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import CodeType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from autolog import beside, guard, runtime, scope, uris

if TYPE_CHECKING:
    from autolog.calls import Call
    from autolog.config import Config
    from autolog.run import Run

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Parent:
    """The driver's run.

    key: its key, or the id in the store of a run of the user's; remote: its id in the store, where known.
    place: where to record, as :func:`autolog.runtime.opening` has it; ours: whether it ends with its calls.
    """

    key: str
    remote: str | None
    place: Mapping[str, Any]
    ours: bool
    run: Run | None = None


@dataclass(frozen=True, slots=True)
class Ticket:
    """What travels with the function. `id` names this sending, `home` the process that it comes from."""

    id: str
    home: str
    config: Config
    parent: Parent
    tags: Mapping[str, str]


def carry(function: Callable[P, R]) -> Carried[P, R]:
    """Return `function` so that what it trains is recorded wherever it is called, a run for each call.

    ``df.groupBy("k").applyInPandas(autolog.carry(train_one), schema)`` records a child run per group, from Spark's
    worker processes; likewise through joblib, ``multiprocessing``, ``concurrent.futures`` and ``TorchDistributor``.
    Also a decorator.

    The runs are children of the run that trains around the call, else of the user's active MLflow run (when the
    function is sent, or else when ``carry`` was called), else of a run named after the function, which ends with the
    last of its calls. Results, exceptions, signature and output are the function's own. The first training of a call is
    recorded in the call's run, each further one in a child of it. A call that an engine tries again counts once.
    Where nothing is recorded (:func:`autolog.disable`, :func:`autolog.paused`), this is the function alone.

    mlflow-autolog must be installed where the function runs, and the store be reachable from there, with credentials
    in the environment: passwords and tokens are not sent.

    Raises: TypeError for what cannot be called.
    """
    if not callable(function):
        raise TypeError(f"carry() takes a function, not {function!r}")
    return function if isinstance(function, Carried) else Carried(function, None)


class Carried(Generic[P, R]):
    """A function as :func:`carry` returns it; `__wrapped__` is the function itself."""

    __wrapped__: Callable[P, R]
    __name__: str

    def __init__(self, function: Callable[P, R], ticket: Ticket | None) -> None:
        functools.update_wrapper(self, function)
        if not hasattr(self, "__name__"):
            self.__name__ = type(getattr(function, "func", function)).__name__
        signature = guard.attempt(inspect.signature, function).value
        if signature is not None:
            self.__signature__ = signature  # For those who ask getfullargspec, which follows no __wrapped__.
        self._ticket = ticket
        self._process = os.getpid()
        self._around = active() if ticket is None else None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function; record what it trains."""
        call = guard.run("record a call of a carried function", self._begin, args, kwargs)
        if call is None:
            return self.__wrapped__(*args, **kwargs)
        if inspect.isgeneratorfunction(self.__wrapped__):
            steps: Any = call.through(self.__wrapped__(*args, **kwargs))
            return steps  # type: ignore[no-any-return]
        with call.under_way():
            return self.__wrapped__(*args, **kwargs)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        ticket = self._ticket
        if ticket is None and self._process != os.getpid():
            ticket = _ticket(self)  # Forked along with its process.
        parent = ticket.parent if ticket is not None else _parent(self)
        if parent is None:
            return None
        from autolog import calls  # With all that recording needs; not before something is recorded.

        away = ticket is not None and ticket.home != _home
        if ticket is not None and not (calls.switch_on(ticket.config) if away else runtime.recording()):
            return None
        given = calls.arguments(self.__name__, getattr(self, "__signature__", None), args, kwargs)
        return calls.begin(self.__name__, parent, ticket, given, away=away)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind like the function, where it is a method."""
        bind = getattr(self.__wrapped__, "__get__", None)
        if instance is None or bind is None:
            return self
        return Carried(bind(instance, owner), self._ticket)

    def __reduce__(self) -> Any:
        ticket = self._ticket or guard.run("send a carried function", _ticket, self)
        function = self.__wrapped__
        if ticket is None and not self._is_named():
            # An identity function of the standard library: the pickle is the function's own.
            import operator

            return operator.getitem, ((function,), 0)
        if self._is_named() and not (function.__module__ == "__main__" and _by_value()):
            return _named, (function.__module__, function.__qualname__, ticket)
        return Carried, (function, ticket)

    def __copy__(self) -> Carried[P, R]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Carried[P, R]:
        return self

    def __repr__(self) -> str:
        return f"autolog.carry({self.__wrapped__!r})"

    def _is_named(self) -> bool:
        """Return whether the function's own name leads to this object, as that of a decorated function does."""
        found: Any = sys.modules.get(getattr(self.__wrapped__, "__module__", None) or "")
        for part in getattr(self.__wrapped__, "__qualname__", "").split("."):
            found = getattr(found, part, None)
        return found is self


def _named(module: str, qualname: str, ticket: Ticket | None) -> Any:
    """Return the decorated function of that name, with `ticket`."""
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return Carried(found.__wrapped__, ticket)


def _by_value() -> bool:
    """Return whether cloudpickle is pickling, which takes along what is defined in ``__main__``."""
    frame = inspect.currentframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).endswith("cloudpickle"):
            return True
        frame = frame.f_back
    return False


# -- the driver's run -------------------------------------------------------------------------------------------------

_parents: dict[int, tuple[CodeType, Run]] = {}
_lock = threading.Lock()
_home = uuid.uuid4().hex


def active() -> str | None:
    """Return the id of the user's active run that calls belong to."""
    if not runtime.recording() or runtime.config.exclusive:
        return None
    return guard.run("see which run is active", beside.active_run)


def _parent(carried: Carried[..., Any]) -> Parent | None:
    """Return the run that calls made or sent from here belong to, None where they are not recorded."""
    if runtime.is_other_rank():
        return None
    forked = carried._process != os.getpid() and not runtime.enabled and runtime.enabled_before_fork
    if not runtime.recording() and not forked:
        return None
    here = scope.current()
    if here is not None:
        return None if here.run is None else _of(here.run, ours=False)
    host = scope.host()
    if host is not None:
        return _of(host.run, ours=False)
    around = None if runtime.config.exclusive else beside.active_run() or carried._around
    if around is not None:
        place = {**runtime.opening(), "tracking_uri": beside.tracking_uri(), "experiment": None, "experiment_id": None}
        return Parent(around, around, place, ours=False)
    code = _code(carried.__wrapped__)
    with _lock:
        known = _parents.get(id(code))
        if forked:
            return None if known is None else _of(known[1], ours=True)
        if known is None or known[1].config is not runtime.config:
            if known is not None:
                known[1].end()
                runtime.closed(known[1])
            known = _parents[id(code)] = (code, runtime.open_parent(carried.__name__))
    return _of(known[1], ours=True)


def _of(run: Run, *, ours: bool) -> Parent:
    opened = run.opened
    place = {name: getattr(opened, name) for name in ("tracking_uri", "experiment", "experiment_id", "cwd")}
    return Parent(run.key, run.adopted or run.remote, place, ours, run)


def _code(function: Any) -> Any:
    """Return what all evaluations of one ``def`` or ``lambda`` have in common, such as in a loop."""
    while True:
        inner = getattr(function, "__func__", None) or getattr(function, "func", None)
        if inner is None:
            return getattr(function, "__code__", None) or type(function)
        function = inner


def _ticket(carried: Carried[..., Any]) -> Ticket | None:
    """Return what travels with `carried` from here; None where nothing is recorded here."""
    parent = _parent(carried)
    if parent is None:
        return None
    cwd = str(parent.place["cwd"])
    place = {**parent.place, "tracking_uri": _address(parent.place["tracking_uri"], cwd)}
    config = replace(runtime.config, tracking_uri=place["tracking_uri"])
    return Ticket(uuid.uuid4().hex, _home, config, replace(parent, place=place, run=None), runtime.source())


def _address(uri: str | None, cwd: str) -> str:
    return uris.without_credentials(uris.absolute_uri(uri, cwd))


def _after_fork_in_child() -> None:
    global _lock, _home
    _lock, _home = threading.Lock(), uuid.uuid4().hex


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
