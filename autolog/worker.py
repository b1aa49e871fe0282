"""The thread that does what takes longer than a training may wait: writing a model's bytes, asking a device or a JVM.

Jobs run one after the other in the order asked for. What is quick (reading numbers) comes first, so that metrics do not
wait behind a queue of models.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from autolog import guard
from autolog.records import Record

Job = Callable[[], Sequence[Record]]


class Worker:
    """Does jobs of runs. note: called with each record that a job returns, on the worker's thread."""

    def __init__(self, note: Callable[[Record], None]) -> None:
        self._note = note
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: One token for each of the jobs, which are quick or not.
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._quick: deque[tuple[str, str, Job]] = deque()
        self._jobs: deque[tuple[str, str, Job]] = deque()
        #: How many jobs of each run are not done.
        self._outstanding: dict[str, int] = {}
        self._idle = threading.Condition()

    def later(self, run: str, what: str, job: Job, *, quick: bool = False) -> None:
        """Do `job` soon and note the records that it returns; never blocks.

        what: completes "mlflow-autolog could not ...".
        """
        with self._idle:
            self._outstanding[run] = self._outstanding.get(run, 0) + 1
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="autolog-worker", daemon=True)
                    self._thread.start()
        (self._quick if quick else self._jobs).append((run, what, job))
        self._tokens.put(None)

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
        with self._idle:
            while self._outstanding:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._idle.wait(left if waiting is None else min(left, 0.1))
                if waiting is not None:
                    waiting(None)
        return True

    def _work(self) -> None:
        while True:
            self._tokens.get()
            run, what, job = (self._quick or self._jobs).popleft()
            for record in guard.run(what, job) or ():
                self._note(record)
            with self._idle:
                left = self._outstanding[run] - 1
                if left:
                    self._outstanding[run] = left
                else:
                    del self._outstanding[run]
                self._idle.notify_all()
            # Until the next job comes it would keep alive what it was about, such as the copy of a model.
            del job


__all__ = ["Job", "Worker"]
