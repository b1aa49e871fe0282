"""scikit-learn, recorded and read back."""

from __future__ import annotations

import threading
from pathlib import Path

import joblib
import mlflow
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_iris
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score as accuracy_bound_early
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import autolog


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def test_fit_is_recorded_whole(recorder, iris):
    X, y = iris
    recorder.start()
    model = LogisticRegression(max_iter=200).fit(X, y)
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.params["max_iter"] == "200"
    assert run.data.tags["estimator_name"] == "LogisticRegression"
    assert run.data.metrics["training_accuracy_score"] == accuracy_bound_early(y, model.predict(X))
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "X"
    (logged,) = recorder.models()
    assert logged.status == "READY"
    mlflow.set_tracking_uri(recorder.store_uri)
    loaded = mlflow.sklearn.load_model(logged.model_uri)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(logged.model_uri).predict(X), model.predict(X))
    assert {metric.key: metric.value for metric in logged.metrics}["training_accuracy_score"] == model.score(X, y)


def test_metric_bound_before_autolog_is_recorded(recorder, iris):
    X, y = iris
    recorder.start()
    model = LogisticRegression(max_iter=200).fit(X, y)
    predicted = model.predict(X)
    value = accuracy_bound_early(y, predicted)
    assert recorder.run().data.metrics["accuracy_score_X"] == value


class Majority(ClassifierMixin, BaseEstimator):
    """The user's own estimator, defined before autolog()."""

    def __init__(self, bias=0):
        self.bias = bias

    def fit(self, X, y):
        self.classes_, counts = np.unique(y, return_counts=True)
        self.most_ = self.classes_[counts.argmax()]
        return self

    def predict(self, X):
        return np.full(len(X), self.most_)


def test_user_estimator_is_recorded(recorder, iris):
    X, y = iris
    recorder.start()
    Majority(bias=3).fit(X, y)
    run = recorder.run()
    assert run.data.params == {"bias": "3"}
    assert run.data.metrics["training_accuracy_score"] == pytest.approx(1 / 3)


class Later(Majority):
    """Defined before, fitted after; its fit calls the parent's patched fit."""

    def fit(self, X, y):
        return super().fit(X, y)


def test_fit_that_calls_super_is_one_run(recorder, iris):
    recorder.start()
    Later(bias=1).fit(*iris)
    assert recorder.run().data.tags["estimator_name"] == "Later"


def test_class_defined_after_autolog_is_recorded(recorder, iris):
    recorder.start()

    class Afterwards(ClassifierMixin, BaseEstimator):
        def fit(self, X, y):
            self.classes_ = np.unique(y)
            return self

        def predict(self, X):
            return np.zeros(len(X), dtype=int)

    Afterwards().fit(*iris)
    assert recorder.run().data.tags["estimator_name"] == "Afterwards"


STACKING = StackingClassifier([("a", LogisticRegression()), ("b", Majority())], cv=2)
SEARCH = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2)


