"""Training metrics, computed in the sender by scikit-learn's own functions.

Names and averaging are those of MLflow's autologging (``mlflow.sklearn.utils``): ``training_<metric>``; precision,
recall and f1 weighted by support, or of the positive class where one is named; ROC AUC weighted, one against one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from autolog import charts, guard
from autolog.flavor import Derived


def derive(what: str, blob: Path) -> Derived:
    """Return the training metrics and pictures for the arrays that a flavor stored in `blob`.

    y_true, y_pred and, where there are any: y_proba (n_samples, n_classes) with classes; sample_weight; pos_label (1,);
    score (1,), what the estimator's own ``score`` gave where that is neither accuracy nor R2, empty for nothing.

    what: "classifier" or "regressor". A metric or picture that is undefined for the data is left out.
    """
    import numpy as np

    with np.load(blob, allow_pickle=False) as stored:
        arrays = dict(stored)
    computed = {name: guard.attempt(score) for name, score in _metrics(what, arrays).items()}
    metrics = {f"training_{name}": float(done.value) for name, done in computed.items() if done.value is not None}
    return Derived(metrics=metrics, figures=charts.of(what, arrays))


def _metrics(what: str, arrays: dict[str, Any]) -> dict[str, Callable[[], float]]:
    from sklearn import metrics

    true, predicted = arrays["y_true"], arrays["y_pred"]
    weight = {"sample_weight": arrays.get("sample_weight")}
    own = arrays.get("score")
    if what == "regressor":
        determination = cache(lambda: metrics.r2_score(true, predicted, **weight))
        scores: dict[str, Callable[[], float]] = {
            "mean_squared_error": lambda: metrics.mean_squared_error(true, predicted, **weight),
            "mean_absolute_error": lambda: metrics.mean_absolute_error(true, predicted, **weight),
            "r2_score": determination,
            "root_mean_squared_error": lambda: metrics.root_mean_squared_error(true, predicted, **weight),
            "score": determination,
        }
        return _with_own_score(scores, own)
    weighted: dict[str, Any] = {"average": "weighted", "zero_division": 0.0, **weight}
    if "pos_label" in arrays:
        weighted.update(average="binary", pos_label=arrays["pos_label"][0])
    # What precision_score, recall_score and f1_score call, each for itself.
    all_three = cache(lambda: metrics.precision_recall_fscore_support(true, predicted, **weighted))
    accuracy = cache(lambda: metrics.accuracy_score(true, predicted, **weight))
    found: dict[str, Callable[[], float]] = {
        "precision_score": lambda: all_three()[0],
        "recall_score": lambda: all_three()[1],
        "f1_score": lambda: all_three()[2],
        "accuracy_score": accuracy,
        "score": accuracy,
    }
    proba = arrays.get("y_proba")
    if proba is not None:
        classes = arrays["classes"]
        # ROC AUC of two classes takes the probability of the second one.
        score = proba[:, 1] if proba.shape[1] == 2 else proba
        labels = {} if proba.shape[1] == 2 else {"labels": classes}
        found["log_loss"] = lambda: metrics.log_loss(true, proba, labels=classes, **weight)
        found["roc_auc"] = lambda: metrics.roc_auc_score(
            true, score, average="weighted", multi_class="ovo", **weight, **labels
        )
    return _with_own_score(found, own)


def _with_own_score(found: dict[str, Callable[[], float]], own: Any) -> dict[str, Callable[[], float]]:
    if own is not None:
        del found["score"]
        if len(own):
            found["score"] = lambda: own[0]
    return found
