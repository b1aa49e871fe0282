"""One process of a comparison: does a workload when told to, under one recorder, and says how long it took.

    python worker.py WORKLOAD bare|ours|mlflow

Reads lines from standard input: ``work`` times one call, ``reference`` one of what the goal refers to, ``numbers``
waits until its runs are finished in the store, with all but their pictures, ``settle`` until these are there, too.
Answers with one number (seconds) a line on the original standard output.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import sys
import time
import warnings
from pathlib import Path

from workloads import WORKLOADS

warnings.simplefilter("ignore")


class Store:
    """The tracking store, looked into so that what writes there is not held up.

    A reader's lock has SQLite try a commit again after milliseconds, and a record has twenty commits: a new connection
    every two milliseconds, which reads the definitions of all tables first, made a record a fifth longer.
    """

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None

    def finished(self, known: int) -> int:
        """Wait until the store has more than `known` runs and none of them is under way; return their number."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            time.sleep(0.004)
            if not Path("mlflow.db").exists():
                continue
            if self._connection is None:
                self._connection = sqlite3.connect("file:mlflow.db?mode=ro", uri=True)
            try:
                # All rows are fetched, since the lock is held until then.
                ((number, running),) = self._connection.execute(
                    "SELECT COUNT(*), TOTAL(status = 'RUNNING') FROM runs"
                ).fetchall()
            except sqlite3.OperationalError:  # The tables are being made, or the sender writes.
                continue
            if number > known and not running:
                return int(number)
        raise TimeoutError("the runs did not finish")


def main() -> None:
    workload = WORKLOADS[sys.argv[1]]
    recorder = sys.argv[2]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # What frameworks print does not mix with the answers.
    if recorder == "ours":
        import autolog

        autolog.autolog()
    elif recorder == "mlflow":
        import importlib
        import logging

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        importlib.import_module(f"mlflow.{workload.mlflow}").autolog(silent=True)
    work = workload.prepare()
    reference = workload.reference() if workload.reference is not None and recorder == "bare" else None
    store, runs = Store(), 0
    for line in sys.stdin:
        if line.strip() in ("work", "reference"):
            gc.collect()
        # Collecting takes tens of milliseconds, in which a record would go on arriving without being waited for.
        start = time.perf_counter()
        if line.strip() == "work":
            work()
        elif line.strip() == "reference":
            assert reference is not None
            reference()
        elif line.strip() == "numbers":
            runs = store.finished(runs)
        elif recorder == "ours":
            assert autolog.flush(120)
        print(time.perf_counter() - start, file=answers)


main()
