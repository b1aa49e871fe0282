"""What a fitted estimator says about its training data: two inference passes at most, within a budget.

They run on the training thread because the user may change the estimator, or the data, as soon as ``fit`` returns.
A pass that would cost more than the budget is made on a sample of the rows instead, which a tag says.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autolog import guard, predictions
from flavors.sklearn.untouched import untouched

#: A pass may take this many seconds, or this share of the time that the fit took, whichever is more.
SECONDS, SHARE = 0.05, 0.05
#: Rows of the probes that tell what a pass costs: the first shows whether it matters, the second what a row costs.
_PROBE, _SECOND_PROBE = 16, 512
#: How often the second is repeated, where it takes little, before a pass is too dear: another process may have had the
#: core meanwhile.
_PROBES = 3
#: Rows of a sample at least; samples are powers of two, so that noise in the timing seldom changes them.
_FEWEST = 16

#: Classes whose ``score`` is the accuracy or R2 of what they predict, like that of the mixins themselves.
_PLAIN_SCORES = {
    "ClassifierMixin",
    "RegressorMixin",
    "DummyClassifier",
    "DummyRegressor",
    "KNeighborsClassifier",
    "RadiusNeighborsClassifier",
    "RFE",
    "RFECV",
    "SelfTrainingClassifier",
}


@dataclass(slots=True)
class Predicted:
    """What the passes gave.

    kind: "classifier", "regressor", or "" where there is nothing to compare with.
    arrays: y_true, y_pred and what else :mod:`autolog.scores` takes; empty for kind "".
    output: what ``predict`` returned, for the signature; None where it failed.
    sampled: number of rows that were looked at where these are not all, otherwise 0.
    """

    kind: str = ""
    arrays: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None
    sampled: int = 0


def predict(
    estimator: Any, X: Any, y: Any, weight: Any, fit_seconds: float, *, pos_label: Any = None
) -> Predicted | None:
    """Predict on the training data, classifiers' probabilities included; None for what cannot predict.

    X: array-like of shape (n_samples, n_features); y: true targets or None; weight: sample weights or None.
    fit_seconds: what the fit took.

    Raises: what the estimator's own methods raise.
    """
    if X is None or not hasattr(estimator, "predict") or _rows(X) == 0:
        return None
    budget = max(SECONDS, SHARE * fit_seconds)
    with untouched(estimator), predictions.nested():
        return _predict(estimator, X, y, weight, budget, pos_label)


def _predict(estimator: Any, X: Any, y: Any, weight: Any, budget: float, pos_label: Any) -> Predicted:
    import numpy as np
    from sklearn.base import is_classifier, is_regressor

    rows = _rows(X)
    kind = "classifier" if is_classifier(estimator) else "regressor" if is_regressor(estimator) else ""
    if y is None or hasattr(y, "tocsr") or not kind:
        # Only the signature asks.
        return Predicted(output=estimator.predict(_take(X, _evenly(rows, _PROBE)) if rows > _PROBE else X))
    taken = _affordable(estimator.predict, X, budget)
    if taken < rows:
        index = _sample(rows, taken)
        X, y, weight = _take(X, index), _take(y, index), None if weight is None else _take(weight, index)
    begun = time.perf_counter()
    output = estimator.predict(X)
    spent = time.perf_counter() - begun
    arrays = {"y_true": np.array(y), "y_pred": np.array(output)}
    if weight is not None:
        arrays["sample_weight"] = np.array(weight)
    if pos_label is not None:
        arrays["pos_label"] = np.array([pos_label])
    if kind == "classifier" and hasattr(estimator, "predict_proba"):
        _add_probabilities(arrays, estimator, X, budget, spent)
    if not _scores_plainly(estimator):
        _add_own_score(arrays, estimator, X, y, weight, budget, spent)
    return Predicted(kind, _storable(arrays), output, _rows(X) if taken < rows else 0)


def _add_probabilities(arrays: dict[str, Any], estimator: Any, X: Any, budget: float, spent: float) -> None:
    import numpy as np

    if spent > budget / 4 and _affordable(estimator.predict_proba, X, budget) < _rows(X):
        return  # Metrics of one run are of the same rows, or are left out.
    proba = guard.attempt(estimator.predict_proba, X).value
    if proba is None or isinstance(proba, list):  # Several outputs have a list of arrays, which MLflow leaves out, too.
        return
    arrays["y_proba"] = np.array(proba)
    arrays["classes"] = np.array(estimator.classes_)


def _add_own_score(
    arrays: dict[str, Any], estimator: Any, X: Any, y: Any, weight: Any, budget: float, spent: float
) -> None:
    """Ask for the score of an estimator that has its own idea of it, such as a search with ``scoring``."""
    import inspect

    import numpy as np

    arrays["score"] = np.array([])
    score = getattr(estimator, "score", None)
    if score is None or spent > budget:
        return
    takes_weight = weight is not None and "sample_weight" in inspect.signature(score).parameters
    value = guard.attempt(score, X, y, **({"sample_weight": weight} if takes_weight else {})).value
    number = predictions.number(value) if value is not None else None
    if number is not None:
        arrays["score"] = np.array([number])


def _scores_plainly(estimator: Any) -> bool:
    """Return whether ``estimator.score`` is the accuracy or R2 of ``predict``, so that no further pass is needed."""
    for cls in type(estimator).__mro__:
        if "score" not in vars(cls):
            continue
        if not cls.__module__.startswith("sklearn."):
            return False
        if cls.__name__ == "Pipeline":
            return bool(estimator.steps) and _scores_plainly(estimator.steps[-1][1])
        if cls.__name__ == "BaseSearchCV":
            found = getattr(estimator, "best_estimator_", None)
            return estimator.scoring is None and found is not None and _scores_plainly(found)
        return cls.__name__ in _PLAIN_SCORES
    return True


def _storable(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays without objects, which would need a pickle on their way to the sender."""
    import numpy as np

    made = {name: np.asarray(each.tolist()) if each.dtype == object else each for name, each in arrays.items()}
    labels = [name for name in ("y_true", "y_pred", "classes", "pos_label") if name in made]
    # One label that is no number makes texts of all the others, or they would not compare.
    if any(made[name].dtype.kind not in "biuf" for name in labels):
        made.update({name: made[name].astype(str) for name in labels})
    return made


