"""scikit-learn's own callbacks: iterations as steps, checkpoints, and nothing left on what the user has."""

from __future__ import annotations

import pickle

import mlflow
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from autolog import Checkpoints
from flavors.sklearn import iterations

pytest.importorskip("sklearn.callback")


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return X, np.array(["setosa", "versicolor", "virginica"])[y]


class Counting:
    """A user's callback."""

    def __init__(self):
        self.ended = []

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        self.ended.append((context.task_name, context.task_id, fitted_estimator is not None))


def test_checkpoints_after_iterations_have_their_loss_and_load(recorder, iris):
    X, y = iris
    recorder.start(checkpoints=Checkpoints(every="3 steps", keep_last=None))
    model = LogisticRegression(max_iter=500).fit(X, y)
    run = recorder.run()
    models = {logged.name: logged for logged in recorder.models()}
    last = models.pop("model")
    taken = sorted(models.values(), key=lambda logged: int(logged.name.rpartition("-")[2]))
    done = int(model.n_iter_[0])
    assert last.status == "READY"
    assert [logged.name for logged in taken] == [f"checkpoint-{step}" for step in range(2, done, 3)]
    history = dict(recorder.history(run, "iteration_log_loss"))
    mlflow.set_tracking_uri(recorder.store_uri)
    for logged in (taken[0], taken[-1]):
        step = int(logged.name.rpartition("-")[2])
        loaded = mlflow.sklearn.load_model(logged.model_uri)
        assert history[step] == pytest.approx(log_loss(y, loaded.predict_proba(X)), rel=1e-12)
        assert {metric.key: metric.value for metric in logged.metrics} == {"iteration_log_loss": history[step]}
    assert history[2] > history[max(history)]


def test_large_fit_has_a_curve_of_its_loss(recorder, iris, monkeypatch):
    monkeypatch.setattr(iterations, "LARGE", 600)
    monkeypatch.setattr(iterations, "SHARE", 1e9)
    monkeypatch.setattr(iterations, "ROWS", 50)
    X, y = iris
    recorder.start(log_models=False)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    run = recorder.run()
    assert run.data.tags["autolog.iteration_log_loss_rows"] == "50"
    history = recorder.history(run, "iteration_log_loss")
    assert [step for step, _ in history] == list(range(int(pipeline[-1].n_iter_[0])))
    index = np.linspace(0, 149, 50).astype(int)
    assert history[-1][1] == pytest.approx(log_loss(y[index], pipeline.predict_proba(X[index])), rel=1e-9)


def test_small_fit_pays_nothing(recorder, iris):
    recorder.start(log_models=False)
    LogisticRegression(max_iter=200).fit(*iris)
    assert "iteration_log_loss" not in recorder.run().data.metrics


def test_checkpoint_of_a_pipeline_is_a_pipeline(recorder, iris):
    X, y = iris
    recorder.start(checkpoints=Checkpoints(every="5 steps"))
    make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    first = next(logged for logged in recorder.models() if logged.name.startswith("checkpoint-"))
    mlflow.set_tracking_uri(recorder.store_uri)
    loaded = mlflow.sklearn.load_model(first.model_uri)
    assert [name for name, _ in loaded.steps] == ["standardscaler", "logisticregression"]
    assert (loaded.predict(X) == y).mean() > 0.8


@pytest.mark.parametrize("own", [False, True], ids=["none", "the user's"])
@pytest.mark.parametrize("kind", ["alone", "pipeline", "search", "fails", "other solver"])
def test_the_users_callbacks_are_as_after_a_bare_fit(recorder, iris, own, kind):
    def train():
        tuned = LogisticRegression(max_iter=30, solver="newton-cg" if kind == "other solver" else "lbfgs")
        mine = [Counting()]
        if own and kind != "other solver":
            tuned.set_callbacks(*mine)
        before = vars(tuned).get("_skl_callbacks")
        whole = {"pipeline": make_pipeline(tuned), "search": GridSearchCV(tuned, {"C": [1.0]}, cv=2)}.get(kind, tuned)
        X, y = iris
        if kind == "fails":
            with pytest.raises(ValueError, match="NaN"):
                whole.fit(X * np.nan, y)
        else:
            whole.fit(X, y)
        assert vars(tuned).get("_skl_callbacks") is before
        assert hasattr(clone(tuned), "_skl_callbacks") is (own and kind != "other solver")
        return mine[0].ended, list(vars(tuned)), pickle.dumps(vars(tuned).get("coef_"))

    bare = train()
    recorder.start(checkpoints=Checkpoints(every="4 steps"), max_tuning_runs=0)
    assert train() == bare
    recorder.runs()
