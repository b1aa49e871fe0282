"""Trainings that go on from call to call, and what estimators say per iteration, read back."""

from __future__ import annotations

import gc

import mlflow
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.datasets import load_iris
from sklearn.decomposition import IncrementalPCA
from sklearn.ensemble import (
    AdaBoostClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.metrics import accuracy_score, mean_squared_error
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import learning_curve
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import autolog
from autolog import Checkpoints


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


def batches(X, y, size=50):
    order = np.random.default_rng(0).permutation(len(X))
    for start in range(0, len(X), size):
        rows = order[start : start + size]
        yield X[rows], y[rows]


def test_partial_fit_loop_is_one_run_with_a_step_per_call(recorder, iris):
    X, y = iris
    recorder.start()
    model, expected = SGDClassifier(random_state=0), []
    for X_batch, y_batch in batches(X, y):
        model.partial_fit(X_batch, y_batch, classes=[0, 1, 2])
        expected.append((y_batch == model.predict(X_batch)).mean())
    assert recorder.run().info.status == "RUNNING"
    autolog.disable()
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert recorder.history(run, "training_accuracy_score") == list(enumerate(expected))
    assert run.data.params["alpha"] == "0.0001"
    assert run.data.tags["estimator_name"] == "SGDClassifier"
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["X_batch"]
    (logged,) = recorder.models()
    assert logged.name == "model"
    assert run.outputs.model_outputs[0].step == 2
    mlflow.set_tracking_uri(recorder.store_uri)
    np.testing.assert_array_equal(mlflow.sklearn.load_model(logged.model_uri).predict(X), model.predict(X))
    assert mlflow.models.get_model_info(logged.model_uri).signature is not None
    assert {metric.key: (metric.step, metric.value) for metric in logged.metrics} == {
        "training_accuracy_score": (2, expected[2]),
        "n_iter": (2, 1.0),
    }


def test_partial_fit_run_ends_with_its_estimator_whose_model_is_saved(recorder, iris):
    X, y = iris
    recorder.start()
    model = SGDRegressor(random_state=0)
    model.partial_fit(X, y)
    model.partial_fit(X, y)
    predicted = model.predict(X)
    del model
    gc.collect()
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert recorder.history(run, "training_mean_squared_error")[1] == (1, mean_squared_error(y, predicted))
    (logged,) = recorder.models()
    mlflow.set_tracking_uri(recorder.store_uri)
    np.testing.assert_array_equal(mlflow.sklearn.load_model(logged.model_uri).predict(X), predicted)


def test_two_partial_fit_loops_in_turn_are_two_runs(recorder, iris):
    recorder.start(log_models=False)
    one, two = GaussianNB(), SGDClassifier(random_state=0)
    for X_batch, y_batch in batches(*iris):
        one.partial_fit(X_batch, y_batch, classes=[0, 1, 2])
        two.partial_fit(X_batch, y_batch, classes=[0, 1, 2])
    autolog.disable()
    runs = recorder.runs()
    assert sorted(run.data.tags["estimator_name"] for run in runs) == ["GaussianNB", "SGDClassifier"]
    assert [len(recorder.history(run, "training_accuracy_score")) for run in runs] == [3, 3]


def test_fit_ends_the_run_of_partial_fit_and_begins_its_own(recorder, iris):
    recorder.start(log_models=False)
    model = GaussianNB()
    model.partial_fit(*iris, classes=[0, 1, 2])
    model.fit(*iris)
    first, second = recorder.runs()
    assert first.data.tags["autolog.function"] == "partial_fit"
    assert "autolog.function" not in second.data.tags
    assert (first.info.status, second.info.status) == ("FINISHED", "FINISHED")


def test_partial_fit_that_raises(recorder, iris):
    X, y = iris
    recorder.start(log_models=False)
    with pytest.raises(ValueError, match="classes must be passed"):
        SGDClassifier().partial_fit(X, y)
    run = recorder.run()
    assert run.info.status == "FAILED"
    assert "traceback.txt" in recorder.artifacts(run)


def test_partial_fit_that_raises_and_succeeds_again_is_one_run(recorder, iris):
    X, y = iris
    recorder.start(log_models=False)
    model = GaussianNB()
    model.partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :2], y)
    model.partial_fit(X, y)
    autolog.disable()
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert len(recorder.history(run, "training_accuracy_score")) == 2


