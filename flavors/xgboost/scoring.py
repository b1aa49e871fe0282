"""What an estimator says about its training data, of which :mod:`autolog.scores` makes metrics in the sender.

Predicting takes longer than copying the data. So the data is copied, up to a limit, and a copy of the estimator
predicts on it on the worker thread. The user's own classes predict on the training thread: nobody knows what they
would do on another one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from flavors.xgboost.snapshots import Frozen

#: Above this many rows, or values in all, training metrics are computed on an evenly spaced sample.
_ROWS, _VALUES = 50_000, 2_000_000


class Predicted:
    """Predictions on the training data, or what it takes to make them.

    kind: "classifier" or "regressor"; rows: how many were sampled, 0 for all.
    """

    __slots__ = ("_X", "_estimator", "_known", "kind", "rows")

    def __init__(self, kind: str, rows: int, estimator: Any, X: Any, known: dict[str, Any]) -> None:
        self.kind = kind
        self.rows = rows
        self._estimator = estimator
        self._X = X
        self._known = known

    def arrays(self, frozen: Frozen) -> Mapping[str, Any]:
        """Return y_true, y_pred and, of classifiers, y_proba and classes. frozen: the trained booster."""
        if self._estimator is not None:
            booster = frozen.booster()
            booster.set_param({"nthread": 1})  # The cores are the user's.
            self._estimator._Booster = booster
            self._known.update(_predict(self._estimator, self._X, self.kind))
            self._estimator = self._X = None
        # Arrays of objects would need a pickle on their way to the sender.
        return {name: value.astype(str) if value.dtype == object else value for name, value in self._known.items()}


def prepare(estimator: Any, X: Any, y: Any, weight: Any) -> Predicted | None:
    """Copy training data to predict on; None where there are no training metrics: ranking, data on a GPU."""
    import numpy as np
    from sklearn.base import is_classifier, is_regressor

    kind = "classifier" if is_classifier(estimator) else "regressor" if is_regressor(estimator) else ""
    number = _length(X)
    if not kind or y is None or not number:
        return None
    columns = X.shape[1] if len(getattr(X, "shape", ())) == 2 else len(X[0]) if isinstance(X, list) else 1
    limit = min(_ROWS, max(1, _VALUES // max(1, int(columns))))
    picked = None if number <= limit else np.linspace(0, number - 1, limit).astype(int)
    X, y, weight = _take(X, picked), _take(y, picked), _take(weight, picked)
    if X is None or y is None:
        return None
    known = {"y_true": np.asarray(y)}
    if weight is not None:
        known["sample_weight"] = np.asarray(weight)
    rows = 0 if picked is None else limit
    if type(estimator).__module__ != "xgboost.sklearn":
        known.update(_predict(estimator, X, kind))
        return Predicted(kind, rows, None, None, known)
    return Predicted(kind, rows, copy.copy(estimator), X, known)


def _predict(estimator: Any, X: Any, kind: str) -> dict[str, Any]:
    import numpy as np

    found = {"y_pred": np.asarray(estimator.predict(X))}
    if kind == "classifier":
        found["y_proba"] = np.asarray(estimator.predict_proba(X))
        found["classes"] = np.asarray(estimator.classes_)
    return found


def _length(data: Any) -> int:
    shape = getattr(data, "shape", None)
    if shape:
        return int(shape[0])
    return len(data) if hasattr(data, "__len__") else 0


def _take(data: Any, rows: Any) -> Any:
    """Return a copy of some rows (None for all); None for data of a kind that is not copied."""
    import numpy as np

    if data is None:
        return None
    if hasattr(data, "iloc"):
        return data.copy() if rows is None else data.iloc[rows]
    if hasattr(data, "clone") and hasattr(data, "to_numpy"):  # polars
        return data.clone() if rows is None else data[rows]
    if hasattr(data, "tocsr"):
        return data.copy() if rows is None else data.tocsr()[rows]
    if isinstance(data, list | tuple):
        data = np.array(data)
        return data if rows is None else data[rows]
    if isinstance(data, np.ndarray):
        return data.copy() if rows is None else data[rows]
    return None
