"""Fits that go on from the one before (``warm_start=True``): one run, one step per fit.

Each fit is recorded whole, and its run ends with it; the next fit of the same estimator goes on in the same run. A run
so ended says FINISHED while the user only thinks about the next fit, and nothing is left open when there is none.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from typing import Any

from autolog import beside, predictions
from autolog.checkpoints import Shelf
from autolog.patching import Call
from autolog.run import Run

_warm: dict[int, Warm] = {}


class Warm:
    """What an estimator's warm fits have in common. step: of the fit that is under way or was the last."""

    __slots__ = ("active", "estimator", "params", "run", "shelf", "step")

    def __init__(self, estimator: Any, run: Run, number: int) -> None:
        self.estimator = weakref.ref(estimator, lambda _: _warm.pop(number, None))
        self.run = run
        self.active = beside.active_run()
        self.step = 0
        self.params: Mapping[str, str] = {}
        self.shelf = Shelf(run.config.checkpoints)


def is_warm(estimator: Any) -> bool:
    """Return whether fitting `estimator`, or a pipeline that ends with one, again goes on from where it was."""
    while getattr(estimator, "steps", None):
        estimator = estimator.steps[-1][1]
    return getattr(estimator, "warm_start", False) is True


def _of(estimator: Any) -> Warm | None:
    known = _warm.get(id(estimator))
    return known if known is not None and known.estimator() is estimator else None


def begin(call: Call) -> int:
    """Begin a fit: in the run of the estimator's last one where it goes on from it. Return its step."""
    estimator = call.instance
    known = _of(estimator)
    if not is_warm(estimator):
        _warm.pop(id(estimator), None)
        return 0
    # In another run of the user's, it is another training.
    if known is not None and known.active == beside.active_run() and call.scope is not None:
        known.step += 1
        known.run.reopen()
        call.scope.run = known.run
        made = predictions.trained(estimator)
        if made is not None:
            made.told.begin_step(known.step)
        return known.step
    _warm[id(estimator)] = Warm(estimator, call.run, id(estimator))
    return 0


def record_params(call: Call, params: Mapping[str, str], step: int) -> None:
    """Record a fit's parameters: of a later one those that have changed, numbers as series, all of them as a tag."""
    known = _of(call.instance)
    before = known.params if known is not None else {}
    if known is not None:
        known.params = params
    if step == 0:
        call.run.params(params)
        return
    changed = {name: value for name, value in params.items() if before.get(name) != value}
    if not changed:
        return
    call.run.tags({f"autolog.params.{step}": json.dumps(changed)})
    numbers = {name: number for name, value in changed.items() if (number := _number(value)) is not None}
    if numbers:
        call.run.metrics(numbers, step=step)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def end(call: Call, model: str | None) -> None:
    """Note the model of a fit that has ended; the models of earlier fits are kept as checkpoints are."""
    known = _of(call.instance)
    if known is None or model is None:
        return
    dropped = known.shelf.add(model, None)
    if call.run.config.registered_model_name is None:
        call.run.drop_models(dropped)
