"""The data of one ``fit``, and the work on it that goes on after it has returned."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from autolog import guard
from autolog.datasets import Dataset
from autolog.models import ModelSnapshot
from autolog.run import Run
from flavors.pyspark import columns, frames, importances, post_training, snapshot, stages, summaries
from flavors.pyspark.background import Hold
from flavors.pyspark.stages import ParamMap


class Training:
    """One ``fit`` and its frames.

    frame: what the user passed, hopefully a DataFrame; name: that of its variable.
    """

    def __init__(self, frame: Any, name: str) -> None:
        self.frame = frame if frames.is_classic(frame) or frames.is_remote(frame) else None
        self.name = name
        #: The dataset, once it is described: in a list, for who must not hold the frame.
        self._described: list[Dataset] = []
        self.hold = Hold(None if self.frame is None else self.frame.sparkSession)
        self._fitted_on: dict[str, Any] = {}

    @property
    def dataset(self) -> Dataset | None:
        """The description of the frame, None until it is there."""
        return self._described[0] if self._described else None

    def fitted_on(self, estimator: Any, frame: Any) -> None:
        """Remember the frame that a stage is being fitted on; of a search, the last fit is that of its best model."""
        if self.frame is not None and type(frame) is type(self.frame):
            self._fitted_on[estimator.uid] = frame

    def describe(self, run: Run) -> None:
        """Record the dataset, from the worker thread."""
        if self.frame is None or not run.config.log_datasets:
            return

        def describe() -> None:
            dataset = self.hold.ask(run, "reading a schema", frames.describe, self.frame, self.name)
            if dataset is not None:
                self._described.append(dataset)
                run.dataset(dataset, "train")

        run.later("describe the training data", describe, quick=True)

    def model(self, run: Run, model: Any, estimator: Any, extra: ParamMap | None) -> None:
        """Record a fitted model, and what it says of itself and of its training."""
        from pyspark.ml.base import Transformer

        if not isinstance(model, Transformer):
            return
        if self.frame is None:
            guard.say_once(
                "spark-frame",
                "mlflow-autolog: models that were not fitted on a Spark DataFrame are not saved; all else is recorded.",
            )
            self._remember(model, run, None)
            return
        # The user may change the model's params from here on; and its companion in the JVM must not be touched while
        # the user's own calls use it.
        detached = guard.attempt(snapshot.detach, model)
        key = run.declare_model(register=True) if run.config.log_models else None
        if detached.value is not None:
            # Before the models, those of earlier fits, too: a driver that dies meanwhile has left its numbers.
            self._summarize(run, model, key)
        if key is not None:
            steps = guard.run("follow the columns", columns.steps, estimator, extra)
            run.save_model(key, self._take(run, detached, steps))
        self._remember(model, run, key)
        best = getattr(model, "bestModel", None) if stages.is_search(estimator) else None
        if best is not None:
            best_key = None
            if run.config.log_models and detached.value is not None:
                inner = guard.Outcome(detached.value.bestModel, None)
                best_key = run.model(self._take(run, inner, steps), name="best_model")
            self._remember(best, run, best_key)
        if detached.value is not None:
            self._weigh(run, detached.value, self._last_frame(estimator, extra))

    def _remember(self, model: Any, run: Run, key: str | None) -> None:
        post_training.remember(model, run, key, self.frame, self.name, self._described)

    def _take(
        self, run: Run, detached: guard.Outcome[Any], steps: list[columns.Step] | None
    ) -> Callable[[], ModelSnapshot]:
        def take() -> ModelSnapshot:
            if detached.error is not None:
                raise detached.error
            return snapshot.take(detached.value, self.frame, steps, self.hold, run.config)

        return take

    def _last_frame(self, estimator: Any, extra: ParamMap | None) -> Any:
        """Return the frame that the last stage which was fitted at all was fitted on."""
        seen = self.frame
        for stage in stages.flow(estimator, extra):
            if not stages.is_search(stage):
                seen = self._fitted_on.get(stage.uid, seen)
        return seen

    def _summarize(self, run: Run, model: Any, key: str | None) -> None:
        """Record what a model says of its training, from the worker thread."""

        def summarize() -> None:
            # Of the user's own object, which keeps it: a copy of LinearSVCModel and others has no summary any more.
            found = self.hold.ask(run, "reading the training summary", summaries.read, model)
            for step, values in found or ():
                run.metrics(values, step=step, model=key, dataset=self.dataset)

        run.later("read the training summary", summarize, quick=True)

    def _weigh(self, run: Run, detached: Any, seen: Any) -> None:
        """Record what a model weighs its features with, from the worker thread.

        seen: the frame that its last stage was fitted on.
        """

        def weigh() -> None:
            types = run.config.importance_types
            for weights in self.hold.ask(run, "reading coefficients", importances.read, detached, seen, types) or ():
                run.text(f"{weights.name}.json", json.dumps(weights.content, indent=2))
                data = {
                    "title": weights.name.replace("_", " "),
                    "xlabel": weights.axis,
                    "names": list(weights.bars),
                    "values": list(weights.bars.values()),
                }
                run.figure(f"{weights.name}.png", "bars", data)

        run.later("read coefficients or importances", weigh)
