"""scikit-learn, recorded and read back."""

from __future__ import annotations

import mlflow
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score as accuracy_bound_early


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
