"""scikit-learn: what the user has is after a recorded fit what it is after a bare one, bit for bit."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_iris
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import autolog


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def outcome(estimator, X, y):
    """Everything that a bare and a recorded training must have in common."""
    random.seed(1)
    np.random.seed(1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fitted = clone(estimator).fit(X, y)
    state = np.random.get_state(legacy=False)
    return {
        "attributes": list(vars(fitted)),
        "repr": repr(fitted),
        # Timings of a search differ from run to run.
        "pickle": pickle.dumps(fitted) if not isinstance(fitted, GridSearchCV) else None,
        "random": (state["state"]["key"].tolist(), state["state"]["pos"], random.getstate()),
        "warnings": [(str(each.message), each.category) for each in seen],
    }


class Impolite(ClassifierMixin, BaseEstimator):
    """Predicting draws from every random state, keeps the data, warns."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        warnings.warn("predicting is risky", UserWarning, stacklevel=1)
        self.last_ = X
        random.random()
        return np.random.choice(self.classes_, size=len(X))


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(max_iter=5),  # Does not converge, and says so.
        RandomForestClassifier(n_estimators=3),
        HistGradientBoostingClassifier(max_iter=3),
        KNeighborsClassifier(),
        KMeans(2, n_init=1),
        DummyClassifier(strategy="stratified"),
        make_pipeline(StandardScaler(), SGDClassifier(max_iter=5)),
        GridSearchCV(LogisticRegression(max_iter=200), {"C": [0.1, 1.0]}, cv=2),
        Impolite(),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_recorded_fit_leaves_what_a_bare_one_leaves(recorder, iris, estimator):
    bare = outcome(estimator, *iris)
    recorder.start()
    recorded = outcome(estimator, *iris)
    run = recorder.runs(children=False)[0]
    assert run.info.status == "FINISHED"
    assert recorded == bare


@pytest.mark.parametrize("generator", [np.random.RandomState, np.random.default_rng])
def test_generators_that_an_estimator_holds_are_as_after_a_bare_fit(recorder, iris, generator):
    class Drawing(Impolite):
        def __init__(self, rng=None):
            self.rng = rng

        def predict(self, X):
            return self.rng.choice(self.classes_, size=len(X))

    bare, recorded = generator(0), generator(0)
    Drawing(bare).fit(*iris)
    recorder.start()
    Drawing(recorded).fit(*iris)
    recorder.run()
    assert recorded.random() == bare.random() if hasattr(bare, "random") else True
    assert recorded.normal() == bare.normal()


def test_the_users_own_warning_still_comes_after_ours_was_kept_back(recorder, iris, recwarn):
    """Python shows a warning once for each place; what we provoke must not use that up."""
    recorder.start()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        model = Impolite().fit(*iris)
        assert [str(each.message) for each in seen] == []
        model.predict(iris[0])
        model.predict(iris[0])
        assert [str(each.message) for each in seen] == ["predicting is risky"]
    recorder.run()


def test_no_attribute_of_mlflow_travels_with_the_model(recorder, iris):
    """MLflow's autologging writes _mlflow_run_id on the estimator, which is pickled and keeps logging elsewhere."""
    recorder.start()
    model = LogisticRegression(max_iter=200).fit(*iris)
    again = pickle.loads(pickle.dumps(model))
    assert not [name for name in vars(again) if "mlflow" in name or "autolog" in name]
    first = recorder.run().data.metrics
    again.score(*iris)
    assert recorder.run().data.metrics == first


def test_the_data_are_neither_copied_nor_changed(recorder, iris):
    """MLflow's autologging deep-copies X and y before each fit."""

    class Watched(np.ndarray):
        copies = 0

        def __deepcopy__(self, memo):
            type(self).copies += 1
            return np.array(self)

    X = iris[0].copy().view(Watched)
    before = X.tobytes()
    recorder.start()
    Ridge().fit(X, iris[1])
    recorder.run()
    assert Watched.copies == 0
    assert X.tobytes() == before


def test_disabling_leaves_no_trace(recorder, iris):
    recorder.start()
    model = LogisticRegression(max_iter=200).fit(*iris)
    recorder.run()
    autolog.disable()
    assert b"autolog" not in pickle.dumps(model)
    assert type(model).fit.__module__.startswith("sklearn")
    model.fit(*iris)
    recorder.run()


CHECKS = """
import inspect, os, signal, sys, warnings
import autolog
autolog.autolog(tracking_uri="http://127.0.0.1:9", exit_timeout=0)
warnings.simplefilter("ignore")
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import check_estimator
for estimator in (LogisticRegression(), DecisionTreeRegressor(), KNeighborsClassifier()):
    if "on_fail" not in inspect.signature(check_estimator).parameters:  # Before scikit-learn 1.6 the first one raises.
        check_estimator(estimator)
        continue
    done = check_estimator(estimator, on_fail=None)
    failed = [(each["check_name"], each["exception"]) for each in done if each["status"] == "failed"]
    assert len(done) > 40 and not failed, failed
from autolog import runtime
sender = runtime.writer.snapshot()["sender_pid"]
if sender:
    os.kill(sender, signal.SIGKILL)
"""


def test_check_estimator_passes_under_autologging(tmp_path):
    """Hundreds of fits, of data of every kind. They are noted, not delivered: the store is not looked at."""
    env = {**os.environ, "AUTOLOG_SPOOL_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", CHECKS], check=True, env=env, cwd=tmp_path, timeout=300)
    assert list(tmp_path.glob("*/spool.db"))
