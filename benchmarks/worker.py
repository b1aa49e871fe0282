"""One process of a comparison: does a workload when told to, under one recorder, and says how long it took.

    python worker.py WORKLOAD bare|ours|mlflow

Reads lines from standard input: ``work`` times one call, ``settle`` waits until what was recorded can be read. Answers
with one number (seconds) a line on the original standard output.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import warnings

from workloads import WORKLOADS

warnings.simplefilter("ignore")


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
    for line in sys.stdin:
        gc.collect()
        start = time.perf_counter()
        if line.strip() == "work":
            work()
        elif recorder == "ours":
            assert autolog.flush(120)
        print(time.perf_counter() - start, file=answers)


main()
