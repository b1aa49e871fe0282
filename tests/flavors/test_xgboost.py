"""XGBoost, recorded and read back."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
import threading
import types

import mlflow
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import accuracy_score
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
    given = {
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
    params = run.data.params
    assert {name: params[name] for name in given} == given
    # What it was trained with where nothing was said.
    defaults = {"eta": "0.3", "gamma": "0", "subsample": "1", "booster": "gbtree", "seed": "0", "min_child_weight": "1"}
    assert {name: params[name] for name in defaults} == defaults
    assert not {"learning_rate", "random_state", "num_class"} & set(params)
    points = as_points(result)
    assert set(points) == {"train-logloss", "train-error", "test-logloss", "test-error"}
    assert set(run.data.metrics) == {*points, "tree_count", "leaf_count"}
    trees = booster.trees_to_dataframe()
    assert run.data.metrics["tree_count"] == 7
    assert run.data.metrics["leaf_count"] == (trees.Feature == "Leaf").sum()
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
    } | {"tree_count": (0, 5, None), "leaf_count": (0, recorder.run().data.metrics["leaf_count"], None)}
    # Linking a point to the model does not add a second one to the run.
    assert len(recorder.history(recorder.run(), "test-logloss")) == 5


def test_every_name_of_train_is_recorded(recorder, matrices):
    recorder.start()
    for train in (xgb.train, xgb.training.train, xgb.sklearn.train, train_bound_early):
        train(PARAMS, matrices[0], 1)
    assert len(recorder.runs()) == 4


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
        )

    bare, bare_said = once(), capfd.readouterr()
    recorder.start()
    recorded, recorded_said = once(), capfd.readouterr()
    assert repr(recorded) == repr(bare)
    assert "train-logloss" in bare_said.out
    assert recorded_said == bare_said
    assert len(recorder.runs()) == 2


@pytest.mark.skipif(xgb.__version__ < "3", reason="the order of the arguments was another one")
@pytest.mark.filterwarnings("ignore:Pass `.*` as keyword args:FutureWarning")
def test_callbacks_passed_by_position(recorder, matrices):
    dtrain, _ = matrices
    recorder.start()
    seen = []

    class Mine(TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            seen.append(epoch)
            return False

    xgb.train(PARAMS, dtrain, 2, [(dtrain, "train")], None, None, None, None, False, None, [Mine()])
    assert seen == [0, 1]
    assert len(recorder.history(recorder.run(), "train-logloss")) == 2


def test_round_in_which_a_callback_stops_training_is_recorded(recorder, matrices):
    dtrain, _ = matrices

    class Stop(TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            return epoch == 2

    recorder.start()
    xgb.train(PARAMS, dtrain, 9, evals=[(dtrain, "train")], callbacks=[Stop()], verbose_eval=False)
    assert [step for step, _ in recorder.history(recorder.run(), "train-logloss")] == [0, 1, 2]


def test_metric_that_leaves_rounds_out_is_not_repeated(recorder, matrices):
    dtrain, _ = matrices
    calls = []

    def sometimes(predicted, matrix):
        calls.append(1)
        return [("odd", len(calls))] if len(calls) % 2 else [("even", len(calls))]

    recorder.start()
    result = {}
    xgb.train(
        PARAMS,
        dtrain,
        5,
        evals=[(dtrain, "train")],
        custom_metric=sometimes,
        evals_result=result,
        verbose_eval=False,
    )
    assert result["train"]["odd"] == [1, 3, 5]
    run = recorder.run()
    assert recorder.history(run, "train-odd") == [(0, 1), (2, 3), (4, 5)]
    assert recorder.history(run, "train-even") == [(1, 2), (3, 4)]
    assert len(recorder.history(run, "train-logloss")) == 5
    assert run.data.params["custom_metric"].endswith("sometimes")
    (logged,) = recorder.models()
    assert set(model_metrics(logged)) == {"train-logloss", "train-error", "tree_count", "leaf_count"}


# -- early stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "callback", "callback keeping the best"])
def test_early_stopping_is_recognised_and_adds_no_point(recorder, matrices, how):
    dtrain, dtest = matrices
    stop = {
        "argument": {"early_stopping_rounds": 3},
        "callback": {"callbacks": [EarlyStopping(rounds=3)]},
        "callback keeping the best": {"callbacks": [EarlyStopping(rounds=3, save_best=True)]},
    }[how]
    recorder.start()
    result = {}
    booster = xgb.train(
        {**PARAMS, "eta": 1.5},
        dtrain,
        60,
        evals=[(dtest, "test")],
        evals_result=result,
        verbose_eval=False,
        **stop,
    )
    rounds = len(result["test"]["error"])
    assert booster.best_iteration < rounds - 1 < 59
    run = recorder.run()
    points = as_points(result)
    assert histories(recorder, run, points) == points
    found = {
        "best_iteration": booster.best_iteration,
        "best_score": booster.best_score,
        "stopped_iteration": rounds - 1,
    }
    assert {name: run.data.metrics[name] for name in found} == found
    for name in found:
        assert len(recorder.history(run, name)) == 1
    (logged,) = recorder.models()
    # The booster predicts with all of its rounds: those up to the best where the callback cut it.
    step = booster.num_boosted_rounds() - 1
    assert step == (booster.best_iteration if "best" in how else rounds - 1)
    linked = model_metrics(logged)
    assert linked["test-error"] == (step, result["test"]["error"][step], "test")
    assert linked["best_score"][:2] == (0, booster.best_score)


def test_estimator_stopped_early_has_the_metrics_of_its_best_round(recorder, cancer):
    X, y = cancer
    recorder.start()
    model = xgb.XGBClassifier(n_estimators=60, learning_rate=1.5, max_depth=2, early_stopping_rounds=3, n_jobs=1)
    model.fit(X[:400], y[:400], eval_set=[(X[400:], y[400:])], verbose=False)
    history = model.evals_result()["validation_0"]["logloss"]
    assert model.best_iteration < len(history) - 1
    (logged,) = recorder.models()
    assert model_metrics(logged)["validation_0-logloss"] == (
        model.best_iteration,
        history[model.best_iteration],
        "validation_0",
    )
    loaded = load(recorder, logged)
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))


# -- the scikit-learn API ---------------------------------------------------------------------------------------------


def test_classifier_is_recorded_whole(recorder):
    X, y = load_iris(return_X_y=True, as_frame=True)
    recorder.start()
    model = xgb.XGBClassifier(n_estimators=4, max_depth=2, eval_metric=["mlogloss", "merror"], n_jobs=1)
    model.fit(X, y, eval_set=[(X, y), (X[::2], y[::2])], verbose=False)
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["estimator_name"] == "XGBClassifier"
    assert run.data.tags["estimator_class"] == "xgboost.sklearn.XGBClassifier"
    params = run.data.params
    assert {"n_estimators": "4", "num_boost_round": "4", "max_depth": "2", "num_class": "3", "subsample": "1"} == {
        name: params[name] for name in ("n_estimators", "num_boost_round", "max_depth", "num_class", "subsample")
    }
    # What it was trained with, which fit chose.
    assert params["objective"] == "multi:softprob"
    assert set(model.get_params()) <= set(params)
    points = as_points(model.evals_result())
    assert len(points) == 4
    assert set(points) < set(run.data.metrics)
    assert histories(recorder, run, points) == points
    assert {(item.dataset.name, item.tags[0].value) for item in run.inputs.dataset_inputs} == {
        ("X", "train"),
        ("validation_0", "eval"),
        ("validation_1", "eval"),
    }
    (logged,) = recorder.models()
    assert logged.status == "READY"
    assert logged.params == params
    assert model_metrics(logged)["validation_1-merror"] == (
        3,
        model.evals_result()["validation_1"]["merror"][-1],
        "validation_1",
    )
    loaded = load(recorder, logged)
    assert type(loaded) is xgb.XGBClassifier
    np.testing.assert_array_equal(loaded.classes_, model.classes_)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    served = load_pyfunc(recorder, logged)
    np.testing.assert_array_equal(served.predict(X), model.predict(X))
    assert served.metadata.signature.inputs.input_names() == list(X.columns)
    assert served.metadata.signature.outputs.input_types()[0] == model.predict(X).dtype
    assert "xgboost==" in mlflow.artifacts.load_text(f"{logged.artifact_location}/requirements.txt")


def _groups(n):
    return np.repeat(np.arange(n // 10 + 1), 10)[:n]


@pytest.mark.parametrize(
    ("model", "fit"),
    [
        (xgb.XGBRegressor(n_estimators=3, n_jobs=1), {}),
        (xgb.XGBClassifier(n_estimators=3, n_jobs=1), {}),
        (xgb.XGBClassifier(n_estimators=3, n_jobs=1, booster="gblinear"), {}),
        (xgb.XGBClassifier(n_estimators=3, n_jobs=1, booster="dart", rate_drop=0.5), {}),
        (xgb.XGBRFClassifier(n_estimators=5, n_jobs=1), {}),
        (xgb.XGBRFRegressor(n_estimators=5, n_jobs=1), {}),
        (xgb.XGBRanker(n_estimators=3, n_jobs=1), {"qid": _groups(569)}),
        (xgb.XGBModel(n_estimators=3, n_jobs=1, objective="reg:squarederror"), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_estimator_is_one_run_and_loads(recorder, cancer, model, fit):
    X, y = cancer
    recorder.start()
    model.fit(X, y, **fit)
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["estimator_name"] == type(model).__name__
    assert run.data.params["n_estimators"] == str(model.n_estimators)
    if isinstance(model, xgb.XGBRFClassifier | xgb.XGBRFRegressor):
        assert run.data.params["num_parallel_tree"] == "5"
        assert run.data.params["num_boost_round"] == "1"
    (logged,) = recorder.models()
    loaded = load(recorder, logged)
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    served = load_pyfunc(recorder, logged)
    np.testing.assert_array_equal(served.predict(X), model.predict(X))
    outputs = served.metadata.signature.outputs
    assert outputs is None or outputs.input_types()[0] == model.predict(X).dtype


def test_value_for_missing_is_not_lost(recorder, cancer):
    X, y = cancer
    X = np.where(np.arange(X.size).reshape(X.shape) % 3 == 0, -999.0, X)
    recorder.start()
    model = xgb.XGBClassifier(n_estimators=3, missing=-999.0, n_jobs=1).fit(X, y)
    (logged,) = recorder.models()
    served = load_pyfunc(recorder, logged)
    np.testing.assert_array_equal(served.predict(X), model.predict(X))
    mlflow.set_tracking_uri(recorder.store_uri)
    loaded = mlflow.sklearn.load_model(logged.model_uri)
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))


def test_categories_are_recorded(recorder):
    X = pd.DataFrame({"a": pd.Categorical(list("xyzx") * 25), "b": np.arange(100.0)})
    recorder.start()
    xgb.XGBRegressor(n_estimators=2, enable_categorical=True, n_jobs=1).fit(X, np.arange(100))
    xgb.train({"nthread": 1}, xgb.DMatrix(X, np.arange(100), enable_categorical=True), 2)
    assert [run.info.status for run in recorder.runs()] == ["FINISHED"] * 2
    assert [logged.status for logged in recorder.models()] == ["READY"] * 2


@pytest.mark.parametrize("kind", [xgb.DMatrix, xgb.QuantileDMatrix])
def test_named_columns_are_the_signature(recorder, kind):
    X, y = load_iris(return_X_y=True, as_frame=True)
    X["whole"] = np.arange(len(X))
    recorder.start()
    booster = xgb.train({"nthread": 1}, kind(X, y), 2)
    (logged,) = recorder.models()
    served = load_pyfunc(recorder, logged)
    inputs = served.metadata.signature.inputs
    assert inputs.input_names() == list(X.columns)
    assert [kind.name for kind in inputs.input_types()] == ["double"] * 4 + ["long"]
    np.testing.assert_array_equal(served.predict(X), booster.predict(xgb.DMatrix(X)))


class Labelled(xgb.XGBClassifier):
    """The user's own: it takes texts as labels, and trains a helper."""

    def fit(self, X, y, **kwargs):
        self.helper_ = xgb.XGBRegressor(n_estimators=2, n_jobs=1).fit(X, np.arange(len(X)))
        self.labels_ = LabelEncoder().fit(y)
        super().fit(X, self.labels_.transform(y), **kwargs)
        self.after_ = "fit"
        return self

    def predict(self, X, **kwargs):
        assert self.after_ == "fit"
        return self.labels_.inverse_transform(super().predict(X, **kwargs))


