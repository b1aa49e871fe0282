"""XGBoost trained other than by one call of train: loops of the user's own, several ranks, inside other fits."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
import threading
import weakref

import mlflow
import numpy as np
import pytest
import xgboost as xgb
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import GridSearchCV

import autolog

PARAMS = {"objective": "binary:logistic", "eval_metric": ["logloss", "error"], "max_depth": 2, "nthread": 1}


@pytest.fixture(scope="module")
def cancer():
    return load_breast_cancer(return_X_y=True)


@pytest.fixture
def matrices(cancer):
    X, y = cancer
    return xgb.DMatrix(X[:400], y[:400]), xgb.DMatrix(X[400:], y[400:])


def load(recorder, logged):
    mlflow.set_tracking_uri(recorder.store_uri)
    return mlflow.xgboost.load_model(logged.model_uri)


def logistic(predicted, matrix):
    p = 1 / (1 + np.exp(-predicted))
    return p - matrix.get_label(), p * (1 - p)


@pytest.mark.parametrize("how", ["update", "boost"])
def test_loop_over_update_is_one_run(recorder, matrices, how):
    dtrain, dtest = matrices

    def loop():
        booster = xgb.Booster(PARAMS, [dtrain, dtest])
        for i in range(5):
            if how == "update":
                booster.update(dtrain, i)
            else:
                gradient, hessian = logistic(booster.predict(dtrain, output_margin=True, training=True), dtrain)
                if xgb.__version__ < "3":
                    booster.boost(dtrain, i, gradient, hessian)
                else:
                    booster.boost(dtrain, i, grad=gradient, hess=hessian)
            scored = booster.eval_set([(dtrain, "train"), (dtest, "test")], i)
        return booster, scored

    bare, bare_scored = loop()
    recorder.start()
    booster, scored = loop()
    raw = bytes(booster.save_raw("ubj"))
    assert (raw, scored) == (bytes(bare.save_raw("ubj")), bare_scored)
    autolog.disable()
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.params["max_depth"] == "2"
    last = {name: float(value) for name, value in (item.split(":") for item in scored.split()[1:])}
    assert {name: run.data.metrics[name] for name in last} == last
    assert [step for step, _ in recorder.history(run, "test-logloss")] == [0, 1, 2, 3, 4]
    assert {(item.dataset.name, item.tags[0].value) for item in run.inputs.dataset_inputs} == {
        ("dtrain", "train"),
        ("train", "eval"),
        ("test", "eval"),
    }
    (logged,) = recorder.models()
    assert bytes(load(recorder, logged).save_raw("ubj")) == raw
    assert {metric.key: metric.value for metric in logged.metrics}["test-error"] == last["test-error"]


def test_second_loop_is_a_second_run(recorder, matrices):
    dtrain, _ = matrices
    recorder.start()
    for depth in (1, 2):
        booster = xgb.Booster({**PARAMS, "max_depth": depth}, [dtrain])
        for i in range(2):
            booster.update(dtrain, i)
    autolog.disable()
    runs = recorder.runs()
    assert [run.data.params["max_depth"] for run in runs] == ["1", "2"]
    assert [load(recorder, model).num_boosted_rounds() for model in recorder.models()] == [2, 2]


def train_by_hand(matrix, rounds=3):
    booster = xgb.Booster(PARAMS, [matrix])
    for i in range(rounds):
        booster.update(matrix, i)
        booster.eval_set([(matrix, "train")], i)
    return booster


def test_loop_ends_when_its_booster_is_gone(recorder, matrices):
    """As in a notebook, whose process goes on for days: neither the run stays open nor the booster in memory."""
    dtrain, dtest = matrices
    recorder.start()
    booster = train_by_hand(dtrain)
    predicted, alive = booster.predict(dtest), weakref.ref(booster)
    assert recorder.run().info.status == "RUNNING"
    del booster
    assert alive() is None
    run = recorder.run()
    assert run.info.status == "FINISHED"
    (logged,) = recorder.models()
    assert load(recorder, logged).predict(dtest).tolist() == predicted.tolist()
    assert {metric.key: metric.step for metric in logged.metrics}["train-logloss"] == 2
    train_by_hand(dtrain, 2)
    assert [each.info.status for each in recorder.runs()] == ["FINISHED", "FINISHED"]
    assert [load(recorder, model).num_boosted_rounds() for model in recorder.models()] == [3, 2]


def test_loop_whose_last_round_raised_is_failed_when_its_booster_is_gone(recorder, matrices):
    dtrain, _ = matrices
    recorder.start()
    booster = train_by_hand(dtrain)
    with pytest.raises(TypeError):
        booster.update("no matrix", 3)
    del booster
    assert recorder.run().info.status == "FAILED"
    (logged,) = recorder.models()
    assert load(recorder, logged).num_boosted_rounds() == 3


def test_booster_that_dies_in_another_threads_garbage_collection(recorder, matrices):
    dtrain, _ = matrices
    recorder.start()
    booster = train_by_hand(dtrain)
    cycle = [booster]
    cycle.append(cycle)
    gc.disable()
    try:
        del booster, cycle
        assert recorder.run().info.status == "RUNNING"
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
    finally:
        gc.enable()
    assert recorder.run().info.status == "FINISHED"
    (logged,) = recorder.models()
    assert load(recorder, logged).num_boosted_rounds() == 3


def test_booster_that_dies_once_recording_is_off_is_recorded_no_more(recorder, matrices):
    dtrain, _ = matrices
    recorder.start()
    booster = train_by_hand(dtrain)
    autolog.disable()
    number = len(recorder.models())
    booster.update(dtrain, 3)
    del booster
    assert recorder.run().info.status == "FINISHED"
    assert len(recorder.models()) == number == 1


def test_train_is_no_loop(recorder, matrices):
    dtrain, _ = matrices
    recorder.start()
    booster = xgb.train(PARAMS, dtrain, 2)
    booster.eval(dtrain)
    booster.predict(dtrain)
    autolog.disable()
    assert len(recorder.runs()) == 1


# -- inside estimators that are not XGBoost's -------------------------------------------------------------------------


class Own(ClassifierMixin, BaseEstimator):
    """A user's estimator around the native interface."""

    def __init__(self, max_depth=2):
        self.max_depth = max_depth

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.evals_ = {}
        matrix = xgb.DMatrix(X, y)
        self.booster_ = xgb.train(
            {**PARAMS, "max_depth": self.max_depth},
            matrix,
            4,
            evals=[(matrix, "train")],
            evals_result=self.evals_,
            verbose_eval=False,
        )
        return self

    def predict(self, X):
        return (self.booster_.predict(xgb.DMatrix(X)) > 0.5).astype(int)


