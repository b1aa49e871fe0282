"""Which model made this? Fitted models and their predictions, followed by identity.

Metrics that the user computes on predictions after the training belong to the run and the model that predicted. Tables
are keyed by identity and weak: nothing is put on the user's objects, and nothing keeps them alive. They are shared by
all flavors, since scikit-learn's metric functions are called on the predictions of any framework.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from autolog import datasets, guard
from autolog.datasets import Dataset
from autolog.patching import Call
from autolog.run import Run


@dataclass(slots=True)
class Trained:
    """What a fitted model object stands for: its run, and the key of its LoggedModel where there is one."""

    run: Run
    model: str | None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Prediction:
    """Where a prediction came from, and the name of the variable that was predicted on."""

    trained: Trained
    name: str
    dataset: Dataset | None

    def say(self, metric: str, value: float) -> None:
        """Record a metric of this prediction as ``<metric>[-k]_<variable>``, k counting repetitions from 2.

        The key is that of MLflow's autologging. The metric is linked to the model and the dataset.
        """
        base = f"{metric}_{self.name}"
        count = self.trained.counts[base] = self.trained.counts.get(base, 0) + 1
        key = base if count == 1 else f"{metric}-{count}_{self.name}"
        if self.dataset is not None and count == 1:
            self.trained.run.dataset(self.dataset, "eval")
        self.trained.run.metrics({key: value}, model=self.trained.model, dataset=self.dataset)


_trained: dict[int, tuple[weakref.ref[Any], Trained]] = {}
_made: dict[int, tuple[weakref.ref[Any], Prediction]] = {}
_local = threading.local()


def _put(table: dict[int, Any], key: Any, value: Any) -> None:
    number = id(key)
    table[number] = (weakref.ref(key, lambda _: table.pop(number, None)), value)


def _get(table: dict[int, Any], key: Any) -> Any:
    found = table.get(id(key))
    return found[1] if found is not None and found[0]() is key else None


def remember(fitted: Any, run: Run, model: str | None) -> None:
    """Remember which run and model a fitted object stands for, in place of what it stood for before."""
    if run.config.log_post_training_metrics:
        _put(_trained, fitted, Trained(run, model))


def origin(value: Any) -> Prediction | None:
    """Return where `value` came from, if it is itself what a recorded model predicted."""
    found: Prediction | None = _get(_made, value)
    return found


def predict(call: Call) -> Generator[None, Any, None]:
    """Hook for a model's predicting methods: remember which model made the prediction, on what."""
    trained: Trained | None = _get(_trained, call.instance) if by_user(call) else None
    with _nested():
        output = yield
    if trained is None or type(output).__weakrefoffset__ == 0:
        return  # A list or a tuple cannot be followed without keeping it alive.
    data = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
    name = call.name_of(data) or "unknown_dataset"
    dataset = guard.run("describe the evaluation data", _describe, trained.run, data, name)
    _put(_made, output, Prediction(trained, name, dataset))


def metric(call: Call) -> Generator[None, Any, None]:
    """Hook for metric functions: record the value, if one of the arguments is a prediction of a recorded model."""
    prediction = None
    if by_user(call):
        found = (origin(value) for value in (*call.args, *call.kwargs.values()))
        prediction = next((each for each in found if each is not None), None)
    with _nested():
        result = yield
    if prediction is None or isinstance(result, str | bytes):
        return
    number = guard.attempt(float, result).value
    if number is not None:  # A confusion matrix or a curve is not a metric value.
        prediction.say(call.function.__name__, number)


def _describe(run: Run, data: Any, name: str) -> Dataset | None:
    return datasets.describe(data, name=name) if run.config.log_datasets else None


@contextmanager
def _nested() -> Iterator[None]:
    _local.depth = getattr(_local, "depth", 0) + 1
    try:
        yield
    finally:
        _local.depth -= 1


def by_user(call: Call) -> bool:
    """Return whether the user made this call, rather than a framework or another call that speaks for it."""
    if getattr(_local, "depth", 0) > 0:
        return False
    frameworks = {"sklearn", str(getattr(call.function, "__module__", "")).partition(".")[0]} - {"__main__"}
    frame = inspect.currentframe()
    while frame is not None:
        root = frame.f_globals.get("__name__", "").partition(".")[0]
        if root not in ("autolog", "flavors", "wrapt", "contextlib"):
            return root not in frameworks
        frame = frame.f_back
    return True
