"""deliver(spool): one loop that empties a spool into the tracking store, and its three hosts.

* a child process of the training (``python -c ... autolog.sender``), the default: it outlives the training process;
* a daemon thread, where a child cannot be had or credentials live in this process only;
* ``autolog sync``, for spools whose owner is dead.

Delivery is exactly once: a spool has one sender at a time (its lease), what is delivered is deleted only after the
store said yes, and what may have been sent before a crash is looked up in the store before it is sent again.
"""

from __future__ import annotations

import faulthandler
import importlib
import logging
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autolog import garbage, guard
from autolog.records import CAN_WAIT
from autolog.recovery import recover
from autolog.spool import Lease, Row, Spool, SpoolError, remove, spools, sweep

if TYPE_CHECKING:
    from autolog.system_metrics import Sampling

logger = logging.getLogger("autolog.sender")

#: Records per round.
CHUNK = 2000
#: Seconds that what a training says while it runs is collected before it is sent, unless somebody waits for it: one
#: request a second costs a server, and the cores that the training uses, a fraction of ten. A training that is over
#: before has the cores to itself: a run that is opened meanwhile takes a third of the speed of one beside it.
LINGER = 1.0
#: What the training process writes into the pipe: there is more; and somebody waits for it.
POKE, HURRY = b".", b"!"
#: Seconds until records that were set aside are tried again, doubling each time.
FIRST_RETURN, LONGEST_RETURN = 60.0, 3600.0
#: Seconds that a sender whose training process is gone keeps trying an unreachable store before it leaves the rest
#: to ``autolog sync`` or to the next training on this machine.
PATIENCE = 60.0


class Host(Protocol):
    """What the loop needs to know of where it runs."""

    #: Whether the process is the sender's own, so that its working folder may be changed.
    own_process: bool

    def wait(self, seconds: float) -> None:
        """Sleep until there may be new records, at most `seconds`."""

    def linger(self, seconds: float) -> None:
        """Sleep `seconds`, or until somebody waits for the delivery."""

    def hurried(self) -> bool:
        """Return whether somebody has been waiting for the delivery since this was asked last."""

    def owner_gone(self, folder: Path) -> bool:
        """Return whether no more records will come."""


class _Hurry:
    """The hosts' common answer to who waits for the delivery."""

    def __init__(self, hurry: threading.Event) -> None:
        self._hurry = hurry

    def linger(self, seconds: float) -> None:
        """Sleep `seconds`, or until somebody waits for the delivery."""
        self._hurry.wait(seconds)

    def hurried(self) -> bool:
        """Return whether somebody has been waiting for the delivery since this was asked last."""
        hurried = self._hurry.is_set()
        self._hurry.clear()
        return hurried


class ProcessHost(_Hurry):
    """The child process: its standard input is a pipe that the training process holds open while it lives."""

    own_process = True

    def __init__(self) -> None:
        super().__init__(threading.Event())
        self._wake = threading.Event()
        self._closed = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while said := os.read(0, 4096):
            if HURRY in said:
                self._hurry.set()
            self._wake.set()
        self._closed = True
        self._hurry.set()
        self._wake.set()

    def wait(self, seconds: float) -> None:
        """Sleep until poked, until the pipe closes, or `seconds`."""
        if not self._closed:
            self._wake.wait(seconds)
            self._wake.clear()
        else:
            time.sleep(min(seconds, 0.05))

    def owner_gone(self, folder: Path) -> bool:
        """Return whether the training process is gone.

        The lease decides: a child that the training forked may hold the pipe open after its death.
        """
        return Lease.is_free(folder / "owner.lock")


class ThreadHost(_Hurry):
    """A thread of the training process itself."""

    own_process = False

    def __init__(self, wake: threading.Event, hurry: threading.Event, closing: threading.Event) -> None:
        super().__init__(hurry)
        self._wake = wake
        self._closing = closing

    def wait(self, seconds: float) -> None:
        """Sleep until woken or `seconds`."""
        self._wake.wait(seconds)
        self._wake.clear()

    def owner_gone(self, folder: Path) -> bool:
        """Return whether the training process has said that no more will come."""
        return self._closing.is_set()


