"""scikit-learn: what can be looked at. The numbers behind the pictures are exact; that they draw is checked, too."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from autolog import charts, figures

PNG = b"\x89PNG\r\n\x1a\n"


def text(recorder, run, path: str) -> str:
    mlflow.set_tracking_uri(recorder.store_uri)
    return mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{path}")


def picture(recorder, run, path: str) -> bytes:
    data = Path(recorder.client.download_artifacts(run.info.run_id, path)).read_bytes()
    assert data[:8] == PNG
    return data


def test_binary_classifier_has_mlflows_pictures_and_more(recorder):
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    recorder.start()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    run = recorder.run()
    assert set(recorder.artifacts(run)) == {
        "training_confusion_matrix.png",
        "training_roc_curve.png",
        "training_precision_recall_curve.png",
        "training_calibration_curve.png",
        "coefficients.png",
        "coefficients.json",
        "estimator.html",
    }
    for path in recorder.artifacts(run):
        if path.endswith(".png"):
            picture(recorder, run, path)
    learned = json.loads(text(recorder, run, "coefficients.json"))
    assert learned == dict(zip(X.columns, model[-1].coef_[0].tolist(), strict=True))
    page = text(recorder, run, "estimator.html")
    assert '<meta charset="UTF-8"/>' in page
    assert "StandardScaler" in page and "LogisticRegression" in page


def test_regressor_has_predictions_residuals_and_coefficients(recorder):
    X, y = load_diabetes(return_X_y=True)
    recorder.start()
    model = Ridge().fit(X, y)
    run = recorder.run()
    expected = {"training_predicted_vs_actual.png", "training_residuals.png", "coefficients.png", "coefficients.json"}
    assert set(recorder.artifacts(run)) == {*expected, "estimator.html"}
    learned = json.loads(text(recorder, run, "coefficients.json"))
    assert learned == {f"feature {i}": value for i, value in enumerate(model.coef_.tolist())}


def test_importances_bear_the_names_after_the_preprocessing(recorder):
    frame = pd.DataFrame({"island": ["a", "b", "a", "c"] * 5})
    recorder.start(log_models=False)
    model = make_pipeline(OneHotEncoder(), RandomForestClassifier(n_estimators=3, random_state=0))
    model.fit(frame, [0, 1, 0, 1] * 5)
    learned = json.loads(text(recorder, recorder.run(), "feature_importances.json"))
    assert list(learned) == ["island_a", "island_b", "island_c"]
    assert list(learned.values()) == model[-1].feature_importances_.tolist()


def test_search_shows_what_its_best_estimator_learned(recorder):
    X, y = load_iris(return_X_y=True, as_frame=True)
    recorder.start(log_models=False, max_tuning_runs=0)
    search = GridSearchCV(LogisticRegression(max_iter=300), {"C": [0.1, 1.0]}, cv=2).fit(X, y)
    run = recorder.runs(children=False)[0]
    learned = json.loads(text(recorder, run, "mean_absolute_coefficients.json"))
    expected = np.abs(search.best_estimator_.coef_).mean(axis=0).tolist()
    assert learned == dict(zip(X.columns, expected, strict=True))


class Threshold(ClassifierMixin, BaseEstimator):
    """A <user's> own estimator."""

    def __init__(self, note="<b>&"):
        self.note = note

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        self.coef_ = np.asarray(X).mean(axis=0)
        return self

    def predict(self, X):
        return (np.asarray(X) @ self.coef_ > 0).astype(int)


def test_estimator_that_the_sender_does_not_open_is_listed(recorder):
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    recorder.start(log_models=False)
    model = Threshold().fit(X, y)
    run = recorder.run()
    page = text(recorder, run, "estimator.html")
    assert "Threshold" in page
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page
    assert json.loads(text(recorder, run, "coefficients.json")) == dict(zip(X.columns, model.coef_, strict=True))


def test_five_thousand_features_make_one_picture_of_fifty(recorder):
    rng = np.random.default_rng(0)
    names = [f"측정값 number {i} of the long-named features" for i in range(5000)]
    X = pd.DataFrame(rng.normal(size=(30, 5000)), columns=names)
    recorder.start(log_models=False)
    Ridge().fit(X, rng.normal(size=30))
    run = recorder.run()
    header = picture(recorder, run, "coefficients.png")[:24]
    assert int.from_bytes(header[20:24], "big") < 1400  # pixels high; MLflow's grows with each feature
    assert len(json.loads(text(recorder, run, "coefficients.json"))) == 5000


# -- the numbers ------------------------------------------------------------------------------------------------------


def arrays(weighted: bool = False, rows: int = 5000) -> dict:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, rows)
    probability = np.clip(y * 0.3 + rng.random(rows) * 0.7, 0, 1)
    made = {
        "y_true": np.array(["no", "yes"])[y],
        "y_pred": np.array(["no", "yes"])[(probability > 0.5).astype(int)],
        "y_proba": np.c_[1 - probability, probability],
        "classes": np.array(["no", "yes"]),
    }
    if weighted:
        made["sample_weight"] = rng.random(rows)
    return made


