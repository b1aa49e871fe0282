"""What evaluators say of a recorded model's predictions, linked to run, model and dataset.

A prediction is followed by the identity of the DataFrame that ``transform`` returned: see :mod:`autolog.predictions`.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Generator
from typing import Any

from autolog import predictions, scope
from autolog.datasets import Dataset
from autolog.patching import Call
from autolog.predictions import Trained
from flavors.pyspark import frames, stages


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
    key = prediction.say(str(params.get("metricName") or type(evaluator).__name__), float(value))
    details = prediction.trained.told.details
    details[key] = {"evaluator_class": stages.tags(evaluator)["estimator_class"], "params": params}
    text = json.dumps(dict(sorted(details.items())), indent=2, default=str)
    prediction.trained.run.text("metric_info.json", text)


def _describe(by: Trained, frame: Any, variable: str) -> Dataset | None:
    if not by.run.config.log_datasets or not (frames.is_classic(frame) or frames.is_remote(frame)):
        return None
    return frames.describe(frame, variable)


def _by_user(call: Call) -> bool:
    """Return whether the user made this call: no fit is going on around it, and no patched call speaks for it."""
    return scope.current() is None and predictions.by_user(call)
