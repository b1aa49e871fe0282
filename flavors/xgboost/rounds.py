"""What one training says per boosting round, through XGBoost's own callback."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from time import time_ns
from typing import Any

from autolog import guard
from autolog.datasets import Dataset
from autolog.records import Block, now
from autolog.run import Run
from flavors.xgboost.snapshots import Checkpointer

#: Milliseconds between two looks at whether a checkpoint is due, where time decides.
_PAUSE = 50


class _Series:
    """One metric of one data set: the list that XGBoost appends to, and how much of it has been said."""

    __slots__ = ("data", "key", "said", "values")

    def __init__(self, data: str, metric: str, values: list[Any], said: int) -> None:
        self.data = data
        self.key = f"{data}-{metric}"
        self.values = values
        self.said = said


class Rounds:
    """The rounds of one training: each is a step of the run's metrics, as in ``evals_result``.

    Steps count from 0, or from the number of rounds that the model had before, where a training continues one.

    XGBoost keeps every metric in a list that it appends to once a round. These lists are recorded as they are, by
    blocks that another thread takes, so that a round costs a look at their lengths and an append of the time. A metric
    that leaves rounds out, as the user's own may, or comes later is said round by round from then on.

    datasets: evaluation name -> what is evaluated on.
    stops: whether early stopping is in force.
    first: called with the model after the first round.
    more: returns what else the round that has just ended scored; for ``cv``.
    continues: whether the model has been trained before.
    in_place: whether the rounds update the trees of earlier ones, so that they are no continuation.
    """

    def __init__(
        self,
        run: Run,
        *,
        datasets: Mapping[str, Dataset] | None = None,
        stops: bool = False,
        checkpointer: Checkpointer | None = None,
        first: Callable[[Any], object] | None = None,
        more: Callable[[], Mapping[str, float]] | None = None,
        continues: bool = False,
        in_place: bool = False,
    ) -> None:
        self.run = run
        self.stops = stops
        #: Rounds that the model had before.
        self.start = 0
        self.model: Any = None
        self._datasets = datasets or {}
        self._checkpointer = checkpointer
        self._by_rounds = checkpointer is not None and checkpointer.by_rounds
        #: From when on (milliseconds since the epoch) a round is looked at closer.
        self._look_at: float = 0
        self._first = first
        self._more = more
        self._continues = continues
        self._in_place = in_place
        self._series: dict[str, _Series] = {}
        self._lists: dict[str, list[Any]] = {}
        self._times: list[int] = []
        #: Whether each metric has one number a round so far.
        self._even = True
        #: The block that grows, and the index of the first round after those of earlier blocks.
        self._block: Block | None = None
        self._next = 0

    @property
    def count(self) -> int:
        """How many rounds are complete."""
        return len(self._times)

    @property
    def offset(self) -> int:
        """The step of the first round."""
        return 0 if self._in_place else self.start

    def begin(self, model: Any) -> None:
        """See how many rounds the model that is continued has already."""
        if self._continues:
            # It raises for parameters that training is about to refuse.
            self.start = int(guard.attempt(model.num_boosted_rounds).value or 0)

    def end_round(self, model: Any, _epoch: int, history: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Say what the last round scored, and take a checkpoint where one is due.

        history: evaluation name -> metric -> one value per round (for ``cv`` a pair of mean and deviation).
        """
        # A round may take some microseconds only; what most rounds need is here, what few need is in _look_closer.
        times = self._times
        number = len(times) + 1
        time = time_ns() // 1_000_000
        if time >= self._look_at:
            self._look_closer(model, history, number, time)
            return
        for metrics in history.values():
            for values in metrics.values():
                if len(values) != number:
                    self._look_closer(model, history, number, time)
                    return
        times.append(time)
        block = self._block
        if block is None or block.taken is not None:
            self._next_block()

    def _look_closer(self, model: Any, history: Mapping[str, Mapping[str, list[Any]]], number: int, time: int) -> None:
        """End round `number` (from 1), where it may be the first, an uneven one, or one for a checkpoint."""
        if number == 1:
            self._begin_series(model, history)
        if self._even and any(len(values) != number for metrics in history.values() for values in metrics.values()):
            self._even = False
            self._close_block()
            self._go_on_singly(number)
        self._look_at = self._look_next(time)
        if self._checkpointer is not None and self._checkpointer.due(number):
            self._close_block()
            self._times.append(time)
            if self._take_checkpoint(model, history):
                return
        else:
            self._times.append(time)
        if self._even:
            self._next_block()
        else:
            self._say_round(history, set())

    def _look_next(self, time: int) -> float:
        """Return when the next round is that needs more than a note, milliseconds since the epoch."""
        if not self._even or self._by_rounds:
            return 0
        return math.inf if self._checkpointer is None else time + _PAUSE

    def _next_block(self) -> None:
        """See that the round that was added last is in a block."""
        block = self._block
        if not self._lists:
            return
        if block is None:
            self._open_block(self._next)
        elif block.taken is not None:
            self._open_block(block.taken)

    def _begin_series(self, model: Any, history: Mapping[str, Mapping[str, list[Any]]]) -> None:
        self.model = model
        self._look(history)
        if any(isinstance(value, tuple) for values in self._lists.values() for value in values[:1]):
            self._even, self._lists = False, {}  # Of cv.
        if self._first is not None:
            guard.run("read the parameters in effect", self._first, model)

    def _look(self, history: Mapping[str, Mapping[str, list[Any]]]) -> None:
        for data, metrics in history.items():
            for metric, values in metrics.items():
                # Two names may make one key: the first has it.
                series = _Series(data, metric, values, len(values) - 1)
                if self._series.setdefault(series.key, series) is series and self._even:
                    self._lists[series.key] = values

    def _go_on_singly(self, number: int) -> None:
        """Leave the lists for single values from round `number` (from 1) on."""
        self._lists = {}
        for series in self._series.values() if number > 1 else ():
            series.said = number - 1

    def _open_block(self, first: int) -> None:
        self._block = self.run.block(self._times, self._lists, step=self.offset + first, first=first)

    def _close_block(self) -> None:
        """Have all rounds so far said, of those that blocks are about."""
        block, self._block = self._block, None
        if block is not None:
            block.take()
            self._next = block.taken or 0
        if self._lists and self._next < len(self._times):
            self.run.block(self._times, self._lists, step=self.offset + self._next, first=self._next).take()
            self._next = len(self._times)

    def _take_checkpoint(self, model: Any, history: Mapping[str, Mapping[str, list[Any]]]) -> bool:
        """Return whether what this round scored is said with that."""
        index = self.count - 1
        values = {name: value for metrics in self.values(index).values() for name, value in metrics.items()}
        step = self.offset + index
        assert self._checkpointer is not None
        key = guard.run("take a checkpoint", self._checkpointer.take, model, step, self.count, values)
        if key is None:
            return False
        linked = self.of_model(index, key)
        if self._even:
            self._next = self.count
        else:
            self._say_round(history, linked)
        return True

    def _say_round(self, history: Mapping[str, Mapping[str, list[Any]]], but: set[str]) -> None:
        """Say the values that this round has, each by itself."""
        self._look(history)
        values: dict[str, float] = {}
        for series in self._series.values():
            # What a metric said earlier is not of this round.
            if len(series.values) > series.said:
                series.said = len(series.values)
                _put(values, series.key, series.values[-1])
        values = {name: value for name, value in values.items() if name not in but}
        if self._more is not None:
            values.update(guard.run("read what else a round scored", self._more) or {})
        if values:
            self.run.metrics(values, step=self.offset + self.count - 1, time=self._times[-1])

    def values(self, index: int) -> dict[str, dict[str, float]]:
        """Return evaluation name -> metrics of one round; without those that were not computed in every round."""
        found: dict[str, dict[str, float]] = {}
        for series in self._series.values():
            if len(series.values) == self.count:
                _put(found.setdefault(series.data, {}), series.key, series.values[index])
        return found

    def of_model(self, index: int, model: str) -> set[str]:
        """Say that the metrics of a round are those of a model, each on the data that it was computed on.

        A point that the run has already is the same point, time included: stores keep it once. Returns their names.
        """
        said: set[str] = set()
        step, time = self.offset + index, self._times[index]
        for data, values in self.values(index).items():
            said.update(values)
            self.run.metrics(values, step=step, time=time, model=model, dataset=self._datasets.get(data))
        return said

    def save_slices(self, frozen: Any, last: int) -> None:
        """Save the checkpoints that are slices of a booster.

        frozen: as of :func:`flavors.xgboost.snapshots.freeze`; last: the index of its last round.
        """
        if self._checkpointer is None:
            return
        for index, key in self._checkpointer.finish(frozen, self.start, self.offset, last, self._score):
            self.of_model(index, key)

    def _score(self, index: int) -> float | None:
        monitor = self.run.config.checkpoints.monitor
        return next((values[monitor] for values in self.values(index).values() if monitor in values), None)

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

    def last_index(self, model: Any) -> int:
        """Return the index of the last round that `model` has: not all where early stopping cut it to the best."""
        index = int(model.num_boosted_rounds()) - self.start - 1
        # A linear booster forgets its rounds, and one that is updated in place has no more than before.
        return index if 0 <= index < self.count else self.count - 1

    def best_index(self, model: Any) -> int | None:
        """Return the index of the round up to which an estimator with this booster predicts.

        None where that was a round of an earlier training, which this one continued.
        """
        best = model.attr("best_iteration")
        if best is None:
            return self.last_index(model)
        index = int(best) - self.start
        return index if 0 <= index < self.count else None

    def callback(self) -> Any:
        """Return the callback. It must go first: one that stops training keeps those behind it from being called."""
        return _callback_class()(self)

    def settle(self) -> None:
        """Have every round said. XGBoost's lists are the user's own from then on."""
        number = self.count + 1
        if self._even and self._lists and all(len(values) == number for values in self._lists.values()):
            # XGBoost 2 calls callbacks in any order: one that stopped training, or raised, came before ours.
            self._times.append(now())
        self._close_block()

    def close(self) -> None:
        """Have every round said, and let go of the model."""
        self.settle()
        self.model = None
        self._checkpointer = None
        self._by_rounds = False
        self._first = None


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
            # Not a method, which would take as long again as it. What it returns, None, does not stop training.
            self.after_iteration = partial(guard.run, "record a boosting round", rounds.end_round)

        def before_training(self, model: Any) -> Any:
            guard.run("see where training begins", self._rounds.begin, model)
            return model

    return Recorder


def stops_early(argument: Any, callbacks: Sequence[Any]) -> bool:
    """Return whether early stopping is in force, by the argument of ``train`` or by a callback."""
    from xgboost.callback import EarlyStopping

    return bool(argument) or any(isinstance(callback, EarlyStopping) for callback in callbacks)
