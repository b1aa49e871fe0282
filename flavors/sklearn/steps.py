"""Trainings by ``partial_fit``: one run for all calls of one estimator, one step per call.

The run is open until the estimator is fitted anew, is gone, or recording ends; its model is that after the last call.
Of an estimator that is gone it is taken from a shallow copy: the estimator is not kept alive, what it learned is, as
long as the run is open.
"""

from __future__ import annotations

import os
import time
import traceback
import weakref
from collections.abc import Generator, Mapping
from typing import Any

from autolog import beside, datasets, guard, predictions, runtime, signature
from autolog.checkpoints import Schedule, Shelf
from autolog.patching import Call, TrainingFailed
from autolog.records import now
from autolog.run import Run
from flavors.sklearn import curves, facts

#: Scores of batches may take this long, or this share of the time spent in ``partial_fit`` where that is more.
SCORE_SECONDS, SCORE_SHARE = 0.05, 0.05


class Training:
    """One estimator and its run, from the first ``partial_fit`` on."""

    def __init__(self, estimator: Any, run: Run, steps: Steps) -> None:
        number = id(estimator)
        self.estimator = weakref.ref(estimator, lambda _: steps.died(number, self))
        self.run = run
        self.active = beside.active_run()
        self.process = os.getpid()
        self.step = 0
        self.ended = False
        self.signature: Mapping[str, str] | None = None
        self.example: Mapping[str, Any] | None = None
        #: (status, traceback) of a call that raised, until one succeeds.
        self.failure: tuple[str, str] | None = None
        self._held: Any = None
        self._last: tuple[dict[str, float], int, int] | None = None
        self._trained = self._scored = 0.0
        takes = run.config.log_models and run.config.checkpoints.every != "end"
        self._schedule = Schedule(run.config.checkpoints) if takes else None
        self._shelf = Shelf(run.config.checkpoints)
        predictions.remember(estimator, run, None)

    def record(self, estimator: Any, X: Any, y: Any, weight: Any, seconds: float) -> None:
        """Record one call that has succeeded and took `seconds`."""
        step, at = self.step, now()
        self.step += 1
        self.failure = None
        self._trained += seconds
        told = predictions.trained(estimator)
        if told is not None:
            told.told.begin_step(step)
        self._held = _shallow(estimator)
        values = curves.read_numbers(curves.innermost(estimator))
        values.update(guard.run("score a batch", self._score, estimator, X, y, weight) or {})
        key = None
        if self._schedule is not None and self._schedule.due_at_step(self.step):
            started = time.perf_counter()
            key = self._save(estimator, f"checkpoint-{step}", step)
            if key is not None:
                self.run.drop_models(self._shelf.add(key, values.get(self.run.config.checkpoints.monitor)))
                predictions.remember(estimator, self.run, key)
            self._schedule.taken(self.step, time.perf_counter() - started)
        self._last = (values, step, at)
        if values:
            self.run.metrics(values, step=step, time=at, model=key)

    def _score(self, estimator: Any, X: Any, y: Any, weight: Any) -> dict[str, float]:
        """Return the training metrics of a batch, nothing where all so far have taken more than their share."""
        if self._scored > max(SCORE_SECONDS, SCORE_SHARE * self._trained) or not hasattr(estimator, "predict"):
            return {}
        from sklearn import metrics
        from sklearn.base import is_classifier, is_regressor

        started = time.perf_counter()
        with predictions.nested():
            output = estimator.predict(X)
            if self.step == 1:
                self._describe(X, output)
            values: dict[str, float] = {}
            if y is not None and is_classifier(estimator):
                values["training_accuracy_score"] = float(metrics.accuracy_score(y, output, sample_weight=weight))
            elif y is not None and is_regressor(estimator):
                error = float(metrics.mean_squared_error(y, output, sample_weight=weight))
                values["training_mean_squared_error"] = error
                if len(output) > 1:
                    values["training_r2_score"] = float(metrics.r2_score(y, output, sample_weight=weight))
        self._scored += time.perf_counter() - started
        return values

    def _describe(self, X: Any, output: Any) -> None:
        config = self.run.config
        if config.log_model_signatures:
            self.signature = signature.signature(signature.schema(X), signature.schema(output))
            self.example = signature.example(X) if config.log_input_examples else None

    def _save(self, estimator: Any, name: str, step: int, *, register: bool = False) -> str | None:
        config = self.run.config
        made = guard.run(
            "take a snapshot of the model", facts.snapshot, estimator, self.signature, self.example, config
        )
        return self.run.model(made, name=name, step=step, register=register) if made is not None else None

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Record the final model and end the run, once."""
        if self.ended:
            return
        self.ended = True
        if self.failure is not None:
            status, text = self.failure
            self.run.text("traceback.txt", text)
        guard.run("record the final model", self._final, status)
        self.run.end(status, error)
        runtime.closed(self.run)
        self._held = None

    def _final(self, status: str) -> None:
        alive = self.estimator()
        estimator = alive if alive is not None else self._held
        if estimator is None or self._last is None or not self.run.config.log_models:
            return
        values, step, at = self._last
        key = self._save(estimator, "model", step, register=status == "FINISHED")
        if key is None:
            return
        if alive is not None:
            predictions.remember(alive, self.run, key)
        if values:
            # The same points again, in name, step, time and value: the store keeps one, and links it to the model.
            self.run.metrics(values, step=step, time=at, model=key)


class Steps:
    """All trainings by ``partial_fit`` of this process that are open."""

    def __init__(self) -> None:
        self._trainings: dict[int, Training] = {}

    def partial_fit(self, call: Call) -> Generator[None, Any, None]:
        """Hook for ``partial_fit``: the first call opens the run, every call is a step of it."""
        estimator = call.instance
        training = self._current(estimator)
        if training is not None and call.scope is not None:
            call.scope.run = training.run
            call.keep_open = True
        X, y, weight = facts.data(call)
        run = call.run
        if training is None:
            self._begin(call, X, y)
        started = time.perf_counter()
        try:
            yield
        except TrainingFailed as failure:
            if training is not None:
                cause = failure.cause
                text = "".join(traceback.format_exception(type(cause), cause, cause.__traceback__))
                training.failure = ("KILLED" if isinstance(cause, KeyboardInterrupt) else "FAILED", text)
            raise
        seconds = time.perf_counter() - started
        if training is None:
            training = self._trainings[id(estimator)] = Training(estimator, run, self)
            call.keep_open = True
        training.record(estimator, X, y, weight, seconds)

    def _current(self, estimator: Any) -> Training | None:
        training = self._trainings.get(id(estimator))
        if training is None or training.ended or training.estimator() is not estimator:
            return None
        if training.active == beside.active_run():
            return training
        # The user has begun or ended a run of their own meanwhile: what comes belongs there.
        training.end("FINISHED")
        return None

    def _begin(self, call: Call, X: Any, y: Any) -> None:
        run, estimator = call.run, call.instance
        run.tags({**facts.tags(estimator), "autolog.function": "partial_fit"})
        params = guard.run("read the estimator's parameters", facts.params, estimator)
        if params:
            run.params(params)
        if run.config.log_datasets:
            # Of the first batch: each one is other data, and there may be millions.
            name = call.name_of(X) or "dataset"
            dataset = guard.run("describe the training data", datasets.describe, X, y, name=name)
            if dataset is not None:
                run.dataset(dataset, "train")

    def fitted_anew(self, estimator: Any) -> None:
        """End the training of an estimator that is about to forget it."""
        training = self._trainings.pop(id(estimator), None)
        if training is not None and training.estimator() is estimator:
            training.end("FINISHED")

    def died(self, number: int, training: Training) -> None:
        """End the training whose estimator is gone; may be called inside a garbage collection, in any thread."""
        if self._trainings.get(number) is training:
            del self._trainings[number]
        if training.process == os.getpid() and not training.ended:
            # Not now: somebody else's code is under way here, perhaps inside one of our own locks.
            training.run.later("end the run", lambda: training.end("FINISHED"))

    def finish(self, status: str, error: BaseException | None) -> None:
        """End every training that is open."""
        for training in list(self._trainings.values()):
            if training.process == os.getpid():
                training.end(status, error)
        self._trainings.clear()

    def finish_adopted(self, run_id: str) -> None:
        """End the trainings that are recorded in the user's own run `run_id`, which ends now."""
        for number, training in list(self._trainings.items()):
            if training.run.adopted == run_id:
                training.end("FINISHED")
                self._trainings.pop(number, None)


def _shallow(estimator: Any) -> Any:
    """Return another object of the same class with the same attributes: what can still be saved once this is gone."""
    if not hasattr(estimator, "__dict__"):
        return None
    made = object.__new__(type(estimator))
    made.__dict__.update(estimator.__dict__)
    return made
