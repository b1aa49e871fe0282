"""A sqlite store appears complete, whoever else is about to make it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from autolog import newstore


def fill(path: str) -> None:
    with closing(sqlite3.connect(path)) as store:
        store.execute("CREATE TABLE experiments (id INTEGER)")
        store.execute("INSERT INTO experiments VALUES (0)")
        store.commit()


class Maker:
    """Makes a store in two steps, slowly, and knows where."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, uri: str) -> None:
        path = make_url(uri).database
        self.made.append(path)
        time.sleep(0.3)
        fill(path)


def rows(path) -> list:
    with closing(sqlite3.connect(path)) as store:
        return store.execute("SELECT id FROM experiments").fetchall()


@pytest.mark.parametrize("name", ["a [new] store.db", "a%20[new]%20store.db"])
def test_a_new_store_is_made_under_another_name_and_appears_complete(tmp_path, name):
    path = Path(make_url(f"sqlite:///{tmp_path / name}").database)
    create = Maker()
    newstore.make_ready(f"sqlite:///{tmp_path / name}", create)
    assert rows(path) == [(0,)]
    assert create.made != [str(path)]
    assert os.listdir(tmp_path) == [path.name]


def test_two_at_once_make_one_store(tmp_path):
    path = tmp_path / "mlflow.db"
    creators = [Maker() for _ in range(4)]
    threads = [threading.Thread(target=newstore.make_ready, args=(f"sqlite:///{path}", made)) for made in creators]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(path) == [(0,)]
    assert os.listdir(tmp_path) == ["mlflow.db"]


def test_a_store_that_another_process_makes_is_waited_for(tmp_path):
    path = tmp_path / "mlflow.db"
    path.touch()
    threading.Timer(0.5, fill, [str(path)]).start()
    create = Maker()
    newstore.make_ready(f"sqlite:///{path}", create)
    assert rows(path) == [(0,)]
    assert create.made == []


def test_a_draft_of_another_process_is_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "mlflow.db"
    draft = tmp_path / ".mlflow.db.new-1-1"
    fill(str(draft))
    threading.Timer(0.4, draft.rename, [path]).start()
    create = Maker()
    newstore.make_ready(f"sqlite:///{path}", create)
    assert create.made == []
    assert rows(path) == [(0,)]


def test_what_nobody_works_on_is_left_to_mlflow(tmp_path):
    path = tmp_path / "mlflow.db"
    path.touch()
    os.utime(path, (0, 0))
    started = time.monotonic()
    newstore.make_ready(f"sqlite:///{path}", Maker())
    assert time.monotonic() - started < 1


def test_a_draft_that_a_dead_process_left_holds_nobody_up(tmp_path):
    draft = tmp_path / ".mlflow.db.new-1-1"
    draft.touch()
    os.utime(draft, (0, 0))
    started = time.monotonic()
    newstore.make_ready(f"sqlite:///{tmp_path / 'mlflow.db'}", Maker())
    assert time.monotonic() - started < 2
    assert rows(tmp_path / "mlflow.db") == [(0,)]


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fail(uri: str) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        newstore.make_ready(f"sqlite:///{tmp_path / 'mlflow.db'}", fail)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "http://localhost:1", "file:///tmp/mlruns"])
def test_other_stores_are_left_alone(uri):
    create = Maker()
    newstore.make_ready(uri, create)
    assert create.made == []


TRAINING = """
import sys
import autolog
autolog.autolog()
from sklearn.linear_model import Ridge
if "log" in sys.argv:
    import mlflow
Ridge().fit([[0.0], [1.0]], [0.0, 1.0])
if "log" in sys.argv:
    mlflow.log_metric("by_hand", 1.0)
"""


@pytest.mark.slow
def test_trainings_started_together_in_a_new_folder_share_one_sound_store(tmp_path):
    """MLflow's own migrations, run by two processes at once, leave a store that cannot be opened again."""
    env = {**os.environ, "AUTOLOG_SPOOL_DIR": str(tmp_path / "spool"), "AUTOLOG_EXIT_TIMEOUT": "120"}
    env.pop("MLFLOW_TRACKING_URI", None)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, how], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
        )
        for how in ("", "", "log")
    ]
    said = [process.communicate(timeout=180)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    assert not [line for text in said for line in text.splitlines() if "mlflow-autolog" in line]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs(["0"], "tags.estimator_name = 'Ridge'")
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert [len(run.outputs.model_outputs) for run in runs] == [1] * 3