@pytest.mark.parametrize("weighted", [False, True])
def test_curves_are_scikit_learns_thinned_to_a_thousand_points(weighted):
    held = arrays(weighted)
    weight = held.get("sample_weight")
    found = charts.of("classifier", held)
    positive, probability = (held["y_true"] == "yes").astype(int), held["y_proba"][:, 1]

    kind, roc = found["training_roc_curve.png"]
    assert kind == "roc_curve"
    assert roc["positive"] == "yes"
    assert roc["area"] == pytest.approx(roc_auc_score(positive, probability, sample_weight=weight))
    wrong, right, _ = roc_curve(positive, probability, sample_weight=weight)
    points = list(zip(roc["false_positive_rate"], roc["true_positive_rate"], strict=True))
    assert len(points) == min(1000, len(wrong))
    assert set(points) <= set(zip(wrong.tolist(), right.tolist(), strict=True))
    assert points[0] == (0, 0) and points[-1] == pytest.approx((1, 1))

    _, recall = found["training_precision_recall_curve.png"]
    assert recall["average_precision"] == average_precision_score(positive, probability, sample_weight=weight)
    assert recall["prevalence"] == pytest.approx(np.average(positive, weights=weight))
    assert len(recall["recall"]) == 1000

    _, matrix = found["training_confusion_matrix.png"]
    assert matrix["labels"] == ["no", "yes"]
    expected = confusion_matrix(held["y_true"], held["y_pred"], sample_weight=weight)
    assert matrix["counts"] == expected.tolist()

    _, calibration = found["training_calibration_curve.png"]
    assert sum(calibration["rows"]) == 5000
    if not weighted:
        observed, predicted = calibration_curve(positive, probability, n_bins=10)
        np.testing.assert_allclose(calibration["observed"], observed)
        np.testing.assert_allclose(calibration["predicted"], predicted)


def test_regression_pictures_keep_a_thousand_rows_together():
    rng = np.random.default_rng(0)
    true, predicted = rng.normal(size=(2, 12_345))
    found = charts.of("regressor", {"y_true": true, "y_pred": predicted})
    _, both = found["training_predicted_vs_actual.png"]
    pairs = list(zip(both["actual"], both["predicted"], strict=True))
    assert len(pairs) == 1000 and both["number"] == 12_345
    assert set(pairs) <= set(zip(true.tolist(), predicted.tolist(), strict=True))
    _, rest = found["training_residuals.png"]
    assert rest["residual"][0] == true[0] - predicted[0]


def test_confusion_matrix_of_very_many_classes_shows_the_most_frequent():
    rng = np.random.default_rng(0)
    true = np.concatenate([np.arange(400), rng.integers(0, 50, 4000)])
    _, data = charts.of("classifier", {"y_true": true, "y_pred": true})["training_confusion_matrix.png"]
    assert data["classes"] == 400 and len(data["labels"]) == 100
    assert data["labels"][:50] == [str(i) for i in range(50)]


UGLY = {
    "one class": ("classifier", {"y_true": np.zeros(9), "y_pred": np.zeros(9)}),
    "one class, probabilities": (
        "classifier",
        {"y_true": np.ones(9), "y_pred": np.ones(9), "y_proba": np.full((9, 2), 0.5), "classes": np.array([0, 1])},
    ),
    "100 classes": ("classifier", {"y_true": np.arange(100), "y_pred": np.arange(100)[::-1]}),
    "hangul and long": (
        "classifier",
        {"y_true": np.array(["아델리", "x" * 99, "$a_"]), "y_pred": np.array(["아델리", "아델리", "$a_"])},
    ),
    "several label columns": ("classifier", {"y_true": np.zeros((9, 2)), "y_pred": np.zeros((9, 2))}),
    "constant target": ("regressor", {"y_true": np.full(9, 7.0), "y_pred": np.full(9, 7.0)}),
    "not finite": ("regressor", {"y_true": np.array([1.0, np.nan]), "y_pred": np.array([np.inf, 1.0])}),
    "huge": ("regressor", {"y_true": np.array([1e300, -1e300]), "y_pred": np.array([1e-300, 5.0])}),
    "several targets": ("regressor", {"y_true": np.eye(3), "y_pred": np.ones((3, 3))}),
    "one row": ("regressor", {"y_true": np.array([1]), "y_pred": np.array([2])}),
}


@pytest.mark.filterwarnings("ignore:A single label was found", "ignore:Glyph")
@pytest.mark.parametrize("name", UGLY)
def test_whatever_the_data_a_picture_is_drawn_or_left_out(name, tmp_path):
    what, held = UGLY[name]
    for path, (kind, data) in charts.of(what, held).items():
        json.dumps(data, allow_nan=False)
        figures.draw(kind, data, tmp_path / path)
        assert (tmp_path / path).read_bytes()[:8] == PNG
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {
        "one class": {"training_confusion_matrix.png"},
        "one class, probabilities": {"training_confusion_matrix.png", "training_calibration_curve.png"},
        "100 classes": {"training_confusion_matrix.png"},
        "hangul and long": {"training_confusion_matrix.png"},
        "several label columns": set(),
        "not finite": set(),
    }.get(name, {"training_predicted_vs_actual.png", "training_residuals.png"})


def test_several_targets_are_recorded(recorder):
    X, y = load_diabetes(return_X_y=True)
    recorder.start(log_models=False)
    MultiOutputRegressor(Ridge()).fit(X, np.c_[y, -y])
    assert "training_residuals.png" in recorder.artifacts(recorder.run())
