"""Predictions that have been through argmax, rounding, a threshold or a copy: recognised by their values.

Nobody is told of these operations, so their results are found by making them again: an array that a metric function is
given in the place of the predictions, and that is no prediction by identity, is compared with what the most recent
predictions give that are still alive. ``accuracy_score(y, model.predict(X) > 0.5)`` leaves nothing of its own, so that
a copy of the last one of a thread is kept until the next, where it is small. All values must be equal, so that the
metric is that of the model whatever the user did; and just one model's prediction of one dataset must give them. Arrays
of a single value are not looked at: any model that fails gives these. Nor is the first argument, the truth, which a
perfect model's predictions equal.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from autolog import guard

#: Predictions that are compared with, numbers in one of them at most, and rows that are compared first.
RECENT, LARGEST, PROBE = 8, 2_000_000, 32
#: Numbers in a prediction at most that a copy is kept of.
KEPT = 100_000

#: What metric functions call their second argument where it is a prediction.
_PREDICTED = ("y_pred", "y_score", "y_proba", "y_prob", "pred_decision", "labels_pred", "labels")

Operation = Callable[[Any], Any]

_recent: deque[tuple[weakref.ref[Any], Any, Any]] = deque(maxlen=RECENT)
_here = threading.local()


def remember(output: Any, prediction: Any, classes: Any) -> None:
    """Remember that the array `output` is `prediction`, for as long as it lives.

    classes: of a classifier, in the order of the columns; None for what has none.
    """
    if hasattr(output, "__array_interface__") and 0 < output.size <= LARGEST:
        of = weakref.ref(output)
        _recent.append((of, prediction, classes))
        _here.last = (of, output.copy()) if output.size <= KEPT else None


def waiting() -> bool:
    """Return whether there is anything to compare with."""
    return bool(_recent)


def origin(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the prediction that a metric function's second argument was made of, None where that is not certain."""
    values = args[1] if len(args) > 1 else next((kwargs[name] for name in _PREDICTED if name in kwargs), None)
    values = _column(values)
    if values is None or len(values) == 0 or (values == values[0]).all():
        return None
    found = {}
    last = getattr(_here, "last", None)
    for ref, prediction, classes in list(_recent):
        output = ref()
        if output is None and last is not None and last[0] is ref:
            output = last[1]
        if output is None or len(output) != len(values):
            continue
        if any(_gives(operation, output, values) for operation in _operations(output, classes)):
            found[prediction.trained, prediction.name] = prediction
    return next(iter(found.values())) if len(found) == 1 else None


def _column(values: Any) -> Any:
    """Return the values as a numpy array of one dimension, None for what are not numbers or texts in one column."""
    import numpy as np

    if isinstance(values, list) and 0 < len(values) <= LARGEST:
        first = values[0]
        # A row for each, as tensors of one column give it.
        one = first[0] if isinstance(first, list) and len(first) == 1 else first
        if not isinstance(one, str | int | float | np.generic):
            return None
        made = guard.attempt(np.asarray, values)
        values = made.value
    elif not hasattr(values, "__array_interface__"):
        # Series of pandas and polars.
        values = values.to_numpy() if hasattr(values, "to_numpy") and getattr(values, "ndim", 1) == 1 else None
    if values is None or not hasattr(values, "dtype") or values.dtype.kind not in "biufUSO" or values.size > LARGEST:
        return None
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    return values if values.ndim == 1 else None


def _operations(output: Any, classes: Any) -> Iterator[Operation]:
    """Yield what users do with such predictions, to compare with what it gives."""
    import numpy as np

    if output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1):
        yield lambda part: part.reshape(-1)
        if output.dtype.kind == "f":
            yield lambda part: np.rint(part.reshape(-1))
            yield lambda part: part.reshape(-1) > 0.5
            yield lambda part: part.reshape(-1) > 0.0
            yield lambda part: part.reshape(-1) >= 0.5
            if classes is not None and len(classes) == 2:
                yield lambda part: np.asarray(classes)[(part.reshape(-1) > 0.0).astype(int)]
    elif output.ndim == 2:
        yield lambda part: part.argmax(axis=1)
        if classes is not None and len(classes) == output.shape[1]:
            yield lambda part: np.asarray(classes)[part.argmax(axis=1)]
        if output.shape[1] == 2:
            yield lambda part: part[:, 1]
            yield lambda part: part[:, 1] > 0.5
            yield lambda part: part[:, 1] >= 0.5


def _gives(operation: Operation, output: Any, values: Any) -> bool:
    import numpy as np

    step = max(1, len(values) // PROBE)
    if not _equal(operation(output[::step]), values[::step]):
        return False
    return step == 1 or bool(np.array_equal(operation(output), values))


def _equal(made: Any, values: Any) -> bool:
    # Texts are never equal to numbers, and numpy warns where they are compared.
    texts = ("U", "S")
    if (made.dtype.kind in texts) != (values.dtype.kind in texts) and "O" not in (made.dtype.kind, values.dtype.kind):
        return False
    return bool((made == values).all())
