"""Beside MLflow's own API: one run, nothing doubled, what was recorded can be read at once."""

from __future__ import annotations

import json
import threading
import time

import mlflow
import pytest
from mlflow.entities import Metric
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LinearRegression, Ridge

import autolog
from autolog import beside, guard, runtime, writer
from autolog.opening import CLAIM_SECONDS

X, Y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]


class LogsByHand(RegressorMixin, BaseEstimator):
    """An estimator whose user logs with MLflow while it trains."""

    def fit(self, X, y):
        mlflow.log_metric("by_hand", 1.5, step=3)
        mlflow.log_param("mine", "yes")
        mlflow.log_text("hello", "note.txt")
        self.coef_ = 0.0
        return self

    def predict(self, X):
        return [0.0] * len(X)


@pytest.fixture
def here(recorder):
    mlflow.set_tracking_uri(recorder.store_uri)
    mlflow.set_experiment(recorder.experiment)
    yield recorder
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_experiment(experiment_id="0")


def test_users_active_run_is_used_and_left_to_the_user(here) -> None:
    here.start()
    with mlflow.start_run(run_name="mine") as active:
        LinearRegression().fit(X, Y)
        assert mlflow.active_run().info.run_id == active.info.run_id
        assert autolog.last_run().run_id == active.info.run_id
        assert here.client.get_run(active.info.run_id).info.status == "RUNNING"
    run = here.run()
    assert run.info.run_id == active.info.run_id
    assert run.info.run_name == "mine"
    assert run.info.status == "FINISHED"
    assert run.data.params["fit_intercept"] == "True"
    assert run.data.metrics["training_r2_score"] == 1.0


def test_the_users_logging_call_waits_for_nobody(here) -> None:
    """The call makes the run itself. Were its reads drained first, it and the sender would wait for each other."""
    here.start()
    started = time.monotonic()
    LogsByHand().fit(X, Y)
    assert time.monotonic() - started < min(beside.READ_TIMEOUT, CLAIM_SECONDS) / 2
    assert here.run().data.metrics["by_hand"] == 1.5


def test_leaving_the_users_run_drains_it(here) -> None:
    here.start()
    with mlflow.start_run() as active:
        LinearRegression().fit(X, Y)
    # A reader that shares nothing with us.
    with autolog.paused():
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        stored = SqlAlchemyStore(here.store_uri, "mlruns").get_run(active.info.run_id)
    assert stored.data.metrics["training_r2_score"] == 1.0


def test_second_training_in_a_users_run_is_a_child_and_overwrites_nothing(here) -> None:
    here.start()
    with mlflow.start_run() as active:
        LinearRegression().fit(X, Y)
        Ridge(alpha=1000.0).fit(X, Y)
    parent = here.client.get_run(active.info.run_id)
    (child,) = [run for run in here.runs() if run.info.run_id != active.info.run_id]
    assert parent.data.tags["estimator_name"] == "LinearRegression"
    assert parent.data.metrics["training_r2_score"] == 1.0
    assert child.data.tags["mlflow.parentRunId"] == active.info.run_id
    assert child.data.tags["estimator_name"] == "Ridge"
    assert child.data.params["alpha"] == "1000.0"
    assert child.info.status == "FINISHED"


def test_exclusive_never_records_into_the_users_run(here) -> None:
    here.start(exclusive=True)
    with mlflow.start_run() as active:
        LinearRegression().fit(X, Y)
    assert here.client.get_run(active.info.run_id).data.metrics == {}
    (ours,) = [run for run in here.runs() if run.info.run_id != active.info.run_id]
    assert ours.data.metrics["training_r2_score"] == 1.0


def test_users_logging_goes_into_our_open_run(here) -> None:
    here.start()
    LogsByHand().fit(X, Y)
    run = here.run()
    assert here.history(run, "by_hand") == [(3, 1.5)]
    assert run.data.params["mine"] == "yes"
    assert "note.txt" in here.artifacts(run)
    assert run.data.tags["estimator_name"] == "LogsByHand"
    assert mlflow.active_run() is None


def test_read_your_writes(here) -> None:
    here.start()
    LinearRegression().fit(X, Y)
    run = mlflow.last_active_run()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["training_r2_score"] == 1.0
    (model,) = mlflow.search_logged_models(output_format="list")
    assert model.source_run_id == run.info.run_id
    Ridge(alpha=2.0).fit(X, Y)
    assert len(mlflow.search_runs(output_format="list")) == 2
    assert mlflow.last_active_run().data.params["alpha"] == "2.0"
    with mlflow.start_run() as mine:
        pass
    assert mlflow.last_active_run().info.run_id == mine.info.run_id


def test_mlflows_own_autologging_records_alone_and_it_is_said_once(here, caplog) -> None:
    import mlflow.sklearn

    mlflow.sklearn.autolog(log_models=False, silent=True)
    try:
        here.start()
        LinearRegression().fit(X, Y)
        LinearRegression().fit(X, Y)
    finally:
        mlflow.sklearn.autolog(disable=True)
    assert len(here.runs()) == 2
    assert all("autolog.run" not in run.data.tags for run in here.runs())
    said = [record.message for record in caplog.records if "MLflow's own autologging" in record.message]
    assert len(said) == 1
    assert "mlflow.sklearn.autolog(disable=True)" in said[0]
    guard.reset()


