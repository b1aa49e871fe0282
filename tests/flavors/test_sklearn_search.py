"""Searches over parameters and repeated fits, read back."""

from __future__ import annotations

import csv
from pathlib import Path

import mlflow
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.feature_selection import RFECV
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, f1_score, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    ParameterGrid,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.model_selection._search import BaseSearchCV
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

import autolog
from autolog.run import Run


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def text_of(recorder, run, name) -> str:
    return Path(recorder.client.download_artifacts(run.info.run_id, name)).read_text()


def family(recorder):
    """The one top-level run and its children, best first."""
    runs = recorder.runs()
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 1 + len(children)
    return parent, sorted(children, key=lambda run: run.data.metrics.get("rank_test_score", 0.0))


def test_search_has_mlflows_child_runs(recorder, iris):
    X, y = iris
    recorder.start()
    grid = {"max_depth": [1, 2, 3, 4], "min_samples_leaf": [1, 20]}
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=2).fit(X, y)
    parent, children = family(recorder)
    results = search.cv_results_
    assert parent.data.params["best_max_depth"] == str(search.best_params_["max_depth"])
    assert parent.data.metrics["best_cv_score"] == search.best_score_
    order = np.argsort(results["rank_test_score"], kind="stable")[:5]
    assert len(children) == 5  # MLflow's default.
    candidates = {(child.data.params["max_depth"], child.data.params["min_samples_leaf"]): child for child in children}
    for index in order:
        child = candidates[tuple(str(value) for value in results["params"][index].values())]
        assert child.data.params == {
            **{name: str(value) for name, value in search.estimator.get_params().items()},
            **{name: str(value) for name, value in results["params"][index].items()},
        }
        columns = [name for name in results if not name.startswith(("param", "split"))]
        assert child.data.metrics == {name: float(results[name][index]) for name in columns}
        assert child.data.tags["estimator_name"] == "DecisionTreeClassifier"
        assert child.data.tags["mlflow.autologging"] == "sklearn"
        assert child.info.status == "FINISHED"
        assert child.info.start_time == parent.info.start_time
        (given,) = child.inputs.dataset_inputs
        assert given.dataset.name == "X"
    assert {"cv_results.csv", "cv_results.png"} <= set(recorder.artifacts(parent))
    rows = list(csv.DictReader(text_of(recorder, parent, "cv_results.csv").splitlines()))
    assert list(rows[0]) == list(results)
    assert [float(row["mean_test_score"]) for row in rows] == results["mean_test_score"].tolist()


def test_best_estimator_is_a_model_of_its_own(recorder, iris):
    recorder.start(max_tuning_runs=1)
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 3]}, cv=2).fit(*iris)
    parent, (child,) = family(recorder)
    by_name = {model.name: model for model in recorder.models()}
    assert set(by_name) == {"model", "best_estimator"}
    mlflow.set_tracking_uri(recorder.store_uri)
    loaded = mlflow.sklearn.load_model(by_name["best_estimator"].model_uri)
    assert type(loaded) is DecisionTreeClassifier
    np.testing.assert_array_equal(loaded.predict(iris[0]), search.predict(iris[0]))
    linked = {metric.key: (metric.value, metric.run_id) for metric in by_name["best_estimator"].metrics}
    assert linked["best_cv_score"] == (search.best_score_, parent.info.run_id)
    assert linked["mean_test_score"] == (search.best_score_, child.info.run_id)


@pytest.mark.parametrize(("asked", "made"), [(None, 4), (0, 0), (2, 2)])
def test_max_tuning_runs(recorder, iris, asked, made):
    recorder.start(max_tuning_runs=asked, log_models=False)
    GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2, 3, 4]}, cv=2).fit(*iris)
    _, children = family(recorder)
    assert len(children) == made


def test_halving_enabled_after_autolog_is_one_search_as_in_mlflow_it_is_five_runs(recorder, iris):
    recorder.start(log_models=False)
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV, HalvingRandomSearchCV

    search = HalvingGridSearchCV(
        DecisionTreeClassifier(random_state=0), {"max_depth": [1, 3]}, cv=2, min_resources=60
    ).fit(*iris)
    parent, children = family(recorder)
    assert parent.data.params["best_max_depth"] == str(search.best_params_["max_depth"])
    assert [child.data.metrics["n_resources"] for child in children] == [60.0, 60.0]
    assert "iter" in children[0].data.metrics
    other = recorder.__class__(recorder.store_uri)
    other.start(log_models=False)
    HalvingRandomSearchCV(
        DecisionTreeClassifier(random_state=0), {"max_depth": [1, 3]}, cv=2, n_candidates=2, random_state=0
    ).fit(*iris)
    parent, _ = family(other)
    assert "best_cv_score" in parent.data.metrics