@pytest.mark.parametrize("defined", ["before", "after"])
def test_user_subclass_is_one_run_with_its_own_fit(recorder, cancer, defined):
    X, y = cancer
    names = np.array(["malignant", "benign"])[y]
    recorder.start()
    cls = Labelled
    if defined == "after":

        class Later(Labelled):
            def fit(self, X, y, **kwargs):
                return super().fit(X, y, **kwargs)

        cls = Later
    model = cls(n_estimators=3, n_jobs=1)
    model.fit(X, names, eval_set=[(X, y)], verbose=False)
    run = recorder.run()
    assert run.data.tags["estimator_name"] == cls.__name__
    assert run.data.params["num_boost_round"] == "3"
    history = model.evals_result()["validation_0"]["logloss"]
    assert recorder.history(run, "validation_0-logloss") == list(enumerate(history))
    (logged,) = recorder.models()
    assert model_metrics(logged)["validation_0-logloss"][:2] == (2, history[-1])
    np.testing.assert_array_equal(load_pyfunc(recorder, logged).predict(X), model.predict(X))


def test_rounds_of_a_fit_that_trains_twice_are_not_the_models(recorder, cancer):
    X, y = cancer

    class Twice(xgb.XGBRegressor):
        def fit(self, X, y, **kwargs):
            super().fit(X, y, eval_set=[(X, y)], verbose=False)
            self.n_estimators = 2
            return super().fit(X, y, eval_set=[(X, y)], verbose=False)

    recorder.start()
    Twice(n_estimators=4, n_jobs=1).fit(X, y)
    assert [step for step, _ in recorder.history(recorder.run(), "validation_0-rmse")] == [0, 1, 2, 3]
    (logged,) = recorder.models()
    assert logged.status == "READY"
    assert not [metric.key for metric in logged.metrics if metric.key.startswith("validation")]
    assert model_metrics(logged)["tree_count"] == (0, 2, None)


