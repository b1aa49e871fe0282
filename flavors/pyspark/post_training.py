"""What evaluators and summaries say of a recorded model's predictions, linked to run, model and dataset.

A prediction is followed by the identity of the DataFrame that ``transform`` returned: see :mod:`autolog.predictions`.
A summary, which ``evaluate`` of a model returns, or its property ``summary`` about the training data, by that of its
counterpart in the JVM; its numbers are computed, and recorded, when the user asks for them.
"""

from __future__ import annotations

import json
import numbers
import weakref
from collections.abc import Generator
from typing import Any

from autolog import predictions, scope
from autolog.datasets import Dataset
from autolog.patching import Call
from autolog.predictions import Prediction, Trained
from autolog.run import Run
from flavors.pyspark import frames, stages, summaries

#: Fitted stage -> the name of the data that it was trained on, and a list with its description once there is one.
_trained_on: weakref.WeakKeyDictionary[Any, tuple[str, list[Dataset]]] = weakref.WeakKeyDictionary()


def remember(model: Any, run: Run, key: str | None, frame: Any, name: str, described: list[Dataset]) -> None:
    """Remember which run and model a fitted model stands for, and with it its stages that predict.

    frame: what it was trained on, or None; name: that of its variable; described: holds its description, later.
    """
    predictions.remember(model, run, key)
    for stage in stages.flat(model):
        if predictions.trained(stage) is None and hasattr(type(stage), "predictionCol"):
            predictions.remember(stage, run, key)
        by = predictions.trained(stage)
        if by is not None and by.run is run and frame is not None:
            _trained_on[stage] = (by.told.name_of(name, frame), described)


def transform(call: Call) -> Generator[None, Any, None]:
    """Remember which model made a prediction, of what."""
    by = predictions.trained(call.instance) if _by_user(call) else None
    with predictions.nested():
        prediction = yield
    frame = call.args[0] if call.args else call.kwargs.get("dataset")
    if by is None or prediction is None or prediction is frame:
        return
    variable = call.name_of(frame) or "unknown_dataset"
    # The frame is held as long as the prediction is, whose plan holds it anyway.
    predictions.follow(prediction, by, frame, variable, lambda: _describe(by, frame, variable))


def evaluate(call: Call) -> Generator[None, Any, None]:
    """Record what an evaluator returned for a prediction of a recorded model."""
    frame = call.args[0] if call.args else call.kwargs.get("dataset")
    prediction = predictions.origin(frame) if _by_user(call) else None
    with predictions.nested():
        value = yield
    if prediction is None or isinstance(value, bool) or not isinstance(value, numbers.Real):
        return
    evaluator = call.instance
    extra = call.args[1] if len(call.args) > 1 else call.kwargs.get("params")
    params = stages.param_values(evaluator, extra if isinstance(extra, dict) else None)
    detail = {"evaluator_class": stages.tags(evaluator)["estimator_class"], "params": params}
    _say(prediction, str(params.get("metricName") or type(evaluator).__name__), float(value), detail)


def evaluate_model(call: Call) -> Generator[None, Any, None]:
    """Hook for a model's own ``evaluate``: remember what the summary that it returned is of."""
    by = predictions.trained(call.instance) if _by_user(call) else None
    with predictions.nested():
        summary = yield
    counterpart = getattr(summary, "_java_obj", None)
    if by is not None and counterpart is not None:
        frame = call.args[0] if call.args else call.kwargs.get("dataset")
        variable = call.name_of(frame) or "unknown_dataset"
        predictions.follow(counterpart, by, frame, variable, lambda: _describe(by, frame, variable))


def call_java(call: Call) -> Generator[None, Any, None]:
    """Hook for what a model or a summary asks its counterpart: record the number that the user reads.

    Each number of a summary once: a property that is read again is no other metric.
    """
    asked = scope.current() is None and not predictions.spoken_for()
    answer = yield
    if not asked:
        return
    name, *arguments = call.args
    wrapper = call.instance
    if name == "summary":
        on, by = _trained_on.get(wrapper), predictions.trained(wrapper)
        if on is not None and by is not None and type(answer).__weakrefoffset__:
            predictions.attach(answer, Prediction(by, on[0], lambda: _training_data(by, on[1])))
    elif type(answer) is float and name not in summaries.FREE:
        counterpart = getattr(wrapper, "_java_obj", None)
        prediction = predictions.origin(counterpart) if counterpart is not None else None
        if prediction is not None:
            detail = {"summary_class": type(wrapper).__name__, "arguments": arguments}
            if prediction.trained.told.is_new((name, prediction.name, str(detail), repr(answer))):
                _say(prediction, name, answer, detail)


def _say(prediction: Prediction, metric: str, value: float, detail: dict[str, Any]) -> None:
    key = prediction.say(metric, value)
    details = prediction.trained.told.details
    details[key] = detail
    text = json.dumps(dict(sorted(details.items())), indent=2, default=str)
    prediction.trained.run.text("metric_info.json", text)


def _training_data(by: Trained, described: list[Dataset]) -> Dataset | None:
    dataset = described[0] if described else None
    if dataset is not None:
        by.told.is_new(dataset.key)  # The run knows it, as what it was trained on.
    return dataset


def _describe(by: Trained, frame: Any, variable: str) -> Dataset | None:
    if not by.run.config.log_datasets or not (frames.is_classic(frame) or frames.is_remote(frame)):
        return None
    return frames.describe(frame, variable)


def _by_user(call: Call) -> bool:
    """Return whether the user made this call: no fit is going on around it, and no patched call speaks for it."""
    return scope.current() is None and predictions.by_user(call)
