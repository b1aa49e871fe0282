"""The same work bare, under mlflow-autolog and under MLflow's own autologging, interleaved; medians and ratios.

    python benchmarks/bench.py [WORKLOAD ...] [--repeat N] [--without-mlflow] [--json FILE]

Each recorder runs in a process of its own with a sqlite store of its own; the repetitions take turns, so that what
else the machine does falls on all of them alike. Some processes are slower than others that do the same, by where their
memory came to lie (up to a tenth here, as long as they live), so the turns are shared out among several of each.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from workloads import WORKLOADS, Workload

HERE = Path(__file__).parent
#: How many processes of MLflow's own autologging share its turns.
MLFLOW_PROCESSES = 3
#: Rows of ``steps.py``: title and goal.
STEPS = {
    "torch-step": ("a step of a plain torch loop, 64-128-1 MLP", "<= 10 us added"),
    "torch-2ms": ("a step of a plain torch loop, 64-512-1 MLP", "<= 1 % added"),
}
#: Rows that are scripts; the others are workloads.
ALONE = ("import", "point", *STEPS, "pyspark-save")

IMPORT_OURS = """
import time; start = time.perf_counter()
import autolog; autolog.autolog()
print(time.perf_counter() - start)
import sys
assert not {"mlflow", "sklearn", "torch", "xgboost", "pyspark", "numpy", "pandas"} & sys.modules.keys()
"""
IMPORT_MLFLOW = """
import time; start = time.perf_counter()
import mlflow; mlflow.autolog(silent=True)
print(time.perf_counter() - start)
"""
POINT_OURS = """
import time, autolog
autolog.autolog()
from autolog import runtime
run = runtime.open_run("torch")
for i in range(2000): run.metrics({"a": 1.0, "b": 2.0, "c": 3.0}, step=i)
autolog.flush()
start = time.perf_counter()
for i in range(20000): run.metrics({"a": 1.0, "b": 2.0, "c": 3.0}, step=i)
print((time.perf_counter() - start) / 20000)
run.end(); runtime.closed(run)
"""
POINT_MLFLOW = """
import time, mlflow
mlflow.start_run()
mlflow.log_metrics({"a": 1.0, "b": 2.0, "c": 3.0}, step=0)
start = time.perf_counter()
for i in range(200): mlflow.log_metrics({"a": 1.0, "b": 2.0, "c": 3.0}, step=i)
print((time.perf_counter() - start) / 200)
"""

RECORD_IN_SPARK = f"""
import statistics, sys, time
sys.path.insert(0, {str(HERE)!r})
import autolog; autolog.autolog()
from workloads import spark_pipeline
train, more = spark_pipeline(), []
for turn in range(9):
    model = train()
    start = time.perf_counter()
    assert autolog.flush(120)
    recorded = time.perf_counter() - start
    start = time.perf_counter()
    model.write().overwrite().save("native")
    more.append(recorded - (time.perf_counter() - start))
print(statistics.median(more[2:]))
"""


class Worker:
    """A process that does one workload under one recorder, in a folder of its own."""

    def __init__(self, workload: Workload, recorder: str, folder: Path) -> None:
        folder.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), workload.name, recorder],
            cwd=folder,
            env=environ(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "log").open("w"),
            text=True,
            bufsize=1,
        )
        self._log = folder / "log"

    def ask(self, what: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(what + "\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"a worker died:\n{self._log.read_text()[-3000:]}")
        return float(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(180)


def environ(folder: Path) -> dict[str, str]:
    # One thread each: the recorders' processes would otherwise be compared by how they share the cores.
    return {
        **os.environ,
        "AUTOLOG_SPOOL_DIR": str(folder / "spool"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Spark as in the tests: its own defaults spend minutes on compiling what a few rows run through.
        "SPARK_CONF_DIR": str(HERE.parent / "tests" / "spark"),
    }


def compare(workload: Workload, repeat: int, with_mlflow: bool, folder: Path) -> dict[str, float | str]:
    """Run one workload under each recorder, taking turns."""
    names = ["bare", "ours"] + (["mlflow"] if workload.mlflow and with_mlflow else [])
    took: dict[str, list[float]] = {name: [] for name in names}
    numbers: list[float] = []
    settle: list[float] = []
    reference: list[float] = []
    by_process: list[float] = []
    processes = min(workload.processes, repeat)
    for process in range(processes):
        # What MLflow adds is far above what processes differ by.
        here = names if process < MLFLOW_PROCESSES else names[:2]
        workers = {name: Worker(workload, name, folder / f"{workload.name}-{name}-{process}") for name in here}
        first = len(numbers)
        for turn in range(workload.warm_up + repeat // processes + (process < repeat % processes)):
            for name, worker in workers.items():
                seconds = worker.ask("work")
                read = worker.ask("numbers") if name == "ours" else 0.0
                settled = read + worker.ask("settle") if name == "ours" else 0.0
                if turn >= workload.warm_up:
                    took[name].append(seconds)
                    if name == "ours":
                        numbers.append(read)
                        settle.append(settled)
                    if name == "bare" and workload.reference is not None:
                        reference.append(worker.ask("reference"))
        for worker in workers.values():
            worker.close()
        by_process.append(statistics.median(differences(took, first)))
    medians: dict[str, float | str] = {name: statistics.median(values) for name, values in took.items()}
    # Pairs of one turn met the same machine: their difference is steadier than that of the medians.
    medians["added"] = statistics.median(differences(took))
    if processes > 1:
        # Between processes, which differ by more than the turns of one; of a median, as of a normal distribution.
        medians["error"] = math.sqrt(math.pi / 2) * statistics.stdev(by_process) / math.sqrt(processes)
    if "mlflow" in took:
        # The first of the bare ones.
        medians["mlflow_added"] = statistics.median(b - a for a, b in zip(took["bare"], took["mlflow"], strict=False))
    medians["numbers"] = statistics.median(numbers)
    medians["settle"] = statistics.median(settle)
    goal = workload.goal
    if reference:
        medians["reference"] = statistics.median(reference)
        goal = goal.format(reference=show(medians["reference"]))
    return {"title": workload.title, "goal": goal, **medians}


def differences(took: dict[str, list[float]], first: int = 0) -> list[float]:
    """Return what recording added in each turn, from turn number `first` on."""
    return [ours - bare for bare, ours in zip(took["bare"][first:], took["ours"][first:], strict=True)]


def printed(arguments: list[str], folder: Path) -> list[float]:
    """Run a Python process in `folder`; return the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=folder, env=environ(folder)
    )
    return [float(word) for word in done.stdout.split()]