# -- whose call is it -------------------------------------------------------------------------------------------------


def test_concurrent_threads_are_separate_complete_runs(recorder, cancer):
    X, y = cancer
    recorder.start()
    results = [{} for _ in range(4)]

    def one(number):
        matrix = xgb.DMatrix(X, y)
        evals = [(matrix, "train")]
        params = {**PARAMS, "max_depth": number + 1}
        xgb.train(params, matrix, 20, evals=evals, evals_result=results[number], verbose_eval=False)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = recorder.runs()
    assert sorted(run.data.params["max_depth"] for run in runs) == ["1", "2", "3", "4"]
    for run in runs:
        points = as_points(results[int(run.data.params["max_depth"]) - 1])
        assert histories(recorder, run, points) == points
    assert {model.source_run_id for model in recorder.models()} == {run.info.run_id for run in runs}


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_search_is_one_run_without_rounds(recorder, cancer, n_jobs):
    import joblib

    X, y = cancer
    recorder.start()
    search = GridSearchCV(xgb.XGBClassifier(n_estimators=3, n_jobs=1), {"max_depth": [1, 2]}, cv=2, n_jobs=n_jobs)
    with joblib.parallel_backend("threading") if n_jobs else contextlib.nullcontext():
        search.fit(X, y, eval_set=[(X, y)], verbose=False)
    (run,) = recorder.runs(children=False)
    assert run.data.tags["mlflow.autologging"] == "sklearn"
    assert not [name for name in run.data.metrics if name.startswith("validation_0")]
    assert "num_boost_round" not in run.data.params