def test_partial_fit_that_raised_last_is_failed(recorder, iris):
    X, y = iris
    recorder.start(log_models=False)
    model = GaussianNB()
    model.partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :2], y)
    autolog.disable()
    run = recorder.run()
    assert run.info.status == "FAILED"
    assert "traceback.txt" in recorder.artifacts(run)


def test_validation_metrics_between_calls_are_a_series(recorder, iris):
    X, y = iris
    recorder.start(log_models=False)
    model, expected = GaussianNB(), []
    for X_batch, y_batch in batches(X, y):
        model.partial_fit(X_batch, y_batch, classes=[0, 1, 2])
        expected.append(accuracy_score(y, model.predict(X)))
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "accuracy_score_X") == list(enumerate(expected))
    assert [key for key in run.data.metrics if key.startswith("accuracy_score")] == ["accuracy_score_X"]


def test_partial_fit_in_the_users_run_ends_with_it(recorder, iris):
    mlflow.set_tracking_uri(recorder.store_uri)
    mlflow.set_experiment(recorder.experiment)
    recorder.start()
    model = GaussianNB()
    with mlflow.start_run() as active:
        model.partial_fit(*iris, classes=[0, 1, 2])
    run = recorder.run()
    assert run.info.run_id == active.info.run_id
    assert run.info.status == "FINISHED"
    assert [logged.name for logged in recorder.models()] == ["model"]


def test_checkpoints_of_partial_fit(recorder, iris):
    X, y = iris
    recorder.start(checkpoints=Checkpoints(every="1 step", keep_last=2, keep_best=0))
    model, coefficients = SGDClassifier(random_state=0), []
    for X_batch, y_batch in batches(X, y):
        model.partial_fit(X_batch, y_batch, classes=[0, 1, 2])
        coefficients.append(model.coef_.copy())
    autolog.disable()
    run = recorder.run()
    logged = {each.name: each for each in recorder.models()}
    assert set(logged) == {"checkpoint-1", "checkpoint-2", "model"}
    mlflow.set_tracking_uri(recorder.store_uri)
    for step in (1, 2):
        loaded = mlflow.sklearn.load_model(logged[f"checkpoint-{step}"].model_uri)
        np.testing.assert_array_equal(loaded.coef_, coefficients[step])
        assert {metric.step for metric in logged[f"checkpoint-{step}"].metrics} == {step}
    assert sorted(output.step for output in run.outputs.model_outputs)[-1] == 2


def test_clustering_by_partial_fit_has_its_inertia(recorder, iris):
    recorder.start(log_models=False)
    model, expected = MiniBatchKMeans(n_clusters=3, random_state=0, n_init=1), []
    for X_batch, _ in batches(*iris):
        model.partial_fit(X_batch)
        expected.append(model.inertia_)
    autolog.disable()
    assert recorder.history(recorder.run(), "inertia") == list(enumerate(expected))


def test_partial_fit_inside_others_opens_no_run(recorder, iris):
    recorder.start(log_models=False)
    StandardScaler().partial_fit(iris[0])
    IncrementalPCA(n_components=2, batch_size=50).fit(iris[0])
    assert recorder.runs() == []
    learning_curve(GaussianNB(), *iris, cv=2, train_sizes=[0.5], exploit_incremental_learning=True, shuffle=True)
    assert recorder.run().data.tags["autolog.function"] == "learning_curve"


def test_partial_fit_is_the_same_without_recording(recorder, iris):
    def train():
        model = SGDClassifier(random_state=np.random.RandomState(0))
        for X_batch, y_batch in batches(*iris):
            model.partial_fit(X_batch, y_batch, classes=[0, 1, 2])
        return model

    bare = train()
    recorder.start()
    recorded = train()
    np.testing.assert_array_equal(recorded.coef_, bare.coef_)
    assert vars(recorded).keys() == vars(bare).keys()
    assert recorded.random_state.randint(2**30) == bare.random_state.randint(2**30)


