"""scikit-learn's training metrics: their values, and what they may cost."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from flavors.sklearn import passes


def training(run) -> dict[str, float]:
    return {key: value for key, value in run.data.metrics.items() if key.startswith("training_")}


def test_classifiers_metrics_are_mlflows(recorder):
    X, y = load_iris(return_X_y=True)
    weight = np.linspace(0.5, 2, len(y))
    recorder.start(log_models=False)
    model = LogisticRegression(max_iter=300).fit(X, y, sample_weight=weight)
    pred, proba, w = model.predict(X), model.predict_proba(X), {"sample_weight": weight}
    found = training(recorder.run())
    # ROC AUC of several classes takes no weights in scikit-learn, so that MLflow's has none either.
    assert found == pytest.approx(
        {
            "training_precision_score": metrics.precision_score(y, pred, average="weighted", **w),
            "training_recall_score": metrics.recall_score(y, pred, average="weighted", **w),
            "training_f1_score": metrics.f1_score(y, pred, average="weighted", **w),
            "training_accuracy_score": metrics.accuracy_score(y, pred, **w),
            "training_log_loss": metrics.log_loss(y, proba, **w),
            "training_score": model.score(X, y, **w),
        },
        rel=1e-12,
    )


def test_regressors_metrics_are_mlflows(recorder):
    X, y = load_diabetes(return_X_y=True)
    recorder.start(log_models=False)
    model = make_pipeline(StandardScaler(), Ridge()).fit(X, y)
    pred = model.predict(X)
    assert training(recorder.run()) == {
        "training_mean_squared_error": metrics.mean_squared_error(y, pred),
        "training_mean_absolute_error": metrics.mean_absolute_error(y, pred),
        "training_r2_score": metrics.r2_score(y, pred),
        "training_root_mean_squared_error": metrics.root_mean_squared_error(y, pred),
        "training_score": model.score(X, y),
    }


@pytest.mark.parametrize("positive", ["no", "yes"])
def test_pos_label_makes_binary_metrics_of_one_class(recorder, positive):
    X, y = load_breast_cancer(return_X_y=True)
    names = np.array(["no", "yes"], dtype=object)[y]
    recorder.start(log_models=False, pos_label=positive)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, names)
    found = training(recorder.run())
    pred = model.predict(X)
    assert found["training_precision_score"] == metrics.precision_score(names, pred, pos_label=positive)
    assert found["training_recall_score"] == metrics.recall_score(names, pred, pos_label=positive)
    assert found["training_f1_score"] == metrics.f1_score(names, pred, pos_label=positive)


@pytest.mark.parametrize(
    "target",
    [
        pd.Series(["a", "b", "c"] * 20, dtype="category"),
        pd.Series(["a", "b", "c"] * 20),
        pd.Series([1, 2, 3] * 20, dtype="Int64"),
        pd.Series(["a", "b", "c"] * 20, dtype=object),
        ["a", "b", "c"] * 20,
    ],
    ids=["category", "text", "Int64", "objects", "list"],
)
def test_targets_of_every_type_are_compared(recorder, target):
    X = np.repeat(np.eye(3), 20, axis=0).reshape(3, 20, 3).swapaxes(0, 1).reshape(60, 3)
    recorder.start(log_models=False)
    KNeighborsClassifier(1).fit(X, target)
    assert training(recorder.run())["training_accuracy_score"] == 1.0


def test_score_of_its_own_is_asked_for_as_it_is_neither_accuracy_nor_r2(recorder):
    X, y = load_iris(return_X_y=True)
    recorder.start(log_models=False, max_tuning_runs=0)
    search = GridSearchCV(LinearSVC(), {"C": [0.1]}, cv=2, scoring="neg_mean_absolute_error").fit(X, y)
    found = training(recorder.runs(children=False)[0])
    assert found["training_score"] == search.score(X, y) < 0
    assert found["training_accuracy_score"] > 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_which_scores_follow_from_predictions(recorder):
    X, y = load_iris(return_X_y=True)
    plain = [
        LogisticRegression(max_iter=300),
        make_pipeline(StandardScaler(), LogisticRegression()),
        KNeighborsClassifier(),
        GridSearchCV(LogisticRegression(max_iter=300), {"C": [1.0]}, cv=2),
    ]
    for estimator in plain:
        estimator.fit(X, y)
        assert passes._scores_plainly(estimator)
        assert estimator.score(X, y) == metrics.accuracy_score(y, estimator.predict(X))
    assert not passes._scores_plainly(LogisticRegressionCV(cv=2, max_iter=300))
    assert not passes._scores_plainly(GridSearchCV(Ridge(), {}, scoring="neg_mean_squared_error"))


# -- the budget -------------------------------------------------------------------------------------------------------


class Slow(ClassifierMixin, BaseEstimator):
    """Predicting takes a millisecond a row, as with a metric of the user's own among neighbours."""

    seconds = 0.001

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        type(self).asked = []
        return self

    def predict(self, X):
        type(self).asked.append(len(X))
        time.sleep(self.seconds * len(X))
        return (np.asarray(X)[:, 0] > 0).astype(int)


def test_pass_beyond_the_budget_is_made_on_a_sample_and_a_tag_says_so(recorder):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 2))
    y = (X[:, 0] > 0.5).astype(int)
    recorder.start(log_models=False)
    begun = time.perf_counter()
    model = Slow().fit(X, y)
    took = time.perf_counter() - begun
    run = recorder.run()
    rows = int(run.data.tags["autolog.training_metrics_rows"])
    assert rows in (16, 32, 64)
    assert took < 0.4  # seconds; all rows would take 20
    index = passes._sample(20_000, rows)
    assert run.data.metrics["training_accuracy_score"] == model.score(X[index], y[index])


def test_passes_are_two_at_most_as_in_mlflow_they_are_six(recorder):
    class Counting(Slow):
        seconds = 0.0

        def predict_proba(self, X):
            type(self).asked.append(len(X))
            return np.full((len(X), 2), 0.5)

    X = np.random.default_rng(0).normal(size=(5000, 2))
    recorder.start(log_models=False)
    Counting().fit(X, (X[:, 0] > 0).astype(int))
    recorder.run()
    assert [rows for rows in Counting.asked if rows == 5000] == [5000, 5000]
    assert sum(Counting.asked) < 2.2 * 5000


def test_fast_pass_over_much_data_is_made_on_all_of_it(recorder):
    X = np.random.default_rng(0).normal(size=(60_000, 2))
    y = (X[:, 0] > 0).astype(int)
    recorder.start(log_models=False)
    model = LogisticRegression().fit(X, y)
    run = recorder.run()
    assert "autolog.training_metrics_rows" not in run.data.tags
    assert run.data.metrics["training_accuracy_score"] == model.score(X, y)


def test_the_sample_is_always_the_same_and_meets_classes_in_turn():
    index = passes._sample(100_000, 4096)
    np.testing.assert_array_equal(index, passes._sample(100_000, 4096))
    assert len(set(index)) == len(index) > 4000
    assert index.min() >= 0 and index.max() < 100_000
    shares = np.bincount(index % 16) / len(index)
    assert shares.min() > 0.04 and shares.max() < 0.09
    np.testing.assert_array_equal(passes._sample(64, 64), np.arange(64))
