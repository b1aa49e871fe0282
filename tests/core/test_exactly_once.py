"""Whatever call a sender dies after, the next one completes the record: nothing lost, nothing doubled."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from autolog import delivery, opening, uploads
from autolog.models import ModelSnapshot
from autolog.records import (
    DatasetInput,
    DeclareModel,
    EndRun,
    ModelFiles,
    OpenRun,
    Params,
    Points,
    Record,
    Tags,
    Text,
    now,
)
from autolog.spool import Spool


class Died(BaseException):
    """The sender's process ends here."""


class Mortal:
    """The real client or artifact repository, in a process that dies after its n-th call has done its work."""

    def __init__(self, client: Any, calls: list[str], last: int | None) -> None:
        self._client = client
        self._calls = calls
        self._last = last

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            done = method(*args, **kwargs)
            self._calls.append(name)
            if self._last is not None and len(self._calls) == self._last:
                raise Died
            return done

        return call


def said(uri: str, experiment: str, spool: Spool) -> list[Record]:
    run, model, at = uuid.uuid4().hex, uuid.uuid4().hex, now()
    folder = spool.blobs / model
    package = ModelSnapshot(
        flavor="sklearn",
        flavor_config={"pickled_model": "model.pkl", "serialization_format": "cloudpickle", "sklearn_version": "1"},
        files={"model.pkl": b"bytes"},
    ).write(folder)
    return [
        OpenRun(run, at, uri, experiment, None, str(spool.folder)),
        Params(run, {"a": "1", "b": "2"}),
        Tags(run, {"t": "x"}),
        *(Points(run, step, at + step, {"loss": step / 3}) for step in range(40)),
        DatasetInput(run, "X", "12345678", "code", "{}", None, None, "train"),
        Text(run, "note.txt", "hello"),
        DeclareModel(run, model, "model", 3, {"a": "1"}, {}, register_as=f"{experiment}-registered"),
        Points(run, 40, at + 40, {"score": 0.5, "loss": 1.0}, model, ("X", "12345678")),
        # A point of the model that the run has already, and one that comes for both at the same time.
        Points(run, 39, at + 39, {"loss": 13.0}, model, ("X", "12345678")),
        Points(run, 41, at + 41, {"loss": 2.0}),
        Points(run, 41, at + 41, {"loss": 2.0}, model, ("X", "12345678")),
        ModelFiles(run, model, model, package),
        EndRun(run, "FINISHED", at + 1000),
    ]


def deliver(spool: Spool, monkeypatch: pytest.MonkeyPatch, last: int | None) -> list[str]:
    calls: list[str] = []
    real, repository = MlflowClient, uploads.get_artifact_repository
    monkeypatch.setattr(opening, "MlflowClient", lambda **kwargs: Mortal(real(**kwargs), calls, last))
    monkeypatch.setattr(
        uploads, "get_artifact_repository", lambda uri, **kwargs: Mortal(repository(uri, **kwargs), calls, last)
    )
    sender = delivery.Delivery(spool, own_process=False)
    try:
        while rows := spool.pending(9):  # Several rounds, so that a death falls between them, too.
            sender.send(rows)
        sender.close_open()
    except Died:
        pass
    finally:
        monkeypatch.setattr(opening, "MlflowClient", real)
        monkeypatch.setattr(uploads, "get_artifact_repository", repository)
    return calls


def state(uri: str, experiment: str) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    (model,) = client.search_logged_models([found.experiment_id])
    return {
        "status": run.info.status,
        "end_time - start_time": run.info.end_time - run.info.start_time,
        "params": run.data.params,
        "loss": sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, "loss")),
        "score": sorted((p.step, p.value) for p in client.get_metric_history(run.info.run_id, "score")),
        "inputs": [(i.dataset.name, [t.value for t in i.tags]) for i in run.inputs.dataset_inputs],
        "outputs": [(output.model_id == model.model_id, output.step) for output in run.outputs.model_outputs],
        "artifacts": [item.path for item in client.list_artifacts(run.info.run_id)],
        "model": (str(model.status), sorted((m.key, m.step, m.value) for m in model.metrics), model.params),
        "versions": [
            (int(version.version), version.source == model.artifact_location, version.run_id == run.info.run_id)
            for version in client.search_model_versions(f"name = '{experiment}-registered'")
        ],
        "files": sorted(item.path for item in client.list_logged_model_artifacts(model.model_id)),
    }


@pytest.fixture(params=["sqlite", "files"])
def uri(request, store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "sqlite":
        return store_uri
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return (tmp_path / "mlruns").as_uri()


def test_a_sender_that_dies_after_any_call_is_succeeded_exactly(uri, tmp_path, monkeypatch) -> None:
    def fresh(name: str) -> tuple[Spool, str]:
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        (folder / "blobs").mkdir()
        spool = Spool(folder, new=True)
        experiment = f"exactly-{name}-{uuid.uuid4().hex[:8]}"
        spool.append(said(uri, experiment, spool))
        return spool, experiment

    spool, experiment = fresh("whole")
    calls = deliver(spool, monkeypatch, None)
    problems = spool.problems()
    spool.close()
    truth = state(uri, experiment)
    assert truth["loss"] == [(step, step / 3) for step in range(40)] + [(40, 1.0), (41, 2.0)]
    assert truth["score"] == [(40, 0.5)]
    assert truth["status"] == "FINISHED"
    status, of_model, _ = truth["model"]
    assert status.endswith("READY")
    # A file store shows the last point of each metric of a model, and cannot link one that the run has already.
    before = [] if uri.startswith("file:") else [("loss", 39, 13.0), ("loss", 40, 1.0)]
    assert of_model == [*before, ("loss", 41, 2.0), ("score", 40, 0.5)]
    assert [kind for _, kind, _ in problems] == (["limit"] if uri.startswith("file:") else [])
    assert truth["versions"] == [(1, True, True)]
    uploaded = {"log_artifact", "log_artifacts"}
    assert uploaded | {"create_run", "create_logged_model", "log_batch", "set_terminated"} <= set(calls)
    for last in range(1, len(calls) + 1):
        spool, experiment = fresh(f"dies-after-{last}")
        assert len(deliver(spool, monkeypatch, last)) == last
        deliver(spool, monkeypatch, None)
        assert spool.backlog() == 0
        spool.close()
        assert state(uri, experiment) == truth, f"died after call {last}: {calls[last - 1]}"
