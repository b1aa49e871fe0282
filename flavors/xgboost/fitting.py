"""What an estimator's ``fit`` and the ``xgboost.train`` inside it tell each other: it does not get the estimator."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import Any

from autolog.datasets import Dataset
from autolog.run import Run
from flavors.xgboost.rounds import Rounds
from flavors.xgboost.snapshots import Pack


class Fitting:
    """One recorded ``fit``.

    own: whether the run was opened for it; else it is of an outer one, such as a pipeline's, which records the model.
    params: parameters recorded so far; late: those that ``train`` may know better.
    datasets: evaluation name -> what is evaluated on.
    """

    __slots__ = ("datasets", "estimator", "late", "own", "pack", "params", "rounds", "run", "training", "trainings")

    def __init__(self, estimator: Any, run: Run, *, own: bool, pack: Pack) -> None:
        self.estimator = estimator
        self.run = run
        self.own = own
        self.pack = pack
        self.params: set[str] = set()
        self.late: dict[str, Any] = {}
        self.datasets: dict[str, Dataset] = {}
        self.rounds: Rounds | None = None
        #: Whether ``train`` is running, and how many times it was called.
        self.training = False
        self.trainings = 0

    def say_params(self, values: Mapping[str, Any]) -> None:
        """Record those parameters that are not recorded yet: a run's can be set once only."""
        new = {name: value for name, value in values.items() if name not in self.params}
        if new:
            self.params.update(new)
            self.run.params(new)


#: The fit whose ``train`` would be its own. None, too, inside a fit that somebody else's fit makes for its own ends.
current: contextvars.ContextVar[Fitting | None] = contextvars.ContextVar("autolog_xgboost_fitting", default=None)