def test_last_step_of_a_pipeline_tells_its_rounds(recorder, cancer):
    X, y = cancer
    recorder.start()
    pipeline = make_pipeline(StandardScaler(), xgb.XGBClassifier(n_estimators=3, n_jobs=1))
    pipeline.fit(X, y, xgbclassifier__eval_set=[(X, y)], xgbclassifier__verbose=False)
    run = recorder.run()
    assert run.data.tags["estimator_name"] == "Pipeline"
    history = pipeline[-1].evals_result()["validation_0"]["logloss"]
    assert recorder.history(run, "validation_0-logloss") == list(enumerate(history))
    (logged,) = recorder.models()
    assert "sklearn" in mlflow.models.get_model_info(logged.model_uri).flavors


def test_continued_training_is_recorded_and_unharmed(recorder, matrices):
    dtrain, dtest = matrices

    def once():
        first = xgb.train(
            PARAMS, dtrain, 30, evals=[(dtest, "test")], early_stopping_rounds=3, verbose_eval=False, evals_result={}
        )
        result = {}
        second = xgb.train(
            PARAMS, dtrain, 4, evals=[(dtest, "test")], xgb_model=first, evals_result=result, verbose_eval=False
        )
        return first, second, result

    bare = once()
    recorder.start(checkpoints=autolog.Checkpoints(every="2 rounds"))
    recorded = once()
    assert [bytes(booster.save_raw()) for booster in recorded[:2]] == [
        bytes(booster.save_raw()) for booster in bare[:2]
    ]
    run = recorder.runs()[1]
    # Its rounds go on where those of the model end that it continues, which a tag names.
    before = recorded[0].num_boosted_rounds()
    assert recorder.history(run, "test-logloss") == list(enumerate(recorded[2]["test"]["logloss"], before))
    parent = next(model for model in recorder.models() if model.source_run_id != run.info.run_id)
    assert run.data.tags["autolog.parent_model"] == parent.tags["autolog.model"]
    # It carries the attributes of the model that it continues, but nothing stopped it.
    assert recorded[1].attr("best_iteration") is not None
    assert "best_iteration" not in run.data.metrics
    models = [model for model in recorder.models() if model.source_run_id == run.info.run_id]
    rounds = {model.name: load(recorder, model).num_boosted_rounds() for model in models}
    assert rounds["model"] == recorded[1].num_boosted_rounds() == recorded[0].num_boosted_rounds() + 4