def test_native_training_inside_another_estimators_fit_is_folded_into_its_run(recorder, cancer):
    X, y = cancer
    recorder.start()
    model = Own(max_depth=3).fit(X, y)
    run = recorder.run()
    assert run.data.tags["estimator_name"] == "Own"
    assert run.data.params["max_depth"] == run.data.params["xgboost.max_depth"] == "3"
    assert run.data.params["xgboost.num_boost_round"] == "4"
    assert recorder.history(run, "train-logloss") == list(enumerate(model.evals_["train"]["logloss"]))
    assert len(recorder.models()) == 1


def test_native_trainings_of_a_searchs_candidates_are_not(recorder, cancer):
    X, y = cancer
    recorder.start()
    GridSearchCV(Own(), {"max_depth": [1, 2]}, cv=2).fit(X, y)
    (run,) = recorder.runs(children=False)
    assert not [name for name in run.data.metrics if name.startswith("train-")]
    assert not [name for name in run.data.params if name.startswith("xgboost.")]


# -- several processes ------------------------------------------------------------------------------------------------


def test_only_the_first_rank_of_a_collective_records(recorder, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import json, sys, autolog
        autolog.autolog(tracking_uri={recorder.store_uri!r}, experiment={recorder.experiment!r})
        import numpy, xgboost
        from xgboost import collective
        rank = int(sys.argv[1])
        with collective.CommunicatorContext(**json.loads(sys.argv[2])):
            X = numpy.random.RandomState(rank).rand(50, 3)
            matrix = xgboost.DMatrix(X, X[:, 0])
            xgboost.train({{"nthread": 1}}, matrix, 3, evals=[(matrix, "train")], verbose_eval=False)
        assert autolog.flush(60)
        """)
    )
    from xgboost.tracker import RabitTracker

    tracker = RabitTracker(host_ip="127.0.0.1", n_workers=2)
    tracker.start()
    arguments = json.dumps(tracker.worker_args())
    workers = [subprocess.Popen([sys.executable, str(script), str(rank), arguments]) for rank in range(2)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    run = recorder.run()
    assert len(recorder.history(run, "train-rmse")) == 3
    assert len(recorder.models()) == 1