def test_runs_in_threads_are_separate_and_complete(recorder) -> None:
    recorder.start()
    alphas = [float(i) for i in range(6)]
    start = threading.Barrier(len(alphas))

    def train(alpha: float) -> None:
        start.wait()
        Ridge(alpha=alpha).fit(X, Y)

    threads = [threading.Thread(target=train, args=(alpha,)) for alpha in alphas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = recorder.runs()
    assert sorted(float(run.data.params["alpha"]) for run in runs) == alphas
    for run in runs:
        assert run.info.status == "FINISHED"
        predicted = Ridge(alpha=float(run.data.params["alpha"]))
        with autolog.paused():
            predicted.fit(X, Y)
        assert run.data.metrics["training_r2_score"] == predicted.score(X, Y)
    assert len({model.source_run_id for model in recorder.models()}) == len(alphas)


def test_users_logging_neither_fails_nor_loses_beside_ours_on_one_sqlite_file(here) -> None:
    from autolog import runtime

    here.start()
    ours = runtime.open_run("torch")
    for step in range(20_000):
        ours.metrics({"ours": step / 3}, step=step)
    with mlflow.start_run() as mine:
        for step in range(60):
            mlflow.log_metric("theirs", step / 7, step=step)
    ours.end()
    runtime.closed(ours)
    by_key = {"theirs" if run.info.run_id == mine.info.run_id else "ours": run for run in here.runs()}
    assert here.history(by_key["theirs"], "theirs") == [(step, step / 7) for step in range(60)]
    assert here.history(by_key["ours"], "ours") == [(step, step / 3) for step in range(20_000)]


def test_enabling_twice_records_once(recorder) -> None:
    recorder.start()
    recorder.start()
    LinearRegression().fit(X, Y)
    recorder.run()


def test_tags_are_those_of_the_training_process(recorder) -> None:
    import getpass
    import sys

    recorder.start(extra_tags={"team": "penguins"})
    LinearRegression().fit(X, Y)
    tags = recorder.run().data.tags
    assert tags["mlflow.source.name"] == sys.argv[0]
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["mlflow.runName"]
    assert tags["team"] == "penguins"


# -- metrics that the user logs by hand under a name of ours ----------------------------------------------------------


def test_a_metric_that_the_user_logs_is_theirs_alone(here) -> None:
    """Two sources in one curve are a wrong curve: here, losses per step and the user's per epoch."""
    here.start()
    run = runtime.open_run("torch")
    for epoch in range(3):
        for i in range(4):
            run.metrics({"loss": -1.0, "lr": 0.5}, step=4 * epoch + i)
        mlflow.log_metric("loss", 10.0 * epoch, step=epoch)
        mlflow.log_metrics({"accuracy": 0.25 * epoch}, step=epoch)
        run.metrics({"accuracy": -1.0}, step=4 * epoch)
    run.end()
    runtime.closed(run)
    found = here.run()
    assert here.history(found, "loss") == [(0, 0.0), (1, 10.0), (2, 20.0)]
    assert here.history(found, "accuracy") == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert here.history(found, "lr") == [(step, 0.5) for step in range(12)]
    assert json.loads(found.data.tags["autolog.logged_by_hand"]) == ["accuracy", "loss"]


def test_columns_that_still_grow_are_left_to_the_user_from_then_on(here) -> None:
    here.start()
    run = runtime.open_run("xgboost")
    times, losses, errors = [1, 2], [0.5, 0.25], [0.1, 0.2]
    block = run.block(times, {"loss": losses, "error": errors})
    mlflow.log_metric("loss", 7.0, step=9)
    block.take()
    run.end()
    runtime.closed(run)
    found = here.run()
    assert here.history(found, "loss") == [(9, 7.0)]
    assert here.history(found, "error") == [(0, 0.1), (1, 0.2)]


@pytest.mark.parametrize("how", ["log_metric", "log_batch", "module"])
def test_what_is_logged_into_a_run_by_its_id_is_the_users_too(here, how, monkeypatch) -> None:
    # What is on disk before the user logs stays.
    monkeypatch.setattr(writer, "INTERVAL", 5.0)
    here.start()
    with mlflow.start_run() as active:
        run, other = runtime.open_run("torch"), runtime.open_run("sklearn")  # The second is a child of the user's.
        run.metrics({"loss": -1.0}, step=0)
        other.metrics({"loss": 0.5}, step=0)
        run_id = active.info.run_id
        if how == "log_metric":
            here.client.log_metric(run_id, "loss", 3.0, step=1)
        elif how == "log_batch":
            here.client.log_batch(run_id, metrics=[Metric("loss", 3.0, 1, 1)])
        else:
            mlflow.log_metrics({"loss": 3.0}, step=1, run_id=run_id)
        run.metrics({"loss": -1.0}, step=2)
        other.metrics({"loss": 0.25}, step=1)
        for each in (run, other):
            each.end()
            runtime.closed(each)
    found = {one.info.run_id: here.history(one, "loss") for one in here.runs()}
    assert found.pop(run_id) == [(1, 3.0)]
    assert list(found.values()) == [[(0, 0.5), (1, 0.25)]]