class SyncHost:
    """``autolog sync``: the owner is dead and nobody waits for us but the user."""

    own_process = True

    def wait(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def linger(self, seconds: float) -> None:
        """Return at once: there is nothing to wait for."""

    def hurried(self) -> bool:
        """Return True."""
        return True

    def owner_gone(self, folder: Path) -> bool:
        """Return True."""
        return True


def deliver(folder: Path, host: Host, *, patience: float = PATIENCE) -> bool:
    """Deliver the spool in `folder` until its owner is gone and nothing is left; then close what is open.

    patience: seconds to keep trying an unreachable store once the owner is gone.
    Returns True where all is delivered and the spool is deleted, False where records remain (another sender is at
    it, or patience ran out).
    Raises: SpoolError, sqlite3.Error for a spool that cannot be read.
    """
    lease = Lease(folder / "sender.lock")
    while not lease.acquire():
        # The previous sender of this spool may be just leaving.
        if host.owner_gone(folder):
            return False
        host.wait(0.5)
    finished = False
    try:
        finished = _deliver(folder, host, patience)
    finally:
        if finished:
            remove(folder)  # While nobody else may take it up.
        lease.release()
        if finished:
            remove(folder)  # Not every system deletes what is open.
    return finished


def _deliver(folder: Path, host: Host, patience: float) -> bool:
    try:
        return _from(folder, host, patience)
    except sqlite3.OperationalError:
        raise  # Full, busy or gone: nothing that a recovery mends.
    except sqlite3.DatabaseError as error:
        if not host.owner_gone(folder):
            raise  # The training process goes on in another spool, and this one is its own until it ends.
        logger.warning("%s is damaged (%s) and is recovered", folder, error)
        recover(folder)
        return _from(folder, host, patience)


def _from(folder: Path, host: Host, patience: float) -> bool:
    from autolog.system_metrics import Sampling

    spool = Spool(folder)
    sampling = Sampling(folder)
    try:
        return _loop(spool, host, patience, sampling)
    finally:
        sampling.stop()
        spool.close()


def _loop(spool: Spool, host: Host, patience: float, sampling: Sampling) -> bool:
    from autolog.delivery import Delivery
    from autolog.faults import Fault, Trouble, fault

    if host.owner_gone(spool.folder):
        # It may be that the machine has lost power: what the store has taken since the disk was written last is not
        # known here.
        spool.in_doubt = True
    delivery = Delivery(spool, own_process=host.own_process)
    trouble = Trouble()
    gone_since: float | None = None
    #: When the records that are collected were seen first.
    waiting_since: float | None = None
    # What an earlier sender set aside may be welcome now.
    trouble.apart = delivery.take_back()
    aside = False
    last_return, return_after = time.monotonic(), FIRST_RETURN
    returned_after_end = host.owner_gone(spool.folder)
    if not returned_after_end:
        sampling.restore(spool)
    while True:
        hurried = host.hurried()
        gone = host.owner_gone(spool.folder)  # Asked before reading: what was said until then is then all there is.
        if aside and (time.monotonic() - last_return > return_after or (gone and not returned_after_end)):
            returned_after_end = gone
            trouble.apart, aside = delivery.take_back(), False
            last_return, return_after = time.monotonic(), min(return_after * 2, LONGEST_RETURN)
        rows = spool.pending(CHUNK)
        if gone:
            sampling.stop()
        else:
            sampling.see(rows)
        began = time.monotonic()
        if rows and not gone and not hurried and len(rows) < CHUNK and _can_wait(rows):
            waiting_since = began if waiting_since is None else waiting_since
            left = waiting_since + LINGER - began
            if left > 0:
                host.linger(left)
                continue
        waiting_since = None
        if rows:
            sent = guard.attempt(delivery.send_apart if trouble.apart else delivery.send, rows)
        elif gone:
            if not spool.exists():
                # Deleted while in use: the training went on in another, and whether it ended is said there.
                return False
            sent = guard.attempt(delivery.close_open)
        else:
            host.wait(1.0 if not aside else min(1.0, return_after))
            continue
        aside = aside or spool.anything_aside()
        if sent.error is None:
            trouble.over()
            gone_since = None
            if not rows:
                return not spool.anything_aside()
            continue
        kind = fault(sent.error)
        if kind is Fault.REFUSED:
            # Not the store's doing and not one record's: say it, keep all.
            logger.error("delivery failed", exc_info=sent.error)
        if rows and trouble.tell_apart(kind):
            continue
        # Said of a store that takes nothing. What it takes in part is said where the rest is set aside.
        spool.problem("store", delivery.explain(sent.error))
        if gone:
            gone_since = gone_since or time.monotonic()
            if kind is Fault.DENIED or time.monotonic() - gone_since >= patience:
                return False
        _sleep(host, spool.folder, trouble.pause(sent.error, time.monotonic() - began), gone=gone)


def _can_wait(rows: Sequence[Row]) -> bool:
    return all(isinstance(row.record, CAN_WAIT) for row in rows)


def _sleep(host: Host, folder: Path, seconds: float, *, gone: bool) -> None:
    # Pokes say that there is more to send, not that the store is back: they do not shorten the pause. The end of the
    # training does: then somebody may wait for us to leave.
    deadline = time.monotonic() + seconds
    asked = time.monotonic()
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.2))
        if not gone and time.monotonic() - asked > 1.0:
            asked = time.monotonic()
            if host.owner_gone(folder):
                return


