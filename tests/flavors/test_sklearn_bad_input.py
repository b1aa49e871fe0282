"""scikit-learn on bad input: the training is unaffected, all else is recorded, one line says what is not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from autolog import datasets, guard


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


class Majority(ClassifierMixin, BaseEstimator):
    def __init__(self, bias=0):
        self.bias = bias

    def fit(self, X, y=None):
        self.classes_ = np.array([0, 1, 2])
        return self

    def predict(self, X):
        return np.zeros(len(X), dtype=int)


class Unpicklable(Majority):
    def fit(self, X, y=None):
        self.lock_ = threading.Lock()
        return super().fit(X, y)


class NoPredict(Majority):
    def predict(self, X):
        raise RuntimeError("not today")


class NoParams(Majority):
    def get_params(self, deep=True):
        raise RuntimeError("no parameters")


class NoProbabilities(Majority):
    def predict_proba(self, X):
        raise RuntimeError("only with probability=True")


@pytest.mark.parametrize(
    ("kind", "line", "missing"),
    [
        (Unpicklable, "take a snapshot of the model (TypeError: ", "model"),
        (NoPredict, "predict on the training data (RuntimeError: not today)", "training_accuracy_score"),
        (NoParams, "read the estimator's parameters (RuntimeError: no parameters)", "bias"),
    ],
)
def test_one_line_says_what_was_not_recorded(recorder, iris, caplog, kind, line, missing):
    recorder.start()
    with caplog.at_level(logging.WARNING, logger="autolog"):
        fitted = kind()
        assert fitted.fit(*iris) is fitted
    assert [line in record.getMessage() for record in caplog.records] == [True]
    guard.swallowed.clear()
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["estimator_name"] == kind.__name__
    assert len(run.inputs.dataset_inputs) == 1
    recorded = {*run.data.params, *run.data.metrics, *(["model"] if recorder.models() else [])}
    assert {"bias", "training_accuracy_score", "model"} - recorded == {missing}


@pytest.mark.parametrize("train", ["fit", "partial_fit"])
def test_call_that_does_not_fit_is_the_users_error_alone(recorder, iris, caplog, train):
    recorder.start()
    with caplog.at_level(logging.WARNING, logger="autolog"), pytest.raises(TypeError, match="sample_weights"):
        getattr(SGDClassifier(), train)(*iris, sample_weights=1)
    assert caplog.records == []
    run = recorder.run()
    assert run.info.status == "FAILED"
    traceback = Path(recorder.client.download_artifacts(run.info.run_id, "traceback.txt")).read_text()
    assert "sample_weights" in traceback
    assert run.data.tags["estimator_name"] == "SGDClassifier"


def test_failing_probabilities_cost_only_what_needs_them(recorder, iris):
    recorder.start(log_models=False)
    NoProbabilities().fit(*iris)
    run = recorder.run()
    assert "training_accuracy_score" in run.data.metrics
    assert "training_log_loss" not in run.data.metrics


def test_pipeline_of_ten_thousand_parameters(recorder, iris):
    class Many(Majority):
        def get_params(self, deep=True):
            return {f"parameter_{i}": i for i in range(10_000)}

    recorder.start(log_models=False)
    Many().fit(*iris)
    run = recorder.run()
    folder = recorder.client.download_artifacts(run.info.run_id, "autolog/more_params.json")
    with open(folder) as file:
        recorded = {**run.data.params, **json.load(file)}
    assert recorded == {f"parameter_{i}": str(i) for i in range(10_000)}
    (line,) = recorder.take_problems()
    assert "more than 2,000 parameters" in line


def test_parameter_of_fifty_thousand_characters_is_kept_whole_beside_the_run(recorder, iris):
    recorder.start(log_models=False)
    Majority(bias="x" * 50_000).fit(*iris)
    run = recorder.run()
    assert len(run.data.params["bias"]) == 6000  # MLflow's limit
    folder = recorder.client.download_artifacts(run.info.run_id, "autolog/long_params.json")
    assert "x" * 50_000 in open(folder).read()


def test_metrics_that_are_not_finite_are_left_out_and_the_rest_is_there(recorder):
    class Infinite(RegressorMixin, BaseEstimator):
        def fit(self, X, y):
            return self

        def predict(self, X):
            return np.full(len(X), np.inf)

    recorder.start(log_models=False)
    Infinite().fit(np.eye(4), np.arange(4.0))
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert not [key for key in run.data.metrics if key.startswith("training_") and key != "training_score"]


def test_target_missing(recorder, iris):
    recorder.start(log_models=False)
    Majority().fit(iris[0])
    KMeans(2, n_init=1).fit(iris[0])
    first, second = recorder.runs()
    assert first.data.metrics == {} and first.info.status == "FINISHED"
    assert second.data.params["n_clusters"] == "2"


def test_no_rows(recorder):
    recorder.start()
    Majority().fit(np.empty((0, 3)), np.empty(0))
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.params == {"bias": "0"}
    assert [model.status for model in recorder.models()] == ["READY"]
    with pytest.raises(ValueError, match="0 sample") as caught:
        LogisticRegression().fit(np.empty((0, 3)), np.empty(0))
    assert caught.value.__context__ is None
    assert recorder.runs()[-1].info.status == "FAILED"


def test_missing_values_and_text_columns(recorder):
    frame = pd.DataFrame({"a": [1.0, None, 3.0, 4.0] * 5, "b": ["x", "y", None, "z"] * 5, "c": [True, False] * 10})
    recorder.start()
    make_pipeline(FunctionTransformer(), Majority()).fit(frame, [0, 1, 2, 0] * 5)
    HistGradientBoostingRegressor(max_iter=2).fit(frame[["a", "c"]], np.arange(20.0))
    first, second = recorder.runs()
    assert first.data.metrics["training_accuracy_score"] == 0.5
    assert "training_r2_score" in second.data.metrics


# -- data that MLflow's autologging copies, densifies, or leaves out --------------------------------------------------


def test_sparse_data_are_never_densified_as_in_mlflow_they_are(recorder):
    """200,000 x 10,000,000 would be 16 TB."""
    X = scipy.sparse.random(2000, 10_000, density=1e-3, format="csr", random_state=0)
    X.resize(200_000, 10_000_000)
    y = np.arange(200_000) % 2
    recorder.start(log_models=False)

    class Nothing(Majority):
        def fit(self, X, y):
            return super().fit(X, y)

        def predict(self, X):
            return np.zeros(X.shape[0], dtype=int)

    Nothing().fit(X, y)
    run = recorder.run()
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "X"
    assert run.data.metrics["training_accuracy_score"] == 0.5


def test_lists_are_datasets_as_in_mlflow_they_are_not(recorder):
    texts, labels = ["good film", "bad film"] * 4, [1, 0] * 4
    from sklearn.feature_extraction.text import HashingVectorizer

    recorder.start(log_models=False)
    make_pipeline(HashingVectorizer(n_features=16), SGDClassifier()).fit(texts, labels)
    (used,) = recorder.run().inputs.dataset_inputs
    assert used.dataset.name == "texts"
    assert '"num_rows": 8' in used.dataset.profile


def test_polars_frame_is_recorded(recorder):
    polars = pytest.importorskip("polars")
    people = polars.DataFrame({"height": [1.0, 2.0, 3.0, 4.0], "age": [1, 2, 3, 4]})
    recorder.start()
    Ridge().fit(people, people["age"])
    (used,) = recorder.run().inputs.dataset_inputs
    assert used.dataset.name == "people"
    assert '"name": "height"' in used.dataset.schema


def test_data_that_agree_in_the_first_ten_thousand_values_differ_as_in_mlflow_they_do_not():
    one = np.zeros((20_000, 4))
    other = one.copy()
    other[15_000:] = 1
    assert datasets.describe(one).digest != datasets.describe(other).digest
    assert datasets.describe(one).digest == datasets.describe(one.copy()).digest


@pytest.mark.parametrize("make", [np.array, pd.DataFrame, scipy.sparse.csr_matrix], ids=lambda make: make.__name__)
def test_one_changed_value_of_a_small_dataset_changes_its_digest(make):
    values = load_iris(return_X_y=True)[0]
    changed = values.copy()
    changed[77, 2] += 1e-9
    assert datasets.describe(make(values)).digest != datasets.describe(make(changed)).digest


# -- memory -----------------------------------------------------------------------------------------------------------

FITS = """
import gc, os, signal, warnings, psutil, autolog
autolog.autolog(tracking_uri="http://127.0.0.1:9", exit_timeout=0)
warnings.simplefilter("ignore")
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from autolog import runtime
X, y = load_breast_cancer(return_X_y=True)

def fit(times):
    for _ in range(times):
        accuracy_score(y, LogisticRegression(max_iter=1).fit(X, y).predict(X))
    assert runtime.writer.handed_over(60)
    gc.collect()
    return psutil.Process().memory_info().rss

before = fit(30)
print((fit(100) - before) / 1e6)
sender = runtime.writer.snapshot()["sender_pid"]
if sender:
    os.kill(sender, signal.SIGKILL)
"""


def test_memory_of_a_hundred_fits_is_given_back(tmp_path):
    """Though not one of them can be delivered: what is recorded waits on disk."""
    env = {**os.environ, "AUTOLOG_SPOOL_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FITS], env=env, cwd=tmp_path, timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 10  # MB
