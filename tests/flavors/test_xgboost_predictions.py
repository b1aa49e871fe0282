"""XGBoost: metrics that the user computes on what a native booster predicts belong to its run and model."""

from __future__ import annotations

import numpy as np
import pytest
import xgboost as xgb
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, roc_auc_score

import autolog

PARAMS = {"objective": "binary:logistic", "max_depth": 2, "nthread": 1}


@pytest.fixture
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return X[:400], y[:400], X[400:], y[400:]


def of_model(logged):
    return {metric.key: metric.value for metric in logged.metrics}


def test_metrics_on_a_native_boosters_predictions_are_its_models_as_in_mlflow_they_are_not(recorder, cancer):
    X, y, X_test, y_test = cancer
    recorder.start()
    dtest = xgb.DMatrix(X_test, y_test)
    booster = xgb.train(PARAMS, xgb.DMatrix(X, y), 5)
    probability = booster.predict(dtest)
    expected = {
        "log_loss_dtest": log_loss(y_test, probability),
        "roc_auc_score_dtest": roc_auc_score(y_test, probability),
        "accuracy_score_dtest": accuracy_score(y_test, probability > 0.5),
        "accuracy_score-2_dtest": accuracy_score(y_test, np.round(probability)),
        "accuracy_score-3_dtest": accuracy_score(y_test, (probability >= 0.5).astype(int)),
        "accuracy_score-4_dtest": accuracy_score(y_test, booster.predict(dtest) > 0.5),
    }
    run = recorder.run()
    (logged,) = recorder.models()
    for name, value in expected.items():
        assert recorder.history(run, name) == [(0, value)], name
    found = of_model(logged)
    assert {name: found.get(name) for name in expected} == expected
    linked = {metric.key: metric.dataset_name for metric in logged.metrics}
    assert {linked[name] for name in expected} == {"dtest"}
    inputs = {each.dataset.name for each in run.inputs.dataset_inputs}
    assert "dtest" in inputs


def test_class_of_the_largest_probability(recorder):
    X, y = load_iris(return_X_y=True)
    recorder.start()
    params = {"objective": "multi:softprob", "num_class": 3, "max_depth": 2, "nthread": 1}
    booster = xgb.train(params, xgb.DMatrix(X, y), 3)
    held_out = xgb.DMatrix(X[::3])
    value = accuracy_score(y[::3], booster.predict(held_out).argmax(axis=1))
    run = recorder.run()
    assert recorder.history(run, "accuracy_score_held_out") == [(0, value)]
    (logged,) = recorder.models()
    assert of_model(logged)["accuracy_score_held_out"] == value


def test_inplace_prediction_and_margin(recorder, cancer):
    X, y, X_test, y_test = cancer
    recorder.start()
    booster = xgb.train(PARAMS, xgb.DMatrix(X, y), 5)
    dtest = xgb.DMatrix(X_test)
    margin = booster.predict(dtest, output_margin=True)
    value = accuracy_score(y_test, margin > 0)
    in_place = booster.inplace_predict(X_test)
    loss = log_loss(y_test, in_place)
    run = recorder.run()
    assert recorder.history(run, "accuracy_score_dtest") == [(0, value)]
    assert recorder.history(run, "log_loss_X_test") == [(0, loss)]


def test_a_part_of_the_rounds_is_of_the_run_but_not_of_the_model(recorder):
    X, y = load_diabetes(return_X_y=True)
    recorder.start()
    data = xgb.DMatrix(X, y)
    booster = xgb.train({"max_depth": 2, "nthread": 1}, data, 6)
    part = booster.predict(data, iteration_range=(0, 3))
    of_part = mean_absolute_error(y, part)
    whole = booster.predict(data, iteration_range=(0, 6))
    of_whole = mean_absolute_error(y, whole)
    run = recorder.run()
    assert recorder.history(run, "mean_absolute_error_data") == [(0, of_part)]
    assert recorder.history(run, "mean_absolute_error-2_data") == [(0, of_whole)]
    (logged,) = recorder.models()
    assert "mean_absolute_error_data" not in of_model(logged)
    assert of_model(logged)["mean_absolute_error-2_data"] == of_whole


def test_contributions_and_leaves_are_no_predictions(recorder, cancer):
    X, y, X_test, y_test = cancer
    recorder.start()
    booster = xgb.train(PARAMS, xgb.DMatrix(X, y), 2)
    dtest = xgb.DMatrix(X_test)
    leaves = booster.predict(dtest, pred_leaf=True)
    mean_absolute_error(y_test, leaves[:, 0])
    contributions = booster.predict(dtest, pred_contribs=True)
    mean_absolute_error(y_test, contributions[:, -1])
    run = recorder.run()
    assert not [name for name in run.data.metrics if name.startswith("mean_absolute_error")]


def test_a_booster_that_was_trained_on_while_nothing_was_recorded_is_its_model_no_more(recorder, cancer):
    X, y, X_test, y_test = cancer
    recorder.start()
    train, dtest = xgb.DMatrix(X, y), xgb.DMatrix(X_test)
    booster = xgb.train(PARAMS, train, 2)
    other = xgb.train(PARAMS, train, 3)
    with autolog.paused():
        booster.update(train, 2)
    other.load_model(bytearray(booster.save_raw()))
    for each in (booster, other):
        probability = each.predict(dtest)
        log_loss(y_test, probability)
    assert all(not [name for name in run.data.metrics if name.startswith("log_loss")] for run in recorder.runs())


def test_metrics_between_the_rounds_of_a_loop_are_a_series(recorder, cancer):
    X, y, X_test, y_test = cancer
    recorder.start()
    train, dtest = xgb.DMatrix(X, y), xgb.DMatrix(X_test)
    booster = xgb.Booster(PARAMS, [train])
    losses = []
    for i in range(4):
        booster.update(train, i)
        probability = booster.predict(dtest)
        losses.append(log_loss(y_test, probability))
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "log_loss_dtest") == list(enumerate(losses))


def test_predictions_and_their_pickles_are_as_without_recording(recorder, cancer):
    X, y, X_test, _ = cancer
    booster = xgb.train(PARAMS, xgb.DMatrix(X, y), 3)
    bare = booster.predict(xgb.DMatrix(X_test))
    recorder.start()
    followed = xgb.train(PARAMS, xgb.DMatrix(X, y), 3)
    assert np.array_equal(followed.predict(xgb.DMatrix(X_test)), bare)
    assert type(followed.predict(xgb.DMatrix(X_test))) is np.ndarray
    assert followed.save_raw() == booster.save_raw() and vars(followed).keys() == vars(booster).keys()
