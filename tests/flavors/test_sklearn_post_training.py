"""Scores and metrics that the user computes after a training, read back."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pandas as pd
import pytest
from sklearn.cluster import DBSCAN, KMeans
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    accuracy_score,
    check_scoring,
    confusion_matrix,
    f1_score,
    get_scorer,
    log_loss,
    make_scorer,
    mean_squared_error,
    roc_auc_score,
    silhouette_score,
)
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.tree import DecisionTreeClassifier

import autolog


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return train_test_split(X[:200, :5], y[:200], random_state=0)


def told(run) -> dict[str, float]:
    """The metrics that came after the training."""
    own = ("training_", "n_iter", "inertia", "best_cv_score")
    return {key: value for key, value in run.data.metrics.items() if not key.startswith(own)}


def test_score_metrics_and_scorers_have_mlflows_keys(recorder, cancer):
    X_train, X_test, y_train, y_test = cancer
    recorder.start()
    model = DecisionTreeClassifier(max_depth=2).fit(X_train, y_train)
    score = model.score(X_test, y_test)
    predicted = model.predict(X_test)
    accuracy = accuracy_score(y_test, predicted)
    again = accuracy_score(y_test, predicted, normalize=False)
    auc = get_scorer("roc_auc")(model, X_test, y_test)
    loss = make_scorer(mean_squared_error, greater_is_better=False)(model, X_test, y_test)
    both = check_scoring(model, scoring=["f1", "neg_log_loss"])(model, X_test, y_test)
    passed = check_scoring(model)(model, X_train, y_train)
    confusion_matrix(y_test, predicted)
    run = recorder.run()
    assert told(run) == {
        "DecisionTreeClassifier_score_X_test": score,
        "accuracy_score_X_test": accuracy,
        "accuracy_score-2_X_test": again,
        "roc_auc_score_X_test": auc,
        "mean_squared_error_X_test": -loss,
        "f1_score_X_test": both["f1"],
        "log_loss_X_test": -both["neg_log_loss"],
        "DecisionTreeClassifier_score-2_X_train": passed,
    }
    (logged,) = recorder.models()
    linked = {metric.key: metric for metric in logged.metrics}
    assert set(told(run)) <= set(linked)
    assert linked["accuracy_score_X_test"].dataset_name == "X_test"
    contexts = {each.dataset.name: each.tags[0].value for each in run.inputs.dataset_inputs if each.tags}
    assert contexts["X_test"] == "eval"


def test_metric_info_has_the_calls(recorder, cancer):
    X_train, X_test, y_train, y_test = cancer
    recorder.start(log_models=False)
    model = DecisionTreeClassifier(max_depth=2).fit(X_train, y_train)
    predicted = model.predict(X_test)
    accuracy_score(y_test, predicted, normalize=False)
    f1_score(list(y_test), predicted)
    model.score(X_test, y_test)
    run = recorder.run()
    text = Path(recorder.client.download_artifacts(run.info.run_id, "metric_info.json")).read_text()
    assert json.loads(text) == {
        "accuracy_score_X_test": "accuracy_score(y_true=y_test, y_pred=predicted, normalize=False)",
        "f1_score_X_test": "f1_score(y_true=<list>, y_pred=predicted)",
        "DecisionTreeClassifier_score_X_test": "DecisionTreeClassifier.score(X=X_test, y=y_test)",
    }


class Upright(LogisticRegression):
    """Predicts in C order, as scikit-learn's linear models do by now."""

    def predict_proba(self, X):
        return super().predict_proba(X).copy("C")


class Sideways(LogisticRegression):
    """Predicts in Fortran order, as they did up to scikit-learn 1.7 at least."""

    def predict_proba(self, X):
        return super().predict_proba(X).T.copy("C").T


