"""What one training says per boosting round, through XGBoost's own callback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from autolog import guard
from autolog.datasets import Dataset
from autolog.records import now
from autolog.run import Run
from flavors.xgboost.snapshots import Checkpointer


class _Series:
    """One metric of one data set: the list that XGBoost appends to, and how much of it has been said."""

    __slots__ = ("data", "key", "said", "values")

    def __init__(self, data: str, metric: str, values: list[Any]) -> None:
        self.data = data
        self.key = f"{data}-{metric}"
        self.values = values
        self.said = 0


class Rounds:
    """The rounds of one training: each is a step of the run's metrics, from 0, as in ``evals_result``.

    datasets: evaluation name -> what is evaluated on.
    stops: whether early stopping is in force.
    """

    def __init__(
        self,
        run: Run,
        *,
        datasets: Mapping[str, Dataset] | None = None,
        stops: bool = False,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        self.run = run
        self.stops = stops
        #: Rounds that the model had before, where a training continues one.
        self.start = 0
        self.model: Any = None
        self._datasets = datasets or {}
        self._checkpointer = checkpointer
        self._series: dict[str, _Series] = {}
        self._width = 0
        self._times: list[int] = []

    @property
    def count(self) -> int:
        """How many rounds are complete."""
        return len(self._times)

    def begin(self, model: Any) -> None:
        """See how many rounds the model has already."""
        self.start = int(model.num_boosted_rounds())

    def end_round(self, model: Any, history: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Say what the last round scored, and take a checkpoint where one is due.

        history: evaluation name -> metric -> one value per round (for ``cv`` a pair of mean and deviation).
        """
        step, time = len(self._times), now()
        self.model = model
        self._times.append(time)
        width = 0
        for metrics in history.values():
            width += len(metrics)
        if width != self._width:
            self._look(history)
            self._width = width
        values: dict[str, float] = {}
        for series in self._series.values():
            # A custom metric may leave rounds out: what it said earlier is not of this round.
            if len(series.values) > series.said:
                series.said = len(series.values)
                _put(values, series.key, series.values[-1])
        if self._checkpointer is not None and self._checkpointer.due(step + 1):
            key = guard.run("take a checkpoint", self._checkpointer.take, model, step, values)
            if key is not None:
                linked = self.of_model(step, key)
                values = {name: value for name, value in values.items() if name not in linked}
        if values:
            self.run.metrics(values, step=step, time=time)

    def _look(self, history: Mapping[str, Mapping[str, list[Any]]]) -> None:
        for data, metrics in history.items():
            for metric, values in metrics.items():
                series = _Series(data, metric, values)
                self._series.setdefault(series.key, series)

    def values(self, step: int) -> dict[str, dict[str, float]]:
        """Return evaluation name -> metrics of one round; without those that were not computed in every round."""
        found: dict[str, dict[str, float]] = {}
        for series in self._series.values():
            if len(series.values) == self.count:
                _put(found.setdefault(series.data, {}), series.key, series.values[step])
        return found

    def of_model(self, step: int, model: str) -> set[str]:
        """Say that the metrics of round `step` are those of a model, each on the data that it was computed on.

        A point that the run has already is the same point, time included: stores keep it once. Returns their names.
        """
        said: set[str] = set()
        for data, values in self.values(step).items():
            said.update(values)
            dataset = self._datasets.get(data)
            self.run.metrics(values, step=step, time=self._times[step], model=model, dataset=dataset)
        return said

    def save_slices(self, raw: Any, last: int) -> None:
        """Save the checkpoints that are slices of a booster.

        raw: its UBJSON bytes; last: the step of its last round.
        """
        if self._checkpointer is None:
            return
        for step, key in self._checkpointer.finish(raw, self.start, last, self._score):
            self.of_model(step, key)

    def _score(self, step: int) -> float | None:
        monitor = self.run.config.checkpoints.monitor
        return next((values[monitor] for values in self.values(step).values() if monitor in values), None)

    def stopping(self, model: Any) -> dict[str, float]:
        """Return what early stopping found, as the model's attributes have it; nothing where it was not in force.

        A model that continues another may carry the other's attributes.
        """
        best = model.attr("best_iteration") if self.stops and self.count else None
        if best is None:
            return {}
        return {
            "best_iteration": int(best),
            "best_score": float(model.attr("best_score")),
            "stopped_iteration": self.start + self.count - 1,
        }

    def last_step(self, model: Any) -> int:
        """Return the step of the last round that `model` has: not all where early stopping cut it to the best."""
        step = int(model.num_boosted_rounds()) - self.start - 1
        # A linear booster forgets its rounds, and one that is updated in place has no more than before.
        return step if 0 <= step < self.count else self.count - 1

    def best_step(self, model: Any) -> int | None:
        """Return the step of the round up to which an estimator with this booster predicts.

        None where that was a round of an earlier training, which this one continued.
        """
        best = model.attr("best_iteration")
        if best is None:
            return self.last_step(model)
        step = int(best) - self.start
        return step if 0 <= step < self.count else None

    def callback(self) -> Any:
        """Return the callback. It must go first: one that stops training keeps those behind it from being called."""
        return _callback_class()(self)

    def close(self) -> None:
        """Let go of the model."""
        self.model = None
        self._checkpointer = None


def _put(values: dict[str, float], key: str, value: Any) -> None:
    if isinstance(value, tuple):
        values[f"{key}-mean"], values[f"{key}-std"] = value
    else:
        values[key] = value


@cache
def _callback_class() -> Any:
    from xgboost.callback import TrainingCallback

    class Recorder(TrainingCallback):  # type: ignore[misc]
        """Tells :class:`Rounds`; never stops a training and never disturbs one."""

        def __init__(self, rounds: Rounds) -> None:
            self._rounds = rounds

        def before_training(self, model: Any) -> Any:
            guard.run("see where training begins", self._rounds.begin, model)
            return model

        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            guard.run("record a boosting round", self._rounds.end_round, model, evals_log)
            return False

    return Recorder


def stops_early(argument: Any, callbacks: Sequence[Any]) -> bool:
    """Return whether early stopping is in force, by the argument of ``train`` or by a callback."""
    from xgboost.callback import EarlyStopping

    return bool(argument) or any(isinstance(callback, EarlyStopping) for callback in callbacks)
