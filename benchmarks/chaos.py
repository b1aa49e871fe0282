"""Break it, many times, at random moments that a seed chooses, and count what was lost, doubled, hung or mislabelled.

    python benchmarks/chaos.py [FAULT ...] [--trials N] [--seed S] [--frameworks torch,xgboost,sklearn]
                               [--jobs N] [--json FILE] [--markdown FILE]

Every trial is a training process of its own on a real sqlite store. The training writes down, by itself and at once,
what it saw and when (the truth); what plain MLflow reads back afterwards is compared with it. A column counts trials:

* lost: a value that was seen more than :data:`GRACE` seconds before the fault is not in the store;
* doubled: a (metric, step) is there twice, or there are two runs;
* wrong: a value differs from the truth, or the status of a run or LoggedModel is not the one that it must be;
* hung: something took longer than it may.

The exit code is 1 where any of these is not zero.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

#: Seconds before a fault within which values may be missing: the writer's interval, and its own time on a busy machine.
GRACE = 0.15
#: Seconds within which the surviving sender must have closed the run of a killed training.
CLOSED = 10.0
#: Seconds that a training process and a sync may take at all.
PATIENCE = 120.0

BEGIN = """
    import os, sys, time
    truth = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def saw(key, step, value):
        os.write(truth, f"{key} {step} {value!r} {time.time()!r}\\n".encode())
    import autolog
    autolog.autolog(checkpoints=autolog.Checkpoints(every="20 steps"))
    steps = int(sys.argv[2])
