"""From the training thread to the spool: a deque that costs a microsecond, and the thread behind it.

The writer's thread moves noted records into the spool, in one transaction at least every 100 ms, and keeps a sender
running. Beside it: ``worker.py`` (what takes longer than a training may wait), ``launcher.py`` (the sender).
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolog import endings, guard
from autolog.coalescing import LONGEST, Coalescer
from autolog.launcher import Launcher
from autolog.records import CAN_WAIT, Block, DatasetInput, EndRun, OpenRun, Points, Record, Tags
from autolog.spool import IN_DOUBT, MOVED, Lease, Spool, SpoolError, make_folder
from autolog.uris import working_folder
from autolog.worker import Job, Worker

if TYPE_CHECKING:
    from autolog.summary import Ledger

#: Seconds between transactions while records keep coming: with one of them, and with what a thread may wait for a
#: processor, a record is on disk after 0.1.
INTERVAL = 0.085
#: Points of each metric that are kept as they are, where more waits on disk than may.
TIGHT = 1_000
#: Seconds between looks at what the sender could not do, while records wait for it.
WATCH = 2.0
#: Records kept in memory while the spool cannot be written; beyond it the oldest metric points go, counted.
MEMORY_LIMIT = 200_000
#: The tag that names the metrics that were recorded until the user logged metrics of the same names.
BY_HAND = "autolog.logged_by_hand"


def _is_lost(error: BaseException) -> bool:
    """Return whether a spool is gone or damaged, rather than full or busy for a while."""
    if isinstance(error, SpoolError):
        return True
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


class _Barrier:
    """A mark in the deque: all that was noted before it is on disk once `reached` is set."""

    __slots__ = ("reached", "seq")

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.seq = 0


class Writer:
    """The way from noted records to the spool of this process.

    sender: "process" or "thread", where :func:`autolog.sender.deliver` runs.
    room: bytes of records that may wait on disk before metrics are coalesced.
    """

    def __init__(self, sender: str = "process", *, room: int = 64_000_000) -> None:
        self.room = room
        self._queue: deque[Record | _Barrier] = deque()
        self._coalescer = Coalescer()
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._parked = True
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._worker = Worker(self._note_from_job)
        self._ending: dict[str, EndRun] = {}
        self.closing = threading.Event()
        self._sender = Launcher(sender, self.closing)
        #: The status of a run that ends well, as far as this process can tell.
        self.success = "FINISHED"
        #: Counts what is on the disk, for people; None where nobody watches.
        self.ledger: Ledger | None = None
        self.folder: Path | None = None
        #: Records that could not be kept, and those that wait for the disk.
        self.dropped = 0
        self.unwritten = 0
        self._seq = 0
        self._said = 0
        # What a new spool must be told, should this one be lost: the runs that are open.
        self._opened: dict[str, OpenRun] = {}
        # Names of metrics that the user logs by hand, and those of them that were ours, too; by run.
        self._claims: dict[str, set[str]] = {}
        self._yielded: dict[str, set[str]] = {}

    # -- the training thread --------------------------------------------------------------------------------------

    def note(self, record: Record) -> None:
        """Take a record; it is on disk within :data:`INTERVAL`. Costs about a microsecond and never blocks."""
        self._queue.append(record)
        if self._parked:
            self._start()

    def limit(self, run: str, points: int | None) -> None:
        """Keep up to so many points of each metric of a run as they are; see :mod:`autolog.coalescing`."""
        self._coalescer.budgets[run] = points

    def claim(self, run: str, names: Iterable[str]) -> None:
        """Leave metrics of a run to the user, who logs them by hand: what was noted of them and is not on disk goes."""
        self._claims.setdefault(run, set()).update(names)

    def kick(self) -> None:
        """Ask for the next transaction now rather than at the end of the interval."""
        self._urgent.set()

    def later(self, run: str, what: str, job: Job, *, quick: bool = False) -> None:
        """Run `job` on a thread of the worker's and note the records that it returns; see :meth:`Worker.later`."""
        self._worker.later(run, what, job, quick=quick)

    def _note_from_job(self, record: Record) -> None:
        self.note(record)
        if isinstance(record, EndRun):
            self.kick()

    def end_later(self, record: EndRun) -> None:
        """Note the end of a run once its outstanding jobs are done."""
        self._ending[record.run] = record
        if self.ledger is not None:
            self.ledger.ending[record.run] = record
        self.later(record.run, "end the run", lambda: [each for each in (self._ending.pop(record.run, None),) if each])

    def end_runs(self) -> None:
        """Note now the ends that wait for jobs, as when the process exits before these are done."""
        for run in list(self._ending):
            record = self._ending.pop(run, None)
            if record is not None:
                self.note(record)

    def busy(self, run: str) -> bool:
        """Return whether jobs of `run` are outstanding."""
        return self._worker.busy(run)

    # -- flushing (threads that chose to wait) --------------------------------------------------------------------

    def spooled(
        self, timeout: float, *, jobs: bool = True, waiting: Callable[[int | None], None] | None = None
    ) -> int | None:
        """Wait until everything noted so far is on disk.

        timeout: seconds. jobs: whether to wait for the worker's, too. waiting: as of :meth:`flush`. Returns the last
        sequence number, or None when time ran out.
        """
        deadline = time.monotonic() + timeout
        if jobs and not self._worker.wait(deadline, waiting):
            return None
        if self._thread is None and not self._queue:
            return 0
        barrier = _Barrier()
        self._queue.append(barrier)
        self._start()
        self._urgent.set()
        if not barrier.reached.wait(max(0.0, deadline - time.monotonic())):
            return None
        return barrier.seq

    def spooled_folder(self, timeout: float) -> None:
        """Wait until the spool's folder exists."""
        deadline = time.monotonic() + timeout
        while self.folder is None and time.monotonic() < deadline:
            time.sleep(0.001)

    def flush(self, timeout: float, waiting: Callable[[int | None], None] | None = None) -> bool:
        """Wait until everything noted so far is in the tracking store; False when `timeout` seconds ran out.

        waiting: called now and then meanwhile, with how many rows are left, None while jobs are outstanding.
        """
        if self.closing.is_set():
            return True  # Said when it was closed.
        deadline = time.monotonic() + timeout
        seq = self.spooled(timeout, waiting=waiting)
        if seq is None:
            return False
        if seq == 0 or self.folder is None or not (self.folder / "spool.db").exists():
            return True  # Nothing was said, or what was is gone from the disk, which was said when it was found.
        spool = Spool(self.folder)
        try:
            pause = 0.002
            while True:
                first = spool.first_pending()
                if first is None or first > seq:
                    return True
                if time.monotonic() >= deadline:
                    return False
                self._sender.poke(hurry=True)
                if self._sender.died():
                    self._wake.set()  # The writer thread starts another.
                if waiting is not None:
                    waiting(spool.backlog())
                time.sleep(pause)
                pause = min(pause * 1.5, 0.01)
        finally:
            spool.close()

    def handed_over(self, timeout: float) -> bool:
        """Wait until this process may be killed: everything noted so far, jobs included, is on disk, and a sender that
        outlives it is at work; where the sender is a thread of it, until everything is in the tracking store.

        timeout: seconds. Returns False where they ran out.
        """
        deadline = time.monotonic() + timeout
        if self.spooled(timeout) is None:
            return False
        return self._sender.kind == "process" or self.flush(max(0.0, deadline - time.monotonic()))

    def leave_to_exit_code(self, timeout: float) -> None:
        """Have the exit code say how runs ended that end well from now on, as the process is about to exit.

        timeout: seconds. Where the sender does not outlive the process, nobody could read the code.
        """
        written = self.spooled(timeout, jobs=False)
        if written is not None and self.folder is not None and self._sender.kind == "process":
            self.success = endings.AS_EXIT_CODE if endings.keep_exit_code_in(self.folder) else self.success

    def close(self) -> None:
        """Tell the sender that no more will come, and leave the spool to it; harmless when repeated."""
        if self.closing.is_set() or self.success == endings.AS_EXIT_CODE:
            return  # The lease on the spool is to end with the process: then the code is there.
        self.closing.set()
        self._wake.set()
        self._urgent.set()
        if self._thread is not None:
            self._thread.join(2.0)
        self._sender.join(5.0)

    # -- the writer thread ----------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            # Made in front of the lock: a garbage collection meanwhile may end a run, and come here, too.
            thread = threading.Thread(target=self._write, name="autolog-writer", daemon=True)
            with self._lock:
                if self._thread is None:
                    self._thread = thread
                    thread.start()
        self._wake.set()

    def _write(self) -> None:
        # Spool and lease live in this frame only: a forked child has no such thread, hence never closes the copies
        # it inherited, which would undo the parent's locks.
        opened = guard.attempt(self._open)
        if opened.value is None:
            if opened.error is not None:
                guard.report("open its spool", opened.error)
            self._refuse()
            return
        spool, lease = opened.value
        abandoned: list[Lease] = []
        backlog: list[Record | _Barrier] = []
        # Seconds until the delivery is looked after, while there is something to deliver.
        watched: float | None = None
        seen_at = 0.0
        while True:
            if not backlog and not self._queue:
                if self.closing.is_set():
                    backlog += self._coalescer.close()
                    if not backlog:
                        break
                else:
                    self._parked = True
                    if not self._queue:
                        self._wake.wait(LONGEST if self._coalescer.holds else watched)
            self._parked = False
            self._wake.clear()
            if not self.closing.is_set():
                # Also after parking: a thread that has just begun to train should not have to share the interpreter
                # with us at once, and most short fits end, and ask for it, before the interval does.
                self._urgent.wait(INTERVAL)
            self._urgent.clear()
            self._take(backlog)
            if watched is not None and (time.monotonic() - seen_at >= WATCH or self._sender.wanted):
                watched, seen_at = guard.run("look after the delivery", self._watch, spool), time.monotonic()
            if not backlog:
                continue
            if self._sender.wanted:
                # In front of the first transaction: from then on somebody is there who closes the run, should we be
                # killed.
                self._sender.ensure(spool.folder)
            stored = guard.attempt(self._store, spool, backlog)
            if stored.error is not None:
                if _is_lost(stored.error):
                    moved = guard.attempt(self._move, spool, stored.error)
                    if moved.value is not None:
                        # The old lease is held on: the old spool is ours while we live, whatever is left of it.
                        abandoned.append(lease)
                        spool, lease = moved.value
                    else:
                        self._wait_for_disk(stored.error, backlog)
                elif not isinstance(stored.error, sqlite3.Error | OSError):
                    # A record that cannot be encoded must not hold the others back.
                    self._store_singly(spool, backlog)
                    backlog.clear()
                else:
                    self._wait_for_disk(stored.error, backlog)
                if backlog and self.closing.is_set():
                    self.unwritten += len(self._queue)
                    break
            else:
                hurry = not all(isinstance(record, CAN_WAIT) for record in backlog)
                backlog.clear()
                self.unwritten = 0
                if watched is None:
                    # The delivery is given its time first: looking asks the disk a dozen times, and the interpreter as
                    # often, which the training beside it pays for.
                    watched, seen_at = WATCH, time.monotonic()
                self._sender.poke(hurry=hurry)
        if watched is not None:
            guard.run("look after the delivery", self._watch, spool)
        self._sender.leave()
        spool.close()
        for each in (lease, *abandoned):
            each.release()

    def _watch(self, spool: Spool) -> float | None:
        """Say at once, not at the end, what the sender cannot do; return when to look again, None for not at all."""
        if not spool.exists():
            return None  # The next record that is said finds it gone, and begins another.
        for seq, kind, message in spool.problems(self._said):
            guard.say_problem(kind, message)
            self._said = seq
        if spool.first_pending() is None:
            return None
        self._sender.ensure(spool.folder)
        self._keep_within(spool)
        return WATCH

    def _keep_within(self, spool: Spool) -> None:
        """Coalesce metrics while more waits on disk than may: nothing is dropped, and the disk is not filled."""
        size = spool.size()
        if size > self.room and self._coalescer.tight is None:
            self._coalescer.tight = TIGHT
            guard.say_once(
                "room",
                "mlflow-autolog: %d MB wait in %s for a store that does not take them. Training is not affected; from "
                "here on, metrics are coalesced to means with minimum, maximum and last value",
                size // 1_000_000,
                spool.folder,
            )
        elif size * 2 < self.room:
            self._coalescer.tight = None

    def _wait_for_disk(self, error: BaseException, backlog: list[Record | _Barrier]) -> None:
        guard.say_once(
            "disk",
            "mlflow-autolog: the disk cannot be written now (%s: %s). Training is not affected; records are kept in "
            "memory and written as soon as it can be",
            self.folder,
            error,
        )
        self._shed(backlog)
        self.unwritten = len(backlog)
        time.sleep(INTERVAL)

    def _move(self, spool: Spool, error: BaseException) -> tuple[Spool, Lease]:
        """Begin a new spool in place of one that was deleted or damaged, and tell it of the runs that are open."""
        old = spool.folder
        opened, lease = self._open()
        opened.set_meta(IN_DOUBT, f"follows {old}")
        opened.append(list(self._opened.values()))
        guard.attempt(spool.close)
        # Whoever recovers the old one must not take the training, which goes on elsewhere, for dead.
        guard.attempt((old / MOVED).touch)
        guard.say_once(
            f"moved-{old}",
            "mlflow-autolog: its spool %s is gone or damaged (%s). Training is not affected; recording goes on in %s. "
            "What was not delivered from the old one yet is missing, unless it can be read: autolog sync",
            old,
            error,
            opened.folder,
        )
        self._sender.renew()
        return opened, lease

    def _open(self) -> tuple[Spool, Lease]:
        folder = make_folder()
        lease = Lease(folder / "owner.lock")
        if not lease.acquire():
            raise SpoolError(f"{folder} is in use")
        spool = Spool(folder, new=True)
        spool.set_meta("pid", str(os.getpid()))
        spool.set_meta("cwd", working_folder())
        spool.set_meta("argv", json.dumps(sys.argv))
        guard.run("notice signals", endings.watch_signals, folder)
        self.folder = folder
        return spool, lease

    def _refuse(self) -> None:
        """Without a spool nothing can be kept: take records off the deque so that memory does not grow."""
        while not self.closing.is_set():
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                record = self._queue.popleft()
                if isinstance(record, _Barrier):
                    record.reached.set()
                else:
                    self.dropped += 1

    def _take(self, backlog: list[Record | _Barrier]) -> None:
        queued = self._queue
        coalescer = self._coalescer
        while queued:
            record = queued.popleft()
            if isinstance(record, Points | Block):
                ours = self._unclaimed(record, backlog) if record.run in self._claims else record
                if ours is not None:
                    fed = guard.attempt(coalescer.feed, ours)
                    # What cannot be read as numbers is refused where it is encoded.
                    backlog += fed.value if fed.value is not None else [ours]
                continue
            if isinstance(record, _Barrier):
                backlog += coalescer.close()
            elif isinstance(record, OpenRun):
                self._opened[record.run] = record
            elif isinstance(record, EndRun):
                self._opened.pop(record.run, None)
                self._claims.pop(record.run, None)
                self._yielded.pop(record.run, None)
                backlog += coalescer.forget(record.run)
            backlog.append(record)
        backlog += coalescer.close(older=LONGEST)

    def _unclaimed(self, record: Points | Block, backlog: list[Record | _Barrier]) -> Points | Block | None:
        """Return `record` without the metrics that the user logs by hand, and note once for each that it is theirs."""
        run, claims = record.run, self._claims[record.run]
        # A block that the training has closed has its values there only.
        rows = record.take() if isinstance(record, Block) else None
        theirs = claims.intersection(record.values if rows is None else rows[1])
        if not theirs:
            return record
        yielded = self._yielded.setdefault(run, set())
        if not yielded.issuperset(theirs):
            yielded.update(theirs)
            backlog.append(Tags(run, {BY_HAND: json.dumps(sorted(yielded))}))
        if isinstance(record, Points):
            values = {name: value for name, value in record.values.items() if name not in theirs}
            return record._replace(values=values) if values else None
        assert rows is not None
        columns = {name: column for name, column in rows[1].items() if name not in theirs}
        return Block(run, record.step, rows[0], columns, 0) if columns else None

    def _store(self, spool: Spool, backlog: list[Record | _Barrier]) -> None:
        records = [record for record in backlog if not isinstance(record, _Barrier)]
        if records:
            if not spool.exists():
                raise SpoolError(f"{spool.folder} was deleted")
            self._seq = spool.append(records)
            if self.ledger is not None:
                guard.run("count what it recorded", self.ledger.add, records)
        for record in backlog:
            if isinstance(record, _Barrier):
                record.seq = self._seq
                record.reached.set()

    def _store_singly(self, spool: Spool, backlog: list[Record | _Barrier]) -> None:
        for record in backlog:
            stored = guard.attempt(self._store, spool, [record])
            if stored.error is not None and not isinstance(record, _Barrier):
                self.dropped += 1
                guard.report(f"keep a record of kind {type(record).__name__}", stored.error)

    def _shed(self, backlog: list[Record | _Barrier]) -> None:
        """Bound memory while the disk is unusable: metric points go first, oldest first, and are counted."""
        excess = len(backlog) - MEMORY_LIMIT
        if excess <= 0:
            return
        kept: list[Record | _Barrier] = []
        for record in backlog:
            if excess > 0 and isinstance(record, Points | Block | DatasetInput):
                excess -= 1
                self.dropped += 1
            else:
                kept.append(record)
        backlog[:] = kept

    def after_fork_in_child(self) -> None:
        """Disown everything in a forked child: threads are gone, locks may be held, the spool is the parent's."""
        endings.forget_signals()
        self._sender.disown()

    def snapshot(self) -> dict[str, Any]:
        """Return what ``status()`` shows."""
        return {
            "spool": str(self.folder) if self.folder else None,
            "waiting_in_memory": len(self._queue),
            "jobs": self._worker.outstanding,
            "dropped": self.dropped,
            "sender": self._sender.kind,
            "sender_pid": self._sender.pid,
        }