@pytest.mark.parametrize("kind", [Upright, Sideways])
def test_columns_and_rows_of_predictions_are_followed_as_in_mlflow_they_are_not(recorder, cancer, kind):
    X_train, X_test, y_train, y_test = cancer
    recorder.start(log_models=False)
    model = kind(max_iter=5000).fit(X_train, y_train)
    proba = model.predict_proba(X_test)
    assert (proba.strides[0] < proba.strides[1]) == (kind is Sideways)
    auc = roc_auc_score(y_test, proba[:, 1])
    loss = log_loss(y_test[:30], proba[:30])
    odd = log_loss(y_test[1::2], proba[1::2, 1])
    backwards = log_loss(y_test[::-1][:30], proba[::-1][:30])
    column = accuracy_score(y_test, model.predict(X_test).reshape(-1, 1))
    # The end of a row or column and the beginning of the next, as they lie in memory; a row as a vector.
    log_loss([0, 1], proba.ravel("K")[max(proba.strides) // 8 - 1 :][:2])
    log_loss([0, 1], proba[0])
    run = recorder.run()
    rows = len(X_test)
    assert told(run) == {
        "roc_auc_score_X_test": auc,
        "log_loss_X_test.0-30": loss,
        f"log_loss-2_X_test.1-{rows}.2": odd,
        f"log_loss-3_X_test.{rows - 30}-{rows}": backwards,
        "accuracy_score_X_test": column,
    }


def test_what_only_looks_like_a_prediction_is_not_taken_for_one(recorder, cancer):
    X_train, X_test, y_train, y_test = cancer
    recorder.start(log_models=False)
    model = LogisticRegression(max_iter=5000).fit(X_train, y_train)
    proba = model.predict_proba(X_test)
    guess = (proba[:, 1] > 0.5).astype(int)
    guess[0] = 1 - guess[0]
    accuracy_score(y_test, guess)  # Nearly the model's: it may have come from anywhere.
    mean_squared_error(proba.T[0], proba.T[0].copy())  # A column: this is one.
    mean_squared_error(proba[0], proba[1])  # Rows as vectors are not.
    mean_squared_error(X_test[:, 0], X_test[:, 1])
    run = recorder.run()
    assert list(told(run)) == ["mean_squared_error_X_test"]


class Mirror(DecisionTreeClassifier):
    """Predicts with a view of its input."""

    def predict(self, X, check_input=True):
        return X[:, 0]


def test_views_of_the_users_own_data_are_no_predictions(recorder, cancer):
    X_train, X_test, y_train, _ = cancer
    recorder.start(log_models=False)
    X_test = X_test.copy()
    model = Mirror().fit(X_train, (y_train > 0).astype(float))
    predicted = model.predict(X_test)
    mean_squared_error(X_test[:, 1], X_test[:, 2])
    value = mean_squared_error(X_test[:, 1], predicted)
    run = recorder.run()
    assert told(run) == {"mean_squared_error_X_test": value}


def test_labels_of_a_clustering_are_followed(recorder):
    X, _ = load_iris(return_X_y=True)
    recorder.start(log_models=False)
    labels = KMeans(3, n_init=1, random_state=0).fit_predict(X)
    first = silhouette_score(X, labels)
    other = DBSCAN().fit(X)
    second = silhouette_score(X, other.labels_)
    runs = recorder.runs()
    assert [told(run) for run in runs] == [{"silhouette_score_X": first}, {"silhouette_score_X": second}]


def test_other_data_of_the_same_name_is_numbered(recorder, cancer):
    X_train, X_test, y_train, y_test = cancer
    recorder.start(log_models=False)
    model = DecisionTreeClassifier(max_depth=2).fit(X_train, y_train)
    values = []
    for part in (slice(0, 20), slice(20, 50)):
        X_part = pd.DataFrame(X_test[part])
        values.append(accuracy_score(y_test[part], model.predict(X_part.to_numpy())))
        scored = model.score(X_test[part], y_test[part])
    run = recorder.run()
    assert told(run)["accuracy_score_unknown_dataset"] == values[0]
    assert scored == values[1]
    assert sum(key.startswith("DecisionTreeClassifier_score") for key in told(run)) == 2


def test_search_scores_by_its_own_scorer(recorder, cancer):
    X_train, X_test, y_train, y_test = cancer
    recorder.start(log_models=False, max_tuning_runs=0)
    scorer = make_scorer(f1_score, pos_label=0)
    search = GridSearchCV(DecisionTreeClassifier(random_state=0), {"max_depth": [1, 2]}, scoring=scorer, cv=2)
    search.fit(X_train, y_train)
    score = search.score(X_test, y_test)
    inner = f1_score(y_test, search.best_estimator_.predict(X_test))
    run = recorder.run()
    assert told(run) == {"GridSearchCV_score_X_test": score, "f1_score_X_test": inner}


def test_metrics_inside_others_are_not_counted(recorder, cancer):
    X_train, X_test, y_train, y_test = cancer
    recorder.start(log_models=False)
    model = RandomForestClassifier(3, max_depth=2).fit(X_train, y_train)
    GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1]}, scoring="roc_auc", cv=2).fit(X_train, y_train)
    accuracy_score(y_test, y_test)
    assert told(recorder.runs()[0]) == {}
    value = f1_score(y_test, model.predict(X_test))  # Calls precision_recall_fscore_support, and more.
    assert told(recorder.runs()[0]) == {"f1_score_X_test": value}


def test_estimator_reloaded_keeps_no_link_as_in_mlflow_it_does(recorder, cancer):
    X_train, X_test, y_train, y_test = cancer
    recorder.start(log_models=False)
    model = pickle.loads(pickle.dumps(Ridge().fit(X_train, y_train)))
    mean_squared_error(y_test, model.predict(X_test))
    model.score(X_test, y_test)
    assert told(recorder.run()) == {}


def test_post_training_metrics_off(recorder, cancer):
    X_train, X_test, y_train, y_test = cancer
    recorder.start(log_models=False, log_post_training_metrics=False)
    model = DecisionTreeClassifier().fit(X_train, y_train)
    model.score(X_test, y_test)
    accuracy_score(y_test, model.predict(X_test))
    assert told(recorder.run()) == {}


def test_paused_records_no_metrics(recorder, cancer):
    X_train, X_test, y_train, y_test = cancer
    recorder.start(log_models=False)
    model = DecisionTreeClassifier().fit(X_train, y_train)
    with autolog.paused():
        model.score(X_test, y_test)
        accuracy_score(y_test, model.predict(X_test))
    assert told(recorder.run()) == {}
