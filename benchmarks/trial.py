"""One training that meets a fault in a folder of its own, and what plain MLflow reads back of it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from nursery import Nursery, Process
from trainings import PARAMETER, TRAININGS

#: Seconds before a fault within which values may be missing: the writer's interval, and its own time. Seconds in which
#: the training's threads stood in line for a processor of a busy machine are not counted.
GRACE = 0.15
#: Seconds within which the surviving sender must have closed the run of a killed training.
CLOSED = 10.0
#: Seconds that a training process and a sync may take at all, on a busy machine: what hangs does so for ever.
PATIENCE = 600.0


def _waits(spool: Path) -> bool:
    """Whether records wait in `spool`, or are being written there."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{spool}?mode=ro", uri=True)) as db:
            return any(db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in ("records", "aside", "ids"))
    except sqlite3.OperationalError as error:
        # Where the training was killed while it made the tables, no record was ever in them.
        return spool.exists() and "no such table" not in str(error)


class Line:
    """How long the threads of a process have stood in line for a processor of a busy machine, by Linux's account."""

    def __init__(self, number: int) -> None:
        self._tasks = Path(f"/proc/{number}/task")
        #: Of each thread: the seconds that it has run, and since when it has wanted to run on without having run.
        self._threads: dict[str, tuple[float, float | None]] = {}
        #: (clock, seconds that its threads have stood in line until then, together)
        self.samples: list[tuple[float, float]] = []

    def look(self) -> None:
        """Take a sample; what a thread waits for is known to Linux only when it has it, so look now and then."""
        now, total = time.time(), 0.0
        for folder in self._tasks.glob("*"):
            try:
                ran, waited, _ = (int(word) / 1e9 for word in (folder / "schedstat").read_text().split())
                wants = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "R"
            except (OSError, ValueError):
                continue  # It has ended meanwhile.
            before, since = self._threads.get(folder.name, (-1.0, None))
            since = (since or now) if wants and ran == before else (now if wants else None)
            self._threads[folder.name] = ran, since
            total += waited + (now - since if since else 0.0)
        if not self.samples or total > self.samples[-1][1]:
            self.samples.append((now, total))

    def since(self, clock: float) -> float:
        """Return the seconds that its threads have stood in line since `clock`, as far as samples tell."""
        before = [total for at, total in self.samples if at <= clock] or [total for _, total in self.samples[:1]]
        return self.samples[-1][1] - before[-1] if before else 0.0


