"""Functions of ``sklearn.model_selection`` that fit one estimator again and again: one run for the whole.

Keys are those that scikit-learn itself uses for such values (``cross_validate``, ``cv_results_``):

=======================  ============================================  ==========================================
function                 series                                        single values
=======================  ============================================  ==========================================
cross_validate           ``test_<metric>``, ``train_<metric>``,        ``mean_`` and ``std_`` of each test and
                         ``fit_time``, ``score_time``; step = fold     train score
cross_val_score          ``test_score``; step = fold                   ``mean_test_score``, ``std_test_score``
learning_curve           ``mean_``/``std_`` ``train_score`` and
                         ``test_score``; step = number of training
                         rows
validation_curve         the same; step = position in ``param_range``
permutation_test_score   ``permutation_score``; step = permutation     ``test_score``, ``pvalue``
cross_val_predict        metrics that are computed on its result
=======================  ============================================  ==========================================
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Generator, Mapping
from typing import Any

from autolog import datasets, guard, predictions
from autolog.datasets import Dataset
from autolog.patching import Call
from flavors.sklearn import facts

_TIMES = ("fit_time", "score_time")


def cross_validate(call: Call) -> Generator[None, Any, None]:
    """Record one ``cross_validate``: each fold's values, their means and deviations."""
    dataset = _begin(call)
    result = yield
    _record_folds(call, result, dataset)
    for fitted in result.get("estimator", ()):
        predictions.remember(fitted, call.run, None)


def cross_val_score(call: Call) -> Generator[None, Any, None]:
    """Record one ``cross_val_score``: each fold's score, their mean and deviation."""
    dataset = _begin(call)
    result = yield
    _record_folds(call, {"test_score": result}, dataset)


def cross_val_predict(call: Call) -> Generator[None, Any, None]:
    """Record one ``cross_val_predict``; metrics of the out-of-fold predictions will belong to its run."""
    dataset = _begin(call)
    result = yield
    run = call.run
    if run.config.log_post_training_metrics:
        data = call.arguments.get("X")
        by = predictions.Trained(run, None, predictions.Told())
        predictions.follow(result, by, data, call.name_of(data) or "unknown_dataset", lambda: dataset)


def learning_curve(call: Call) -> Generator[None, Any, None]:
    """Record one ``learning_curve``; the step is the number of training rows."""
    dataset = _begin(call)
    sizes, *scores = yield
    names = ("train_score", "test_score", *_TIMES)
    steps = [int(size) for size in sizes]
    _record_curves(call, "learning_curve", "train_size", steps, steps, dict(zip(names, scores, strict=False)), dataset)


def validation_curve(call: Call) -> Generator[None, Any, None]:
    """Record one ``validation_curve``; the step is the position of the parameter's value."""
    dataset = _begin(call)
    train, test = yield
    name, values = str(call.arguments["param_name"]), list(call.arguments["param_range"])
    call.run.tags({"autolog.param_name": name})
    scores = {"train_score": train, "test_score": test}
    _record_curves(call, "validation_curve", name, values, list(range(len(values))), scores, dataset)
    for step, value in enumerate(values):
        if (number := predictions.number(value)) is not None:
            call.run.metrics({name: number}, step=step)


def permutation_test_score(call: Call) -> Generator[None, Any, None]:
    """Record one ``permutation_test_score``."""
    dataset = _begin(call)
    score, permuted, pvalue = yield
    call.run.metrics({"test_score": float(score), "pvalue": float(pvalue)}, dataset=dataset)
    for step, value in enumerate(permuted.tolist()):
        call.run.metrics({"permutation_score": value}, step=step, dataset=dataset)


HOOKS: Mapping[str, Callable[[Call], Generator[None, Any, None]]] = {
    hook.__name__: hook
    for hook in (
        cross_validate,
        cross_val_score,
        cross_val_predict,
        learning_curve,
        validation_curve,
        permutation_test_score,
    )
}


def _begin(call: Call) -> Dataset | None:
    """Record what goes in: the estimator, the data, how it is split and scored."""
    run, arguments = call.run, call.arguments
    estimator = arguments["estimator"]
    run.tags(facts.tags(estimator))
    asked = {name: arguments[name] for name in ("cv", "scoring") if arguments.get(name) is not None}
    run.tags({"autolog.function": call.function.__name__, **{f"autolog.{name}": asked[name] for name in asked}})
    params = guard.run("read the estimator's parameters", facts.params, estimator)
    if params:
        run.params(params)
    X, y = arguments.get("X"), arguments.get("y")
    if not run.config.log_datasets:
        return None
    name = call.name_of(X) or "dataset"
    dataset = guard.run("describe the training data", datasets.describe, X, y, name=name)
    if dataset is not None:
        run.dataset(dataset, "train")
    return dataset


def _record_folds(call: Call, result: Mapping[str, Any], dataset: Dataset | None) -> None:
    import numpy as np

    series = {name: values for name, values in result.items() if getattr(values, "dtype", np.dtype("O")).kind in "fiu"}
    for fold in range(len(next(iter(series.values()), ()))):
        call.run.metrics({name: float(values[fold]) for name, values in series.items()}, step=fold, dataset=dataset)
    summary: dict[str, float] = {}
    for name, values in series.items():
        if name not in _TIMES:
            summary |= {f"mean_{name}": float(np.mean(values)), f"std_{name}": float(np.std(values))}
    call.run.metrics(summary, dataset=dataset)


def _record_curves(
    call: Call,
    title: str,
    label: str,
    values: list[Any],
    steps: list[int],
    scores: Mapping[str, Any],
    dataset: Dataset | None,
) -> None:
    """Record scores of shape (n_values, n_folds): means and deviations as series, all of them as a table."""
    run = call.run
    means = {name: each.mean(axis=1).tolist() for name, each in scores.items()}
    deviations = {name: each.std(axis=1).tolist() for name, each in scores.items()}
    for i, step in enumerate(steps):
        mean = {f"mean_{name}": means[name][i] for name in scores}
        deviation = {f"std_{name}": deviations[name][i] for name in scores}
        run.metrics({**mean, **deviation}, step=step, dataset=dataset)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    columns = [(name, fold) for name, each in scores.items() for fold in range(each.shape[1])]
    rows.writerow([label, *(f"split{fold}_{name}" for name, fold in columns)])
    for i, value in enumerate(values):
        rows.writerow([value, *(float(scores[name][i, fold]) for name, fold in columns)])
    run.text(f"{title}.csv", text.getvalue())
    numbers = [predictions.number(value) for value in values]
    x = [step if number is None else number for step, number in zip(steps, numbers, strict=True)]
    series = {name: [x, means[name]] for name in scores if name not in _TIMES}
    run.figure(f"{title}.png", "lines", {"title": title, "xlabel": label, "ylabel": "score", "series": series})
