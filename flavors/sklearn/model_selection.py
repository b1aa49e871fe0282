"""Searches and cross-validation: one run for the whole, never one per fold.

Keys of searches are MLflow's: ``best_<parameter>`` and ``best_cv_score``. Cross-validation records each fold's values
with the fold as step, under the names that ``cross_validate`` gives them.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from typing import Any

from autolog.patching import Call
from autolog.run import Run

#: Functions that fit the same estimator again and again.
REPEATS = (
    "cross_validate",
    "cross_val_score",
    "cross_val_predict",
    "learning_curve",
    "validation_curve",
    "permutation_test_score",
)


def is_search(estimator: Any) -> bool:
    """Return whether `estimator` is a search over parameters, such as GridSearchCV."""
    module = sys.modules.get("sklearn.model_selection._search")
    return module is not None and isinstance(estimator, module.BaseSearchCV)


def record_search(run: Run, search: Any) -> None:
    """Record what a fitted search found."""
    if hasattr(search, "best_params_"):
        run.params({f"best_{name}": value for name, value in search.best_params_.items()})
    if hasattr(search, "best_score_"):
        run.metrics({"best_cv_score": search.best_score_})


def opens_run(call: Call) -> bool:
    """Return whether this kind of repetition has values of its own to record; the others only keep fits silent."""
    return call.function.__name__ in ("cross_validate", "cross_val_score")


def repeat(call: Call) -> Generator[None, Any, None]:
    """Record one ``cross_validate`` or ``cross_val_score``: the estimator's parameters, each fold's values."""
    estimator = call.arguments["estimator"]
    call.run.tags(
        {
            "estimator_name": type(estimator).__name__,
            "estimator_class": f"{type(estimator).__module__}.{type(estimator).__name__}",
        }
    )
    if hasattr(estimator, "get_params"):
        call.run.params(estimator.get_params(deep=True))
    result = yield
    folds: Mapping[str, Any] = result if isinstance(result, Mapping) else {"test_score": result}
    numeric = {name: values for name, values in folds.items() if getattr(values, "dtype", None) is not None}
    numeric = {name: values for name, values in numeric.items() if values.dtype.kind == "f"}
    for fold in range(len(next(iter(numeric.values()), ()))):
        call.run.metrics({name: values[fold] for name, values in numeric.items()}, step=fold)
