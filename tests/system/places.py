"""A folder with its own spool, scripts that run in it as processes, and what they recorded read back."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mlflow import MlflowClient

from autolog.spool import Lease, checksum


class Place:
    """A folder with its own spool and store, and scripts that run in it."""

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        self.experiment = f"system-{folder.name}"
        self.started: list[subprocess.Popen] = []
        self.environ = {
            **os.environ,
            "AUTOLOG_SPOOL_DIR": str(folder / "spool"),
            "AUTOLOG_TRACKING_URI": store,
            "AUTOLOG_EXPERIMENT": self.experiment,
            "AUTOLOG_EXIT_TIMEOUT": "60",  # A busy machine is no failure.
            "PYTHONWARNINGS": "ignore",
        }

    def script(self, code: str, name: str = "train.py") -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(code))
        return path

    def start(self, *command: object, stdin: bool = False, **environ: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                pipe.close()

    def run(self, *command: object, code: int = 0, **environ: str) -> tuple[str, str]:
        process = self.start(*command, **environ)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, (process.returncode, out, err)
        return out, err

    def runs(self, store: str | None = None) -> list:
        client = MlflowClient(tracking_uri=store or self.store)
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            return []
        return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])

    def history(self, run, key: str, store: str | None = None) -> list[tuple[int, float]]:
        client = MlflowClient(tracking_uri=store or self.store)
        return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))

    def spools(self) -> list[Path]:
        return sorted((self.folder / "spool").glob("*/spool.db"))

    def stop_senders(self, folder: Path, how: int = signal.SIGKILL) -> None:
        """Kill the senders of the spool in `folder`."""
        find = ["pgrep", "-f", f"autolog.sender.*{folder}"]
        for pid in subprocess.run(find, capture_output=True, text=True, check=False).stdout.split():
            os.kill(int(pid), how)
        self.wait_for(lambda: subprocess.run(find, check=False, stdout=subprocess.DEVNULL).returncode)

    def left(self) -> str:
        """What there is to know of spools that were not delivered. Their senders say where they are, and end by it."""
        said = []
        for path in self.spools():
            said.append(f"{path.parent}: owner's lease free: {Lease.is_free(path.parent / 'owner.lock')}")
            with closing(sqlite3.connect(path)) as db:
                for table in ("meta", "ids", "problems", "records", "aside"):
                    said += [f"  {table}: {row}"[:300] for row in db.execute(f"SELECT * FROM {table} LIMIT 20")]
            self.stop_senders(path.parent, signal.SIGABRT)
            log = path.parent / "sender.log"
            said.append(log.read_text() if log.exists() else "  no sender was started")
        return "\n".join(said)

    def redirect(self, spool: Path, old: str, new: str) -> None:
        """Have the store that the records of `spool` name answer under its new URI: as if the old one had come up."""
        with closing(sqlite3.connect(spool)) as db, db:
            for seq, run, kind, body in db.execute("SELECT seq, run, kind, body FROM records").fetchall():
                body = body.replace(old, new)
                crc = checksum(run, kind, body)
                db.execute("UPDATE records SET body = ?, crc = ? WHERE seq = ?", (body, crc, seq))

    @staticmethod
    def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)