def alone(title: str, goal: str, ours: str, theirs: str, repeat: int, with_mlflow: bool, folder: Path) -> dict:
    """Compare two scripts that print seconds, each in fresh processes, taking turns."""
    took: dict[str, list[float]] = {"ours": [], "mlflow": []}
    for turn in range(repeat + 1):
        for name, code in (("ours", ours), ("mlflow", theirs)):
            if name == "mlflow" and not with_mlflow:
                continue
            seconds, *_ = printed(["-c", code], folder)
            if turn:
                took[name].append(seconds)
    row = {"title": title, "goal": goal, "bare": 0.0, "ours": statistics.median(took["ours"])}
    row["added"] = row["ours"]
    if took["mlflow"]:
        row["mlflow"] = row["mlflow_added"] = statistics.median(took["mlflow"])
    return row


def step(name: str, repeat: int, folder: Path) -> dict:
    """Measure what recording adds to a step, in one process: see ``steps.py``."""
    title, goal = STEPS[name]
    folder.mkdir()
    bare, added, error, beside = printed([str(HERE / "steps.py"), name, str(repeat)], folder)
    return {
        "title": title,
        "goal": f"{goal}; {show(beside)} in another thread",
        "error": error,
        "beside": beside,
        "bare": bare,
        "ours": bare + added,
        "added": added,
    }


def show(seconds: float | str | None) -> str:
    if not isinstance(seconds, float):
        return "-"
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if abs(seconds) < limit:
            return f"{seconds * factor:.1f} {unit}"
    return f"{seconds:.2f} s"


def machine() -> str:
    names = ("mlflow-skinny", "scikit-learn", "torch", "xgboost", "pyspark", "wrapt")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", help=f"any of {', '.join((*ALONE, *WORKLOADS))} (default all)")
    parser.add_argument("--repeat", type=int, help="turns of each workload")
    parser.add_argument("--without-mlflow", action="store_true", help="leave MLflow's own autologging out")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--markdown", type=Path, help="write the table there, too, such as docs/benchmarks.md")
    options = parser.parse_args()
    wanted = options.workloads or [*ALONE, *WORKLOADS]
    unknown = set(wanted) - {*ALONE, *WORKLOADS}
    if unknown:
        parser.error(f"unknown workloads: {', '.join(sorted(unknown))}")
    with_mlflow = not options.without_mlflow
    print(machine())
    head = (
        "work",
        "bare",
        "ours",
        "MLflow's",
        "ours adds",
        "MLflow adds",
        "ratio",
        "readable after",
        "with pictures",
        "to reach",
    )
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    rows = {}
    table = ["| " + " | ".join(head[:-1]) + " |", "|" + "---|" * (len(head) - 1)]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in wanted:
            if name == "import":
                title = "autolog.autolog() with its import"
                repeat = options.repeat or 9
                row = alone(title, "<= 60 ms", IMPORT_OURS, IMPORT_MLFLOW, repeat, with_mlflow, folder)
            elif name == "point":
                title = "one record of 3 metric points, training thread"
                repeat = options.repeat or 5
                row = alone(title, "<= 3 us", POINT_OURS, POINT_MLFLOW, repeat, with_mlflow, folder)
            elif name in STEPS:
                row = step(name, options.repeat or 6000, folder / name)
            elif name == "pyspark-save":
                title = "full record of a penguin Pipeline, beyond model.save"
                row = alone(title, "<= 500 ms", RECORD_IN_SPARK, "", options.repeat or 1, False, folder)
            else:
                workload = WORKLOADS[name]
                row = compare(workload, options.repeat or workload.repeat, with_mlflow, folder)
            rows[name] = row
            added, theirs = row["added"], row.get("mlflow_added")
            ratio = f"{theirs / added:,.0f} x" if theirs and added > 0 else "-"
            cells = [
                row["title"],
                show(row["bare"]) if row["bare"] else "-",
                show(row["ours"]),
                show(row.get("mlflow")),
            ]
            adds = show(added) + (f" ± {show(row['error'])}" if "error" in row else "")
            cells += [adds, show(theirs), ratio, show(row.get("numbers")), show(row.get("settle")), row["goal"]]
            print("| " + " | ".join(cells) + " |", flush=True)
            table.append("| " + " | ".join(cells[:-1]) + " |")
    if options.markdown:
        options.markdown.write_text("\n".join(table) + f"\n\nMeasured on {machine()}.\n", encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