# -- crashes and checkpoints ------------------------------------------------------------------------------------------


class Bomb(TrainingCallback):
    def __init__(self, at):
        self.at = at
        self.error = RuntimeError("out of luck")

    def after_iteration(self, model, epoch, evals_log):
        if epoch == self.at:
            raise self.error
        return False


def test_crash_keeps_every_round_and_a_model(recorder, matrices, cancer):
    dtrain, _ = matrices
    bomb = Bomb(39)
    recorder.start()
    with pytest.raises(RuntimeError) as raised:
        xgb.train(PARAMS, dtrain, 50, evals=[(dtrain, "train")], callbacks=[bomb], verbose_eval=False)
    assert raised.value is bomb.error
    assert raised.value.__context__ is None
    run = recorder.run()
    assert run.info.status == "FAILED"
    result = {}
    same = xgb.train(PARAMS, dtrain, 40, evals=[(dtrain, "train")], verbose_eval=False, evals_result=result)
    assert recorder.history(run, "train-logloss") == list(enumerate(result["train"]["logloss"]))
    logged = next(model for model in recorder.models() if model.source_run_id == run.info.run_id)
    assert (logged.status, logged.tags["autolog.partial"]) == ("READY", "failed after 40 rounds")
    assert model_metrics(logged)["train-logloss"][:2] == (39, result["train"]["logloss"][-1])
    matrix = xgb.DMatrix(cancer[0])
    np.testing.assert_array_equal(load(recorder, logged).predict(matrix), same.predict(matrix))


