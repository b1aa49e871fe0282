"""Spools delivered to real tracking servers, over HTTP, on PostgreSQL, with and without basic-auth."""

from __future__ import annotations

import json
import math
import sqlite3
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.server.auth.client import AuthServiceClient
from proxy import RESET, Answer, Proxy, Request
from servers import ADMIN, PASSWORD

from autolog.batches import MOST_PARAMS
from autolog.models import ModelSnapshot
from autolog.records import (
    DatasetInput,
    DeclareModel,
    Derive,
    EndRun,
    Figure,
    ModelFiles,
    OpenRun,
    Params,
    Points,
    Record,
    Tags,
    Text,
    now,
)
from autolog.sender import SyncHost, deliver
from autolog.spool import Spool, describe


@pytest.fixture(autouse=True)
def _as_in_a_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    made = Proxy(server.port)
    yield made
    made.close()


@pytest.fixture
def experiment() -> str:
    return f"servers-{uuid.uuid4().hex[:8]}"


class Said:
    """A spool, as a training leaves it that ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / uuid.uuid4().hex
        self.folder.mkdir(mode=0o700)
        (self.folder / "blobs").mkdir()
        Spool(self.folder, new=True).close()

    def says(self, *records: Record) -> None:
        spool = Spool(self.folder)
        for record in records:  # A row each.
            spool.append([record])
        spool.close()

    def run(self, uri: str, experiment: str, *records_of_run) -> str:
        """Say a run with some steps of `loss`, and what each of `records_of_run` makes of its key."""
        key = uuid.uuid4().hex
        self.says(
            OpenRun(key, now(), uri, experiment, None, str(self.folder)),
            *(make(key) for make in records_of_run),
            *(Points(key, step, now(), {"loss": step / 2}) for step in range(5)),
            EndRun(key, "FINISHED", now()),
        )
        return key

    def model(self, key: str, size: int = 300_000) -> list[Record]:
        model = uuid.uuid4().hex
        spool = Spool(self.folder)
        snapshot = ModelSnapshot("sklearn", {"pickled_model": "model.pkl"}, {"model.pkl": b"x" * size})
        package = snapshot.write(spool.blobs / model)
        spool.close()
        return [DeclareModel(key, model, "model", 3, {}, {}), ModelFiles(key, model, model, package)]

    def training(self, uri: str, experiment: str, size: int) -> str:
        """Say a run with some steps of `loss`, a model of `size` bytes, and one step after it."""
        key = uuid.uuid4().hex
        self.says(
            OpenRun(key, now(), uri, experiment, None, str(self.folder)),
            *(Points(key, step, now(), {"loss": step / 2}) for step in range(5)),
            *self.model(key, size),
            Points(key, 5, now(), {"loss": 2.5}),
        )
        return key

    def deliver(self, patience: float = 10.0) -> bool:
        return deliver(self.folder, SyncHost(), patience=patience)

    def problems(self) -> list[str]:
        return describe(self.folder)["problems"]


@pytest.fixture
def said(tmp_path: Path) -> Said:
    return Said(tmp_path)


def runs_of(uri: str, experiment: str) -> list:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]) if found else []


def steps_of(uri: str, run, key: str = "loss") -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in history)


WHOLE = [(step, step / 2) for step in range(5)]


def test_everything_arrives_on_postgresql(server, said, experiment) -> None:
    key = said.run(
        server.uri,
        experiment,
        lambda run: Params(run, {"a": "1"}),
        lambda run: Tags(run, {"t": "x"}),
        lambda run: DatasetInput(run, "X", "12345678", "code", "{}", None, None, "train"),
        lambda run: Text(run, "notes/a.txt", "hello"),
    )
    said.says(*said.model(key))
    assert said.deliver()
    (run,) = runs_of(server.uri, experiment)
    assert (run.info.status, run.data.params, run.data.tags["t"]) == ("FINISHED", {"a": "1"}, "x")
    assert steps_of(server.uri, run) == WHOLE
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["X"]
    client = MlflowClient(tracking_uri=server.uri)
    assert [item.path for item in client.list_artifacts(run.info.run_id, "notes")] == ["notes/a.txt"]
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.status == "READY"


def test_a_record_that_the_store_fails_at_holds_nothing_else(server, proxy, said, experiment) -> None:
    def poisoned(request: Request) -> Answer | None:
        return Answer(500) if b"poison" in request.body else None

    proxy.fault = poisoned
    said.run(proxy.uri, experiment, lambda run: Params(run, {"poison": "1"}), lambda run: Params(run, {"good": "2"}))
    said.run(proxy.uri, experiment, lambda run: Params(run, {"fine": "3"}))
    assert not said.deliver()  # Something is left.
    assert describe(said.folder)["aside"] == 1
    (problem,) = said.problems()
    assert problem.startswith("parameters: ") and "HTTP status 500" in problem and "autolog sync" in problem
    first, second = runs_of(server.uri, experiment)
    assert (first.data.params, second.data.params) == ({"good": "2"}, {"fine": "3"})
    assert [run.info.status for run in (first, second)] == ["FINISHED", "FINISHED"]
    assert steps_of(server.uri, first) == steps_of(server.uri, second) == WHOLE
    proxy.heal()
    assert said.deliver()
    assert not said.folder.exists()
    first, second = runs_of(server.uri, experiment)
    assert first.data.params == {"good": "2", "poison": "1"}
    assert steps_of(server.uri, first) == WHOLE


def test_a_run_that_cannot_be_opened_waits_with_all_that_is_of_it(server, proxy, said, experiment) -> None:
    key = said.run(proxy.uri, f"{experiment}-poison")
    said.says(Points(key, 9, now(), {"late": 1.0}))
    said.run(proxy.uri, experiment)
    proxy.fault = lambda request: Answer(500) if b"poison" in request.body or "poison" in request.path else None
    assert not said.deliver()
    assert len(said.problems()) == 1
    assert [run.info.status for run in runs_of(server.uri, experiment)] == ["FINISHED"]
    proxy.heal()
    assert said.deliver()
    (run,) = runs_of(server.uri, f"{experiment}-poison")
    assert (run.info.status, steps_of(server.uri, run)) == ("FINISHED", WHOLE)
    assert steps_of(server.uri, run, "late") == [(9, 1.0)]


def test_a_store_that_fails_at_everything_gets_nothing_set_aside(server, proxy, said, experiment) -> None:
    proxy.fault = lambda request: Answer(500)
    said.run(proxy.uri, experiment)
    assert not said.deliver(patience=3.0)
    assert describe(said.folder)["aside"] == 0
    proxy.heal()
    assert said.deliver()
    (run,) = runs_of(server.uri, experiment)
    assert steps_of(server.uri, run) == WHOLE


def test_no_room_for_models_costs_the_numbers_nothing(server, proxy, said, experiment) -> None:
    proxy.fault = lambda request: Answer(507, body=b"full") if request.method == "PUT" else None
    key = said.run(proxy.uri, experiment)
    said.says(*said.model(key))
    said.run(proxy.uri, experiment)
    assert not said.deliver()
    client = MlflowClient(tracking_uri=server.uri)
    first, second = runs_of(server.uri, experiment)
    assert steps_of(server.uri, first) == steps_of(server.uri, second) == WHOLE
    (model,) = client.search_logged_models([first.info.experiment_id])
    assert model.status != "READY"
    (problem,) = said.problems()
    assert problem.startswith("a model: ") and "no room" in problem
    proxy.heal()
    assert said.deliver()
    (model,) = client.search_logged_models([first.info.experiment_id])
    files = {item.path: item.file_size for item in client.list_logged_model_artifacts(model.model_id)}
    assert (model.status, files["model.pkl"]) == ("READY", 300_000)


def test_files_taken_by_somebody_else_are_sent_again(server, proxy, said, experiment) -> None:
    """Each the first time: no model goes with them, whose files are looked for anyway."""
    uploaded: list[str] = []

    def takes_each_once(request: Request) -> Answer | None:
        if request.method != "PUT":
            return None
        uploaded.append(request.path.rpartition("/artifacts/")[2])
        first = uploaded.count(uploaded[-1]) == 1
        return Answer(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>") if first else None

    proxy.fault = takes_each_once
    key = uuid.uuid4().hex
    np.savez(said.folder / "blobs" / "arrays.npz", y_true=[0, 1, 1, 0], y_pred=[0, 1, 0, 0])
    said.says(
        OpenRun(key, now(), proxy.uri, experiment, None, str(said.folder)),
        Params(key, {"long": "x" * 7_000}),
        Text(key, "notes/note.txt", "hell\u00f6\n"),
        Figure(key, "drawn/bars.png", "bars", {"title": "t", "names": ["a", "b"], "values": [1.0, 2.0]}),
        Derive(key, "sklearn", "classifier", "arrays.npz", 3, now()),
    )
    (said.folder / "SIGTERM.txt").write_text("where it was")  # And no end: what is left of a training that was stopped.
    assert said.deliver()
    (run,) = runs_of(server.uri, experiment)
    assert run.info.status == "KILLED"
    assert steps_of(server.uri, run, "training_accuracy_score") == [(3, 0.75)]
    files = {
        "autolog/long_params.json": json.dumps({"long": "x" * 7_000}),
        "notes/note.txt": "hell\u00f6\n",
        "traceback.txt": "where it was",
    }
    for path, content in files.items():
        here = MlflowClient(tracking_uri=server.uri).download_artifacts(run.info.run_id, path, str(said.folder.parent))
        whole = Path(here).read_text(encoding="utf-8")
        assert json.loads(whole) == json.loads(content) if path.endswith(".json") else whole == content
    assert set(uploaded) == {*files, "drawn/bars.png", "training_confusion_matrix.png"}
    listed = {
        path: MlflowClient(tracking_uri=server.uri).list_artifacts(run.info.run_id, path) for path in ("", "drawn")
    }
    assert {item.path for found in listed.values() for item in found} == {
        *("autolog", "notes", "drawn", "traceback.txt"),
        *("drawn/bars.png", "training_confusion_matrix.png"),
    }


def test_files_are_looked_for_once_a_round(server, proxy, said, experiment) -> None:
    key = said.run(proxy.uri, experiment, *(lambda key, i=i: Text(key, f"{i}.txt", "a" * i) for i in range(1, 6)))
    said.says(Text(key, "below/note.txt", ""))
    assert said.deliver()
    listings = [request.path for request in proxy.requests if "/mlflow-artifacts/artifacts?path=" in request.path]
    assert len(listings) == 2
    (run,) = runs_of(server.uri, experiment)
    found = MlflowClient(tracking_uri=server.uri).list_artifacts(run.info.run_id)
    assert {(item.path, item.file_size) for item in found} == {*((f"{i}.txt", i) for i in range(1, 6)), ("below", None)}


@pytest.mark.parametrize(("size", "requests"), [(300, 1), (300_000, 2)])
def test_numbers_around_a_small_model_are_one_request(server, proxy, said, experiment, size, requests) -> None:
    key = said.training(proxy.uri, experiment, size)
    said.says(EndRun(key, "FINISHED", now()))
    assert said.deliver()
    sent = [json.loads(request.body) for request in proxy.requests if request.path.endswith("/runs/log-batch")]
    assert len(sent) == requests
    (run,) = runs_of(server.uri, experiment)
    assert (run.info.status, steps_of(server.uri, run)) == ("FINISHED", [*WHOLE, (5, 2.5)])
    (model,) = MlflowClient(tracking_uri=server.uri).search_logged_models([run.info.experiment_id])
    assert model.status == "READY"


def test_numbers_do_not_wait_for_files_whose_place_is_away(server, proxy, said, experiment) -> None:
    proxy.fault = lambda request: RESET if "/mlflow-artifacts/" in request.path else None
    said.training(proxy.uri, experiment, 300)
    assert not said.deliver(patience=1.0)
    (run,) = runs_of(server.uri, experiment)
    assert steps_of(server.uri, run) == WHOLE
    proxy.heal()
    assert said.deliver()
    assert steps_of(server.uri, run) == [*WHOLE, (5, 2.5)]
    (model,) = MlflowClient(tracking_uri=server.uri).search_logged_models([run.info.experiment_id])
    assert model.status == "READY"


def test_retry_after_is_honoured(server, proxy, said, experiment) -> None:
    over = time.monotonic() + 5.0
    proxy.fault = lambda request: Answer(429, {"Retry-After": "2"}) if time.monotonic() < over else None
    said.run(proxy.uri, experiment)
    assert said.deliver(patience=30.0)
    refused = [request.at for request, fault in proxy.met if isinstance(fault, Answer)]
    after = [next(r.at for r in proxy.requests if r.at > at) - at for at in refused]
    assert 2 <= len(after) <= 4 and min(after) >= 1.9
    (run,) = runs_of(server.uri, experiment)
    assert steps_of(server.uri, run) == WHOLE


def test_a_run_deleted_meanwhile_is_said_once(server, proxy, said, experiment) -> None:
    said.run(proxy.uri, experiment)
    key = uuid.uuid4().hex
    said.says(OpenRun(key, now(), proxy.uri, experiment, None, str(said.folder)))
    spool = Spool(said.folder)
    rows = spool.pending()
    from autolog.delivery import Delivery

    Delivery(spool, own_process=False).send(rows)
    client = MlflowClient(tracking_uri=server.uri)
    gone = spool.lookup(f"run:{key}").remote
    client.delete_run(gone)
    before = len(proxy.requests)
    said.says(
        *(Points(key, step, now(), {"loss": 1.0}) for step in range(1500)),
        Params(key, {"a": "1"}),
        Text(key, "x.txt", "y"),
        *said.model(key),
        EndRun(key, "FINISHED", now()),
    )
    said.run(proxy.uri, experiment)
    sender = Delivery(spool, own_process=False)
    while rows := spool.pending(2000):
        sender.send(rows)
    (problem,) = [message for _, _, message in spool.problems()]
    spool.close()
    assert f"run {gone} was deleted" in problem or gone in problem
    assert len(proxy.requests) - before < 40
    assert [steps_of(server.uri, run) for run in runs_of(server.uri, experiment)] == [WHOLE, WHOLE]


def test_an_experiment_deleted_meanwhile_keeps_its_runs_for_its_return(server, said, experiment) -> None:
    client = MlflowClient(tracking_uri=server.uri)
    made = client.create_experiment(experiment)
    client.delete_experiment(made)
    said.run(server.uri, experiment)
    said.run(server.uri, f"{experiment}-other")
    assert not said.deliver()
    (problem,) = said.problems()
    assert "a run: " in problem and "refuses it" in problem
    assert len(runs_of(server.uri, f"{experiment}-other")) == 1
    client.restore_experiment(made)
    assert said.deliver()
    (run,) = runs_of(server.uri, experiment)
    assert steps_of(server.uri, run) == WHOLE


def test_wrong_credentials_are_said_at_once_kept_and_not_tried_again(
    auth_server, said, experiment, monkeypatch
) -> None:
    proxy = Proxy(auth_server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not this one")
    said.run(proxy.uri, experiment)
    began = time.monotonic()
    assert not said.deliver(patience=60.0)
    assert time.monotonic() - began < 10
    assert len(proxy.requests) <= 4
    (problem,) = said.problems()
    assert "refuses the credentials" in problem
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert said.deliver()
    (run,) = runs_of(auth_server.uri, experiment)
    assert steps_of(auth_server.uri, run) == WHOLE
    proxy.close()


def test_one_experiment_without_permission_holds_no_other(auth_server, said, experiment, monkeypatch) -> None:
    def be(user: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    be(ADMIN, PASSWORD)
    users = AuthServiceClient(auth_server.uri)
    eve = f"eve-{experiment}"
    users.create_user(eve, "some password 123")
    client = MlflowClient(tracking_uri=auth_server.uri)
    closed, opened = client.create_experiment(f"{experiment}-closed"), client.create_experiment(experiment)
    users.grant_user_permission(eve, "experiment", opened, "EDIT")
    be(eve, "some password 123")
    said.run(auth_server.uri, f"{experiment}-closed")
    said.run(auth_server.uri, experiment)
    assert not said.deliver()
    (problem,) = said.problems()
    assert problem.startswith("a run: ") and "refuses the credentials" in problem
    (run,) = runs_of(auth_server.uri, experiment)
    assert (run.info.status, steps_of(auth_server.uri, run)) == ("FINISHED", WHOLE)
    be(ADMIN, PASSWORD)
    assert runs_of(auth_server.uri, f"{experiment}-closed") == []
    users.grant_user_permission(eve, "experiment", closed, "EDIT")
    be(eve, "some password 123")
    assert said.deliver()
    (run,) = runs_of(auth_server.uri, f"{experiment}-closed")
    assert steps_of(auth_server.uri, run) == WHOLE


@pytest.mark.parametrize("store", ["postgresql", "sqlite"])
def test_what_is_at_and_over_the_limits(store, server, store_uri, said, experiment) -> None:
    uri = server.uri if store == "postgresql" else store_uri
    odd = "naïve 名前 🐧 \N{RIGHT-TO-LEFT OVERRIDE}"
    params = {"at": "v" * 6000, "over": "v" * 6001, "k" * 250: "1", "K" * 251: "2", "nul": "a\0b", "half": "\ud83d"}
    params |= {"text": odd, "empty": "", "../up": "3", "/root": "4", "a//b": "5", ".": "6"}
    key = said.run(
        uri,
        experiment,
        lambda run: Params(run, params),
        lambda run: Tags(run, {"long": "t" * 8001, "odd": odd, "nul": "\0", "tag@key": "7"}),
        lambda run: Text(run, "odd.txt", odd + "\0\ud83d"),
        lambda run: DatasetInput(run, "n" * 40, "d" * 36, "code", json.dumps({"odd": odd}), None, None, "train"),
        lambda run: Points(run, 2**53, now(), {"m" * 251: 1.0, "nan": math.nan, "inf": math.inf, "minus": -math.inf}),
        lambda run: Points(run, -5, now(), {"tiny": 5e-324, "huge": 1.7976931348623157e308, "zero": -0.0}),
    )
    assert key and said.deliver()
    (run,) = runs_of(uri, experiment)
    got = run.data.params
    assert got["at"] == "v" * 6000 and got["over"] == "v" * 5997 + "..."
    assert got["k" * 250] == "1" and got["K" * 247 + "..."] == "2"
    assert (got["nul"], got["half"], got["text"]) == ("a\\x00b", "\\ud83d", odd)
    assert (got["__/up"], got["root"], got["a/b"], got["_"]) == ("3", "4", "5", "6")
    assert len(got) == len(params)
    assert len(run.data.tags["long"]) == 8000 and run.data.tags["odd"] == odd and run.data.tags["tag_at_key"] == "7"
    assert steps_of(uri, run, "m" * 247 + "...") == [(2**53, 1.0)]
    assert math.isnan(run.data.metrics["nan"])
    assert run.data.metrics["inf"] > 1e300 and run.data.metrics["minus"] < -1e300
    assert steps_of(uri, run, "tiny") == [(-5, 5e-324)]
    assert steps_of(uri, run, "huge") == [(-5, 1.7976931348623157e308)]
    assert steps_of(uri, run) == WHOLE


def test_a_hundred_thousand_parameters(store_uri, said, experiment, tmp_path) -> None:
    params = {f"p{i}": str(i) for i in range(100_000)}
    half = dict(list(params.items())[:50_000])
    said.run(store_uri, experiment, lambda run: Params(run, half), lambda run: Params(run, params))
    began = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autolog.batches.MOST_PARAMS", 300)  # MLflow needs milliseconds for each.
        assert said.deliver()
    assert time.monotonic() - began < 60
    (run,) = runs_of(store_uri, experiment)
    assert len(run.data.params) == 300 < MOST_PARAMS
    client = MlflowClient(tracking_uri=store_uri)
    rest = json.loads(
        Path(client.download_artifacts(run.info.run_id, "autolog/more_params.json", str(tmp_path))).read_text()
    )
    assert rest | run.data.params == params


def test_delivery_to_postgresql_doubles_nothing_when_it_begins_anew(server, proxy, said, experiment) -> None:
    """Answers are lost after the server did what was asked, time after time."""
    from proxy import RESET

    count = 0

    def loses(request: Request) -> str | None:
        nonlocal count
        count += 1
        return RESET if count % 4 == 0 else None

    proxy.fault = loses
    key = said.run(proxy.uri, experiment, lambda run: Params(run, {"a": "1"}))
    said.says(*said.model(key))
    assert said.deliver(patience=60.0)
    (run,) = runs_of(server.uri, experiment)
    assert steps_of(server.uri, run) == WHOLE
    assert len(MlflowClient(tracking_uri=server.uri).search_logged_models([run.info.experiment_id])) == 1


def test_a_spool_says_what_is_aside(server, proxy, said, experiment) -> None:
    proxy.fault = lambda request: Answer(500) if b"poison" in request.body else None
    said.run(proxy.uri, experiment, lambda run: Tags(run, {"poison": "1"}), lambda run: Tags(run, {"poison": "2"}))
    assert not said.deliver()
    with sqlite3.connect(said.folder / "spool.db") as db:
        (count,) = db.execute("SELECT count(*) FROM aside").fetchone()
    assert count == 2  # The later value waits for the earlier.
    proxy.heal()
    assert said.deliver()
    (run,) = runs_of(server.uri, experiment)
    assert run.data.tags["poison"] == "2"
