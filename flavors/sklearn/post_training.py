"""Metrics that the user computes on predictions after the fit, linked to the run and model that predicted.

A prediction is followed by the identity of the object that ``predict`` returned. Keys are MLflow's:
``<metric>[-k]_<dataset variable>``, k counting from 2 where a name repeats in one run.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Generator
from typing import Any

from autolog import datasets, guard
from autolog.datasets import Dataset
from autolog.patching import Call
from autolog.run import Run

_NO_METRIC = {"check_scoring", "get_scorer", "make_scorer", "get_scorer_names"}
_local = threading.local()


class _Model:
    """A fitted estimator's run and model."""

    __slots__ = ("counts", "model", "run")

    def __init__(self, run: Run, model: str | None) -> None:
        self.run = run
        self.model = model
        self.counts: dict[str, int] = {}


class _Prediction:
    """Where a prediction came from."""

    __slots__ = ("dataset", "model", "name")

    def __init__(self, model: _Model, name: str, dataset: Dataset | None) -> None:
        self.model = model
        self.name = name
        self.dataset = dataset


# By identity and weakly: nothing is put on the user's objects, and nothing keeps them alive.
_models: dict[int, tuple[weakref.ref[Any], _Model]] = {}
_predictions: dict[int, tuple[weakref.ref[Any], _Prediction]] = {}


def _put(table: dict[int, Any], key: Any, value: Any) -> None:
    number = id(key)
    table[number] = (weakref.ref(key, lambda _: table.pop(number, None)), value)


def _get(table: dict[int, Any], key: Any) -> Any:
    found = table.get(id(key))
    return found[1] if found is not None and found[0]() is key else None


def remember(estimator: Any, run: Run, model: str | None) -> None:
    """Remember which run and model a fitted estimator stands for."""
    if run.config.log_post_training_metrics:
        _put(_models, estimator, _Model(run, model))


def is_metric(name: str, function: Any) -> bool:
    """Return whether a public name of ``sklearn.metrics`` is a metric function."""
    return inspect.isfunction(function) and name not in _NO_METRIC and not name.startswith("plot_")


def predict(call: Call) -> Generator[None, Any, None]:
    """Remember which model made a prediction, on what."""
    model = None
    if not _inside() and not _called_by_library():
        model = _get(_models, call.instance)
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        output = yield
    finally:
        _local.depth -= 1
    if model is None or not _can_be_followed(output):
        return
    data = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
    name = call.name_of(data) or "unknown_dataset"
    dataset = guard.run("describe the evaluation data", _eval_dataset, model.run, data, name)
    _put(_predictions, output, _Prediction(model, name, dataset))


def _can_be_followed(output: Any) -> bool:
    return type(output).__weakrefoffset__ > 0 or hasattr(output, "__weakref__")


def _eval_dataset(run: Run, data: Any, name: str) -> Dataset | None:
    if not run.config.log_datasets:
        return None
    return datasets.describe(data, name=name)


def metric(call: Call) -> Generator[None, Any, None]:
    """Record what a metric function returned, if one of its arguments is a prediction of a recorded model."""
    prediction = None
    if not _inside() and not _called_by_library():
        for value in (*call.args, *call.kwargs.values()):
            prediction = _get(_predictions, value)
            if prediction is not None:
                break
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        result = yield
    finally:
        _local.depth -= 1
    if prediction is None:
        return
    number = guard.attempt(float, result)
    if number.value is None or isinstance(result, str | bytes):
        return  # A confusion matrix or a curve is not a metric value.
    _say(prediction, call.function.__name__, number.value)


def _say(prediction: _Prediction, name: str, value: float) -> None:
    model = prediction.model
    base = f"{name}_{prediction.name}"
    count = model.counts[base] = model.counts.get(base, 0) + 1
    key = base if count == 1 else f"{name}-{count}_{prediction.name}"
    if prediction.dataset is not None and count == 1:
        model.run.dataset(prediction.dataset, "eval")
    model.run.metrics({key: value}, model=model.model, dataset=prediction.dataset)


def _inside() -> bool:
    """Return whether this call was made by a patched function, which speaks for it."""
    return getattr(_local, "depth", 0) > 0


def _called_by_library() -> bool:
    """Return whether scikit-learn itself made this call, as ``score`` and searches do."""
    frame: Any = inspect.currentframe()
    while frame is not None:
        root = frame.f_globals.get("__name__", "").partition(".")[0]
        if root not in ("autolog", "flavors", "wrapt", "contextlib"):
            return bool(root == "sklearn")
        frame = frame.f_back
    return False