def test_crash_of_an_estimator_keeps_every_round_and_an_estimator(recorder, cancer):
    X, y = cancer
    bomb = Bomb(4)
    recorder.start()
    model = xgb.XGBClassifier(n_estimators=9, n_jobs=1, callbacks=[bomb], early_stopping_rounds=5)
    with pytest.raises(RuntimeError) as raised:
        model.fit(X, y, eval_set=[(X, y)], verbose=False)
    assert raised.value is bomb.error
    assert model.callbacks == [bomb]
    run = recorder.run()
    assert run.info.status == "FAILED"
    assert run.data.params["objective"] == "binary:logistic"
    assert run.data.params["callbacks"] == "['Bomb']"
    assert [step for step, _ in recorder.history(run, "validation_0-logloss")] == [0, 1, 2, 3, 4]
    (logged,) = recorder.models()
    autolog.disable()
    same = xgb.XGBClassifier(n_estimators=5, n_jobs=1).fit(X, y)
    loaded = load(recorder, logged)
    assert type(loaded) is xgb.XGBClassifier
    np.testing.assert_array_equal(loaded.predict_proba(X), same.predict_proba(X))


def test_crash_inside_a_round_keeps_the_rounds_before(recorder, matrices, cancer):
    dtrain, _ = matrices

    def metric(predicted, matrix):
        metric.calls += 1
        if metric.calls > 3:
            raise ZeroDivisionError
        return "mine", 1.0

    metric.calls = 0
    recorder.start()
    with pytest.raises(ZeroDivisionError):
        xgb.train(PARAMS, dtrain, 9, evals=[(dtrain, "train")], custom_metric=metric, verbose_eval=False)
    assert recorder.history(recorder.run(), "train-mine") == [(0, 1), (1, 1), (2, 1)]
    (logged,) = recorder.models()
    assert load(recorder, logged).num_boosted_rounds() == 3


def step_of(recorder, model):
    run = recorder.client.get_run(model.source_run_id)
    return next(output.step for output in run.outputs.model_outputs if output.model_id == model.model_id)


@pytest.mark.parametrize("every", ["2 epochs", "2 rounds", "2 steps"])
@pytest.mark.parametrize("booster", ["gbtree", "dart"])
def test_an_epoch_is_a_round(recorder, matrices, every, booster):
    """Each round goes over all of the data: of slices after the training, and of what is taken meanwhile."""
    dtrain, _ = matrices
    recorder.start(checkpoints=autolog.Checkpoints(every=every, keep_last=None))
    xgb.train({**PARAMS, "booster": booster}, dtrain, 7)
    models = recorder.models()
    found = sorted(
        (model.name, step_of(recorder, model), load(recorder, model).num_boosted_rounds()) for model in models
    )
    assert found == [("checkpoint-1", 1, 2), ("checkpoint-3", 3, 4), ("checkpoint-5", 5, 6), ("model", 6, 7)]


