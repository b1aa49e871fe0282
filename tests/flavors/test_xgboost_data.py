"""XGBoost: every kind of data, bad input, and the holes of other recorders that concern data."""

from __future__ import annotations

import json
import time

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import xgboost as xgb
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import accuracy_score, log_loss, mean_squared_error, r2_score

PARAMS = {"objective": "binary:logistic", "eval_metric": ["logloss", "error"], "max_depth": 2, "nthread": 1}


@pytest.fixture(scope="module")
def cancer():
    return load_breast_cancer(return_X_y=True)


def load_pyfunc(recorder, logged):
    mlflow.set_tracking_uri(recorder.store_uri)
    return mlflow.pyfunc.load_model(logged.model_uri)


class Batches(xgb.DataIter):
    def __init__(self, X, y, cache):
        self.X, self.y, self.at = X, y, 0
        super().__init__(cache_prefix=str(cache))

    def next(self, input_data):
        if self.at == 2:
            return 0
        part = slice(self.at * 100, self.at * 100 + 100)
        input_data(data=self.X[part], label=self.y[part])
        self.at += 1
        return 1

    def reset(self):
        self.at = 0


def kinds(tmp_path):
    found = {
        "array": lambda X, y: xgb.DMatrix(X, y),
        "sparse": lambda X, y: xgb.DMatrix(scipy.sparse.csr_matrix(X), y),
        "quantile": lambda X, y: xgb.QuantileDMatrix(X, y),
        "external": lambda X, y: xgb.DMatrix(Batches(X, y, tmp_path / "a")),
    }
    if hasattr(xgb, "ExtMemQuantileDMatrix"):
        found["external_quantile"] = lambda X, y: xgb.ExtMemQuantileDMatrix(Batches(X, y, tmp_path / "b"))
    return found


def test_every_matrix_has_a_signature_and_a_dataset(recorder, cancer, tmp_path):
    """MLflow's own autologging has none for quantile matrices, nor for one made before it was switched on."""
    X, y = cancer[0][:200, :5], cancer[1][:200]
    made = {name: make(X, y) for name, make in kinds(tmp_path).items()}
    recorder.start()
    for name, matrix in made.items():
        xgb.train(PARAMS, matrix, 2, evals=[(matrix, name)], verbose_eval=False)
    runs = recorder.runs()
    assert len(runs) == len(made)
    for run, logged, name in zip(runs, recorder.models(), made, strict=True):
        train = next(item.dataset for item in run.inputs.dataset_inputs if item.tags[0].value == "train")
        assert json.loads(train.profile)["features_shape"] == [200, 5]
        assert len(recorder.history(run, f"{name}-logloss")) == 2
        served = load_pyfunc(recorder, logged)
        assert len(served.metadata.signature.inputs) == 5
        assert served.predict(X).shape == (200,)


