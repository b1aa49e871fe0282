"""What estimators say about their own training once they are fitted: values per iteration and single numbers.

The metric's name is the attribute's without its underscore, so that it is found in scikit-learn's documentation; the
step is the iteration, from 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from autolog import guard, predictions
from autolog.datasets import Dataset
from autolog.run import Run

#: Attributes with one value per iteration, and what has them.
SERIES = (
    "loss_curve_",  # MLPClassifier, MLPRegressor
    "validation_scores_",  # MLP*, with early_stopping
    "train_score_",  # GradientBoosting*, HistGradientBoosting*
    "validation_score_",  # HistGradientBoosting*, with early_stopping
    "oob_improvement_",  # GradientBoosting*, with subsample < 1
    "oob_scores_",  # GradientBoosting*, with subsample < 1
    "estimator_errors_",  # AdaBoost*
    "estimator_weights_",  # AdaBoost*
    "lower_bounds_",  # GaussianMixture, BayesianGaussianMixture
)
#: Attributes with a single number.
NUMBERS = (
    "n_iter_",
    "n_estimators_",
    "inertia_",  # KMeans
    "loss_",  # MLP*; GradientBoosting* has an object there
    "best_loss_",
    "best_validation_score_",
    "oob_score_",  # forests, Bagging*
    "lower_bound_",  # GaussianMixture
    "reconstruction_err_",  # NMF
    "kl_divergence_",  # TSNE
    "stress_",  # MDS
    "dual_gap_",  # Lasso, ElasticNet
    "mutual_reachability_",
    "bound_",  # LatentDirichletAllocation
)
#: Rows of the training data that staged scores are computed on, and the share of the fit's time that they may take.
STAGED_ROWS, STAGED_SECONDS, STAGED_SHARE = 1000, 0.05, 0.05


def record(
    run: Run,
    estimator: Any,
    X: Any,
    y: Any,
    step: int,
    *,
    seconds: float = 0.0,
    model: str | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Record what a fitted estimator says of its training.

    step: of this fit, where it is one of several in the run; then a curve that began anew is told by its number, such
        as ``loss_curve-2``, and one that goes on from the last fit's is recorded whole under its old name.
    seconds: what the fit took.
    """
    trained = innermost(estimator)
    numbers = guard.run("read the numbers of a fitted estimator", read_numbers, trained)
    if numbers:
        run.metrics(numbers, step=step, model=model, dataset=dataset)
    series = dict(guard.run("read the curves of a fitted estimator", _read_series, trained) or {})
    staged = guard.run("compute staged scores", _staged, estimator, X, y, seconds)
    if staged:
        series["training_staged_score"] = staged
    for i in range(max(map(len, series.values()), default=0)):
        values = {name: each[i] for name, each in series.items() if i < len(each)}
        run.metrics(values, step=i, model=model, dataset=dataset)
    scores = guard.run("read the scores of a feature elimination", _eliminated, trained)
    for features, values in (scores or {}).items():
        run.metrics(values, step=features, dataset=dataset)


def innermost(estimator: Any) -> Any:
    """Return the fitted estimator that a search, a pipeline or a target transformation is all about."""
    for _ in range(10):
        steps = getattr(estimator, "steps", None)
        inside = getattr(estimator, "best_estimator_", None) or getattr(estimator, "regressor_", None)
        inside = steps[-1][1] if isinstance(steps, list) and steps else inside
        if inside is None or isinstance(inside, str):
            break
        estimator = inside
    return estimator


def _attribute(estimator: Any, name: str) -> Any:
    # Not a property that would compute something, such as a forest's importances: what the fit itself stored.
    return getattr(estimator, "__dict__", {}).get(name)


def read_numbers(estimator: Any) -> dict[str, float]:
    """Return the single numbers that a fit stored on the estimator, by metric name."""
    found = {}
    for name in NUMBERS:
        value = _attribute(estimator, name)
        if hasattr(value, "item") and getattr(value, "size", 0) == 1:
            value = value.item()  # LogisticRegression's n_iter_ is an array, of one number where it is one problem.
        number = predictions.number(value) if isinstance(value, int | float) else None
        if number is not None:
            found[name.rstrip("_")] = number
    return found


def _read_series(estimator: Any) -> Iterator[tuple[str, list[float]]]:
    for name in SERIES:
        value = _attribute(estimator, name)
        if value is None:
            continue
        values = value.tolist() if getattr(value, "ndim", 0) == 1 else list(value) if isinstance(value, list) else []
        if values and all(isinstance(each, int | float) for each in values):
            yield name.rstrip("_"), [float(each) for each in values]


def _eliminated(estimator: Any) -> Mapping[int, dict[str, float]]:
    """Return number of features -> score, of a recursive feature elimination (RFECV)."""
    results = _attribute(estimator, "cv_results_")
    if not isinstance(results, dict) or "n_features" not in results or "mean_test_score" not in results:
        return {}
    names = [name for name in ("mean_test_score", "std_test_score") if name in results]
    return {
        int(number): {name: float(results[name][i]) for name in names} for i, number in enumerate(results["n_features"])
    }


def _staged(estimator: Any, X: Any, y: Any, seconds: float) -> list[float]:
    """Return the score after each stage of an AdaBoost, on at most :data:`STAGED_ROWS` rows, while that is cheap."""
    from sklearn.base import is_classifier

    predict: Callable[[Any], Iterator[Any]] | None = getattr(estimator, "staged_predict", None)
    # Other boosting estimators store their loss per stage, which costs nothing.
    if predict is None or X is None or y is None or not hasattr(estimator, "estimator_errors_"):
        return []
    import numpy as np
    from sklearn.metrics import accuracy_score, r2_score
    from sklearn.utils import _safe_indexing

    rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if rows > STAGED_ROWS:
        index = np.linspace(0, rows - 1, STAGED_ROWS).astype(int)
        X, y = _safe_indexing(X, index), _safe_indexing(y, index)
    metric = accuracy_score if is_classifier(estimator) else r2_score
    until = time.perf_counter() + max(STAGED_SECONDS, STAGED_SHARE * seconds)
    scores = []
    with predictions.nested():
        for predicted in predict(X):
            scores.append(float(metric(y, predicted)))
            if time.perf_counter() > until:
                break
    return scores