def _affordable(infer: Any, X: Any, budget: float) -> int:
    """Return how many rows `infer` may be asked for within `budget` seconds, judged by what a few take."""
    rows = _rows(X)
    took = _time(infer, X, _PROBE)
    if took * rows / _PROBE <= budget:
        return rows
    # Most of it may be what any call takes. What a row takes shows in the difference to a larger probe, of a size
    # that the first one says is affordable.
    second = min(_SECOND_PROBE, rows // 2, max(2 * _PROBE, int(_PROBE * budget / took)))
    if second <= _PROBE:
        return rows
    longer = float("inf")
    for _ in range(_PROBES):
        longer = min(longer, _time(infer, X, second))
        each = max(longer - took, longer / second / 16) / (second - _PROBE)
        affordable = int((budget - max(0.0, longer - each * second)) / each)
        if affordable >= rows:
            return rows
        if longer > budget / 16:
            break
    return max(_FEWEST, 1 << (max(affordable, 1).bit_length() - 1))


def _time(infer: Any, X: Any, rows: int) -> float:
    part = _take(X, _evenly(_rows(X), rows)) if _rows(X) > rows else X
    begun = time.perf_counter()
    infer(part)
    return time.perf_counter() - begun


def _rows(data: Any) -> int:
    return int(data.shape[0]) if hasattr(data, "shape") else len(data)


def _evenly(rows: int, number: int) -> Any:
    import numpy as np

    return np.linspace(0, rows - 1, number).astype(int)


def _sample(rows: int, number: int) -> Any:
    """Return about `number` different rows, spread over all of them; always the same ones.

    One from each of `number` equal parts, at random within it: data that repeat themselves at a fixed distance, such as
    classes in turn, are met as they are.
    """
    import numpy as np

    within = np.random.Generator(np.random.PCG64(0)).random(number)
    return np.unique(((np.arange(number) + within) * (rows / number)).astype(int))


def _take(data: Any, index: Any) -> Any:
    from sklearn.utils import _safe_indexing

    return _safe_indexing(data, index)
