"""XGBoost on Dask: one run, by the process that asks, under a synchronous and an asynchronous client."""

from __future__ import annotations

import asyncio
import gc
import warnings
from contextlib import contextmanager

import mlflow
import numpy as np
import pytest
import xgboost as xgb
from sklearn.datasets import load_breast_cancer

import autolog
from autolog import runtime

distributed = pytest.importorskip("distributed")
pytest.importorskip("dask.dataframe")
import dask.array as da  # noqa: E402
import xgboost.dask  # noqa: E402 - makes xgb.dask

pytestmark = pytest.mark.filterwarnings("ignore")
PARAMS = {"objective": "binary:logistic", "eval_metric": ["logloss", "error"], "max_depth": 2, "nthread": 1}
IN_THREADS = {
    "n_workers": 2,
    "threads_per_worker": 1,
    "processes": False,
    "dashboard_address": None,
    "protocol": "inproc",
}


@pytest.fixture(scope="module")
def cancer():
    return load_breast_cancer(return_X_y=True)


def load(recorder, logged):
    mlflow.set_tracking_uri(recorder.store_uri)
    return mlflow.xgboost.load_model(logged.model_uri)


# -- a synchronous client ---------------------------------------------------------------------------------------------


@contextmanager
def synchronous_client():
    with distributed.LocalCluster(**IN_THREADS) as cluster, distributed.Client(cluster) as client:
        yield client


@pytest.fixture
def dask_client():
    # Of each test by itself: one that has trained and outlives an asynchronous client does not end on Python 3.13.
    with synchronous_client() as client:
        yield client


def test_dask_training_is_one_run(recorder, cancer, dask_client):
    X, y = cancer
    recorder.start()
    data, target = da.from_array(X, chunks=(300, 30)), da.from_array(y, chunks=300)
    matrix = xgb.dask.DaskDMatrix(dask_client, data, target)
    result = xgb.dask.train(dask_client, PARAMS, matrix, num_boost_round=4, evals=[(matrix, "train")])
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert (run.data.params["max_depth"], run.data.params["num_boost_round"]) == ("2", "4")
    assert recorder.history(run, "train-logloss") == list(enumerate(result["history"]["train"]["logloss"]))
    (logged,) = recorder.models()
    assert load(recorder, logged).save_raw("ubj") == result["booster"].save_raw("ubj")
    assert {m.key: m.value for m in logged.metrics}["train-error"] == result["history"]["train"]["error"][-1]


def test_dask_estimator_is_one_run_and_its_model_needs_no_dask(recorder, cancer, dask_client):
    X, y = cancer
    recorder.start()
    data, target = da.from_array(X, chunks=(300, 30)), da.from_array(y, chunks=300)
    model = xgb.dask.DaskXGBClassifier(n_estimators=3, max_depth=2)
    model.client = dask_client
    model.fit(data, target, eval_set=[(data, target)])
    run = recorder.run()
    assert run.data.tags["estimator_name"] == "DaskXGBClassifier"
    assert run.data.params["n_estimators"] == "3"
    history = model.evals_result()["validation_0"]["logloss"]
    assert recorder.history(run, "validation_0-logloss") == list(enumerate(history))
    (logged,) = recorder.models()
    loaded = load(recorder, logged)
    assert type(loaded) is xgb.XGBClassifier
    np.testing.assert_array_equal(loaded.predict(X), model.predict(data).compute())


# -- an asynchronous client -------------------------------------------------------------------------------------------


def under_asynchronous_client(cancer, body):
    """Run the coroutine function `body` with a client, and the data as Dask's arrays; return what it returns."""

    async def main():
        async with (
            distributed.LocalCluster(**IN_THREADS, asynchronous=True) as cluster,
            distributed.Client(cluster, asynchronous=True) as client,
        ):
            X, y = cancer
            return await body(client, da.from_array(X, chunks=(300, 30)), da.from_array(y, chunks=300))

    return asyncio.run(main())


def test_awaited_training_is_one_run(recorder, cancer):
    async def body(client, data, target):
        matrix = await xgb.dask.DaskDMatrix(client, data, target)
        coming = xgb.dask.train(
            client, PARAMS, matrix, num_boost_round=6, evals=[(matrix, "train")], early_stopping_rounds=3
        )
        assert (asyncio.iscoroutine(coming), coming.__qualname__) == (True, "_train_async")
        return await asyncio.create_task(coming)

    recorder.start()
    result = under_asynchronous_client(cancer, body)
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert (run.data.params["max_depth"], run.data.params["num_boost_round"]) == ("2", "6")
    assert not {"client", "dconfig", "global_config", "coll_cfg"} & set(run.data.params)
    for metric in ("logloss", "error"):
        history = result["history"]["train"][metric]
        assert len(history) == 6
        assert recorder.history(run, f"train-{metric}") == list(enumerate(history))
    assert run.data.metrics["best_iteration"] == result["booster"].best_iteration
    (logged,) = recorder.models()
    assert (logged.status.value, logged.source_run_id) == ("READY", run.info.run_id)
    assert load(recorder, logged).save_raw("ubj") == result["booster"].save_raw("ubj")
    assert "autolog.incomplete" not in run.data.tags


