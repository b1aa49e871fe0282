"""What an estimator's ``fit`` and the ``xgboost.train`` inside it tell each other: it does not get the estimator."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from typing import Any

from autolog.datasets import Dataset
from autolog.run import Run
from flavors.xgboost import params
from flavors.xgboost.rounds import Rounds
from flavors.xgboost.snapshots import Pack


class Fitting:
    """One recorded ``fit``.

    own: whether the run was opened for it; else it is of an outer one, such as a pipeline's, which records the model.
    params: parameters recorded so far; late: those that ``train`` may know better.
    datasets: evaluation name -> what is evaluated on; trained_on: the training data.
    """

    __slots__ = (
        "datasets",
        "estimator",
        "late",
        "own",
        "pack",
        "params",
        "rounds",
        "run",
        "trained_on",
        "training",
        "trainings",
    )

    def __init__(self, estimator: Any, run: Run, *, own: bool, pack: Pack) -> None:
        self.estimator = estimator
        self.run = run
        self.own = own
        self.pack = pack
        self.params: set[str] = set()
        self.late: dict[str, Any] = {}
        self.datasets: dict[str, Dataset] = {}
        self.trained_on: Dataset | None = None
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

    def say_effective(self, booster: Any) -> None:
        """Record the parameters in effect for those that were left open."""
        effective = params.in_effect(booster)
        open_ones = [name for name, value in self.late.items() if value is None]
        self.say_params({name: effective[name] for name in open_ones if name in effective})


#: The fit whose ``train`` would be its own. None, too, inside a fit that somebody else's fit makes for its own ends.
current: contextvars.ContextVar[Fitting | None] = contextvars.ContextVar("autolog_xgboost_fitting", default=None)