def sync(parent: Path | None = None, *, patience: float = 0.0) -> list[tuple[Path, bool, list[str]]]:
    """Deliver every spool whose training process is dead.

    Returns (folder, whether all of it is delivered, problems) for each spool that has no living owner.
    """
    done = []
    sweep(parent)
    for folder in spools(parent):
        if not Lease.is_free(folder / "owner.lock"):
            continue
        delivered = guard.attempt(deliver, folder, SyncHost(), patience=patience)
        if not delivered.value and not (folder / "spool.db").exists():
            continue  # Its own sender was at it, and is done.
        problems: list[str] = []
        if delivered.error is not None:
            problems = [str(delivered.error)]
        elif not delivered.value and folder.is_dir():
            read = guard.attempt(_problems, folder)
            problems = read.value or []
        done.append((folder, bool(delivered.value), problems))
    return done


def _problems(folder: Path) -> list[str]:
    spool = Spool(folder)
    try:
        return [message for _, _, message in spool.problems()]
    finally:
        spool.close()


def own_environment() -> None:
    """Set what MLflow reads from the environment, in a process that is the sender's own."""
    # MLflow retries each request for minutes by itself; the loop above decides here.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.pop("MLFLOW_RUN_ID", None)  # Runs are named by records, never by what the environment says.
    # The sender must not record itself.
    os.environ["AUTOLOG_DISABLE"] = "true"


def main(folder: str) -> None:
    """Run as the child process of a training, then finish what dead trainings on this machine left."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()  # What ends us from below, or kill -ABRT while we hang, leaves in sender.log where we were.
    if hasattr(os, "nice"):
        os.nice(10)  # Where training uses every core, it comes first.
    own_environment()
    host = ProcessHost()
    garbage.own_process()
    with garbage.uncollected():
        importlib.import_module("autolog.delivery")  # Which imports MLflow.
    delivered = guard.attempt(deliver, Path(folder), host)
    if delivered.error is not None:
        logger.error("the spool %s cannot be delivered", folder, exc_info=delivered.error)
    if delivered.value:
        guard.attempt(sync)


__all__ = ["Host", "ProcessHost", "SpoolError", "SyncHost", "ThreadHost", "deliver", "main", "sync"]
