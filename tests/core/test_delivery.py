"""Records against MLflow's limits, and what happens where the store refuses one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient

import autolog
from autolog import delivery as delivery_module
from autolog import runtime
from autolog.batches import clean_key
from autolog.delivery import Delivery
from autolog.opening import open_for_owner
from autolog.records import (
    DatasetInput,
    DeclareModel,
    DropModels,
    EndRun,
    OpenRun,
    Params,
    Points,
    Tags,
    Text,
)
from autolog.spool import IN_DOUBT, Spool
from autolog.uris import absolute_uri, without_credentials


@pytest.fixture
def run(recorder):
    recorder.start()
    opened = runtime.open_run("sklearn")
    yield opened
    opened.end()
    runtime.closed(opened)


def finished(recorder, run):
    run.end()
    return recorder.run()


def test_every_value_arrives_with_its_step(recorder, run) -> None:
    for step in range(2500):
        run.metrics({"loss": step / 7, "lr": 0.1}, step=step)
    stored = finished(recorder, run)
    assert recorder.history(stored, "loss") == [(step, step / 7) for step in range(2500)]
    assert recorder.history(stored, "lr") == [(step, 0.1) for step in range(2500)]


@pytest.fixture
def requests(monkeypatch) -> list[object]:
    """What is sent of numbers and texts, each request as how many of each kind; and of inputs, each as their names."""
    sent: list[object] = []
    log_batch, log_inputs = MlflowClient.log_batch, MlflowClient.log_inputs

    def batch(client, run_id, metrics=(), params=(), tags=(), **settings) -> None:
        sent.append((len(metrics), len(params), len(tags)))
        log_batch(client, run_id, metrics, params, tags, **settings)

    def inputs(client, run_id, datasets) -> None:
        sent.append([each.dataset.name for each in datasets])
        log_inputs(client, run_id, datasets)

    monkeypatch.setattr(MlflowClient, "log_batch", batch)
    monkeypatch.setattr(MlflowClient, "log_inputs", inputs)
    return sent


@pytest.fixture
def spool(tmp_path: Path):
    tmp_path.chmod(0o700)
    (tmp_path / "blobs").mkdir()
    opened = Spool(tmp_path, new=True)
    yield opened
    opened.close()


def opening(recorder) -> OpenRun:
    return OpenRun("r", 0, recorder.store_uri, recorder.experiment, None, "/")


def test_numbers_texts_and_inputs_go_in_as_few_requests_as_they_fit_in(recorder, requests, spool) -> None:
    points = [Points("r", step, step, {"loss": step / 7}) for step in range(1400)]
    spool.append(
        [
            opening(recorder),
            Params("r", {f"p{i}": str(i) for i in range(20)}),
            DatasetInput("r", "X", "12345678", "code", "{}", None, None, "train"),
            DatasetInput("r", "Z", "87654321", "code", "{}", None, None, "eval"),
            *points[:700],
            Text("r", "notes.txt", "halfway"),
            Tags("r", {"colour": "blue"}),
            *points[700:],
            EndRun("r", "FINISHED", 1400),
        ]
    )
    Delivery(spool, own_process=False).send(spool.pending(2000))
    assert requests == [["X", "Z"], (979, 20, 1), (421, 0, 0)]
    stored = recorder.run()
    assert recorder.history(stored, "loss") == [(step, step / 7) for step in range(1400)]
    assert stored.data.params == {f"p{i}": str(i) for i in range(20)}
    assert stored.data.tags["colour"] == "blue"
    inputs = {each.dataset.name: each.tags[0].value for each in stored.inputs.dataset_inputs}
    assert inputs == {"X": "train", "Z": "eval"}


def test_a_refused_dataset_loses_nothing_else(recorder, requests, spool) -> None:
    spool.append(
        [
            opening(recorder),
            DatasetInput("r", "X", "12345678", "code", "{}", None, None, "train"),
            DatasetInput("r", "Z", "9" * 40, "code", "{}", None, None, "eval"),  # MLflow takes 36 characters.
            Points("r", 0, 1, {"loss": 0.5}),
            EndRun("r", "FINISHED", 3),
        ]
    )
    Delivery(spool, own_process=False).send(spool.pending(10))
    assert requests == [["X", "Z"], ["X"], ["Z"], ["Z"], (1, 0, 0)]
    assert [each.dataset.name for each in recorder.run().inputs.dataset_inputs] == ["X"]
    ((_, _, message),) = spool.problems()
    assert "dataset 'Z'" in message


def test_points_of_a_checkpoint_that_an_earlier_sender_deleted_lose_nothing_else(recorder, spool) -> None:
    spool.append(
        [
            opening(recorder),
            DeclareModel("r", "m", "model", 0, {}, {}),
            Points("r", 0, 1, {"loss": 0.5}, "m"),
            Params("r", {"a": "1"}),
            DropModels("r", ("m",)),
            EndRun("r", "FINISHED", 3),
        ]
    )
    Delivery(spool, own_process=False)._send(spool.pending(10))  # It dies before it says so.
    Delivery(spool, own_process=False).send(spool.pending(10))
    assert (spool.pending(10), spool.problems()) == ([], [])
    run = recorder.run()
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})
    assert recorder.history(run, "loss") == [(0, 0.5)]


@pytest.mark.parametrize("names", [["X"], ["W", "X"]])
def test_a_dataset_that_another_sender_brings_at_the_same_moment_is_not_lost(recorder, spool, names) -> None:
    inputs = [DatasetInput("r", name, "12345678", "code", "{}", None, None, "train") for name in names]
    spool.append([opening(recorder), Points("r", 0, 1, {"loss": 0.5})])
    delivery = Delivery(spool, own_process=False)
    delivery.send(spool.pending(10))
    client = MlflowClient(recorder.store_uri)
    other = client.create_run(client.get_experiment_by_name(recorder.experiment).experiment_id)
    raced: list[bool] = []

    def before_insert(connection, cursor, statement, *_) -> None:
        if statement.startswith("INSERT INTO datasets") and not raced:
            raced.append(True)
            client.log_inputs(other.info.run_id, [delivery_module._input(inputs[-1])])

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", before_insert)
    try:
        spool.append(inputs)
        delivery.send(spool.pending(10))
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", before_insert)
    assert raced
    assert spool.problems() == []
    run = next(run for run in client.search_runs(other.info.experiment_id) if run.info.run_id != other.info.run_id)
    assert sorted(each.dataset.name for each in run.inputs.dataset_inputs) == names


def test_a_run_that_the_training_process_failed_to_create_as_far_as_it_knows_is_not_doubled(
    recorder, spool, monkeypatch
) -> None:
    create_run = MlflowClient.create_run

    def times_out(*args, **settings) -> None:
        create_run(*args, **settings)
        raise TimeoutError

    monkeypatch.setattr(MlflowClient, "create_run", times_out)
    with pytest.raises(TimeoutError):
        open_for_owner(spool, opening(recorder))
    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    spool.append([opening(recorder), Points("r", 0, 1, {"loss": 0.5}), EndRun("r", "FINISHED", 3)])
    Delivery(spool, own_process=False).send(spool.pending(10))
    assert recorder.history(recorder.run(), "loss") == [(0, 0.5)]


def test_a_spool_in_place_of_another_doubles_no_run(recorder, spool, tmp_path) -> None:
    """The training goes on in a new spool where the old one was deleted; the run may have been opened from that."""
    spool.append([opening(recorder), Points("r", 0, 1, {"loss": 0.5})])
    Delivery(spool, own_process=False).send(spool.pending(10))
    folder = tmp_path / "next"
    (folder / "blobs").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    follower = Spool(folder, new=True)
    follower.set_meta(IN_DOUBT, "follows")
    follower.close()
    follower = Spool(folder)
    follower.append([opening(recorder), Points("r", 1, 2, {"loss": 0.25}), EndRun("r", "FINISHED", 3)])
    Delivery(follower, own_process=False).send(follower.pending(10))
    follower.close()
    assert recorder.history(recorder.run(), "loss") == [(0, 0.5), (1, 0.25)]


def test_not_a_number_and_infinity(recorder, run) -> None:
    run.metrics({"nan": math.nan, "inf": math.inf, "minus": -math.inf})
    stored = finished(recorder, run)
    assert math.isnan(recorder.history(stored, "nan")[0][1])
    assert recorder.history(stored, "inf")[0][1] > 1e300
    assert recorder.history(stored, "minus")[0][1] < -1e300


def test_names_that_mlflow_does_not_allow(recorder, run) -> None:
    run.metrics({"valid-ndcg@5": 0.5, "a|b": 1.0, "größe": 2.0})
    run.params({"a|b@c": 1})
    stored = finished(recorder, run)
    assert stored.data.metrics == {"valid-ndcg_at_5": 0.5, "a_b": 1.0, "größe": 2.0}
    assert stored.data.params == {"a_b_at_c": "1"}


def test_long_parameter_is_cut_and_kept_whole_as_mlflow_10512_asks(recorder, run) -> None:
    run.params({"long": "x" * 50_000, "short": 1})
    stored = finished(recorder, run)
    assert stored.data.params["short"] == "1"
    assert stored.data.params["long"] == "x" * 5997 + "..."
    path = recorder.client.download_artifacts(stored.info.run_id, "autolog/long_params.json")
    assert json.loads(Path(path).read_text()) == {"long": "x" * 50_000}


def test_more_parameters_than_a_batch_takes(recorder, run) -> None:
    run.params({f"p{i}": i for i in range(1_234)})  # MLflow needs 20 s for 10,000, and ours come whole all the same.
    assert finished(recorder, run).data.params == {f"p{i}": str(i) for i in range(1_234)}


def test_secrets_are_not_recorded(recorder, run) -> None:
    run.params({"password": "hunter2", "db__api_key": "k", "hf_token": "t", "tokenizer": "bpe", "secret": None})
    stored = finished(recorder, run)
    assert stored.data.params == {
        "password": "[redacted]",
        "db__api_key": "[redacted]",
        "hf_token": "[redacted]",
        "tokenizer": "bpe",
        "secret": "None",
    }


def test_a_refused_parameter_loses_nothing_else(recorder, run) -> None:
    run.params({"a": 1})
    autolog.flush()
    run.params({"a": 2, "b": 3})  # MLflow does not let a parameter change.
    run.metrics({"m": 1.0})
    stored = finished(recorder, run)
    assert stored.data.params == {"a": "1", "b": "3"}
    assert stored.data.metrics == {"m": 1.0}
    (problem,) = recorder.take_problems()
    assert "param 'a'" in problem


def test_uri_as_seen_from_the_training(tmp_path: Path) -> None:
    assert absolute_uri(None, str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert absolute_uri("sqlite:///x.db", str(tmp_path)) == f"sqlite:///{tmp_path}/x.db"
    assert absolute_uri("sqlite:////x.db", str(tmp_path)) == "sqlite:////x.db"
    assert absolute_uri("http://host:5000", str(tmp_path)) == "http://host:5000"
    assert absolute_uri("runs", str(tmp_path)) == (tmp_path / "runs").as_uri()
    assert absolute_uri("databricks", str(tmp_path)) == "databricks"
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    assert absolute_uri(None, str(tmp_path)) == (tmp_path / "mlruns").as_uri()


def test_credentials_are_not_said() -> None:
    assert without_credentials("http://me:pw@host:5000/x") == "http://host:5000/x"
    assert without_credentials("sqlite:////x.db") == "sqlite:////x.db"


def test_long_keys_are_cut() -> None:
    assert len(clean_key("k" * 300)) == 250