def test_awaited_params_are_those_of_a_synchronous_client(recorder, cancer):
    async def body(client, data, target):
        matrix = await xgb.dask.DaskDMatrix(client, data, target)
        await xgb.dask.train(client, PARAMS, matrix, num_boost_round=1)

    recorder.start()
    X, y = cancer
    data, target = da.from_array(X, chunks=(300, 30)), da.from_array(y, chunks=300)
    with synchronous_client() as client:
        xgb.dask.train(client, PARAMS, xgb.dask.DaskDMatrix(client, data, target), num_boost_round=1)
    under_asynchronous_client(cancer, body)
    synchronous, awaited = recorder.runs()
    assert awaited.data.params == synchronous.data.params


def test_awaited_estimator_is_one_run(recorder, cancer):
    async def body(client, data, target):
        model = xgb.dask.DaskXGBClassifier(n_estimators=3, max_depth=2)
        model.client = client
        fitted = await model.fit(data, target, eval_set=[(data, target)])
        assert fitted is model
        predicted = await client.compute(await model.predict(data))
        return model.evals_result(), predicted

    recorder.start()
    told, predicted = under_asynchronous_client(cancer, body)
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["estimator_name"] == "DaskXGBClassifier"
    assert (run.data.params["n_estimators"], run.data.params["max_depth"]) == ("3", "2")
    history = told["validation_0"]["logloss"]
    assert len(history) == 3
    assert recorder.history(run, "validation_0-logloss") == list(enumerate(history))
    (logged,) = recorder.models()
    np.testing.assert_array_equal(load(recorder, logged).predict(cancer[0]), predicted)


def test_trainings_awaited_at_once_are_separate_and_complete(recorder, cancer):
    async def body(client, data, target):
        matrix = await xgb.dask.DaskDMatrix(client, data, target)
        return await asyncio.gather(
            *(
                xgb.dask.train(client, {**PARAMS, "max_depth": depth}, matrix, depth, evals=[(matrix, "train")])
                for depth in (2, 3)
            )
        )

    recorder.start()
    results = under_asynchronous_client(cancer, body)
    runs = {run.data.params["max_depth"]: run for run in recorder.runs()}
    assert sorted(runs) == ["2", "3"]
    for depth, result in zip(("2", "3"), results, strict=True):
        assert runs[depth].info.status == "FINISHED"
        history = result["history"]["train"]["logloss"]
        assert len(history) == int(depth)
        assert recorder.history(runs[depth], "train-logloss") == list(enumerate(history))
    assert {model.source_run_id for model in recorder.models()} == {run.info.run_id for run in runs.values()}


def test_awaited_training_that_raises_is_a_failed_run(recorder, cancer):
    async def body(client, data, target):
        matrix = await xgb.dask.DaskDMatrix(client, data, target)
        await xgb.dask.train(client, {**PARAMS, "max_depth": -7}, matrix, num_boost_round=2)

    with pytest.raises(xgb.core.XGBoostError) as without:
        under_asynchronous_client(cancer, body)
    recorder.start()
    with pytest.raises(xgb.core.XGBoostError) as error:
        under_asynchronous_client(cancer, body)
    assert "max_depth" in str(without.value) and "max_depth" in str(error.value)
    assert (error.value.__cause__, error.value.__context__) == (without.value.__cause__, without.value.__context__)
    run = recorder.run()
    assert run.info.status == "FAILED"
    assert run.data.params["max_depth"] == "-7"
    assert recorder.models() == []


def test_training_that_nobody_awaits_is_no_run(recorder, cancer):
    async def body(client, data, target):
        matrix = await xgb.dask.DaskDMatrix(client, data, target)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            xgb.dask.train(client, PARAMS, matrix, num_boost_round=2)
            gc.collect()
        return [str(each.message) for each in caught if each.category is RuntimeWarning]

    recorder.start()
    assert under_asynchronous_client(cancer, body) == ["coroutine '_train_async' was never awaited"]
    assert recorder.runs() == []


def test_cancelled_training_is_a_failed_run(recorder, cancer):
    async def body(client, data, target):
        matrix = await xgb.dask.DaskDMatrix(client, data, target)
        before = runtime.open_runs()  # Of earlier tests, what has not been collected yet.
        task = asyncio.create_task(xgb.dask.train(client, PARAMS, matrix, num_boost_round=2))
        while all(run in before for run in runtime.open_runs()):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    recorder.start()
    under_asynchronous_client(cancer, body)
    assert recorder.run().info.status == "FAILED"


def test_awaited_training_belongs_to_the_users_active_run(recorder, cancer):
    async def body(client, data, target):
        matrix = await xgb.dask.DaskDMatrix(client, data, target)
        with mlflow.start_run() as active:
            await xgb.dask.train(client, PARAMS, matrix, num_boost_round=1, evals=[(matrix, "train")])
            mlflow.log_metric("mine", 1.0)
        return active.info.run_id

    mlflow.set_tracking_uri(recorder.store_uri)
    mlflow.set_experiment(recorder.experiment)
    recorder.start(experiment=None)
    run_id = under_asynchronous_client(cancer, body)
    run = recorder.run()
    assert (run.info.run_id, run.info.status, run.data.metrics["mine"]) == (run_id, "FINISHED", 1.0)
    assert run.data.params["max_depth"] == "2"


def test_unpatched_names_are_the_originals():
    from xgboost import dask

    def state():
        return [vars(dask)["train"], vars(dask)["_train_async"], vars(dask.DaskXGBRanker)["_fit_async"]]

    before = state()
    autolog.autolog("xgboost", tracking_uri="sqlite:///unused.db")
    assert all(now is not then for now, then in zip(state(), before, strict=True))
    autolog.disable()
    assert all(now is then for now, then in zip(state(), before, strict=True))
