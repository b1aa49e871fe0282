"""Fixtures: one tracking store and one spool folder for the whole session, one experiment per test.

Every test reads the truth back through plain MLflow, ends unpatched, and fails on any error that was swallowed.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import autolog
from autolog import guard, runtime
from autolog.spool import Spool


@pytest.fixture(scope="session", autouse=True)
def _places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("session")
    os.environ["AUTOLOG_SPOOL_DIR"] = str(folder / "spool")
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    here = Path.cwd()
    os.chdir(folder)  # ./mlruns of the session's sqlite store goes here.
    yield folder
    autolog.disable()
    if runtime.writer is not None:
        autolog.flush(30)
        runtime.writer.close()
    os.chdir(here)


@pytest.fixture(scope="session")
def store_uri(_places: Path) -> str:
    """A sqlite store, made once: MLflow needs seconds to migrate a new one."""
    return f"sqlite:///{_places / 'mlflow.db'}"


class Recorder:
    """Switches autologging on for one experiment and reads it back with plain MLflow."""

    def __init__(self, store_uri: str) -> None:
        self.store_uri = store_uri
        self.experiment = f"test-{uuid.uuid4().hex[:12]}"

    def start(self, *flavors: str, **settings: object) -> None:
        settings.setdefault("tracking_uri", self.store_uri)
        settings.setdefault("experiment", self.experiment)
        autolog.autolog(*flavors, **settings)  # type: ignore[arg-type]

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.store_uri)

    @property
    def experiment_id(self) -> str | None:
        found = self.client.get_experiment_by_name(self.experiment)
        return found.experiment_id if found else None

    def runs(self, *, children: bool = True) -> list:
        """All runs of the experiment, oldest first, once everything is delivered."""
        assert autolog.flush(60), autolog.status()
        if self.experiment_id is None:
            return []
        found = self.client.search_runs([self.experiment_id], order_by=["attributes.start_time ASC"], max_results=1000)
        return [run for run in found if children or "mlflow.parentRunId" not in run.data.tags]

    def run(self):
        """The only run."""
        runs = self.runs()
        assert len(runs) == 1, [(run.info.run_name, run.info.status) for run in runs]
        return runs[0]

    def models(self) -> list:
        """All logged models, oldest first."""
        assert autolog.flush(60), autolog.status()
        if self.experiment_id is None:
            return []
        found = self.client.search_logged_models([self.experiment_id])
        return sorted(found, key=lambda model: model.creation_timestamp)

    def history(self, run, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, in the order of its steps."""
        points = self.client.get_metric_history(run.info.run_id, key)
        return sorted((point.step, point.value) for point in points)

    def take_problems(self) -> list[str]:
        """What the store refused; a test that expects none need not ask."""
        return _take_problems()

    def artifacts(self, run) -> list[str]:
        return [item.path for item in self.client.list_artifacts(run.info.run_id)]


@pytest.fixture
def recorder(store_uri: str) -> Recorder:
    return Recorder(store_uri)


@pytest.fixture(autouse=True)
def _nothing_swallowed_and_unpatched(_places: Path) -> Iterator[None]:
    guard.reset()
    chosen = _chosen()
    yield
    autolog.disable()
    _choose(*chosen)
    os.chdir(_places)  # A delivery in a process of its own goes where the training was.
    errors = [(what, repr(error)) for what, error in guard.swallowed]
    problems = _take_problems()
    guard.reset()
    assert not errors, f"swallowed: {errors}"
    assert not problems, f"not delivered: {problems}"


#: Where MLflow keeps what was chosen through it, besides the environment, in which processes of later tests find it.
_CHOICES = (
    ("mlflow.tracking.fluent", "_active_experiment_id"),
    ("mlflow.tracking._tracking_service.utils", "_tracking_uri"),
)


def _chosen() -> tuple[dict[str, str], list[object]]:
    """What is chosen through MLflow: its variables of the environment, and its own."""
    environ = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    return environ, [getattr(sys.modules.get(module), name, None) for module, name in _CHOICES]


def _choose(environ: dict[str, str], values: list[object]) -> None:
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(environ)
    for (module, name), value in zip(_CHOICES, values, strict=True):
        if module in sys.modules:
            setattr(sys.modules[module], name, value)


def _take_problems() -> list[str]:
    writer = runtime.writer
    if writer is None or writer.folder is None or not (writer.folder / "spool.db").exists():
        return []
    writer.flush(30)
    spool = Spool(writer.folder)
    try:
        found = spool.problems()
        for kind in {kind for _, kind, _ in found}:
            spool.clear_problems(kind)
        return [message for _, _, message in found]
    finally:
        spool.close()
