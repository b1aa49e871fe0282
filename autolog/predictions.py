"""Which model made this? Fitted models and their predictions, followed by identity.

Metrics that the user computes on predictions after the training belong to the run and the model that predicted. Tables
are keyed by identity and weak: nothing is put on the user's objects, and nothing keeps them alive. They are shared by
all flavors, since scikit-learn's metric functions are called on the predictions of any framework.
"""

from __future__ import annotations

import inspect
import json
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autolog import datasets, guard, postprocessed
from autolog.datasets import Dataset
from autolog.patching import Call, is_library
from autolog.run import Run


class Told:
    """What one run was told so far: how often each metric, on which data.

    In a training that goes on step by step, a metric that is computed again after the next step is the next point of
    the same series, not a second metric: counting begins anew at each step.
    """

    __slots__ = ("_data", "_known", "_metrics", "details", "step")

    def __init__(self) -> None:
        self._metrics: dict[str, int] = {}
        self._data: dict[str, list[weakref.ref[Any]]] = {}
        self._known: set[tuple[Any, ...]] = set()
        #: What a flavor keeps of each metric, by its key.
        self.details: dict[str, Any] = {}
        #: The step that the training is at.
        self.step = 0

    def begin_step(self, step: int) -> None:
        """Note that the training has made another step, which what is told from here on is about."""
        self.step = step
        self._metrics.clear()
        self._data.clear()

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

    def is_new(self, what: tuple[Any, ...]) -> bool:
        """Return whether the run has not been told of this yet, such as a dataset's key, and note that it has."""
        if what in self._known:
            return False
        self._known.add(what)
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

    def say(self, metric: str, value: float, command: str | None = None) -> str:
        """Record a metric of this prediction, linked to model and dataset; return its key.

        command: the user's call, as ``metric_info.json`` shows it.
        """
        trained = self.trained
        told = trained.told
        key = told.key_of(metric, self.name)
        dataset = guard.run("describe the evaluation data", self.dataset)
        if dataset is not None and told.is_new(dataset.key):
            trained.run.dataset(dataset, "eval")
        trained.run.metrics({key: value}, step=told.step, model=trained.model, dataset=dataset)
        if command is not None and told.details.get(key) != command:
            told.details[key] = command
            trained.run.text("metric_info.json", json.dumps(dict(sorted(told.details.items())), indent=2, default=str))
        return key


_trained: dict[int, tuple[weakref.ref[Any], Trained]] = {}
_made: dict[int, tuple[weakref.ref[Any], Prediction]] = {}
#: What predictions keep their numbers in, by which views of them are recognised.
_buffers: dict[int, tuple[weakref.ref[Any], tuple[Prediction, Rows | None]]] = {}
_local = threading.local()

#: Modules whose frames stand between the user and a function that the user called: scikit-learn checks arguments there.
_BETWEEN = frozenset({"sklearn.utils._param_validation"})


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


def forget(fitted: Any) -> None:
    """Forget what a fitted object stands for: it has changed."""
    if _get(_trained, fitted) is not None:
        _trained.pop(id(fitted), None)


def trained(fitted: Any) -> Trained | None:
    """Return what a fitted object stands for, None for one that was not recorded."""
    found: Trained | None = _get(_trained, fitted)
    return found


def follow(
    output: Any, by: Trained, data: Any, variable: str, dataset: Callable[[], Dataset | None], *, classes: Any = None
) -> None:
    """Remember that `output` is what `by` predicted on `data`, which the user calls `variable`.

    classes: those of a classifier, in the order of its probabilities.
    """
    if type(output).__weakrefoffset__ == 0:  # A list or a tuple cannot be followed without keeping it alive.
        return
    prediction = Prediction(by, by.told.name_of(variable, data), dataset)
    attach(output, prediction)
    postprocessed.remember(output, prediction, classes)
    if not hasattr(output, "__array_interface__"):
        return
    owner = output.base
    if owner is None:
        _put(_buffers, output, (prediction, Rows.of(output)))
    # A prediction that is itself a view: views of it are views of its buffer, which is the prediction's own where
    # nothing else holds it (the three references are the prediction's, this frame's and the argument's).
    elif type(owner) is type(output) and sys.getrefcount(owner) <= 3:
        _put(_buffers, owner, (prediction, Rows.of(output)))


def attach(made: Any, prediction: Prediction) -> None:
    """Remember that `made`, which can be referred to weakly, is that prediction, or what is to be said of it."""
    _put(_made, made, prediction)


class Rows:
    """Where the rows of an array lie in memory.

    start: address of the first one; stride: bytes to the next one; width: how many numbers one has; across: bytes from
    one of these to the next, 0 where there is one.
    """

    __slots__ = ("across", "dtype", "number", "start", "stride", "width")

    def __init__(self, start: int, number: int, stride: int, width: int, across: int, dtype: Any) -> None:
        self.start = start
        self.number = number
        self.stride = stride
        self.width = width
        self.across = across
        self.dtype = dtype

    @classmethod
    def of(cls, array: Any) -> Rows | None:
        """Return the rows of a numpy array; None for one that has none."""
        if array.ndim == 0 or array.shape[0] == 0 or array.strides[0] == 0:
            return None
        start = array.__array_interface__["data"][0]
        width = array.size // array.shape[0]
        across = array.strides[-1] if width > 1 else 0
        return cls(start, array.shape[0], array.strides[0], width, across, array.dtype)

    def taken_by(self, view: Rows) -> slice | None:
        """Return which rows `view`, of the same buffer, takes of this array; None where its rows are not these."""
        if view.dtype != self.dtype or view.width > self.width or view.stride % self.stride:
            return None
        offset, step = view.start - self.start, view.stride // self.stride
        if self.across > self.stride > 0:
            # Fortran order, as of probabilities of older scikit-learn: a column's rows lie side by side.
            column, offset = divmod(offset, self.across)
            if not 0 <= column < self.width or view.across % self.across:
                return None
        first = offset // self.stride
        last = first + (view.number - 1) * step
        if not (0 <= first < self.number and 0 <= last < self.number):
            return None
        return slice(first, last + 1, step) if step > 0 else slice(last, first + 1, -step)


