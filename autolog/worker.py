"""The threads that do what takes longer than a training may wait: writing a model's bytes, asking a device or a JVM.

One thread for what is quick, reading numbers, and one for the rest, so that metrics wait neither behind a queue of
models nor for the one that is just being written. Each does its jobs one after the other, in the order asked for.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from autolog import guard
from autolog.records import Record

Job = Callable[[], Sequence[Record]]

#: Seconds that a job which is not quick is left lying, unless somebody waits for it. The call that asked for it is
#: just about to return, and would stand in line for the interpreter each time it lets go of it.
GRACE = 0.005


class Worker:
    """Does jobs of runs. note: called with each record that a job returns, on the worker's thread."""

    def __init__(self, note: Callable[[Record], None]) -> None:
        self._note = note
        self._lock = threading.Lock()
        #: For what is quick and for what is not.
        self._queues: dict[bool, queue.SimpleQueue[tuple[str, str, Job, int]]] = {
            True: queue.SimpleQueue(),
            False: queue.SimpleQueue(),
        }
        self._threads: dict[bool, threading.Thread] = {}
        #: How many jobs of each run are not done; of those runs, how many quick ones were asked for and are done.
        self._outstanding: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._read: dict[str, int] = {}
        self._changed = threading.Condition()
        #: How many threads wait for all jobs.
        self._waiting = 0

    def later(self, run: str, what: str, job: Job, *, quick: bool = False) -> None:
        """Do `job` soon and note the records that it returns; never blocks.

        what: completes "mlflow-autolog could not ...". quick: that it takes milliseconds. What is not, such as the
        run's end, comes after what was asked for before it in any case.
        """
        with self._changed:
            self._outstanding[run] = self._outstanding.get(run, 0) + 1
            if quick:
                self._asked[run] = self._asked.get(run, 0) + 1
            before = self._asked.get(run, 0)
        if quick not in self._threads:
            # Made in front of the lock: a garbage collection meanwhile may end a run, and come here, too.
            name = "autolog-reader" if quick else "autolog-worker"
            thread = threading.Thread(target=self._work, args=(quick,), name=name, daemon=True)
            with self._lock:
                if self._threads.setdefault(quick, thread) is thread:
                    thread.start()
        self._queues[quick].put((run, what, job, before))

    def busy(self, run: str) -> bool:
        """Return whether jobs of `run` are outstanding."""
        return bool(self._outstanding.get(run))

    @property
    def outstanding(self) -> int:
        """How many jobs are not done."""
        return sum(self._outstanding.values())

    def wait(self, deadline: float, waiting: Callable[[int | None], None] | None = None) -> bool:
        """Wait until no job is outstanding; return False where that took until `deadline`, of ``time.monotonic()``.

        waiting: called with None now and then meanwhile.
        """
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            try:
                while self._outstanding:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    self._changed.wait(left if waiting is None else min(left, 0.1))
                    if waiting is not None:
                        waiting(None)
            finally:
                self._waiting -= 1
        return True

    def _work(self, quick: bool) -> None:
        asked = self._queues[quick]
        while True:
            idle = asked.empty()
            run, what, job, before = asked.get()
            if not quick:
                with self._changed:
                    if idle:
                        self._changed.wait_for(lambda: self._waiting, GRACE)
                    while self._read.get(run, 0) < before:
                        self._changed.wait()
            for record in guard.run(what, job) or ():
                self._note(record)
            with self._changed:
                if quick:
                    self._read[run] = self._read.get(run, 0) + 1
                self._outstanding[run] -= 1
                if not self._outstanding[run]:
                    for counts in (self._outstanding, self._asked, self._read):
                        counts.pop(run, None)
                self._changed.notify_all()
            # Until the next job comes it would keep alive what it was about, such as the copy of a model.
            del job


__all__ = ["Job", "Worker"]