@pytest.mark.parametrize("kind", ["array", "sparse", "quantile"])
def test_digest_covers_features(cancer, tmp_path, kind):
    from flavors.xgboost.matrices import describe

    X, y = cancer
    make = kinds(tmp_path)[kind]
    other = X.copy()
    # Of a quantile matrix a sample of the cuts is looked at: whether one value moves one of these depends on XGBoost.
    other[0 if kind != "quantile" else slice(None), 0] += 1.0
    digests = [describe(make(data, y), "x").digest for data in (X, X.copy(), other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("rows", [100, 200_001])
def test_digest_of_the_same_matrix_follows_what_can_be_changed_in_it(rows):
    from flavors.xgboost.matrices import describe

    matrix = xgb.DMatrix(np.arange(rows, dtype="f4").reshape(-1, 1), np.zeros(rows))
    first = describe(matrix, "x").digest
    assert describe(matrix, "x").digest == first
    matrix.set_label(np.ones(rows))
    relabelled = describe(matrix, "x").digest
    matrix.set_weight(np.full(rows, 0.5))
    weighted = describe(matrix, "x").digest
    matrix.feature_names = ["other"]
    assert len({first, relabelled, weighted, describe(matrix, "x").digest}) == 4


def test_digest_does_not_cost_more_for_more_rows():
    from flavors.xgboost.matrices import _contents, describe

    def took(rows):
        matrix = xgb.DMatrix(np.zeros((rows, 20), dtype="f4"), np.zeros(rows))
        best = 1.0
        for _ in range(9):
            _contents.clear()
            begun = time.thread_time()
            describe(matrix, "x")
            best = min(best, time.thread_time() - begun)
        return best

    assert took(500_000) < 20 * took(5_000)


def test_polars_is_recorded_as_pandas_is(recorder):
    X, y = load_iris(return_X_y=True, as_frame=True)
    recorder.start()
    model = xgb.XGBClassifier(n_estimators=2, n_jobs=1).fit(pl.from_pandas(X), pl.from_pandas(y))
    run = recorder.run()
    (logged,) = recorder.models()
    assert mlflow.models.get_model_info(logged.model_uri).signature.inputs.input_names() == list(X.columns)
    assert run.data.metrics["training_accuracy_score"] == accuracy_score(y, model.predict(X))


# -- training metrics, importances ------------------------------------------------------------------------------------


def test_estimators_have_training_metrics(recorder, cancer):
    """MLflow's own autologging has none for XGBoost's estimators, and nothing at all without eval_set."""
    X, y = cancer
    weight = np.linspace(0.5, 2.0, len(y))
    recorder.start()
    classifier = xgb.XGBClassifier(n_estimators=3, n_jobs=1).fit(X, y, sample_weight=weight)
    regressor = xgb.XGBRegressor(n_estimators=3, n_jobs=1).fit(X, X[:, 0])
    xgb.XGBRanker(n_estimators=2, n_jobs=1).fit(X, y, qid=np.arange(len(y)) // 10)
    predicted, proba, regressed = classifier.predict(X), classifier.predict_proba(X), regressor.predict(X)
    runs = recorder.runs()
    found = runs[0].data.metrics
    assert found["training_accuracy_score"] == accuracy_score(y, predicted, sample_weight=weight)
    assert found["training_log_loss"] == pytest.approx(log_loss(y, proba, sample_weight=weight), rel=1e-12)
    assert found["training_roc_auc"] > 0.99
    assert runs[1].data.metrics["training_r2_score"] == r2_score(X[:, 0], regressed)
    assert runs[1].data.metrics["training_mean_squared_error"] == mean_squared_error(X[:, 0], regressed)
    assert not [name for name in runs[2].data.metrics if name.startswith("training_")]
    logged = recorder.models()[0]
    linked = {metric.key: (metric.value, metric.dataset_name) for metric in logged.metrics}
    assert linked["training_accuracy_score"] == (found["training_accuracy_score"], "X")


def test_training_metrics_are_of_the_data_as_it_was(recorder, cancer):
    X, y = cancer[0].copy(), cancer[1].copy()
    recorder.start()
    model = xgb.XGBClassifier(n_estimators=3, n_jobs=1).fit(X, y)
    expected = accuracy_score(y, model.predict(X))
    X[:], y[:] = 0.0, 0
    assert recorder.run().data.metrics["training_accuracy_score"] == expected


def test_importances_of_chosen_types_with_pictures(recorder, cancer):
    X, y = cancer
    recorder.start(importance_types=["weight", "total_gain"])
    booster = xgb.train(PARAMS, xgb.DMatrix(X, y), 3)
    xgb.train(
        {"booster": "gblinear", "nthread": 1, "objective": "multi:softprob", "num_class": 2}, xgb.DMatrix(X, y), 2
    )
    tree, linear = recorder.runs()
    mlflow.set_tracking_uri(recorder.store_uri)
    for kind in ("weight", "total_gain"):
        text = mlflow.artifacts.load_text(f"{tree.info.artifact_uri}/feature_importance_{kind}.json")
        assert json.loads(text) == booster.get_score(importance_type=kind)
        assert f"feature_importance_{kind}.png" in recorder.artifacts(tree)
    assert set(recorder.artifacts(linear)) >= {"feature_importance_weight.json", "feature_importance_weight.png"}
    assert "tree_count" not in linear.data.metrics


# -- bad input --------------------------------------------------------------------------------------------------------


def test_users_mistakes_raise_what_they_raise_without_us(recorder, cancer):
    X, y = cancer
    matrix = xgb.DMatrix(X, y)
    broken = np.where(np.arange(len(y)) == 3, np.nan, y)

    def mistakes():
        said = []
        for call in (
            lambda: xgb.train(PARAMS, None, 2),
            lambda: xgb.train(PARAMS, xgb.DMatrix(None), 2),
            lambda: xgb.train(PARAMS, xgb.DMatrix(X, broken), 2),
            lambda: xgb.train(PARAMS, matrix, 2, evals=[(X, "x")]),
            lambda: xgb.train(PARAMS, matrix, 2, evals=[(matrix, "a-b")]),
            lambda: xgb.train(PARAMS, matrix, 2, callbacks=3),
            lambda: xgb.train({"objective": "no:such"}, matrix, 2),
            lambda: xgb.train(PARAMS),
            lambda: xgb.XGBClassifier(n_estimators=2, n_jobs=1).fit(X, broken),
            lambda: xgb.XGBClassifier(n_estimators=2, n_jobs=1).fit(None, None),
        ):
            with pytest.raises(Exception) as raised:
                call()
            said.append((type(raised.value), str(raised.value).partition("Stack trace")[0]))
        return said

    bare = mistakes()
    recorder.start()
    assert [(kind, text.split("] ")[-1]) for kind, text in mistakes()] == [
        (kind, text.split("] ")[-1]) for kind, text in bare
    ]
    assert {run.info.status for run in recorder.runs()} == {"FAILED"}


def test_empty_evals_and_no_rounds(recorder, cancer):
    matrix = xgb.DMatrix(*cancer)
    recorder.start()
    xgb.train(PARAMS, matrix, 2, evals=[])
    xgb.train(PARAMS, matrix, 0, evals=[(matrix, "train")])
    assert [run.info.status for run in recorder.runs()] == ["FINISHED"] * 2
    assert [model.status for model in recorder.models()] == ["READY"] * 2


def test_names_that_the_store_does_not_take(recorder):
    X = np.random.RandomState(0).rand(40, 3)
    y, group = np.arange(40) % 2, [20, 20]
    matrix = xgb.DMatrix(X, y, group=group)
    recorder.start()
    result = {}
    params = {"objective": "rank:ndcg", "eval_metric": ["ndcg@2", "map@3"], "nthread": 1}
    xgb.train(params, matrix, 2, evals=[(matrix, "검증|a")], evals_result=result, verbose_eval=False)
    run = recorder.run()
    assert recorder.history(run, "검증_a-ndcg_at_2") == list(enumerate(result["검증|a"]["ndcg@2"]))
    assert len(recorder.history(run, "검증_a-map_at_3")) == 2


def test_five_thousand_features(recorder):
    X = np.random.RandomState(0).rand(60, 5000)
    frame = pd.DataFrame(X, columns=[f"특성 {i} " + "x" * 40 for i in range(5000)])
    recorder.start(importance_types=["weight", "gain"])
    xgb.XGBRegressor(n_estimators=20, max_depth=3, n_jobs=1).fit(frame, X[:, :50].sum(axis=1))
    run = recorder.run()
    (logged,) = recorder.models()
    assert (run.info.status, logged.status) == ("FINISHED", "READY")
    assert "feature_importance_gain.png" in recorder.artifacts(run)


# -- length -----------------------------------------------------------------------------------------------------------


def test_ten_thousand_rounds_are_exact_and_memory_is_bounded(recorder):
    import tracemalloc

    matrix = xgb.DMatrix(np.arange(20.0).reshape(10, 2), np.arange(10.0) % 2)
    recorder.start(log_models=False)
    result = {}
    tracemalloc.start()
    xgb.train(
        {"max_depth": 1, "nthread": 1, "eta": 0.01},
        matrix,
        10_000,
        evals=[(matrix, "train")],
        evals_result=result,
        verbose_eval=False,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert recorder.history(recorder.run(), "train-rmse") == list(enumerate(result["train"]["rmse"]))
    assert peak < 20_000_000


def test_evals_result_is_the_users_from_the_end_on(recorder, cancer):
    matrix = xgb.DMatrix(*cancer)
    recorder.start()
    result = {}
    xgb.train(PARAMS, matrix, 5, evals=[(matrix, "train")], evals_result=result, verbose_eval=False)
    kept = list(result["train"]["logloss"])
    result["train"]["logloss"].clear()
    assert recorder.history(recorder.run(), "train-logloss") == list(enumerate(kept))
