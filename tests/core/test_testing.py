"""autolog.testing: what a capture keeps, and the contract, on flavors of our own and on flavors that break it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import autolog
from autolog import guard, runtime
from autolog.testing import FlavorContract, capture

xgb = pytest.importorskip("xgboost")
TrainingCallback = xgb.callback.TrainingCallback
X = np.random.default_rng(0).normal(size=(60, 3))
Y = (X[:, 0] > 0).astype(int)
PARAMS = {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "seed": 1}


def matrix() -> xgb.DMatrix:
    return xgb.DMatrix(X, Y)


class TestXGBoost(FlavorContract):
    flavor = "xgboost"

    def train(self):
        data = matrix()
        return xgb.train(PARAMS, data, 3, evals=[(data, "train")])

    def state(self, result):
        return bytes(result.save_raw())

    def fail(self, error):
        class Raise(TrainingCallback):
            def after_iteration(self, model, epoch, evals_log):
                raise error

        xgb.train(PARAMS, matrix(), 3, callbacks=[Raise()])

    def train_nested(self):
        return xgb.XGBClassifier(n_estimators=2, n_jobs=1).fit(X, Y)


class TestSklearn(FlavorContract):
    flavor = "sklearn"

    def train(self):
        return make_pipeline(StandardScaler(), LogisticRegression(random_state=0)).fit(X, Y)

    def state(self, result):
        return result[-1].coef_.tobytes() + result.predict_proba(X).tobytes()

    def fail(self, error):
        class Raise(LogisticRegression):
            def fit(self, X, y):
                raise error

        Raise().fit(X, Y)

    def train_nested(self):
        return GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(X, Y)


# -- capture ---------------------------------------------------------------------------------------------------------


def test_a_capture_has_what_the_training_itself_says():
    data, evals_result = matrix(), {}
    with capture("xgboost", registered_model_name="m", extra_tags={"team": "a"}) as seen:
        xgb.train(PARAMS, data, 3, evals=[(data, "train")], evals_result=evals_result, verbose_eval=False)
    run = seen.run
    assert run.params["max_depth"] == "2"
    assert run.history("train-logloss") == list(enumerate(evals_result["train"]["logloss"]))
    assert run.latest["train-logloss"] == evals_result["train"]["logloss"][-1]
    assert run.tags["team"] == "a"
    assert ("data", "train") in run.datasets
    (model,) = [model for model in run.models if model.name == "model"]
    assert (model.status, model.step, model.register_as) == ("READY", 2, "m")
    assert ("train-logloss", 2, evals_result["train"]["logloss"][2]) in model.metrics
    assert xgb.Booster(model_file=bytearray(model.files["model.ubj"])).num_boosted_rounds() == 3


def test_a_capture_has_metrics_and_pictures_that_the_sender_would_compute():
    with capture("sklearn") as seen:
        fitted = LogisticRegression().fit(X, Y)
    assert seen.run.latest["training_accuracy_score"] == pytest.approx(fitted.score(X, Y))
    assert any(path.endswith(".png") for path in seen.run.figures)


def test_a_capture_can_be_read_while_it_goes_on():
    with capture("sklearn") as seen:
        assert seen.runs == []
        LogisticRegression().fit(X, Y)
        assert seen.run.status == "FINISHED"
        LogisticRegression().fit(X, Y)
        assert len(seen.runs) == 2
        with pytest.raises(AssertionError, match="2 runs"):
            _ = seen.run


def test_a_capture_reaches_no_store_and_leaves_settings_as_they_were():
    writer, config = runtime.writer, runtime.config
    with capture("sklearn", tracking_uri="http://127.0.0.1:9") as seen:
        LogisticRegression().fit(X, Y)
        assert autolog.flush(10)
        assert autolog.status()["writer"]["sender_pid"] is None
    assert len(seen.runs) == 1
    assert (runtime.writer, runtime.config, runtime.enabled) == (writer, config, False)


def test_a_capture_inside_another_is_refused():
    with capture("sklearn"), pytest.raises(RuntimeError, match="switched on already"), capture("sklearn"):
        pass


# -- the contract can fail -------------------------------------------------------------------------------------------


def broken(case, name, **more):
    """Run one test of the contract, which must fail; return what it says."""
    case.setup_method()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AssertionError) as failed:
            getattr(case, name)(**more)
    autolog.disable()
    guard.reset()
    return str(failed.value)


def test_the_contract_sees_a_flavor_that_leaves_a_patch(monkeypatch):
    from flavors.xgboost import XGBoostFlavor

    original = xgb.train
    monkeypatch.setattr(XGBoostFlavor, "unpatch", lambda self: setattr(self, "patched", False))
    try:
        broken(TestXGBoost(), "test_unpatching_restores_everything")
    finally:
        monkeypatch.undo()
        from autolog import registry

        registry.load_flavor("xgboost").unpatch()
    assert xgb.train is original


def test_the_contract_sees_a_hook_that_draws_from_the_global_random_state(monkeypatch):
    from flavors.xgboost import params

    of_booster = params.of_booster
    monkeypatch.setattr(params, "of_booster", lambda given: np.random.random() and of_booster(given))
    broken(TestXGBoost(), "test_result_random_states_and_output_are_the_same", capfd=_Silent())


def test_the_contract_sees_a_secret(monkeypatch):
    from autolog import redaction

    monkeypatch.setattr(redaction, "clean", lambda text: text)
    broken(TestXGBoost(), "test_secrets_are_not_recorded")


def test_the_contract_sees_a_run_that_is_not_ended(monkeypatch):
    from autolog.run import Run

    monkeypatch.setattr(Run, "end", lambda *args, **kwargs: None)
    broken(TestXGBoost(), "test_one_training_is_one_complete_run")


class _Silent:
    """Stands for capfd where stdout does not matter."""

    out = ""

    def readouterr(self):
        return self
