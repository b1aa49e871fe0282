"""What a native booster predicts, followed for the metrics that the user computes on it afterwards."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Generator
from typing import Any

from autolog import datasets, guard, predictions
from autolog.datasets import Dataset
from autolog.patching import Call
from autolog.predictions import Trained
from flavors.xgboost import lineage, matrices, params

#: Arguments of ``Booster.predict`` that ask for something else than a prediction.
_NO_PREDICTION = ("pred_leaf", "pred_contribs", "approx_contribs", "pred_interactions", "training")


def predict(call: Call) -> Generator[None, Any, None]:
    """Hook for ``Booster.predict`` and ``Booster.inplace_predict``: remember which model predicted what."""
    by = predictions.trained(call.instance)
    if by is not None:
        by = _of_user(call, by) if predictions.by_user(call) else None
    with predictions.nested():  # XGBoost's own functions call them, too.
        output = yield
    if by is not None:
        data, variable = predictions.first_argument(call)
        predictions.follow(output, by, data, variable, _dataset(by, data, variable))


def load_model(call: Call) -> Generator[None, Any, None]:
    """Hook for ``Booster.load_model``: what the booster was before, it is no more."""
    predictions.forget(call.instance)
    lineage.forget(call.instance)
    yield


def _of_user(call: Call, by: Trained) -> Trained | None:
    """Return what predicts; a part of the model's rounds is no recorded model, and what is no prediction nothing."""
    arguments = params.bind(call.function, call.args, call.kwargs)
    if any(arguments.get(name) for name in _NO_PREDICTION):
        return None
    given = tuple(arguments.get("iteration_range") or (0, 0))
    whole = given in ((0, 0), (0, call.instance.num_boosted_rounds()))
    return by if whole else dataclasses.replace(by, model=None)


def _dataset(by: Trained, data: Any, name: str) -> Callable[[], Dataset | None]:
    if not by.run.config.log_datasets:
        return lambda: None
    if type(data).__name__.endswith("DMatrix"):
        # Features of a matrix cannot change: it can be looked at when a metric asks, if it lives.
        ref = weakref.ref(data)
        return lambda: matrices.describe(ref(), name)
    described = guard.run("describe the evaluation data", datasets.describe, data, name=name)
    return lambda: described