def test_warm_start_loop_is_one_run_with_a_step_per_fit(recorder, iris):
    X, y = iris
    recorder.start()
    model, expected = RandomForestClassifier(2, warm_start=True, max_depth=1, random_state=0), []
    for n_estimators in (2, 4, 6):
        model.set_params(n_estimators=n_estimators)
        model.fit(X, y)
        expected.append(model.score(X, y))
        assert recorder.run().info.status == "FINISHED"
    run = recorder.run()
    assert recorder.history(run, "training_accuracy_score") == list(enumerate(expected))
    assert recorder.history(run, "RandomForestClassifier_score_X") == list(enumerate(expected))
    assert recorder.history(run, "n_estimators") == [(1, 4.0), (2, 6.0)]
    assert run.data.params["n_estimators"] == "2"
    assert sorted(output.step for output in run.outputs.model_outputs) == [0, 1, 2]
    model.set_params(warm_start=False).fit(X, y)
    assert len(recorder.runs()) == 2


def test_warm_start_in_a_pipeline(recorder, iris):
    recorder.start(log_models=False)
    model = make_pipeline(StandardScaler(), SGDClassifier(warm_start=True, random_state=0))
    model.fit(*iris)
    model.fit(*iris)
    run = recorder.run()
    assert [step for step, _ in recorder.history(run, "training_score")] == [0, 1]


def test_warm_fit_in_another_run_of_the_users_belongs_to_it(recorder, iris):
    mlflow.set_tracking_uri(recorder.store_uri)
    mlflow.set_experiment(recorder.experiment)
    recorder.start(log_models=False)
    model = SGDClassifier(warm_start=True, random_state=0)
    for _ in range(2):
        with mlflow.start_run():
            model.fit(*iris)
    assert [recorder.history(run, "training_score")[0][0] for run in recorder.runs()] == [0, 0]


@pytest.mark.parametrize(
    ("estimator", "attributes"),
    [
        (MLPClassifier((4,), max_iter=3, early_stopping=True, random_state=0), ["loss_curve_", "validation_scores_"]),
        (
            GradientBoostingRegressor(n_estimators=4, subsample=0.8, random_state=0),
            ["train_score_", "oob_improvement_", "oob_scores_"],
        ),
        (
            HistGradientBoostingClassifier(max_iter=3, early_stopping=True, random_state=0),
            ["train_score_", "validation_score_"],
        ),
        (AdaBoostClassifier(n_estimators=3, random_state=0), ["estimator_errors_", "estimator_weights_"]),
    ],
    ids=lambda each: type(each).__name__,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_curves_are_series(recorder, iris, estimator, attributes):
    X, y = iris
    recorder.start(log_models=False)
    model = make_pipeline(StandardScaler(), estimator).fit(X, y)
    run = recorder.run()
    for name in attributes:
        values = [float(value) for value in getattr(model[-1], name)]
        assert recorder.history(run, name.rstrip("_")) == list(enumerate(values)), name


def test_staged_scores_and_single_numbers(recorder, iris):
    X, y = iris
    recorder.start(log_models=False)
    boosted = AdaBoostClassifier(n_estimators=3, random_state=0).fit(X, y)
    run = recorder.run()
    assert recorder.history(run, "training_staged_score") == list(enumerate(boosted.staged_score(X, y)))
    mixture = GaussianMixture(3, random_state=0).fit(X)
    forest = RandomForestClassifier(5, oob_score=True, max_depth=2, random_state=0)
    with pytest.warns(UserWarning, match="OOB"):
        forest.fit(X, y)
    linear = LogisticRegression(max_iter=300).fit(X, y)
    _, mixed, forested, lined = recorder.runs()
    assert mixed.data.metrics["lower_bound"] == mixture.lower_bound_
    bounds = getattr(mixture, "lower_bounds_", [])  # From scikit-learn 1.7 on.
    assert recorder.history(mixed, "lower_bounds") == list(enumerate(bounds))
    assert forested.data.metrics["oob_score"] == forest.oob_score_
    assert lined.data.metrics["n_iter"] == linear.n_iter_[0]