class Pairs(BaseSearchCV):
    """A user's own search."""

    def __init__(self, estimator, grid, *, scoring=None, refit=True, cv=None):
        super().__init__(estimator, scoring=scoring, refit=refit, cv=cv)
        self.grid = grid

    def _run_search(self, evaluate_candidates, **context):
        evaluate_candidates(list(ParameterGrid(self.grid)))


def test_any_search_has_children_and_randomized_ones_too(recorder, iris):
    recorder.start(log_models=False)
    Pairs(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2]}, cv=2).fit(*iris)
    assert len(family(recorder)[1]) == 2
    other = recorder.__class__(recorder.store_uri)
    other.start(log_models=False)
    RandomizedSearchCV(
        DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2, 3]}, n_iter=2, cv=2, random_state=0
    ).fit(*iris)
    assert len(family(other)[1]) == 2


def test_multimetric_search_ranks_by_what_it_refits(recorder, iris):
    recorder.start(max_tuning_runs=1, log_models=False)
    scoring = {"wrong": make_scorer(accuracy_score, greater_is_better=False), "f1": "f1_macro"}
    grid = {"max_depth": [1, 3]}
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, scoring=scoring, refit="f1", cv=2).fit(*iris)
    parent, (child,) = family(recorder)
    assert child.data.params["max_depth"] == str(search.best_params_["max_depth"]) == "3"
    assert parent.data.metrics["best_cv_score"] == search.best_score_
    assert child.data.metrics["mean_test_f1"] == search.best_score_
    assert child.data.metrics["mean_test_wrong"] == search.cv_results_["mean_test_wrong"][search.best_index_]


def test_search_without_refit_is_recorded(recorder, iris):
    recorder.start()
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 3]}, refit=False, cv=2).fit(*iris)
    parent, children = family(recorder)
    assert len(children) == 2
    assert parent.data.metrics["best_cv_score"] == search.best_score_
    assert "best_estimator" not in [model.name for model in recorder.models()]


def test_search_on_a_list_of_texts_has_children_as_in_mlflow_it_has_not(recorder):
    texts = ["good film", "bad film", "good day", "bad day", "good", "bad", "so good", "so bad"]
    labels = [1, 0] * 4
    recorder.start()
    GridSearchCV(make_pipeline(CountVectorizer(), MultinomialNB()), {"multinomialnb__alpha": [0.1, 1.0]}, cv=2).fit(
        texts, labels
    )
    parent, children = family(recorder)
    assert sorted(child.data.params["multinomialnb__alpha"] for child in children) == ["0.1", "1.0"]
    assert [each.dataset.name for each in parent.inputs.dataset_inputs] == ["texts"]
    assert [each.dataset.name for each in children[0].inputs.dataset_inputs] == ["texts"]


def test_log_datasets_off_is_off_for_children_too_as_in_mlflow_it_is_not(recorder, iris):
    recorder.start(log_datasets=False, log_models=False)
    GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 3]}, cv=2).fit(*iris)
    parent, children = family(recorder)
    assert [run.inputs.dataset_inputs for run in (parent, *children)] == [[], [], []]


def test_child_runs_of_a_search_in_the_users_run_are_in_its_experiment(recorder, iris):
    mlflow.set_tracking_uri(recorder.store_uri)
    mlflow.set_experiment(recorder.experiment + "-user")
    recorder.start(log_models=False)
    with mlflow.start_run() as active:
        GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 3]}, cv=2).fit(*iris)
    assert autolog.flush(60)
    found = recorder.client.search_runs([active.info.experiment_id])
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == active.info.run_id]
    assert len(children) == 2
    (parent,) = [run for run in found if run.info.run_id == active.info.run_id]
    assert "best_cv_score" in parent.data.metrics


def test_cross_validate_has_folds_as_steps(recorder, iris):
    X, y = iris
    recorder.start()
    result = cross_validate(
        Ridge(), X, y, cv=3, scoring=["r2", "neg_mean_squared_error"], return_train_score=True, return_estimator=True
    )
    run = recorder.run()
    for name in ("test_r2", "train_r2", "test_neg_mean_squared_error", "fit_time"):
        assert recorder.history(run, name) == list(enumerate(result[name]))
    assert run.data.metrics["mean_test_r2"] == np.mean(result["test_r2"])
    assert run.data.metrics["std_test_r2"] == np.std(result["test_r2"])
    assert run.data.tags["autolog.function"] == "cross_validate"
    assert run.data.tags["autolog.cv"] == "3"
    assert run.data.params["alpha"] == "1.0"
    assert run.inputs.dataset_inputs[0].dataset.name == "X"
    value = result["estimator"][1].score(X, y)
    assert recorder.run().data.metrics["Ridge_score_X"] == value


def test_functions_bound_to_a_local_name_before_autolog_are_recorded(recorder, iris):
    from sklearn.model_selection import cross_val_score as local_function

    kept = {"accuracy": accuracy_score}
    recorder.start(log_models=False)
    scores = local_function(Ridge(), *iris, cv=2)
    (run,) = recorder.runs()
    assert recorder.history(run, "test_score") == list(enumerate(scores))
    model = LogisticRegression(max_iter=300).fit(*iris)
    predicted = model.predict(iris[0])
    value = kept["accuracy"](iris[1], predicted)
    assert recorder.runs()[-1].data.metrics["accuracy_score_unknown_dataset"] == value


