"""Whose call is this? The outermost training call of a thread owns the run; what it calls belongs to it.

A scope reaches into threads that are started inside it (joblib's threading backend starts its pool there), so that
the fits of a search do not look like the user's own. Threads started outside are on their own.
"""

from __future__ import annotations

import contextvars
import itertools
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autolog.run import Run


class Scope:
    """One outermost training call. `run` is None where the call is not recorded, such as a scaler fitted alone."""

    __slots__ = ("__weakref__", "closed", "flavor", "main", "owner", "run")

    def __init__(self, flavor: str, owner: object) -> None:
        self.flavor = flavor
        self.owner = owner
        self.run: Run | None = None
        self.closed = False
        #: ids of nested objects whose training is the very one that the run is about (a pipeline's last step).
        self.main: set[int] = {id(owner)}


class Host:
    """One call of a carried function: the run that the training inside it is recorded in.

    around: the user's own MLflow run that was active when the call began.
    """

    __slots__ = ("__weakref__", "_turns", "around", "closed", "run")

    def __init__(self, run: Run, around: str | None) -> None:
        self.run = run
        self.around = around
        self.closed = False
        self._turns = itertools.count()

    def is_first(self) -> bool:
        """Return whether this is the first training of the call to ask; several threads may."""
        return next(self._turns) == 0


_current: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("autolog_scope", default=None)
_inherited: weakref.WeakKeyDictionary[threading.Thread, Scope] = weakref.WeakKeyDictionary()
_host: contextvars.ContextVar[Host | None] = contextvars.ContextVar("autolog_host", default=None)
_inherited_hosts: weakref.WeakKeyDictionary[threading.Thread, Host] = weakref.WeakKeyDictionary()
_muted: contextvars.ContextVar[int] = contextvars.ContextVar("autolog_muted", default=0)
#: One of each :func:`muted` in force, of whichever thread: while it is empty, nobody needs to look at its own.
mutes: set[object] = set()


def current() -> Scope | None:
    """Return the scope that the calling thread is in."""
    scope = _current.get()
    if scope is None and _inherited:
        scope = _inherited.get(threading.current_thread())
    return None if scope is None or scope.closed else scope


@contextmanager
def entered(scope: Scope) -> Iterator[None]:
    """Make `scope` the current one."""
    token = _current.set(scope)
    try:
        yield
    finally:
        scope.closed = True
        _current.reset(token)


#: What hides a scope: no training is under way here.
_OUTSIDE = Scope("", None)
_OUTSIDE.closed = True


def host() -> Host | None:
    """Return the carried call that the calling thread is in."""
    found = _host.get()
    if found is None and _inherited_hosts:
        found = _inherited_hosts.get(threading.current_thread())
    return None if found is None or found.closed else found


@contextmanager
def hosted(by: Host) -> Iterator[None]:
    """Make `by` the carried call that is under way: what trains inside is outermost, whatever trains around it."""
    outer, around = _current.set(_OUTSIDE), _host.set(by)
    try:
        yield
    finally:
        _host.reset(around)
        _current.reset(outer)


@contextmanager
def muted() -> Iterator[None]:
    """Record nothing that this thread (or task) calls meanwhile; may be nested."""
    token, mark = _muted.set(_muted.get() + 1), object()
    mutes.add(mark)
    try:
        yield
    finally:
        mutes.discard(mark)
        _muted.reset(token)


def is_muted() -> bool:
    """Return whether :func:`muted` is in force."""
    return _muted.get() > 0


def start_thread(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Wrap ``threading.Thread.start``: a thread started inside a scope is part of it."""
    scope = current()
    if scope is not None and not instance.name.startswith("autolog-"):
        _inherited[instance] = scope
    by = host()
    if by is not None and not instance.name.startswith("autolog-"):
        _inherited_hosts[instance] = by
    return wrapped(*args, **kwargs)


def rank() -> int:
    """Return this process's rank in a distributed training, as the launcher's environment says; 0 when alone.

    RANK is torchrun's and accelerate's, OMPI_COMM_WORLD_RANK and PMI_RANK are MPI's.
    """
    for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        text = os.environ.get(name, "")
        if text.isdigit():
            return int(text)
    return 0
