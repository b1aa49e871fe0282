"""Training metrics, computed in the sender by scikit-learn's own functions.

Names and averaging are those of MLflow's autologging (``mlflow.sklearn.utils``): ``training_<metric>``; precision,
recall and f1 weighted by support; ROC AUC weighted, one against one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autolog import guard


def derive(what: str, blob: Path) -> dict[str, float]:
    """Return the training metrics for the arrays that :mod:`flavors.sklearn.estimators` stored in `blob`.

    what: "classifier" or "regressor". A metric that is undefined for the data is left out.
    """
    import numpy as np

    with np.load(blob, allow_pickle=False) as stored:
        arrays = dict(stored)
    computed = {name: guard.attempt(score) for name, score in _metrics(what, arrays).items()}
    return {f"training_{name}": float(done.value) for name, done in computed.items() if done.value is not None}


def _metrics(what: str, arrays: dict[str, Any]) -> dict[str, Callable[[], float]]:
    from sklearn import metrics

    true, predicted = arrays["y_true"], arrays["y_pred"]
    weight = {"sample_weight": arrays.get("sample_weight")}
    if what == "regressor":
        return {
            "mean_squared_error": lambda: metrics.mean_squared_error(true, predicted, **weight),
            "mean_absolute_error": lambda: metrics.mean_absolute_error(true, predicted, **weight),
            "r2_score": lambda: metrics.r2_score(true, predicted, **weight),
            "root_mean_squared_error": lambda: metrics.root_mean_squared_error(true, predicted, **weight),
            "score": lambda: metrics.r2_score(true, predicted, **weight),
        }
    weighted: dict[str, Any] = {"average": "weighted", "zero_division": 0.0, **weight}
    found = {
        "precision_score": lambda: metrics.precision_score(true, predicted, **weighted),
        "recall_score": lambda: metrics.recall_score(true, predicted, **weighted),
        "f1_score": lambda: metrics.f1_score(true, predicted, **weighted),
        "accuracy_score": lambda: metrics.accuracy_score(true, predicted, **weight),
        "score": lambda: metrics.accuracy_score(true, predicted, **weight),
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
    return found