@pytest.mark.parametrize(
    ("backend", "estimator"),
    [
        ("threading", make_pipeline(StandardScaler(), LogisticRegression())),
        ("threading", STACKING),
        ("threading", VotingClassifier([("a", LogisticRegression()), ("b", Majority())])),
        ("threading", OneVsRestClassifier(LogisticRegression(), n_jobs=2)),
        ("threading", SEARCH),
        ("loky", STACKING),
        ("loky", SEARCH),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_one_run_per_outermost_fit(recorder, iris, estimator, backend):
    recorder.start()
    with joblib.parallel_backend(backend, n_jobs=2):
        clone(estimator).fit(*iris)
    (run,) = recorder.runs(children=False)
    assert run.data.tags["estimator_name"] == type(estimator).__name__
    searched = isinstance(estimator, GridSearchCV)
    assert [model.name for model in recorder.models()] == ["model", *["best_estimator"] * searched]


def test_search_records_what_it_found(recorder, iris):
    recorder.start()
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(*iris)
    (run,) = recorder.runs(children=False)
    assert run.data.params["best_C"] == str(search.best_params_["C"])
    assert run.data.metrics["best_cv_score"] == search.best_score_
    assert "estimator__C" not in run.data.params


def test_transformer_alone_opens_no_run(recorder, iris):
    recorder.start()
    StandardScaler().fit_transform(iris[0])
    SimpleImputer().fit(iris[0])
    make_pipeline(SimpleImputer(), StandardScaler()).fit_transform(iris[0])
    assert recorder.runs() == []


def test_cross_validate_records_all_of_its_values(recorder, iris):
    recorder.start()
    result = cross_validate(Ridge(), *iris, cv=2, scoring=["r2", "neg_mean_squared_error"])
    run = recorder.run()
    for name in ("test_r2", "test_neg_mean_squared_error"):
        assert recorder.history(run, name) == list(enumerate(result[name]))


def test_concurrent_fits_are_separate_runs_as_in_mlflow_they_are_not(recorder, iris):
    recorder.start()
    threads = [
        threading.Thread(target=lambda C=C: LogisticRegression(C=C, max_iter=500).fit(*iris)) for C in (0.1, 1.0, 10.0)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = recorder.runs()
    assert sorted(run.data.params["C"] for run in runs) == ["0.1", "1.0", "10.0"]
    assert all("training_log_loss" in run.data.metrics for run in runs)


def test_users_exception_passes_unchanged(recorder, iris):
    recorder.start()
    with pytest.raises(ValueError, match="at least 2 classes") as caught:
        GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2, error_score="raise").fit(iris[0], np.zeros(150))
    assert caught.value.__context__ is None
    run = recorder.run()
    assert run.info.status == "FAILED"
    assert "traceback.txt" in recorder.artifacts(run)


def test_frame_gives_names_and_signature(recorder):
    frame, target = load_iris(return_X_y=True, as_frame=True)
    recorder.start(log_input_examples=True)
    model = Pipeline([("scale", StandardScaler()), ("fit", LogisticRegression())]).fit(frame, target)
    (logged,) = recorder.models()
    info = mlflow.models.get_model_info(logged.model_uri)
    assert [spec.name for spec in info.signature.inputs.inputs] == list(frame.columns)
    assert info.signature.inputs.is_tensor_spec() is False
    loaded = mlflow.pyfunc.load_model(logged.model_uri)
    np.testing.assert_array_equal(loaded.predict(frame), model.predict(frame))
    assert loaded.input_example.equals(frame.head(5))
    run = recorder.run()
    assert run.inputs.dataset_inputs[0].dataset.name == "frame"
    requirements = mlflow.pyfunc.get_model_dependencies(logged.model_uri)
    import sklearn

    assert f"scikit-learn=={sklearn.__version__}" in Path(requirements).read_text()


def test_settings_are_obeyed(recorder, iris):
    recorder.start(log_models=False, log_datasets=False, log_post_training_metrics=False)
    model = LogisticRegression(max_iter=200).fit(*iris)
    accuracy_bound_early(iris[1], model.predict(iris[0]))
    run = recorder.run()
    assert recorder.models() == []
    assert run.inputs.dataset_inputs == []
    assert not [key for key in run.data.metrics if key.startswith("accuracy_score")]


def test_registered_model_name(recorder, iris):
    name = f"{recorder.experiment}-model"
    recorder.start(registered_model_name=name)
    LogisticRegression(max_iter=200).fit(*iris)
    (logged,) = recorder.models()
    (version,) = recorder.client.search_model_versions(f"name = '{name}'")
    assert version.run_id == recorder.run().info.run_id
    mlflow.set_tracking_uri(recorder.store_uri)
    assert mlflow.sklearn.load_model(f"models:/{name}/1").max_iter == 200
    assert logged.status == "READY"


def test_nothing_of_ours_is_on_the_estimator(recorder, iris):
    bare = LogisticRegression(max_iter=200).fit(*iris)
    recorder.start()
    recorded = LogisticRegression(max_iter=200).fit(*iris)
    assert vars(recorded).keys() == vars(bare).keys()
    assert repr(recorded) == repr(bare)
    np.testing.assert_array_equal(recorded.coef_, bare.coef_)
    autolog.disable()


class DrawsWhenAsked(Majority):
    """As XGBoost's estimators do where random_state is a generator."""

    def __init__(self, random_state=None):
        self.random_state = random_state

    def get_params(self, deep=True):
        return {"random_state": self.random_state.randint(1000)}


def test_random_state_is_not_consumed_by_asking_for_parameters(recorder, iris):
    bare, recorded = np.random.RandomState(0), np.random.RandomState(0)
    make_pipeline(StandardScaler(), DrawsWhenAsked(bare)).fit(*iris)
    recorder.start()
    make_pipeline(StandardScaler(), DrawsWhenAsked(recorded)).fit(*iris)
    recorder.run()
    assert recorded.randint(2**30) == bare.randint(2**30)
