"""Which model made this? Fitted models and their predictions, followed by identity.

Metrics that the user computes on predictions after the training belong to the run and the model that predicted. Tables
are keyed by identity and weak: nothing is put on the user's objects, and nothing keeps them alive. They are shared by
all flavors, since scikit-learn's metric functions are called on the predictions of any framework.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autolog import datasets, guard
from autolog.datasets import Dataset
from autolog.patching import Call
from autolog.run import Run


class Told:
    """What one run was told so far: how often each metric, on which data."""

    __slots__ = ("_data", "_inputs", "_metrics", "details")

    def __init__(self) -> None:
        self._metrics: dict[str, int] = {}
        self._data: dict[str, list[weakref.ref[Any]]] = {}
        self._inputs: set[tuple[str, str]] = set()
        #: What a flavor keeps of each metric, by its key.
        self.details: dict[str, Any] = {}

    def name_of(self, variable: str, data: Any) -> str:
        """Return `variable`, numbered where it named other data before: ``X``, ``X-2``."""
        if type(data).__weakrefoffset__ == 0:
            return variable  # A list: whether it is the same one cannot be told later.
        seen = self._data.setdefault(variable, [])
        index = next((i for i, ref in enumerate(seen) if ref() is data), len(seen))
        if index == len(seen):
            seen.append(weakref.ref(data))
        return _numbered(variable, index + 1)

    def key_of(self, metric: str, name: str) -> str:
        """Return the key for one more value of `metric`: ``<metric>[-k]_<name>``, k counting its calls from 2.

        As MLflow's autologging has it (``_AutologgingMetricsManager``), which counts per metric and run.
        """
        count = self._metrics[metric] = self._metrics.get(metric, 0) + 1
        return f"{_numbered(metric, count)}_{name}"

    def is_new(self, dataset: Dataset) -> bool:
        """Return whether the run has not been told of this dataset yet, and note that it has."""
        if dataset.key in self._inputs:
            return False
        self._inputs.add(dataset.key)
        return True


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a fitted model object stands for: its run, and the key of its LoggedModel where there is one."""

    run: Run
    model: str | None
    told: Told


@dataclass(frozen=True, slots=True)
class Prediction:
    """Where a prediction came from, and the name of the data that was predicted on.

    dataset: describes that data; called when a metric is recorded, and may hold the data only where that keeps
        nothing alive that the prediction itself does not.
    """

    trained: Trained
    name: str
    dataset: Callable[[], Dataset | None]

    def say(self, metric: str, value: float) -> str:
        """Record a metric of this prediction, linked to model and dataset; return its key."""
        trained = self.trained
        key = trained.told.key_of(metric, self.name)
        dataset = guard.run("describe the evaluation data", self.dataset)
        if dataset is not None and trained.told.is_new(dataset):
            trained.run.dataset(dataset, "eval")
        trained.run.metrics({key: value}, model=trained.model, dataset=dataset)
        return key


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
        others = (each.told for ref, each in list(_trained.values()) if each.run is run and ref() is not None)
        _put(_trained, fitted, Trained(run, model, next(others, None) or Told()))


def trained(fitted: Any) -> Trained | None:
    """Return what a fitted object stands for, None for one that was not recorded."""
    found: Trained | None = _get(_trained, fitted)
    return found


def follow(output: Any, by: Trained, data: Any, variable: str, dataset: Callable[[], Dataset | None]) -> None:
    """Remember that `output` is what `by` predicted on `data`, which the user calls `variable`."""
    if type(output).__weakrefoffset__ > 0:  # A list or a tuple cannot be followed without keeping it alive.
        _put(_made, output, Prediction(by, by.told.name_of(variable, data), dataset))


def origin(value: Any) -> Prediction | None:
    """Return where `value` came from, if it is itself what a recorded model predicted."""
    found: Prediction | None = _get(_made, value)
    return found


def predict(call: Call) -> Generator[None, Any, None]:
    """Hook for a model's predicting methods: remember which model made the prediction, on what."""
    by = trained(call.instance) if by_user(call) else None
    with nested():
        output = yield
    if by is None:
        return
    data = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
    variable = call.name_of(data) or "unknown_dataset"
    described = guard.run("describe the evaluation data", _describe, by.run, data, variable)
    follow(output, by, data, variable, lambda: described)


def metric(call: Call) -> Generator[None, Any, None]:
    """Hook for metric functions: record the value, if one of the arguments is a prediction of a recorded model."""
    prediction = None
    if by_user(call):
        found = (origin(value) for value in (*call.args, *call.kwargs.values()))
        prediction = next((each for each in found if each is not None), None)
    with nested():
        result = yield
    if prediction is None or isinstance(result, str | bytes):
        return
    number = guard.attempt(float, result).value
    if number is not None:  # A confusion matrix or a curve is not a metric value.
        prediction.say(call.function.__name__, number)


def _describe(run: Run, data: Any, name: str) -> Dataset | None:
    return datasets.describe(data, name=name) if run.config.log_datasets else None


@contextmanager
def nested() -> Iterator[None]:
    """Say that what this thread calls meanwhile is spoken for: see :func:`by_user`."""
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