def origin(value: Any) -> Prediction | None:
    """Return where `value` came from, if it is what a recorded model predicted, or columns or rows of that.

    Views are followed by the buffer that they share with the prediction. Some of the rows are data of their own: they
    are called ``X.0-50`` for rows 0 up to 50, ``X.0-50.2`` for every second of them, and linked to no dataset.
    """
    found: Prediction | None = _get(_made, value)
    if found is not None or not _buffers:
        return found
    owner = getattr(value, "base", None)
    shared = _get(_buffers, owner) if owner is not None and hasattr(value, "__array_interface__") else None
    if shared is None:
        return None
    prediction: Prediction
    whole: Rows | None
    prediction, whole = shared
    part = Rows.of(value)
    taken = whole.taken_by(part) if whole is not None and part is not None else None
    if taken is None:
        return None
    if taken.start == 0 and taken.stop == whole.number and taken.step == 1:
        return prediction
    stride = "" if taken.step == 1 else f".{taken.step}"
    name = f"{prediction.name}.{taken.start}-{taken.stop}{stride}"
    return Prediction(prediction.trained, name, lambda: None)


def predict(call: Call) -> Generator[None, Any, None]:
    """Hook for a model's predicting methods: remember which model made the prediction, on what."""
    by = trained(call.instance)
    if by is not None and not by_user(call):
        by = None
    with nested():
        output = yield
    if by is None:
        return
    data, variable = first_argument(call)
    described = guard.run("describe the evaluation data", _describe, by.run, data, variable)
    classes = guard.attempt(getattr, call.instance, "classes_", None).value
    follow(output, by, data, variable, lambda: described, classes=classes)


def score(call: Call) -> Generator[None, Any, None]:
    """Hook for a model's own ``score``: record its value as ``<class>_score[-k]_<data>``, as MLflow names it."""
    by = trained(call.instance)
    if by is not None and not by_user(call):
        by = None
    with nested():
        result = yield
    if by is None or (value := number(result)) is None:
        return
    name = type(call.instance).__name__
    evaluated(call, by).say(f"{name}_score", value, command(call, f"{name}.{call.function.__name__}"))


def metric(call: Call) -> Generator[None, Any, None]:
    """Hook for metric functions: record the value, if one of the arguments is a prediction of a recorded model."""
    prediction = None
    if (_made or _buffers or postprocessed.waiting()) and not spoken_for():
        found = (origin(value) for value in (*call.args, *call.kwargs.values()))
        prediction = next((each for each in found if each is not None), None)
        if (prediction is not None or postprocessed.waiting()) and not by_user(call):
            prediction = None
        elif prediction is None and postprocessed.waiting():
            prediction = guard.attempt(postprocessed.origin, call.args, call.kwargs).value
    with nested():
        result = yield
    if prediction is None or (value := number(result)) is None:  # A confusion matrix or a curve is no metric value.
        return
    name = call.function.__name__
    prediction.say(name, value, command(call, name))


def first_argument(call: Call) -> tuple[Any, str]:
    """Return the data that a model's method was called with, and the name of the user's variable that holds it."""
    data = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
    return data, call.name_of(data) or "unknown_dataset"


def evaluated(call: Call, by: Trained, position: int = 0) -> Prediction:
    """Return what a call's metric is of, that computes the model's predictions itself; position: of the data."""
    data = call.args[position] if len(call.args) > position else call.kwargs.get("X")
    variable = call.name_of(data) or "unknown_dataset"
    return Prediction(by, by.told.name_of(variable, data), lambda: _describe(by.run, data, variable))


def number(value: Any) -> float | None:
    """Return `value` as a metric value, None for what is none: truth values, texts, arrays of several numbers."""
    if (
        isinstance(value, str | bytes | bool)
        or str(getattr(value, "dtype", "")) == "bool"
        or getattr(value, "ndim", 0) != 0
    ):
        return None
    return guard.attempt(float, value).value


def command(call: Call, name: str) -> str:
    """Return the user's call as text, such as ``accuracy_score(y_true=y_test, y_pred=pred, normalize=False)``.

    As MLflow's autologging writes it: data by the name of its variable, or its type where it has none.
    """
    signature = guard.attempt(inspect.signature, call.function).value
    names = list(signature.parameters) if signature is not None else []
    named = [(names[i] if i < len(names) else f"arg{i}", value) for i, value in enumerate(call.args)]
    return f"{name}({', '.join(f'{key}={_shown(call, value)}' for key, value in (*named, *call.kwargs.items()))})"


def _shown(call: Call, value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | complex):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 32 else value[:32] + "...")
    return call.name_of(value) or f"<{type(value).__name__}>"


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


def spoken_for() -> bool:
    """Return whether a patched call around this one, on this thread, speaks for it."""
    return getattr(_local, "depth", 0) > 0


def by_user(call: Call) -> bool:
    """Return whether the user made this call, rather than a framework or another call that speaks for it."""
    if spoken_for():
        return False
    own = str(getattr(call.function, "__module__", "")).partition(".")[0]
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        root = name.partition(".")[0]
        if root not in ("autolog", "flavors", "wrapt", "contextlib") and name not in _BETWEEN:
            # The user's own estimator may be in the module, or the package, that uses it.
            return root != "sklearn" and not (root == own and is_library(frame.f_code.co_filename))
        frame = frame.f_back
    return True
