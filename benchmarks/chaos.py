"""Break it, many times, at random moments that a seed chooses, and count what was lost, doubled, hung or mislabelled.

    python benchmarks/chaos.py [FAULT ...] [--trials N] [--seed S] [--frameworks torch,xgboost,sklearn]
                               [--jobs N] [--log FILE] [--markdown FILE]

Every trial is a training process of its own on a real sqlite store. The training writes down, by itself and at once,
what it saw and when (the truth); what plain MLflow reads back afterwards is compared with it. A column counts trials:

* lost: a value that was seen more than :data:`trial.GRACE` seconds before the fault is not in the store;
* doubled: a (metric, step) is there twice, or there are two runs;
* wrong: a value differs from the truth, or the status of a run or LoggedModel is not the one that it must be;
* hung: something took longer than it may.

The exit code is 1 where any of these is not zero.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow import MlflowClient
from nursery import Nursery
from trial import CLOSED, Trial

#: Marks of the table in a page.
BEGIN, END = "<!-- counts -->", "<!-- end of counts -->"

# -- faults -----------------------------------------------------------------------------------------------------------


def training_killed(trial: Trial) -> None:
    """SIGKILL of the training at a random moment; the sender survives."""
    trial.start()
    trial.until_step(trial.random.randrange(0, trial.span))
    trial.pass_time(trial.random.random() * 0.2)
    trial.kill_training()
    trial.closed_within(CLOSED)
    trial.check("FAILED")


def sender_killed(trial: Trial) -> None:
    """SIGKILL of the sender, up to three times; the training survives."""
    trial.start()
    for _ in range(trial.random.randint(1, 3)):
        trial.until_step(trial.random.randrange(0, trial.steps))
        trial.pass_time(trial.random.random() * 0.5)
        for number in trial.senders():
            os.kill(number, signal.SIGKILL)
    trial.ended(0)
    trial.closed_within(30)
    trial.check("FINISHED")


def both_killed(trial: Trial) -> None:
    """SIGKILL of sender and training, in either order; ``autolog sync`` finishes it, later."""
    trial.start()
    trial.until_step(trial.random.randrange(0, trial.span))
    trial.pass_time(trial.random.random() * 0.2)
    trial.kill_both()
    trial.sync(twice_at_once=trial.random.random() < 0.5)
    trial.sync()
    trial.closed_within(CLOSED)
    trial.check("FAILED")


def sync_killed(trial: Trial) -> None:
    """As before, and the first ``autolog sync`` is killed in its work, too."""
    trial.start()
    trial.until_step(trial.random.randrange(trial.span // 6, trial.span))
    trial.kill_both()
    sync = trial.begin_sync()
    # A forked one need not import what takes the other 0.8 s.
    time.sleep((0.0 if "sync" in trial.nurseries else 0.8) + trial.random.random() * 1.5)
    sync.send_signal(signal.SIGKILL)
    sync.wait()
    trial.sync()
    trial.closed_within(CLOSED)
    trial.check("FAILED")


def terminated(trial: Trial) -> None:
    """SIGTERM at a random moment."""
    trial.start()
    trial.until_step(trial.random.randrange(trial.span // 20, trial.span))
    assert trial.process is not None
    trial.strike()
    trial.process.send_signal(signal.SIGTERM)
    trial.ended(-signal.SIGTERM)
    trial.closed_within(CLOSED)
    trial.check("KILLED")


def interrupted(trial: Trial) -> None:
    """Ctrl-C at a random moment."""
    trial.start()
    trial.until_step(trial.random.randrange(trial.span // 20, trial.span))
    assert trial.process is not None
    trial.process.send_signal(signal.SIGINT)
    # Bare trainings end with 1, too. What PyTorch does at exit makes it that where it was imported before us: CPython
    # forgets an interrupt when any text is executed after it. Py4J raises an error of its own instead of the
    # interrupt where that comes while it opens a connection.
    trial.ended(-signal.SIGINT, 1 if trial.framework in ("torch", "pyspark") else -signal.SIGINT)
    trial.closed_within(CLOSED)
    trial.check("KILLED")


def jvm_killed(trial: Trial) -> None:
    """SIGKILL of Spark's JVM at a random moment: the training fails, of its own."""
    trial.start()
    trial.until_step(trial.random.randrange(0, trial.span))
    trial.pass_time(trial.random.random() * 0.2)
    trial.strike()
    trial.kill(*trial.children("java"))
    trial.ended(1)
    trial.closed_within(CLOSED)
    trial.check("FAILED")


FAULTS: dict[str, Callable[[Trial], None]] = {
    "training killed": training_killed,
    "sender killed": sender_killed,
    "both killed": both_killed,
    "sync killed": sync_killed,
    "SIGTERM": terminated,
    "Ctrl-C": interrupted,
    "JVM killed": jvm_killed,
}
#: Faults that only one framework has.
ONLY = {"JVM killed": "pyspark"}
COLUMNS = ("lost", "doubled", "wrong", "hung")