"""
TRAININGS = {
    "torch": BEGIN
    + """
    import torch
    torch.manual_seed(int(sys.argv[3]))
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        inputs = torch.randn(16, 8)
        loss = ((model(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        saw("loss", step, loss.item())
        time.sleep(0.002)
    """,
    "xgboost": BEGIN
    + """
    import numpy, xgboost
    class Truth(xgboost.callback.TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            saw("train-logloss", epoch, evals_log["train"]["logloss"][-1])
            time.sleep(0.002)
    random = numpy.random.default_rng(int(sys.argv[3]))
    X = random.normal(size=(200, 5))
    data = xgboost.DMatrix(X, label=(X.sum(1) > 0).astype(int))
    xgboost.train(
        {"objective": "binary:logistic", "max_depth": 2, "eta": 0.01, "nthread": 1}, data, steps,
        evals=[(data, "train")], callbacks=[Truth()], verbose_eval=False,
    )
    """,
    "sklearn": BEGIN
    + """
    import numpy
    from sklearn.cluster import MiniBatchKMeans
    random = numpy.random.default_rng(int(sys.argv[3]))
    model = MiniBatchKMeans(3, random_state=0, batch_size=32)
    for step in range(steps):
        model.partial_fit(random.normal(size=(32, 4)))
        saw("inertia", step, float(model.inertia_))
        time.sleep(0.002)
    """,
}


def _waits(spool: Path) -> bool:
    """Whether records wait in `spool`, or it was never finished."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{spool}?mode=ro", uri=True)) as db:
            return any(db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in ("records", "aside", "ids"))
    except sqlite3.OperationalError:
        return spool.exists()


class Trial:
    """One training in a folder of its own, and what became of it."""

    def __init__(self, framework: str, seed: int, store: str, steps: int) -> None:
        self.framework = framework
        self.seed = seed
        self.random = random.Random(f"{framework}-{seed}")
        self.store = store
        self.steps = steps
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.experiment = f"chaos-{self.folder.name}"
        self.truth_file = self.folder / "truth.txt"
        self.script = self.folder / "train.py"
        self.script.write_text(textwrap.dedent(TRAININGS[framework]))
        self.environ = {
            **os.environ,
            "AUTOLOG_SPOOL_DIR": str(self.folder / "spool"),
            "AUTOLOG_TRACKING_URI": store,
            "AUTOLOG_EXPERIMENT": self.experiment,
            "AUTOLOG_EXIT_TIMEOUT": "60",
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
        }
        self.problems: list[tuple[str, str]] = []
        self.process: subprocess.Popen[str] | None = None
        #: When the fault came, by the clock; values seen shortly before may be missing.
        self.fault_at = float("inf")
        self.missing = 0.0
        #: Values that were compared.
        self.compared = 0

    def start(self) -> None:
        command = [sys.executable, str(self.script), str(self.truth_file), str(self.steps), str(self.seed)]
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def truth(self) -> dict[tuple[str, int], tuple[float, float]]:
        """(metric, step) -> (value, time), as the training itself saw it."""
        if not self.truth_file.exists():
            return {}
        found = {}
        for line in self.truth_file.read_text().splitlines():
            parts = line.split(" ")
            if len(parts) == 4:
                found[parts[0], int(parts[1])] = float(parts[2]), float(parts[3])
        return found

    def until_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(self.truth()) <= step:
            assert self.process is not None
            if self.process.poll() is not None:
                return
            if time.monotonic() > deadline:
                self.problems.append(("hung", f"step {step} was not reached"))
                return
            time.sleep(0.01)

    def senders(self) -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if any(b"autolog.sender" in word for word in words) and any(
                word.startswith(str(self.folder).encode()) for word in words
            ):
                found.append(int(path.parent.name))
        return found

    def kill(self, *numbers: int) -> None:
        self.fault_at = min(self.fault_at, time.time())
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def kill_training(self) -> None:
        assert self.process is not None
        self.kill(self.process.pid)
        self.process.wait()

    def kill_both(self) -> None:
        """Kill the training and every sender, in either order, one that was just being started, too."""
        assert self.process is not None
        both = [*self.senders(), self.process.pid]
        self.random.shuffle(both)
        self.kill(*both)
        self.process.wait()
        quiet = time.monotonic()
        while time.monotonic() - quiet < 0.3:
            if late := self.senders():
                self.kill(*late)
                quiet = time.monotonic()
            time.sleep(0.02)

    def finish(self) -> None:
        """Wait for the training to end by itself."""
        assert self.process is not None
        try:
            _, said = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            self.problems.append(("hung", "the training did not end"))
            return
        if self.process.returncode:
            self.problems.append(("wrong", f"exit code {self.process.returncode}: {said[-500:]}"))

    def sync(self, *, twice_at_once: bool = False) -> None:
        command = [sys.executable, "-m", "autolog", "sync"]
        started = [
            subprocess.Popen(
                command, cwd=self.folder, env=self.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            for _ in range(2 if twice_at_once else 1)
        ]
        for each in started:
            try:
                each.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()
                self.problems.append(("hung", "autolog sync did not end"))

    # -- what the store says --------------------------------------------------------------------------------------

    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.store)

    def runs(self) -> list[Any]:
        client = self.client()
        experiment = client.get_experiment_by_name(self.experiment)
        return list(client.search_runs([experiment.experiment_id])) if experiment else []

    def closed_within(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            runs = self.runs()
            # What was seen within the writer's interval before the fault may never have reached the disk.
            old = any(at < self.fault_at - GRACE for _, at in self.truth().values())
            if (not old and not runs and not self.spools()) or (
                runs and all(run.info.status != "RUNNING" for run in runs) and not self.spools()
            ):
                return
            if time.monotonic() > deadline:
                if seconds < PATIENCE:
                    self.problems.append(("hung", f"not closed within {seconds:g} s: {[r.info.status for r in runs]}"))
                    # Whether anything is lost, too, is seen only after the delivery.
                    self.closed_within(PATIENCE)
                return
            time.sleep(0.1)

    def spools(self) -> list[Path]:
        """The spools in which something waits, or that somebody empties just now.

        A training killed before its first transaction leaves one without a record, and no sender: the next one on the
        machine removes it.
        """
        found = (self.folder / "spool").glob("*/spool.db")
        return [path for path in found if self.senders() or _waits(path)]

    def check(self, status: str) -> None:
        """Compare the store with the truth; the run must have ended with `status`."""
        truth = self.truth()
        runs = self.runs()
        if not truth:
            return  # Killed before its first step: there is nothing to say.
        before = [at for _, at in truth.values() if at < self.fault_at - GRACE]
        if not runs:
            if before:
                self.problems.append(("lost", "there is no run"))
            return
        if len(runs) > 1:
            self.problems.append(("doubled", f"{len(runs)} runs"))
        run = runs[0]
        if run.info.status != status:
            self.problems.append(("wrong", f"status {run.info.status}, not {status}"))
        client = self.client()
        for key in {key for key, _ in truth}:
            history = client.get_metric_history(run.info.run_id, key)
            held = {point.step: point.value for point in history}
            if len(held) != len(history):
                self.problems.append(("doubled", f"{key}: {len(history)} points of {len(held)} steps"))
            for (name, step), (value, at) in truth.items():
                if name != key:
                    continue
                if step not in held:
                    self.missing = max(self.missing, self.fault_at - at)
                    if at < self.fault_at - GRACE:
                        self.problems.append(("lost", f"{key} at step {step}, {self.fault_at - at:.3f} s before"))
                        break
                self.compared += 1
                if step in held and abs(held[step] - value) > 1e-6 * max(1.0, abs(value)):
                    self.problems.append(("wrong", f"{key} at step {step} is {held[step]}, not {value}"))
                    break
        for model in client.search_logged_models([run.info.experiment_id]):
            if str(model.status) not in ("READY", "FAILED"):
                self.problems.append(("wrong", f"a LoggedModel is {model.status}"))

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.kill(*self.senders())
        if self.process is not None:
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
        shutil.rmtree(self.folder, ignore_errors=True)


# -- faults -----------------------------------------------------------------------------------------------------------


def training_killed(trial: Trial) -> None:
    """SIGKILL of the training at a random moment; the sender survives."""
    trial.start()
    trial.until_step(trial.random.randrange(0, 120))
    time.sleep(trial.random.random() * 0.2)
    trial.kill_training()
    trial.closed_within(CLOSED)
    trial.check("FAILED")


def sender_killed(trial: Trial) -> None:
    """SIGKILL of the sender, up to three times; the training survives."""
    trial.start()
    for _ in range(trial.random.randint(1, 3)):
        trial.until_step(trial.random.randrange(0, trial.steps))
        time.sleep(trial.random.random() * 0.5)
        for number in trial.senders():
            os.kill(number, signal.SIGKILL)
    trial.finish()
    trial.closed_within(30)
    trial.check("FINISHED")


def both_killed(trial: Trial) -> None:
    """SIGKILL of sender and training, in either order; ``autolog sync`` finishes it, later."""
    trial.start()
    trial.until_step(trial.random.randrange(0, 120))
    time.sleep(trial.random.random() * 0.2)
    trial.kill_both()
    trial.sync(twice_at_once=trial.random.random() < 0.5)
    trial.sync()
    trial.closed_within(CLOSED)
    trial.check("FAILED")


def sync_killed(trial: Trial) -> None:
    """As before, and the first ``autolog sync`` is killed in its work, too."""
    trial.start()
    trial.until_step(trial.random.randrange(20, 120))
    trial.kill_both()
    command = [sys.executable, "-m", "autolog", "sync"]
    sync = subprocess.Popen(command, cwd=trial.folder, env=trial.environ, stdout=subprocess.DEVNULL)
    time.sleep(0.8 + trial.random.random() * 1.5)
    sync.kill()
    sync.wait()
    trial.sync()
    trial.closed_within(CLOSED)
    trial.check("FAILED")


def terminated(trial: Trial) -> None:
    """SIGTERM at a random moment."""
    trial.start()
    trial.until_step(trial.random.randrange(5, 120))
    assert trial.process is not None
    trial.fault_at = time.time()
    trial.process.terminate()
    if trial.process.wait(10) != -signal.SIGTERM:
        trial.problems.append(("wrong", f"exit code {trial.process.returncode}"))
    trial.closed_within(CLOSED)
    trial.check("KILLED")


def interrupted(trial: Trial) -> None:
    """Ctrl-C at a random moment."""
    trial.start()
    trial.until_step(trial.random.randrange(5, 120))
    assert trial.process is not None
    trial.process.send_signal(signal.SIGINT)
    try:
        trial.process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        trial.problems.append(("hung", "after Ctrl-C"))
    if trial.process.returncode != -signal.SIGINT:
        trial.problems.append(("wrong", f"exit code {trial.process.returncode}"))
    trial.closed_within(CLOSED)
    trial.check("KILLED")


FAULTS: dict[str, Callable[[Trial], None]] = {
    "training killed": training_killed,
    "sender killed": sender_killed,
    "both killed": both_killed,
    "sync killed": sync_killed,
    "SIGTERM": terminated,
    "Ctrl-C": interrupted,
}
COLUMNS = ("lost", "doubled", "wrong", "hung")


@dataclass
class Row:
    """What is counted of one fault in one framework."""

    fault: str
    framework: str
    trials: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    compared: int = 0
    missing: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def run_trial(fault: str, framework: str, seed: int, store: str) -> tuple[str, str, int, Trial, float]:
    trial = Trial(framework, seed, store, steps=200)
    began = time.monotonic()
    try:
        FAULTS[fault](trial)
    finally:
        trial.close()
    return fault, framework, seed, trial, time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}; default: all")
    parser.add_argument("--trials", type=int, default=3, help="of each fault in each framework")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--frameworks", default=",".join(TRAININGS))
    parser.add_argument("--jobs", type=int, default=2, help="trials at once")
    parser.add_argument("--json", type=Path, help="write the counts there, too")
    parser.add_argument("--markdown", type=Path, help="write the table there, too, such as docs/chaos.md")
    given = parser.parse_args()
    unknown = set(given.faults) - set(FAULTS)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    frameworks = given.frameworks.split(",")
    rows = {(fault, framework): Row(fault, framework) for fault in given.faults or FAULTS for framework in frameworks}
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory(prefix="chaos-store-") as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        MlflowClient(tracking_uri=store).search_experiments()
        work = [(*key, given.seed + i, store) for i in range(given.trials) for key in rows]
        with ThreadPoolExecutor(given.jobs) as pool:
            for fault, framework, seed, trial, seconds in pool.map(lambda each: run_trial(*each), work):
                row = rows[fault, framework]
                row.trials += 1
                row.seconds.append(seconds)
                row.compared += trial.compared
                row.missing.append(trial.missing)
                for column in {kind for kind, _ in trial.problems}:
                    row.counts[column] += 1
                for kind, what in trial.problems:
                    print(f"{fault}, {framework}, seed {seed}: {kind}: {what}", file=sys.stderr, flush=True)
    shown = table(list(rows.values()))
    print(shown)
    if given.markdown:
        given.markdown.write_text(shown + "\n", encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps([vars(row) for row in rows.values()]))
    return int(any(sum(row.counts.values()) for row in rows.values()))


def table(rows: list[Row]) -> str:
    """The counts as a Markdown table."""
    lines = [
        "| fault | framework | trials | values | " + " | ".join(COLUMNS) + " | most that was missing | a trial takes |",
        "|---|---|--:|--:|" + "--:|" * (len(COLUMNS) + 2),
    ]
    for row in rows:
        counts = " | ".join(str(row.counts[column]) for column in COLUMNS)
        missing = f"last {max(row.missing) * 1e3:.0f} ms" if row.missing and max(row.missing) > 0 else "nothing"
        seconds = statistics.median(row.seconds) if row.seconds else 0.0
        cells = (row.fault, row.framework, row.trials, f"{row.compared:,}", counts, missing, f"{seconds:.1f} s")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