class Trial:
    """One training in a folder of its own, and what became of it."""

    def __init__(self, framework: str, seed: int, store: str, nurseries: Mapping[str, Nursery]) -> None:
        """nurseries: where processes are forked; a trial whose name is not there begins with the interpreter."""
        self.framework = framework
        self.seed = seed
        self.nurseries = nurseries
        self.random = random.Random(f"{framework}-{seed}")
        self.store = store
        #: What it trains to its end, and before which of the values that it sees a fault comes.
        self.steps, self.span = (4, 12) if framework in PARAMETER else (200, 120)
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
            "SPARK_CONF_DIR": str(Path(__file__).resolve().parents[1] / "tests" / "spark"),
        }
        self.problems: list[tuple[str, str]] = []
        self.process: Process | None = None
        #: When the fault came, by the clock; values seen shortly before may be missing.
        self.fault_at = float("inf")
        self.missing = 0.0
        #: Values that were compared.
        self.compared = 0

    def start(self) -> None:
        self.process = self.run(self.framework, str(self.script), str(self.truth_file), str(self.steps), str(self.seed))
        self.line = Line(self.process.pid)

    def run(self, nursery: str, *argv: str) -> Process:
        """Start Python with `argv`, forked where there is such a nursery; what it says goes to files."""
        if nursery in self.nurseries:
            return self.nurseries[nursery].start(argv, self.folder, self.environ)
        with (self.folder / "stdout.txt").open("ab") as out, (self.folder / "stderr.txt").open("ab") as err:
            return subprocess.Popen(
                [sys.executable, *argv],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def begin_sync(self) -> Process:
        return self.run("sync", "-m", "autolog", "sync")

    def said(self) -> str:
        return (self.folder / "stderr.txt").read_text(errors="replace")[-500:]

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
        assert self.process is not None
        while len(self.truth()) <= step:
            self.line.look()
            if self.process.poll() is not None:
                return
            if time.monotonic() > deadline:
                self.problems.append(("hung", f"step {step} was not reached"))
                return
            time.sleep(0.01)

    def pass_time(self, seconds: float) -> None:
        """Let the training go on for `seconds`."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.line.look()
            time.sleep(min(left, 0.02))

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

    def children(self, program: str) -> list[int]:
        """Return the children of the training that run `program`."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                _, rest = path.read_text().split(" (", 1)
            except OSError:
                continue
            name, _, fields = rest.rpartition(") ")
            if self.process is not None and name == program and int(fields.split()[1]) == self.process.pid:
                found.append(int(path.parent.name))
        return found

    def strike(self) -> None:
        """Note when the fault comes: now."""
        self.line.look()
        self.fault_at = min(self.fault_at, time.time())

    def before_fault(self, clock: float) -> float:
        """Return the seconds from `clock` to the fault in which the training did not stand in line for a processor."""
        return self.fault_at - clock - self.line.since(clock)

    def kill(self, *numbers: int) -> None:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def kill_training(self) -> None:
        assert self.process is not None
        self.strike()
        self.kill(self.process.pid)
        self.process.wait()

    def kill_both(self) -> None:
        """Kill the training and every sender, in either order, one that was just being started, too."""
        assert self.process is not None
        both = [*self.senders(), self.process.pid]
        self.random.shuffle(both)
        self.strike()
        self.kill(*both)
        self.process.wait()
        quiet = time.monotonic()
        while time.monotonic() - quiet < 0.3:
            if late := self.senders():
                self.kill(*late)
                quiet = time.monotonic()
            time.sleep(0.02)

    def ended(self, *codes: int) -> None:
        """Wait for the training to end by itself, with one of `codes`."""
        assert self.process is not None
        try:
            found = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.problems.append(("hung", "the training did not end"))
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            return
        if found not in codes:
            self.problems.append(("wrong", f"exit code {found}: {self.said()}"))

    def sync(self, *, twice_at_once: bool = False) -> None:
        for each in [self.begin_sync() for _ in range(2 if twice_at_once else 1)]:
            try:
                each.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                each.send_signal(signal.SIGKILL)
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
        """Wait until all is delivered and every run closed; that must not take longer than `seconds`.

        Seconds that a sender stood in line for a processor of a busy machine are not counted.
        """
        began, late = time.monotonic(), False
        lines: dict[int, Line] = {}
        while True:
            for number in (senders := self.senders()):
                lines.setdefault(number, Line(number)).look()
            if not self.waiting(senders):
                runs = self.runs()
                # What was seen within the writer's interval before the fault may never have reached the disk.
                old = any(self.before_fault(at) > GRACE for _, at in self.truth().values())
                if all(run.info.status != "RUNNING" for run in runs) and (runs or not old):
                    return
            took = time.monotonic() - began - max((line.since(0.0) for line in lines.values()), default=0.0)
            if took > seconds and not late:
                late = True
                statuses = [run.info.status for run in self.runs()]
                self.problems.append(("hung", f"not closed within {seconds:g} s: {statuses}"))
            if took > PATIENCE:  # Whether anything is lost, too, is seen only after the delivery.
                return
            time.sleep(0.1)

    def waiting(self, senders: Sequence[int]) -> bool:
        """Return whether something waits in a spool, or somebody empties one just now.

        A training killed before its first transaction leaves one without a record, and no sender: the next one on the
        machine removes it.
        """
        found = list((self.folder / "spool").glob("*/spool.db"))
        return bool(found) and (bool(senders) or any(_waits(path) for path in found))

    def check(self, status: str) -> None:
        """Compare the store with the truth; the run must have ended with `status`.

        A training of many runs has FINISHED ones, too: all but the one that the fault met.
        """
        truth = self.truth()
        if not truth:
            return  # Killed before its first step: there is nothing to say.
        runs = self.runs()
        many = self.framework in PARAMETER
        for key in {key for key, _ in truth}:
            metric, _, value = key.partition("@")
            its = [run for run in runs if run.data.params[PARAMETER[self.framework]] == value] if many else runs
            if len(its) > 1:
                self.problems.append(("doubled", f"{key}: {len(its)} runs"))
            for run in its:
                if run.info.status != status and not (many and run.info.status == "FINISHED"):
                    self.problems.append(("wrong", f"status {run.info.status}, not {status}"))
            history = self.client().get_metric_history(its[0].info.run_id, metric) if its else []
            self.compare(key, {step: seen for (name, step), seen in truth.items() if name == key}, history)
        for model in self.client().search_logged_models([run.info.experiment_id for run in runs[:1]]) if runs else []:
            if str(model.status) not in ("READY", "FAILED"):
                self.problems.append(("wrong", f"a LoggedModel is {model.status}"))

    def compare(self, key: str, truth: Mapping[int, tuple[float, float]], history: Sequence[Any]) -> None:
        """Compare a metric's `history` in the store with what was seen of it."""
        held = {point.step: point.value for point in history}
        if len(held) != len(history):
            self.problems.append(("doubled", f"{key}: {len(history)} points of {len(held)} steps"))
        for step, (value, at) in truth.items():
            if step not in held:
                early = self.before_fault(at)
                self.missing = max(self.missing, early)
                if early > GRACE:
                    raw = self.fault_at - at
                    self.problems.append(("lost", f"{key} at step {step}, {raw:.3f} s before, {early:.3f} net"))
                    break
            elif abs(held[step] - value) > 1e-6 * max(1.0, abs(value)):
                self.problems.append(("wrong", f"{key} at step {step} is {held[step]}, not {value}"))
                break
            self.compared += 1

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self.kill(*self.senders())
        shutil.rmtree(self.folder, ignore_errors=True)
