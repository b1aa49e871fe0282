"""Scores and metrics that the user computes after a training: which functions are patched, where, and what is said.

How values are recorded, and how predictions are followed, is :mod:`autolog.predictions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator
from types import CellType, ModuleType
from typing import Any

from autolog import guard, predictions
from autolog.datasets import Dataset
from autolog.patching import Call

_NO_METRIC = {"check_scoring", "get_scorer", "make_scorer", "get_scorer_names"}


def is_metric(name: str, function: Any) -> bool:
    """Return whether a public name of ``sklearn.metrics`` is a metric function."""
    return inspect.isfunction(function) and name not in _NO_METRIC and not name.startswith("plot_")


def cell_of(function: Any) -> CellType | None:
    """Return the closure cell in which a public function of scikit-learn keeps its own implementation.

    scikit-learn's ``validate_params`` checks the arguments in front of nearly every public function and then calls what
    is in that cell. Putting a wrapper there leaves the public function the object that it was: wherever the user bound
    it, before ``autolog()`` or after, in a module, a local variable, a dict or a partial, the wrapper is reached, and
    its identity, pickle and signature are untouched. None for a function that is not decorated so.
    """
    code = getattr(function, "__code__", None)
    if code is None or "func" not in code.co_freevars or "parameter_constraints" not in code.co_freevars:
        return None
    cell: CellType = function.__closure__[code.co_freevars.index("func")]
    return cell


def follow_fit(call: Call, X: Any, result: Any, dataset: Dataset | None) -> None:
    """Follow what a fit itself says of its data: what ``fit_predict`` returned, and ``labels_`` of a clustering."""
    by = predictions.trained(call.instance)
    if by is None or X is None:
        return
    variable = call.name_of(X) or "unknown_dataset"
    labels = getattr(call.instance, "__dict__", {}).get("labels_")
    for output in (result if call.function.__name__ == "fit_predict" else None, labels):
        if hasattr(output, "__array_interface__") and predictions.origin(output) is None:
            predictions.follow(output, by, X, variable, lambda: dataset)


def scorers(module: ModuleType) -> Iterator[tuple[type, str, Callable[[Call], Generator[None, Any, None]]]]:
    """Yield (class, method, hook) for the objects that ``get_scorer``, ``make_scorer``, ``check_scoring`` return.

    module: ``sklearn.metrics._scorer``.
    """
    hooks = {"_BaseScorer": scorer, "_MultimetricScorer": multimetric_scorer, "_PassthroughScorer": passthrough_scorer}
    for name, hook in hooks.items():
        cls = getattr(module, name, None)
        if isinstance(cls, type) and "__call__" in vars(cls):
            yield cls, "__call__", hook


def scorer(call: Call) -> Generator[None, Any, None]:
    """Hook for ``scorer(estimator, X, y)``: record it under its metric function's name, with that metric's sign."""
    by = _scored(call)
    with predictions.nested():
        result = yield
    if by is not None and (value := predictions.number(result)) is not None:
        _say(call, by, call.instance, _name(call.instance), value)


def multimetric_scorer(call: Call) -> Generator[None, Any, None]:
    """Hook for a scorer of several metrics, which returns a dict of values by name."""
    by = _scored(call)
    with predictions.nested():
        result = yield
    if by is None or not isinstance(result, dict):
        return
    inside = getattr(call.instance, "_scorers", {})
    for name, each in result.items():
        if (value := predictions.number(each)) is not None:
            _say(call, by, inside.get(name), _name(inside.get(name)) or str(name), value)


def passthrough_scorer(call: Call) -> Generator[None, Any, None]:
    """Hook for the scorer that stands for the estimator's own ``score``."""
    by = _scored(call)
    with predictions.nested():
        result = yield
    if by is not None and (value := predictions.number(result)) is not None:
        _say(call, by, None, f"{type(_estimator(call)).__name__}_score", value)


def _estimator(call: Call) -> Any:
    return call.args[0] if call.args else call.kwargs.get("estimator")


def _scored(call: Call) -> predictions.Trained | None:
    by = predictions.trained(_estimator(call))
    return by if by is not None and predictions.by_user(call) else None


def _name(scorer: Any) -> str:
    function = getattr(scorer, "_score_func", None)
    function = getattr(function, "func", function)  # A partial's.
    name = getattr(function, "__name__", "")
    return "scorer" if name == "<lambda>" else str(name)


def _say(call: Call, by: predictions.Trained, scorer: Any, name: str, value: float) -> None:
    # Scorers of losses are negative, so that more is better; the metric that they are named after is not.
    value *= getattr(scorer, "_sign", 1)
    text = guard.run("describe a scorer's call", predictions.command, call, f"{name or 'scorer'}_scorer")
    predictions.evaluated(call, by, 1).say(name or "scorer", value, text)
