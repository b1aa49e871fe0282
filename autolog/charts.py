"""Which pictures show how well a model fits its data, and the numbers that they are drawn from.

File names are those of MLflow's autologging where it draws the same: ``training_confusion_matrix.png``,
``training_roc_curve.png``, ``training_precision_recall_curve.png``. The numbers are scikit-learn's, of all rows that
were predicted, weighted as the training was; only what is drawn is thinned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autolog import guard
from autolog.figures import thin

Figure = tuple[str, dict[str, Any]]
_Makers = dict[str, Callable[[Mapping[str, Any]], Figure | None]]

#: Classes that a confusion matrix shows, the most frequent ones.
CLASSES = 100
#: Bins of a calibration curve, of equal width.
BINS = 10


def of(what: str, arrays: Mapping[str, Any]) -> dict[str, Figure]:
    """Return path -> (kind, data), as of :mod:`autolog.figures`, for the arrays that :mod:`autolog.scores` takes.

    what: "classifier" or "regressor". A picture that is undefined for the data is left out.
    """
    makers = _REGRESSOR
    if what == "classifier":
        makers = _CLASSIFIER if "y_proba" in arrays and arrays["y_proba"].shape[1] == 2 else _LABELS
    made = {path: guard.attempt(make, arrays).value for path, make in makers.items()}
    return {path: figure for path, figure in made.items() if figure is not None}


def _confusion_matrix(arrays: Mapping[str, Any]) -> Figure | None:
    import numpy as np
    from sklearn.metrics import confusion_matrix

    true, predicted = arrays["y_true"], arrays["y_pred"]
    if true.ndim == 2 and true.shape[1] == 1:
        true = true[:, 0]
    if true.ndim != 1 or predicted.ndim != 1:
        return None
    labels, counts = np.unique(np.concatenate([true, predicted]), return_counts=True)
    total = len(labels)
    if total > CLASSES:
        labels = labels[np.sort(np.argsort(-counts, kind="stable")[:CLASSES])]
    matrix = confusion_matrix(true, predicted, labels=labels, sample_weight=arrays.get("sample_weight"))
    return "confusion_matrix", {
        "title": "Confusion matrix, training data",
        "labels": [str(label) for label in labels],
        "counts": matrix.tolist(),
        "classes": total,
    }


def _positive(arrays: Mapping[str, Any]) -> tuple[Any, Any, str]:
    """Return whether each row is of the positive class, how probable that was held, and the name of the class."""
    label = arrays["classes"][1]
    true = arrays["y_true"].reshape(-1)
    return (true == label).astype(int), arrays["y_proba"][:, 1], str(label)


def _roc(arrays: Mapping[str, Any]) -> Figure | None:
    from sklearn.metrics import auc, roc_curve

    positive, probability, label = _positive(arrays)
    if positive.all() or not positive.any():
        return None
    wrong, right, _ = roc_curve(positive, probability, sample_weight=arrays.get("sample_weight"))
    return "roc_curve", {
        "title": "ROC curve, training data",
        "positive": label,
        "area": float(auc(wrong, right)),
        **_points(false_positive_rate=wrong, true_positive_rate=right),
    }


def _precision_recall(arrays: Mapping[str, Any]) -> Figure | None:
    import numpy as np
    from sklearn.metrics import average_precision_score, precision_recall_curve

    positive, probability, label = _positive(arrays)
    if positive.all() or not positive.any():
        return None
    weight = arrays.get("sample_weight")
    precision, recall, _ = precision_recall_curve(positive, probability, sample_weight=weight)
    return "precision_recall_curve", {
        "title": "Precision and recall, training data",
        "positive": label,
        "average_precision": float(average_precision_score(positive, probability, sample_weight=weight)),
        "prevalence": float(np.average(positive, weights=weight)),
        **_points(recall=recall, precision=precision),
    }


def _calibration(arrays: Mapping[str, Any]) -> Figure | None:
    """As ``sklearn.calibration.calibration_curve`` with bins of equal width, which takes no weights."""
    import numpy as np

    positive, probability, label = _positive(arrays)
    weight = arrays.get("sample_weight")
    weight = np.ones(len(positive)) if weight is None else weight
    # Both ends belong to a bin: 1.0 to the last one.
    bins = np.clip(np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probability), 0, BINS - 1)
    total = np.bincount(bins, weights=weight, minlength=BINS)
    used = total > 0
    if not used.any():
        return None
    return "calibration_curve", {
        "title": "Calibration, training data",
        "positive": label,
        "predicted": (np.bincount(bins, weights=weight * probability, minlength=BINS)[used] / total[used]).tolist(),
        "observed": (np.bincount(bins, weights=weight * positive, minlength=BINS)[used] / total[used]).tolist(),
        "rows": np.bincount(bins, minlength=BINS)[used].tolist(),
    }


def _predicted_and_true(arrays: Mapping[str, Any]) -> tuple[Any, Any] | None:
    import numpy as np

    true, predicted = arrays["y_true"], arrays["y_pred"]
    # Of several outputs, all are shown.
    if true.size != predicted.size:
        return None
    true, predicted = true.reshape(-1).astype(float), predicted.reshape(-1).astype(float)
    finite = np.isfinite(true) & np.isfinite(predicted)
    return (true[finite], predicted[finite]) if finite.any() else None


def _predicted_vs_actual(arrays: Mapping[str, Any]) -> Figure | None:
    found = _predicted_and_true(arrays)
    if found is None:
        return None
    true, predicted = found
    data = {"title": "Predicted and actual, training data", "number": len(true)}
    return "predicted_vs_actual", {**data, **_points(actual=true, predicted=predicted)}


def _residuals(arrays: Mapping[str, Any]) -> Figure | None:
    found = _predicted_and_true(arrays)
    if found is None:
        return None
    true, predicted = found
    data = {"title": "Residuals, training data", "number": len(true)}
    return "residuals", {**data, **_points(predicted=predicted, residual=true - predicted)}


def _points(**columns: Any) -> dict[str, list[float]]:
    """Return the columns as lists of numbers, thinned alike, first and last rows kept."""
    kept = thin(len(next(iter(columns.values()))))
    return {name: [float(values[i]) for i in kept] for name, values in columns.items()}


_LABELS: _Makers = {"training_confusion_matrix.png": _confusion_matrix}
_CLASSIFIER: _Makers = {
    **_LABELS,
    "training_roc_curve.png": _roc,
    "training_precision_recall_curve.png": _precision_recall,
    "training_calibration_curve.png": _calibration,
}
_REGRESSOR: _Makers = {
    "training_predicted_vs_actual.png": _predicted_vs_actual,
    "training_residuals.png": _residuals,
}
