"""Forks of the user's process, and what a thread of ours must not be at while they happen.

A forked child has the locks of all threads and only one of the threads. SQLite takes locks of the whole library for the
shortest of its calls (https://www.sqlite.org/howtocorrupt.html, "Carrying an open database connection across a fork",
is about more than that): had a thread of ours one of them just then, whatever uses SQLite in the child waits for ever,
be it ours or the user's own. Python's lock of a module that is being imported is of the same kind. So a fork waits
until our threads are outside of both, which is microseconds where a disk is not busy.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

#: Seconds that a fork waits at most. A disk that takes longer is no reason to hold the training for good.
LONGEST = 5.0

_change = threading.Condition()
#: How many threads are inside, and how many wait to fork.
_inside = _forking = 0


class _Mine(threading.local):
    #: How often this thread is inside, and whether it is about to fork.
    depth = 0
    forks = False


_mine = _Mine()


@contextmanager
def held_off() -> Iterator[None]:
    """Have forks wait while inside; several threads may be, and one several times."""
    global _inside
    if not _mine.depth:
        with _change:
            # Else a thread that is at work all the time would let nobody fork.
            while _forking:
                _change.wait()
            _inside += 1
    _mine.depth += 1
    try:
        yield
    finally:
        _mine.depth -= 1
        if not _mine.depth:
            with _change:
                _inside -= 1
                _change.notify_all()


def _before() -> None:
    # Held until the fork is over, so that nobody comes in.
    _change.acquire()
    _mine.forks = True
    global _forking
    _forking += 1
    deadline = time.monotonic() + LONGEST
    # Who forks from inside, as a signal handler may, does not wait for itself.
    while _inside > bool(_mine.depth) and _change.wait(deadline - time.monotonic()):
        pass


def _in_parent() -> None:
    if not _mine.forks:
        return  # Ctrl-C came before all that.
    _mine.forks = False
    global _forking
    _forking -= 1
    _change.notify_all()
    _change.release()


def _in_child() -> None:
    global _change, _inside, _forking
    _mine.forks = False
    _change, _inside, _forking = threading.Condition(), int(bool(_mine.depth)), 0


class Done(NamedTuple):
    """What a statement gave: its rows, the row number that it inserted last, and how many rows it changed."""

    rows: list[tuple[Any, ...]]
    last: int | None
    changed: int

    @property
    def first(self) -> tuple[Any, ...] | None:
        """The first row, None where there is none."""
        return self.rows[0] if self.rows else None


class Database:
    """An SQLite database in autocommit mode; forks wait while it is at work."""

    def __init__(self, path: Path, *, new: bool, timeout: float) -> None:
        """Open `path`; new: which is made where it is not there; timeout: seconds to wait for the locks of others.

        Raises: sqlite3.OperationalError.
        """
        uri = f"{path.absolute().as_uri()}?mode={'rwc' if new else 'rw'}"
        with held_off():
            self._db = sqlite3.connect(uri, timeout=timeout, isolation_level=None, check_same_thread=False, uri=True)

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Done:
        """Run a statement. Raises: sqlite3.Error."""
        with self.reading(sql, values) as cursor:
            return Done(cursor.fetchall(), cursor.lastrowid, cursor.rowcount)

    @contextmanager
    def reading(self, sql: str, values: Sequence[Any] = ()) -> Iterator[sqlite3.Cursor]:
        """Run a statement and look at its rows inside, or at some of them. Raises: sqlite3.Error."""
        # The end of a cursor that is let go of half-way is at work in SQLite, too.
        with held_off(), closing(self._db.execute(sql, values)) as cursor:
            yield cursor

    def each(self, sql: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement for each of `values`. Raises: sqlite3.Error."""
        with held_off():
            self._db.executemany(sql, values).close()

    def script(self, sql: str) -> None:
        """Run several statements. Raises: sqlite3.Error."""
        with held_off():
            self._db.executescript(sql).close()

    def close(self) -> None:
        """Close it; harmless when repeated."""
        with held_off():
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Have what is executed inside happen as a whole or not at all. Raises: sqlite3.Error."""
        # All of it, since other threads that are inside may wait for its end.
        with held_off():
            self._db.execute("BEGIN IMMEDIATE").close()
            try:
                yield
                self._db.execute("COMMIT").close()
            finally:
                # Unless SQLite has done so, as where the disk is full.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK").close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
