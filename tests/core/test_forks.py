"""Forks while threads of ours are at work: nothing in the child waits for a lock whose holder is not there."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from autolog import forks
from autolog.records import Points
from autolog.spool import Lease, Spool

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def child_that(does: Callable[[], object]) -> int:
    """Fork; return the signal or exit code that the child ended with, SIGALRM where that took ten seconds."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        does()
        os._exit(0)
    return os.waitpid(child, 0)[1]


@contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do `work` again and again in another thread meanwhile."""
    over = threading.Event()

    def again() -> None:
        while not over.is_set():
            work()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_sqlite_works_in_a_child_whatever_the_writer_was_at(tmp_path: Path) -> None:
    """SQLite's own locks; of such forks a fourth left a child that waited for ever."""
    tmp_path.chmod(0o700)

    def write_and_look() -> None:
        for path in tmp_path.glob("spool.db*"):
            path.unlink()
        spool = Spool(tmp_path, new=True)
        spool.append([Points("r", 1, 2, {"loss": 0.5})])
        assert len(spool.pending()) == 1
        spool.close()
        Lease.is_free(tmp_path / "owner.lock")

    def of_the_users_own() -> None:
        with closing(sqlite3.connect(":memory:")) as db:
            db.execute("CREATE TABLE t (x)")
            db.execute("INSERT INTO t VALUES (1)")

    with beside(write_and_look):
        for i in range(100):
            time.sleep(i % 10 * 0.0005)
            assert child_that(of_the_users_own) == 0


def test_a_fork_waits_for_what_a_thread_is_at() -> None:
    entered, times = threading.Event(), {}

    def work() -> None:
        with forks.held_off(), forks.held_off():
            entered.set()
            time.sleep(0.2)
        times["left"] = time.monotonic()

    thread = threading.Thread(target=work)
    thread.start()
    entered.wait()
    assert child_that(lambda: None) == 0
    forked = time.monotonic()
    thread.join()
    assert forked > times["left"] - 0.05


def test_a_fork_waits_no_longer_than_it_may(monkeypatch) -> None:
    monkeypatch.setattr(forks, "LONGEST", 0.2)
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with forks.held_off():
            inside.set()
            go_on.wait()

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    began = time.monotonic()
    assert child_that(lambda: None) == 0
    assert 0.2 <= time.monotonic() - began < 5.0
    go_on.set()
    thread.join()


def test_who_forks_from_inside_does_not_wait_for_itself() -> None:
    def goes_on() -> None:
        assert forks._inside == 1
        with forks.held_off():
            pass

    began = time.monotonic()
    with forks.held_off():
        assert child_that(goes_on) == 0
    assert time.monotonic() - began < forks.LONGEST / 2
    assert forks._inside == 0


def test_a_fork_has_its_turn_where_a_thread_is_always_at_work() -> None:
    def work() -> None:
        with forks.held_off():
            time.sleep(0.001)

    with beside(work), beside(work):
        began = time.monotonic()
        for _ in range(10):
            assert child_that(lambda: None) == 0
        assert time.monotonic() - began < forks.LONGEST / 2


def test_children_fork_too() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with forks.held_off():
            inside.set()
            go_on.wait()

    def forks_again() -> None:
        # The thread that was inside is not there, and nobody waits for it.
        began = time.monotonic()
        assert child_that(lambda: None) == 0
        assert time.monotonic() - began < forks.LONGEST / 2

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait()
    threading.Timer(0.1, go_on.set).start()
    assert child_that(forks_again) == 0
    thread.join()
