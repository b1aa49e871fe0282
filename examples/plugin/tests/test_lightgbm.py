"""The LightGBM flavor: the contract of all flavors, and what it records, read back through plain MLflow."""

from __future__ import annotations

import lightgbm
import mlflow
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV

import autolog
from autolog.testing import FlavorContract, capture

X = np.random.default_rng(0).normal(size=(200, 3))
Y = (X[:, 0] > 0).astype(int)
PARAMS = {"objective": "binary", "num_leaves": 4, "verbose": -1, "seed": 1, "num_threads": 1, "deterministic": True}


def train(*callbacks, rounds=3):
    data = lightgbm.Dataset(X[:150], Y[:150])
    held_out = lightgbm.Dataset(X[150:], Y[150:], reference=data)
    return lightgbm.train(
        PARAMS, data, rounds, valid_sets=[held_out], valid_names=["held_out"], callbacks=list(callbacks)
    )


class TestLightGBM(FlavorContract):
    flavor = "lightgbm"

    def train(self):
        return train()

    def state(self, result):
        return result.model_to_string()

    def fail(self, error):
        def raise_it(env):
            raise error

        train(raise_it)

    def train_nested(self):
        return lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(X, Y)


def test_a_training_reads_back_through_plain_mlflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOLOG_SPOOL_DIR", str(tmp_path / "spool"))
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    evals = {}
    autolog.autolog("lightgbm", tracking_uri=store, experiment="plugin")
    try:
        booster = train(lightgbm.record_evaluation(evals))
        assert autolog.flush(60)
        run_id = autolog.last_run().run_id
    finally:
        autolog.disable()
    client = mlflow.MlflowClient(tracking_uri=store)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["num_leaves"] == "4"
    assert run.data.params["num_boost_round"] == "3"
    points = client.get_metric_history(run_id, "held_out-binary_logloss")
    assert [(point.step, point.value) for point in points] == list(enumerate(evals["held_out"]["binary_logloss"]))
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["data"]
    assert {"feature_importance_split.png", "feature_importance_gain.png"} <= {
        item.path for item in client.list_artifacts(run_id)
    }
    (model,) = client.search_logged_models([run.info.experiment_id])
    mlflow.set_tracking_uri(store)
    try:
        loaded = mlflow.lightgbm.load_model(model.model_uri)
        served = mlflow.pyfunc.load_model(model.model_uri)
    finally:
        mlflow.set_tracking_uri(None)
    assert (loaded.predict(X) == booster.predict(X)).all()
    assert (served.predict(X) == booster.predict(X)).all()


def test_metrics_computed_on_predictions_belong_to_the_run():
    with capture("lightgbm", "sklearn") as seen:
        booster = train()
        area = roc_auc_score(Y, booster.predict(X))
    assert ("roc_auc_score_X", 0, area) in seen.run.metrics


def test_early_stopping_is_recorded():
    with capture("lightgbm") as seen:
        booster = train(lightgbm.early_stopping(1, min_delta=10, verbose=False), rounds=9)
    assert booster.best_iteration == 1
    assert ("best_iteration", 0, 1.0) in seen.run.metrics
    assert [step for step, _ in seen.run.history("held_out-binary_logloss")] == [0, 1]


def test_an_estimators_rounds_go_into_the_run_of_its_fit():
    with capture("lightgbm", "sklearn") as seen:
        lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(X, Y, eval_set=[(X, Y)])
    assert seen.run.tags["mlflow.autologging"] == "sklearn"
    assert seen.run.params["n_estimators"] == "2"
    assert [step for step, _ in seen.run.history("training-binary_logloss")] == [0, 1]


def test_the_rounds_of_a_searchs_candidates_are_not_mixed_into_its_run():
    with capture("lightgbm", "sklearn") as seen:
        search = GridSearchCV(lightgbm.LGBMClassifier(n_estimators=2, verbose=-1), {"num_leaves": [3, 4]}, cv=2)
        search.fit(X, Y, eval_set=[(X, Y)])
    (run,) = (run for run in seen.runs if run.parent is None)
    assert not any("binary_logloss" in name for name, _, _ in run.metrics)


@pytest.mark.parametrize("setting", ["log_models", "log_datasets"])
def test_settings_hold(setting):
    with capture("lightgbm", **{setting: False}) as seen:
        train()
    assert (seen.run.models == []) == (setting == "log_models")
    assert (seen.run.datasets == {}) == (setting == "log_datasets")
