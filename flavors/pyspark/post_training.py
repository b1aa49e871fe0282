"""What evaluators say of a recorded model's predictions, linked to run, model and dataset.

A prediction is followed by the identity of the DataFrame that ``transform`` returned. Keys are MLflow's:
``<metricName>[-k]_<dataset variable>``, k counting from 2 the evaluations of that metric in one run; another frame of
the same variable name is ``<variable>-2``.
"""

from __future__ import annotations

import json
import numbers
import threading
import weakref
from collections.abc import Generator
from typing import Any

from autolog import guard, scope
from autolog.datasets import Dataset
from autolog.patching import Call
from autolog.run import Run
from flavors.pyspark import frames, stages

_local = threading.local()


class _Told:
    """What one run was told so far: how often each metric, of which frames, by which evaluators."""

    __slots__ = ("frames", "info", "inputs", "metrics")

    def __init__(self) -> None:
        self.metrics: dict[str, int] = {}
        self.frames: dict[str, list[weakref.ref[Any]]] = {}
        self.inputs: set[tuple[str, str]] = set()
        self.info: dict[str, Any] = {}

    def name_of(self, name: str, frame: Any) -> str:
        """Return `name`, numbered where it named other frames before."""
        seen = self.frames.setdefault(name, [])
        index = next((i for i, ref in enumerate(seen) if ref() is frame), len(seen))
        if index == len(seen):
            seen.append(weakref.ref(frame))
        return name if index == 0 else f"{name}-{index + 1}"


class _Model:
    """A fitted model's run, and its key there."""

    __slots__ = ("key", "run", "told")

    def __init__(self, run: Run, key: str | None, told: _Told) -> None:
        self.run = run
        self.key = key
        self.told = told


class _Prediction:
    """Where a prediction came from. `frame` is held as long as the prediction, whose plan holds it anyway."""

    __slots__ = ("frame", "model", "name", "variable")

    def __init__(self, model: _Model, frame: Any, variable: str, name: str) -> None:
        self.model = model
        self.frame = frame
        self.variable = variable
        self.name = name


# By identity and weakly: nothing is put on the user's objects, and nothing keeps them alive.
_models: dict[int, tuple[weakref.ref[Any], _Model]] = {}
_predictions: dict[int, tuple[weakref.ref[Any], _Prediction]] = {}


def _put(table: dict[int, Any], key: Any, value: Any) -> None:
    number = id(key)
    table[number] = (weakref.ref(key, lambda _: table.pop(number, None)), value)


def _get(table: dict[int, Any], key: Any) -> Any:
    found = table.get(id(key))
    return found[1] if found is not None and found[0]() is key else None


def remember(model: Any, run: Run, key: str | None) -> None:
    """Remember which run, and which of its models, a fitted model stands for."""
    if run.config.log_post_training_metrics:
        others = [each.told for ref, each in list(_models.values()) if each.run is run and ref() is not None]
        _put(_models, model, _Model(run, key, others[0] if others else _Told()))


def transform(call: Call) -> Generator[None, Any, None]:
    """Remember which model made a prediction, of what."""
    model = None if _inside() else _get(_models, call.instance)
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        prediction = yield
    finally:
        _local.depth -= 1
    frame = call.args[0] if call.args else call.kwargs.get("dataset")
    if model is None or prediction is None or prediction is frame:
        return
    variable = call.name_of(frame) or "unknown_dataset"
    _put(_predictions, prediction, _Prediction(model, frame, variable, model.told.name_of(variable, frame)))


def evaluate(call: Call) -> Generator[None, Any, None]:
    """Record what an evaluator returned for a prediction of a recorded model."""
    frame = call.args[0] if call.args else call.kwargs.get("dataset")
    prediction = None if _inside() else _get(_predictions, frame)
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        value = yield
    finally:
        _local.depth -= 1
    if prediction is None or isinstance(value, bool) or not isinstance(value, numbers.Real):
        return
    extra = call.args[1] if len(call.args) > 1 else call.kwargs.get("params")
    params = stages.param_values(call.instance, extra if isinstance(extra, dict) else None)
    _say(prediction, call.instance, params, float(value))


def _say(prediction: _Prediction, evaluator: Any, params: dict[str, Any], value: float) -> None:
    run, told = prediction.model.run, prediction.model.told
    metric = str(params.get("metricName") or type(evaluator).__name__)
    count = told.metrics[metric] = told.metrics.get(metric, 0) + 1
    key = f"{metric if count == 1 else f'{metric}-{count}'}_{prediction.name}"
    dataset = guard.run("describe the evaluation data", _dataset, prediction)
    if dataset is not None and dataset.key not in told.inputs:
        told.inputs.add(dataset.key)
        run.dataset(dataset, "eval")
    run.metrics({key: value}, model=prediction.model.key, dataset=dataset)
    told.info[key] = {"evaluator_class": stages.tags(evaluator)["estimator_class"], "params": params}
    run.text("metric_info.json", json.dumps(dict(sorted(told.info.items())), indent=2, default=str))


def _dataset(prediction: _Prediction) -> Dataset | None:
    if not prediction.model.run.config.log_datasets or not frames.is_classic(prediction.frame):
        return None
    return frames.describe(prediction.frame, prediction.variable)


def _inside() -> bool:
    """Return whether a fit, or a patched call that speaks for this one, is going on around it."""
    return getattr(_local, "depth", 0) > 0 or scope.current() is not None