@pytest.mark.parametrize("booster", ["gbtree", "dart"])
def test_checkpoints_by_rounds_are_the_model_as_it_was(recorder, matrices, cancer, booster):
    dtrain, dtest = matrices
    recorder.start(checkpoints=autolog.Checkpoints(every="4 rounds", keep_last=2, keep_best=1, monitor="test-error"))
    params = {**PARAMS, "booster": booster, "rate_drop": 0.5, "one_drop": 1, "seed": 7, "eta": 1.2}
    if booster == "gbtree":
        del params["rate_drop"], params["one_drop"]
    result, predictions = {}, []
    matrix = xgb.DMatrix(cancer[0])

    class Predict(TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            predictions.append(model.predict(matrix))
            return False

    xgb.train(
        params,
        dtrain,
        22,
        evals=[(dtest, "test")],
        evals_result=result,
        callbacks=[Predict()],
        verbose_eval=False,
    )
    due = [3, 7, 11, 15, 19]
    scores = result["test"]["error"]
    best = min(due, key=lambda step: scores[step])
    found = {step_of(recorder, model): model for model in recorder.models()}
    assert set(found) == {best, 15, 19, 21}
    assert found[21].name == "model"
    for step, model in found.items():
        assert model_metrics(model)["test-error"] == (step, scores[step], "test")
        np.testing.assert_array_equal(load(recorder, model).predict(matrix), predictions[step])
    assert recorder.history(recorder.run(), "test-error") == list(enumerate(scores))


def test_checkpoints_by_time_are_taken_while_it_trains(recorder, matrices, monkeypatch):
    dtrain, _ = matrices
    # A clock of the test's own: a busy machine makes rounds longer.
    clock = [0.0]
    monkeypatch.setattr("autolog.checkpoints.time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("flavors.xgboost.rounds._PAUSE", 0)
    recorder.start(checkpoints=autolog.Checkpoints(every="1 s", keep_last=None))

    class Slow(TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            clock[0] += 0.6
            return False

    xgb.train(PARAMS, dtrain, 5, evals=[(dtrain, "train")], callbacks=[Slow()], verbose_eval=False)
    found = {step_of(recorder, model): model for model in recorder.models()}
    assert set(found) == {2, 4}
    assert {step: load(recorder, model).num_boosted_rounds() for step, model in found.items()} == {2: 3, 4: 5}


def test_checkpoints_against_sudden_death_go_once_the_slices_are_there(recorder, matrices, monkeypatch):
    dtrain, _ = matrices
    monkeypatch.setattr("autolog.checkpoints.AUTO_SECONDS", 0.0)
    monkeypatch.setattr("autolog.checkpoints.AUTO_SHARE", 0.0)
    recorder.start(checkpoints=autolog.Checkpoints(every="3 rounds", keep_last=1, keep_best=0))
    xgb.train(PARAMS, dtrain, 8, evals=[(dtrain, "train")], verbose_eval=False)
    assert {step_of(recorder, model): model.name for model in recorder.models()} == {5: "checkpoint-5", 7: "model"}
    assert [step for step, _ in recorder.history(recorder.run(), "train-logloss")] == list(range(8))


def test_what_is_switched_off_is_not_recorded(recorder, matrices, cancer):
    X, y = cancer
    dtrain, _ = matrices
    recorder.start(log_models=False, log_datasets=False)
    xgb.train(PARAMS, dtrain, 3, evals=[(dtrain, "train")], early_stopping_rounds=2, verbose_eval=False)
    xgb.XGBClassifier(n_estimators=3, n_jobs=1).fit(X, y, eval_set=[(X, y)], verbose=False)
    runs = recorder.runs()
    assert [len(run.inputs.dataset_inputs) for run in runs] == [0, 0]
    assert runs[0].data.metrics["best_iteration"] == 2
    assert len(recorder.history(runs[1], "validation_0-logloss")) == 3
    assert recorder.models() == []


# -- xgboost.cv -------------------------------------------------------------------------------------------------------


def test_cv_is_one_run_with_mean_and_deviation_per_round(recorder, cancer):
    matrix = xgb.DMatrix(*cancer)
    recorder.start()
    frame = xgb.cv(PARAMS, matrix, 5, nfold=3, metrics=["logloss"], seed=1)
    run = recorder.run()
    assert run.data.params["nfold"] == "3"
    assert run.data.params["max_depth"] == "2"
    folds = {f"{data}-logloss-fold-{number}" for data in ("train", "test") for number in range(3)}
    assert set(run.data.metrics) == set(frame.columns) | folds
    for data in ("train", "test"):
        each = [recorder.history(run, f"{data}-logloss-fold-{number}") for number in range(3)]
        means = [np.mean([value for _, value in row]) for row in zip(*each, strict=True)]
        np.testing.assert_allclose(means, frame[f"{data}-logloss-mean"], rtol=1e-12)
        assert [step for step, _ in each[0]] == [0, 1, 2, 3, 4]
    for name in frame.columns:
        assert recorder.history(run, name) == list(enumerate(frame[name]))
    assert recorder.models() == []


# -- patching ---------------------------------------------------------------------------------------------------------


def test_everything_is_back_after_disable(recorder):
    before = (xgb.train, xgb.training.train, xgb.sklearn.train, xgb.cv, train_bound_early, vars(xgb.XGBRanker)["fit"])
    recorder.start()
    assert xgb.train is xgb.training.train is xgb.sklearn.train is train_bound_early is not before[0]
    autolog.disable()
    after = (xgb.train, xgb.training.train, xgb.sklearn.train, xgb.cv, train_bound_early, vars(xgb.XGBRanker)["fit"])
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert "__init_subclass__" not in vars(xgb.XGBModel)


def test_recorded_objects_are_pickled_and_copied_as_before(recorder, cancer):
    X, y = cancer
    recorder.start()
    assert pickle.loads(pickle.dumps(xgb.train)) is xgb.train
    callbacks = [EarlyStopping(rounds=3)]
    model = xgb.XGBClassifier(n_estimators=2, n_jobs=1, callbacks=callbacks).fit(X, y, eval_set=[(X, y)], verbose=False)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert "autolog" not in repr(vars(model))
    assert b"autolog" not in pickle.dumps(model)
    assert model.callbacks is callbacks
    assert len(callbacks) == 1


def test_import_after_autolog_is_recorded(recorder):
    """scikit-learn's classes are there and patched when XGBoost's are defined."""
    script = f"""
import sklearn.linear_model, autolog
autolog.autolog(tracking_uri={recorder.store_uri!r}, experiment={recorder.experiment!r})
import xgboost, numpy
xgboost.XGBRegressor(n_estimators=2, n_jobs=1).fit(numpy.arange(20).reshape(10, 2), numpy.arange(10))
xgboost.train({{"nthread": 1}}, xgboost.DMatrix(numpy.arange(20).reshape(10, 2), numpy.arange(10)), 2)
assert autolog.flush(60)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    first, second = recorder.runs()
    assert first.data.tags["mlflow.autologging"] == second.data.tags["mlflow.autologging"] == "xgboost"
    assert first.data.tags["estimator_name"] == "XGBRegressor"
    assert len(recorder.models()) == 2


def test_metric_on_an_estimators_predictions_is_linked_to_its_model(recorder):
    X, y = load_breast_cancer(return_X_y=True)
    recorder.start()
    model = xgb.XGBClassifier(n_estimators=3).fit(X[:400], y[:400])
    held_out = X[400:]
    predicted = model.predict(held_out)
    value = accuracy_score(y[400:], predicted)
    run = recorder.run()
    assert recorder.history(run, "accuracy_score_held_out") == [(0, value)]
    (logged,) = recorder.models()
    assert {metric.key: metric.value for metric in logged.metrics}["accuracy_score_held_out"] == value