#: What a nursery imports: the sender's half for ``autolog sync``, a framework for a training. Not Spark: a JVM is not
#: forked.
NURSERIES = {
    "sync": ("mlflow", "mlflow.store.tracking.sqlalchemy_store", "sqlalchemy.dialects.sqlite"),
    "torch": ("torch", "torch._dynamo"),
    "xgboost": ("xgboost",),
    "sklearn": ("sklearn.cluster",),
}
#: One trial in so many begins with the interpreter; the others in a process that has the framework's imports behind it.
AFRESH = 10


@dataclass(frozen=True)
class Result:
    """What became of one trial, as it is written to the log."""

    fault: str
    framework: str
    seed: int
    problems: list[list[str]]
    compared: int
    missing: float
    seconds: float


def run_trial(fault: str, framework: str, seed: int, store: str, nurseries: dict[str, Nursery]) -> Result:
    trial = Trial(framework, seed, store, {} if seed % AFRESH == 0 else nurseries)
    began = time.monotonic()
    try:
        FAULTS[fault](trial)
    finally:
        trial.close()
    problems = [list(each) for each in trial.problems]
    return Result(fault, framework, seed, problems, trial.compared, trial.missing, time.monotonic() - began)


def run_trials(work: list[tuple[str, str, int]], jobs: int) -> Iterator[Result]:
    """Run each (fault, framework, seed), `jobs` at once; yield what became of it when it is known."""
    if not work:
        return
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory(prefix="chaos-store-") as folder, ThreadPoolExecutor(jobs) as pool:
        store = f"sqlite:///{folder}/mlflow.db"
        MlflowClient(tracking_uri=store).search_experiments()
        wanted = (
            {"sync", *(framework for _, framework, _ in work)} if any(seed % AFRESH for *_, seed in work) else set()
        )
        nurseries = {name: Nursery(modules, environ) for name, modules in NURSERIES.items() if name in wanted}
        try:
            for done in as_completed([pool.submit(run_trial, *each, store, nurseries) for each in work]):
                yield done.result()
        finally:
            for nursery in nurseries.values():
                nursery.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}; default: all")
    parser.add_argument("--trials", type=int, default=3, help="of each fault in each framework")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--frameworks", default="torch,xgboost,sklearn", help="also pyspark; default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="trials at once")
    parser.add_argument(
        "--log", type=Path, help="keep each result there at once; trials that are there are not repeated"
    )
    parser.add_argument("--markdown", type=Path, help="write the table there, too, such as docs/chaos.md")
    given = parser.parse_args()
    unknown = set(given.faults) - set(FAULTS)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    results = []
    if given.log and given.log.exists():
        results = [Result(**json.loads(line)) for line in given.log.read_text().splitlines()]
    known = {(each.fault, each.framework, each.seed) for each in results}
    seeds = range(given.seed, given.seed + given.trials)
    kinds = itertools.product(seeds, given.faults or FAULTS, given.frameworks.split(","))
    work = [
        (fault, framework, seed)
        for seed, fault, framework in kinds
        if (fault, framework, seed) not in known and ONLY.get(fault, framework) == framework
    ]
    for result in run_trials(work, given.jobs):
        results.append(result)
        for kind, what in result.problems:
            print(
                f"{result.fault}, {result.framework}, seed {result.seed}: {kind}: {what}", file=sys.stderr, flush=True
            )
        if given.log:
            with given.log.open("a", encoding="utf-8") as log:
                log.write(json.dumps(asdict(result)) + "\n")
    shown = table(results)
    print(shown)
    if given.markdown:
        place(shown, given.markdown)
    return int(any(result.problems for result in results))


def table(results: list[Result]) -> str:
    """The counts as a Markdown table."""
    lines = [
        "| fault | framework | trials | values | " + " | ".join(COLUMNS) + " | most that was missing |",
        "|---|---|--:|--:|" + "--:|" * (len(COLUMNS) + 1),
    ]
    frameworks = list(dict.fromkeys(each.framework for each in results))
    for fault, framework in itertools.product(FAULTS, frameworks):
        row = [each for each in results if (each.fault, each.framework) == (fault, framework)]
        if not row:
            continue
        counts = (sum(any(kind == column for kind, _ in each.problems) for each in row) for column in COLUMNS)
        most = max(each.missing for each in row)
        missing = f"last {most * 1e3:.0f} ms" if most > 0 else "nothing"
        cells = (fault, framework, len(row), f"{sum(each.compared for each in row):,}", *counts, missing)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def place(shown: str, page: Path) -> None:
    """Write the table into `page`, between its marks where it has these."""
    before, after = "", ""
    if page.exists():
        text = page.read_text(encoding="utf-8")
        if BEGIN in text and END in text:
            before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    page.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after or chr(10)}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
