"""What is said about one outermost ``fit``."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from typing import Any

from autolog import guard, predictions, runtime
from autolog.datasets import Dataset
from autolog.models import ModelSnapshot
from autolog.patching import Call
from autolog.run import Run
from flavors.pyspark import columns, frames, search, snapshot, stages, summaries
from flavors.pyspark.background import Hold
from flavors.pyspark.stages import ParamMap


def opens_run(call: Call) -> bool:
    """Return whether fitting this estimator alone is a training: featurizers, which make a column, are not."""
    kind = type(call.instance)
    if kind.__module__.startswith("pyspark.ml.feature"):
        return False
    makes_column = hasattr(kind, "outputCol") or hasattr(kind, "outputCols")
    return not makes_column or hasattr(kind, "predictionCol")


def fit(call: Call) -> Generator[None, Any, None]:
    """Record one training: params, dataset, model, training summary. Nothing here runs a Spark job."""
    estimator, run = call.instance, call.run
    frame = call.args[0] if call.args else call.kwargs.get("dataset")
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("params")
    extra = given if isinstance(given, dict) else None
    run.tags(stages.tags(estimator))
    named = guard.run("read the estimator's stages", stages.names, estimator, extra) or {}
    params = guard.run("read the estimator's params", stages.params, estimator, named, extra)
    if params:
        run.params(params)
    info = guard.run("read the estimator's hierarchy", stages.info, estimator, named, extra)
    if info:
        run.text("estimator_info.json", json.dumps(info, indent=2, default=str))
    training = _Training(frame, call.name_of(frame) or "dataset")
    try:
        training.describe(run)

        result = yield

        if isinstance(given, list | tuple):
            for model, point in zip(result, given, strict=True):
                child = runtime.open_run("pyspark", parent=run)
                child.tags(stages.tags(estimator))
                child.params(stages.params(estimator, named, point))
                training.describe(child)
                training.model(child, model, estimator, point)
                child.end()
                runtime.closed(child)
        else:
            if stages.is_search(estimator):
                guard.run("record the search", search.record, run, estimator, result, named, extra)
            training.model(run, result, estimator, extra)
    finally:
        training.hold.release_after(run)


class _Training:
    """The data of one ``fit``, and the work on it that goes on after it has returned.

    frame: what the user passed, hopefully a DataFrame; name: that of its variable.
    """

    def __init__(self, frame: Any, name: str) -> None:
        self.frame = frame if frames.is_classic(frame) else None
        self.name = name
        self.dataset: Dataset | None = None
        self.hold = Hold(None if self.frame is None else self.frame.sparkSession.sparkContext)

    def describe(self, run: Run) -> None:
        """Record the dataset, from the worker thread."""
        if self.frame is None or not run.config.log_datasets:
            return

        def describe() -> None:
            dataset = self.hold.call("reading a schema", frames.describe, self.frame, self.name)
            self.dataset = dataset
            run.dataset(dataset, "train")

        run.later("describe the training data", describe)

    def model(self, run: Run, model: Any, estimator: Any, extra: ParamMap | None) -> None:
        """Record a fitted model, and what its training summary says."""
        from pyspark.ml.base import Transformer

        if not isinstance(model, Transformer):
            return
        if self.frame is None:
            guard.say_once(
                "spark-connect", "mlflow-autolog: models of Spark Connect sessions are not saved; all else is recorded."
            )
            predictions.remember(model, run, None)
            return
        # The user may change the model's params from here on; and its companion in the JVM must not be touched while
        # the user's own calls use it.
        detached = guard.attempt(snapshot.detach, model)
        key = None
        if run.config.log_models:
            consumed = guard.run("follow the columns", columns.consumed, estimator, extra)
            key = run.model(self._take(run, detached, consumed), register=True)
        predictions.remember(model, run, key)
        best = getattr(model, "bestModel", None) if stages.is_search(estimator) else None
        if best is not None:
            best_key = None
            if run.config.log_models and detached.value is not None:
                inner = guard.Outcome(detached.value.bestModel, None)
                best_key = run.model(self._take(run, inner, consumed), name="best_model")
            predictions.remember(best, run, best_key)
        if detached.value is not None:
            copy = detached.value

            def summarize() -> None:
                found = self.hold.call("reading the training summary", summaries.read, self.hold.context, copy)
                for step, values in found:
                    run.metrics(values, step=step, model=key, dataset=self.dataset)

            run.later("read the training summary", summarize)

    def _take(
        self, run: Run, detached: guard.Outcome[Any], consumed: columns.Consumed | None
    ) -> Callable[[], ModelSnapshot]:
        def take() -> ModelSnapshot:
            if detached.error is not None:
                raise detached.error
            return snapshot.take(detached.value, self.frame, consumed, self.hold, run.config)

        return take
