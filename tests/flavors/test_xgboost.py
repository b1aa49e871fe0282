"""XGBoost, recorded and read back."""

from __future__ import annotations

import contextlib
import io
import json
import threading

import mlflow
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, StandardScaler
from xgboost import train as train_bound_early
from xgboost.callback import EarlyStopping, TrainingCallback

import autolog

PARAMS = {"objective": "binary:logistic", "eval_metric": ["logloss", "error"], "max_depth": 2, "nthread": 1}


@pytest.fixture(scope="module")
def cancer():
    return load_breast_cancer(return_X_y=True)


@pytest.fixture
def matrices(cancer):
    X, y = cancer
    return xgb.DMatrix(X[:400], y[:400]), xgb.DMatrix(X[400:], y[400:])


def histories(recorder, run, names):
    return {name: recorder.history(run, name) for name in names}


def as_points(evals_result):
    """(step, value) by MLflow's metric name, of what xgboost.train returned."""
    return {
        f"{data}-{metric}": list(enumerate(values))
        for data, metrics in evals_result.items()
        for metric, values in metrics.items()
    }


def model_metrics(logged):
    return {metric.key: (metric.step, metric.value, metric.dataset_name) for metric in logged.metrics}


def load(recorder, logged):
    mlflow.set_tracking_uri(recorder.store_uri)
    return mlflow.xgboost.load_model(logged.model_uri)


def load_pyfunc(recorder, logged):
    mlflow.set_tracking_uri(recorder.store_uri)
    return mlflow.pyfunc.load_model(logged.model_uri)


# -- xgboost.train ----------------------------------------------------------------------------------------------------


def test_train_is_recorded_whole(recorder, matrices, cancer):
    dtrain, dtest = matrices
    recorder.start()
    result = {}
    booster = xgb.train(
        PARAMS, dtrain, 7, evals=[(dtrain, "train"), (dtest, "test")], evals_result=result, verbose_eval=False
    )
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "objective": "binary:logistic",
        "eval_metric": "['logloss', 'error']",
        "max_depth": "2",
        "nthread": "1",
        "num_boost_round": "7",
        "maximize": "None",
        "early_stopping_rounds": "None",
        "verbose_eval": "False",
        "custom_metric": "None",
    }
    points = as_points(result)
    assert set(points) == {"train-logloss", "train-error", "test-logloss", "test-error"}
    assert set(run.data.metrics) == set(points)
    assert histories(recorder, run, points) == points
    inputs = {(item.dataset.name, item.tags[0].value): item.dataset for item in run.inputs.dataset_inputs}
    assert set(inputs) == {("dtrain", "train"), ("train", "eval"), ("test", "eval")}
    assert inputs["dtrain", "train"].digest == inputs["train", "eval"].digest != inputs["test", "eval"].digest
    assert json.loads(inputs["test", "eval"].profile)["features_shape"] == [169, 30]

    (logged,) = recorder.models()
    assert (logged.name, logged.status) == ("model", "READY")
    assert logged.params == run.data.params
    loaded = load(recorder, logged)
    assert loaded.save_raw("ubj") == booster.save_raw("ubj")
    X = cancer[0][:20]
    predicted = booster.predict(xgb.DMatrix(X))
    np.testing.assert_array_equal(load_pyfunc(recorder, logged).predict(X), predicted)
    np.testing.assert_array_equal(load_pyfunc(recorder, logged).predict(X.astype(np.float32)), predicted)
    assert json.loads(
        mlflow.artifacts.load_text(f"{run.info.artifact_uri}/feature_importance_weight.json")
    ) == booster.get_score(importance_type="weight")


def test_logged_model_carries_final_metrics_not_those_of_iteration_0(recorder, matrices):
    dtrain, dtest = matrices
    recorder.start()
    result = {}
    xgb.train(PARAMS, dtrain, 5, evals=[(dtrain, "train"), (dtest, "test")], evals_result=result, verbose_eval=False)
    (logged,) = recorder.models()
    assert model_metrics(logged) == {
        f"{data}-{metric}": (4, result[data][metric][-1], data)
        for data in ("train", "test")
        for metric in ("logloss", "error")
    }
    # Linking a point to the model does not add a second one to the run.
    assert len(recorder.history(recorder.run(), "test-logloss")) == 5


@pytest.mark.parametrize("train", [xgb.train, xgb.training.train, train_bound_early])
def test_every_name_of_train_is_recorded(recorder, matrices, train):
    recorder.start()
    name = {id(xgb.train): "now"}  # Names that are looked up after autolog() lead to the wrapper.
    assert name
    for call in (xgb.train, xgb.training.train, globals()["train_bound_early"]):
        call(PARAMS, matrices[0], 1)
    assert len(recorder.runs()) == 3


def test_callbacks_list_params_and_evals_are_not_mutated(recorder, matrices):
    dtrain, dtest = matrices
    recorder.start()
    callbacks = [xgb.callback.LearningRateScheduler(lambda epoch: 0.3)]
    params, evals = dict(PARAMS), [(dtest, "test")]
    kept = (list(callbacks), dict(params), list(evals))
    for _ in range(2):
        xgb.train(params, dtrain, 3, evals=evals, callbacks=callbacks, verbose_eval=False)
    assert (callbacks, params, evals) == kept
    for run in recorder.runs():
        assert [step for step, _ in recorder.history(run, "test-logloss")] == [0, 1, 2]


def test_training_is_bit_identical_and_says_the_same(recorder, cancer, capfd):
    X, y = cancer

    def once():
        state = np.random.RandomState(5)
        np.random.seed(3)
        dtrain = xgb.DMatrix(X, y)
        result = {}
        booster = xgb.train(
            {**PARAMS, "subsample": 0.5, "seed": 4},
            dtrain,
            12,
            evals=[(dtrain, "train")],
            evals_result=result,
            early_stopping_rounds=3,
        )
        estimator = xgb.XGBClassifier(n_estimators=5, subsample=0.5, random_state=state, n_jobs=1)
        estimator.fit(X, y, eval_set=[(X, y)])
        return (
            bytes(booster.save_raw("ubj")),
            result,
            bytes(estimator.get_booster().save_raw("ubj")),
            estimator.evals_result(),
            {name: value for name, value in vars(estimator).items() if name not in ("_Booster", "random_state")},
            state.randint(1 << 30),
            np.random.randint(1 << 30),
            xgb.get_config(),
            capfd.readouterr(),
        )

    bare = once()
    recorder.start()
    recorded = once()
    assert recorded[:-1] == pytest.approx(bare[:-1], nan_ok=True) if False else _same(recorded[:-1], bare[:-1])
    assert recorded[-1].out == bare[-1].out != ""
    assert recorded[-1].err == bare[-1].err
    assert len(recorder.runs()) == 2


def _same(one, other):
    return repr(one) == repr(other)