def test_cross_val_score_bound_before_autolog_is_one_run_as_in_mlflow_it_is_one_per_fold(recorder, iris):
    recorder.start()
    scores = cross_val_score(DecisionTreeClassifier(random_state=0), *iris, cv=4, n_jobs=2)
    run = recorder.run()
    assert recorder.history(run, "test_score") == list(enumerate(scores))
    assert run.data.metrics["mean_test_score"] == scores.mean()


def test_metrics_of_out_of_fold_predictions_belong_to_cross_val_predict(recorder, iris):
    X, y = iris
    recorder.start()
    predicted = cross_val_predict(DecisionTreeClassifier(random_state=0), X, y, cv=2)
    value = f1_score(y, predicted, average="macro")
    run = recorder.run()
    assert run.data.tags["autolog.function"] == "cross_val_predict"
    assert run.data.metrics["f1_score_X"] == value


def test_learning_curve_steps_are_training_sizes(recorder, iris):
    recorder.start()
    sizes, train, test = learning_curve(
        DecisionTreeClassifier(random_state=0), *iris, cv=3, train_sizes=[0.5, 1.0], shuffle=True, random_state=0
    )
    run = recorder.run()
    assert recorder.history(run, "mean_test_score") == list(zip(sizes.tolist(), test.mean(axis=1), strict=True))
    assert recorder.history(run, "std_train_score") == list(zip(sizes.tolist(), train.std(axis=1), strict=True))
    rows = list(csv.DictReader(text_of(recorder, run, "learning_curve.csv").splitlines()))
    assert [float(row["split2_test_score"]) for row in rows] == test[:, 2].tolist()
    assert "learning_curve.png" in recorder.artifacts(run)


def test_validation_curve_steps_are_positions(recorder, iris):
    recorder.start()
    depths = [1, 3]
    train, test = validation_curve(
        DecisionTreeClassifier(random_state=0), *iris, param_name="max_depth", param_range=depths, cv=2
    )
    run = recorder.run()
    assert recorder.history(run, "mean_train_score") == list(enumerate(train.mean(axis=1)))
    assert recorder.history(run, "std_test_score") == list(enumerate(test.std(axis=1)))
    assert recorder.history(run, "max_depth") == [(0, 1.0), (1, 3.0)]


def test_permutation_test(recorder, iris):
    recorder.start()
    score, permuted, pvalue = permutation_test_score(
        DecisionTreeClassifier(random_state=0), *iris, cv=2, n_permutations=3, random_state=0
    )
    run = recorder.run()
    assert run.data.metrics["test_score"] == score
    assert run.data.metrics["pvalue"] == pvalue
    assert recorder.history(run, "permutation_score") == list(enumerate(permuted))


def test_feature_elimination_is_a_series_over_the_number_of_features(recorder, iris):
    recorder.start(log_models=False)
    made = RFECV(DecisionTreeRegressor(random_state=0), cv=2).fit(*iris)
    run = recorder.run()
    expected = list(zip(made.cv_results_["n_features"].tolist(), made.cv_results_["mean_test_score"], strict=True))
    assert recorder.history(run, "mean_test_score") == expected


def test_results_are_those_without_recording(recorder, iris):
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 3]}, cv=2)
    bare = clone(search).fit(*iris)
    recorder.start(log_models=False)
    recorded = clone(search).fit(*iris)
    assert vars(recorded).keys() == vars(bare).keys()
    for name in ("mean_test_score", "split1_test_score", "rank_test_score"):
        np.testing.assert_array_equal(recorded.cv_results_[name], bare.cv_results_[name])


def test_picture_of_a_search_has_the_best_first_by_what_tells_them_apart(recorder, monkeypatch):
    drawn, note = [], Run.figure

    def figure(run, path, kind, data):
        drawn.append((path, data))
        note(run, path, kind, data)

    monkeypatch.setattr(Run, "figure", figure)
    recorder.start(max_tuning_runs=0)
    grid = {"max_depth": [1, 2, 3], "criterion": ["squared_error"]}
    search = GridSearchCV(DecisionTreeRegressor(random_state=0), grid, cv=2, scoring="neg_mean_squared_error")
    search.fit(*load_iris(return_X_y=True))
    assert "cv_results.png" in recorder.artifacts(recorder.run())
    ((_, data),) = [each for each in drawn if each[0] == "cv_results.png"]
    order = np.argsort(search.cv_results_["rank_test_score"], kind="stable")
    assert data["names"] == [f"max_depth={search.cv_results_['params'][i]['max_depth']}" for i in order]
    assert data["values"] == search.cv_results_["mean_test_score"][order].tolist()
