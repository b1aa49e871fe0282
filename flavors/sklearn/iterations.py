"""Fits that say what they do while they run: scikit-learn's own callbacks (``sklearn.callback``, from 1.9 on).

In 1.9 one estimator with iterations takes them, ``LogisticRegression`` by L-BFGS, alone or at the end of a pipeline.
Callbacks are given the coefficients after each iteration, not the loss, which therefore has to be computed. So they
are used where the data are large, or where checkpoints are asked for:

* ``iteration_log_loss``: of at most :data:`ROWS` rows of the training data, without the penalty; step = iteration. As
  often as fits into :data:`SHARE` of the time.
* checkpoints after iterations, as the :class:`~autolog.checkpoints.Checkpoints` policy has it.

The user's own callbacks are called as before, and the estimator holds ours for as long as its fit takes.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from typing import Any

from autolog import guard, predictions
from autolog.checkpoints import Schedule, Shelf
from autolog.models import ModelSnapshot
from autolog.run import Run

#: Numbers in the training data from which on an iteration takes tens of milliseconds: measured, the curve then costs
#: less than what differs from fit to fit; with 2,000,000 it costs a tenth, with 20,000 as much as the fit.
LARGE = 10_000_000
#: Rows that the loss is computed on, and the share of the fit's time that this may take.
ROWS, SHARE = 1000, 0.02

#: What a fit keeps on an estimator about its callbacks while it runs: no part of a checkpoint.
_PASSING = ("_skl_callbacks", "_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx")
_HELD = "_skl_callbacks"

Take = Callable[[Any], ModelSnapshot]


class Iterations:
    """One fit's callback, following the protocol ``sklearn.callback.FitCallback``.

    whole: what the user fits: the estimator with iterations, or a pipeline that ends with it. take: makes its snapshot.
    """

    def __init__(self, run: Run, whole: Any, take: Take) -> None:
        self._run = run
        self._whole = whole
        self._take = take
        self._spent = 0.0
        self._started = time.perf_counter()
        self._sample: tuple[Any, Any, Any] | None = None
        self._schedule = Schedule(run.config.checkpoints) if run.config.log_models else None
        self._shelf = Shelf(run.config.checkpoints)

    def setup(self, estimator: Any, context: Any) -> None:
        """Do nothing: part of the protocol."""

    def teardown(self, estimator: Any, context: Any) -> None:
        """Do nothing: part of the protocol."""

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing: part of the protocol."""

    def on_fit_task_end(
        self,
        estimator: Any,
        context: Any,
        *,
        X: Any = None,
        y: Any = None,
        metadata: Any = None,
        fitted_estimator: Any = None,
    ) -> bool:
        """Record an iteration; other tasks, which have no estimator to show, are left out. Never stops the fit."""
        if fitted_estimator is not None and context.max_subtasks == 0:
            guard.run("record an iteration", self._record, fitted_estimator, context.task_id, X, y, metadata or {})
        return False

    def _record(self, fitted: Any, step: int, X: Any, y: Any, metadata: Any) -> None:
        begun = time.perf_counter()
        due = self._schedule is not None and self._schedule.due_at_step(step + 1)
        if not due and self._spent > SHARE * (begun - self._started):
            return
        values = {"iteration_log_loss": self._loss(fitted, X, y, metadata.get("sample_weight"))}
        self._spent += time.perf_counter() - begun
        key = self._checkpoint(fitted, step, values) if due else None
        self._run.metrics(values, step=step, model=key)

    def _loss(self, fitted: Any, X: Any, y: Any, weight: Any) -> float:
        import numpy as np
        from sklearn.metrics import log_loss
        from sklearn.utils import _safe_indexing

        if self._sample is None:
            rows = X.shape[0]
            if rows > ROWS:
                self._run.tags({"autolog.iteration_log_loss_rows": ROWS})
                index = np.linspace(0, rows - 1, ROWS).astype(int)
                X, y = _safe_indexing(X, index), _safe_indexing(y, index)
                weight = None if weight is None else _safe_indexing(weight, index)
            self._sample = X, y, weight
        X, y, weight = self._sample
        with predictions.nested():
            return float(log_loss(y, fitted.predict_proba(X), labels=fitted.classes_, sample_weight=weight))

    def _checkpoint(self, fitted: Any, step: int, values: dict[str, float]) -> str | None:
        assert self._schedule is not None
        begun = time.perf_counter()
        for name in _PASSING:
            vars(fitted).pop(name, None)
        whole = fitted
        if self._whole_is_pipeline():
            whole = copy.copy(self._whole)
            whole.steps = [*self._whole.steps[:-1], (self._whole.steps[-1][0], fitted)]
            for name in _PASSING:
                vars(whole).pop(name, None)
        snapshot = guard.run("take a snapshot of the model", self._take, whole)
        key = None
        if snapshot is not None:
            key = self._run.model(snapshot, name=f"checkpoint-{step}", step=step)
            self._run.drop_models(self._shelf.add(key, values.get(self._run.config.checkpoints.monitor)))
        self._schedule.taken(step + 1, time.perf_counter() - begun)
        return key

    def _whole_is_pipeline(self) -> bool:
        return bool(getattr(self._whole, "steps", None))


class Watched:
    """An estimator that holds a callback of ours; :meth:`close` takes it away again."""

    def __init__(self, estimator: Any, callback: Iterations) -> None:
        self._attributes = vars(estimator)
        self._before = self._attributes.get(_HELD)
        estimator.set_callbacks(*(self._before or ()), callback)

    def close(self) -> None:
        """Give the estimator back the callbacks that it had: the same list, or none."""
        if self._before is None:
            self._attributes.pop(_HELD, None)
        else:
            self._attributes[_HELD] = self._before


def watch(run: Run, estimator: Any, X: Any, take: Take) -> Watched | None:
    """Have the iterations of the fit that is about to begin recorded; None where it has none or is too small.

    take: makes the snapshot of a checkpoint.
    """
    # What knows callbacks has imported their module.
    if "sklearn.callback" not in sys.modules or not _wanted(run, X):
        return None
    steps = getattr(estimator, "steps", None)
    iterating = steps[-1][1] if isinstance(steps, list) and steps else estimator
    logistic = sys.modules.get("sklearn.linear_model._logistic")
    if (
        logistic is None
        or not isinstance(iterating, logistic.LogisticRegression)
        # With another solver there are no iterations to be told, and scikit-learn would warn of that.
        or getattr(iterating, "solver", None) != "lbfgs"
        or not hasattr(iterating, "set_callbacks")
        or hasattr(iterating, "_parent_callback_ctx")
    ):
        return None
    return Watched(iterating, Iterations(run, estimator, take))


def _wanted(run: Run, X: Any) -> bool:
    _, unit = run.config.checkpoints.interval
    if run.config.log_models and unit in ("step", "second"):
        return True
    shape: tuple[Any, ...] = getattr(X, "shape", ())
    return len(shape) == 2 and all(isinstance(each, int) for each in shape) and shape[0] * shape[1] >= LARGE
