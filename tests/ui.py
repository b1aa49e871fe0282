"""`autolog ui` where the package mlflow is installed: run by nox -s ui, since the tests have mlflow-skinny."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from mlflow import MlflowClient


@pytest.fixture
def store(tmp_path: Path) -> tuple[str, str]:
    """A store with one run, and its id."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    return uri, client.create_run("0", run_name="to be seen").info.run_id


def ask(address: str, seconds: float = 180.0) -> bytes:
    """Return the answer of a server that is starting."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return answer.read()
        except OSError:
            assert time.monotonic() < deadline, address
            time.sleep(0.2)


@pytest.mark.parametrize("by_folder", [True, False], ids=["in the folder", "from elsewhere"])
def test_ui_shows_the_store_of_the_trainings(store: tuple[str, str], tmp_path: Path, by_folder: bool) -> None:
    uri, run_id = store
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = [] if by_folder else ["--tracking-uri", uri]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "autolog", "ui", "--port", port, *place],
        cwd=tmp_path if by_folder else elsewhere,
        stdout=log,
        stderr=log,
    )
    try:
        page = ask(f"http://127.0.0.1:{port}/").decode()
        assert "<title>MLflow</title>" in page
        path = f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/get?run_id={run_id}"
        assert json.loads(ask(path))["run"]["info"]["run_name"] == "to be seen"
        assert f"MLflow's UI: http://127.0.0.1:{port}" in (tmp_path / "log").read_text()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        log.close()
    assert list(elsewhere.iterdir()) == []  # No other store was made.
