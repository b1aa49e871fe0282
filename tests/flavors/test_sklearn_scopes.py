"""One run per outermost fit: meta-estimators, threads, the user's own runs, read back."""

from __future__ import annotations

import threading

import joblib
import mlflow
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_iris
from sklearn.ensemble import BaggingClassifier, StackingRegressor, VotingClassifier
from sklearn.feature_selection import RFE, SelectFromModel
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier, OutputCodeClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputRegressor
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.semi_supervised import SelfTrainingClassifier
from sklearn.tree import DecisionTreeClassifier

import autolog


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


class Committee(ClassifierMixin, BaseEstimator):
    """A meta-estimator of somebody else: fits clones in threads of its own."""

    def __init__(self, estimator, size=2):
        self.estimator = estimator
        self.size = size

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.members_ = joblib.Parallel(n_jobs=2, prefer="threads")(
            joblib.delayed(clone(self.estimator).fit)(X[i :: self.size], y[i :: self.size]) for i in range(self.size)
        )
        return self

    def predict(self, X):
        return self.members_[0].predict(X)


TREE = DecisionTreeClassifier(max_depth=2)
META = [
    make_pipeline(ColumnTransformer([("a", StandardScaler(), [0, 1]), ("b", RFE(TREE), [2, 3])], n_jobs=2), TREE),
    make_pipeline(FeatureUnion([("a", StandardScaler()), ("b", SelectFromModel(TREE))], n_jobs=2), TREE),
    StackingRegressor([("a", Ridge()), ("b", Ridge(2.0))], cv=2, n_jobs=2),
    VotingClassifier([("a", TREE), ("b", GaussianNB())], n_jobs=2),
    BaggingClassifier(TREE, n_estimators=3, n_jobs=2),
    OneVsRestClassifier(TREE, n_jobs=2),
    OneVsOneClassifier(TREE, n_jobs=2),
    OutputCodeClassifier(TREE, n_jobs=2),
    CalibratedClassifierCV(TREE, cv=2, n_jobs=2),
    RFE(TREE),
    SelfTrainingClassifier(TREE),
    TransformedTargetRegressor(Ridge()),
    Committee(TREE),
]


def names(recorder) -> list[str]:
    return [run.data.tags["estimator_name"] for run in recorder.runs()]


def test_every_meta_estimator_is_one_run(recorder, iris):
    recorder.start(log_models=False)
    expected = []
    for estimator in META:
        clone(estimator).fit(*iris)
        expected.append(type(estimator).__name__)
    targets = np.stack([iris[1], iris[1] > 0], axis=1)
    MultiOutputRegressor(Ridge(), n_jobs=2).fit(iris[0], targets)
    ClassifierChain(TREE).fit(iris[0], targets > 0)
    assert names(recorder) == [*expected, "MultiOutputRegressor", "ClassifierChain"]
    assert {run.info.status for run in recorder.runs()} == {"FINISHED"}


def test_meta_estimators_in_processes_are_one_run(recorder, iris):
    recorder.start(log_models=False)
    with joblib.parallel_backend("loky", n_jobs=2):
        OneVsRestClassifier(TREE, n_jobs=2).fit(*iris)
        cross_val_score(TREE, *iris, cv=2, n_jobs=2)
    assert names(recorder) == ["OneVsRestClassifier", "DecisionTreeClassifier"]


def test_search_of_a_search_in_cross_validation_is_one_run(recorder, iris):
    recorder.start(log_models=False)
    cross_val_score(GridSearchCV(TREE, {"max_depth": [1, 2]}, cv=2), *iris, cv=2)
    assert names(recorder) == ["GridSearchCV"]


def test_concurrent_searches_keep_their_own_children(recorder, iris):
    recorder.start(log_models=False)

    def search(depth):
        GridSearchCV(DecisionTreeClassifier(max_depth=depth), {"min_samples_leaf": [1, 5]}, cv=2).fit(*iris)

    threads = [threading.Thread(target=search, args=(depth,)) for depth in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = recorder.runs()
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 3
    for parent in parents:
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert sorted(child.data.params["min_samples_leaf"] for child in children) == ["1", "5"]
        (depth,) = {child.data.params["max_depth"] for child in children}
        assert f"max_depth={depth})" in parent.data.params["estimator"]


def test_two_fits_in_one_user_run_overwrite_nothing_as_in_mlflow_they_do(recorder, iris):
    X, y = iris
    mlflow.set_tracking_uri(recorder.store_uri)
    mlflow.set_experiment(recorder.experiment)
    recorder.start(log_models=False)
    with mlflow.start_run() as active:
        first = DecisionTreeClassifier(max_depth=1).fit(X, y)
        second = DecisionTreeClassifier(max_depth=3).fit(X, y)
        values = [accuracy_score(y, model.predict(X)) for model in (first, second)]
    runs = {run.info.run_id: run for run in recorder.runs()}
    outer = runs.pop(active.info.run_id)
    (inner,) = runs.values()
    assert inner.data.tags["mlflow.parentRunId"] == active.info.run_id
    for run, depth, value in ((outer, "1", values[0]), (inner, "3", values[1])):
        assert run.data.params["max_depth"] == depth
        assert run.data.metrics["training_accuracy_score"] == value
        assert run.data.metrics["accuracy_score_X"] == value


def test_fit_transform_and_fit_predict_are_one_run_each(recorder, iris):
    recorder.start(log_models=False)
    KMeans(2, n_init=1).fit_predict(iris[0])
    KMeans(2, n_init=1).fit_transform(iris[0])
    make_pipeline(StandardScaler(), KMeans(2, n_init=1)).fit_predict(iris[0])
    assert names(recorder) == ["KMeans", "KMeans", "Pipeline"]


def test_functions_of_scikit_learn_stay_the_objects_that_they_are(recorder):
    before = accuracy_score, cross_val_score
    recorder.start()
    import sklearn.metrics
    import sklearn.model_selection

    assert sklearn.metrics.accuracy_score is before[0]
    assert sklearn.model_selection.cross_val_score is before[1]
    assert accuracy_score([0, 1], [0, 1]) == 1.0
    autolog.disable()
    assert accuracy_score([0, 1], [0, 0]) == 0.5


class Judge(BaseEstimator, ClassifierMixin):
    """An estimator of the user's own, whose fit scores another model."""

    def __init__(self, other=None):
        self.other = other

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.accuracy_ = accuracy_score(y, self.other.predict(X))
        return self

    def predict(self, X):
        return self.other.predict(X)


def test_what_a_fit_scores_is_its_own_and_no_metric_of_the_model_that_it_scores(recorder, iris):
    X, y = iris
    recorder.start(log_models=False)
    other = DecisionTreeClassifier(max_depth=1).fit(X, y)
    judge = Judge(other).fit(X, y)
    value = accuracy_score(y, other.predict(X))
    assert judge.accuracy_ == value
    runs = {run.data.tags["estimator_name"]: run.data.metrics for run in recorder.runs()}
    assert set(runs) == {"DecisionTreeClassifier", "Judge"}
    after = [name for metrics in runs.values() for name in metrics if name.startswith("accuracy_score")]
    assert after == ["accuracy_score_X"]
    assert runs["DecisionTreeClassifier"]["accuracy_score_X"] == value
