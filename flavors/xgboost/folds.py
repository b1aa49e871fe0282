"""What each fold of ``xgboost.cv`` scored, of which XGBoost itself keeps the mean and the deviation only."""

from __future__ import annotations

import contextvars
from typing import Any

from autolog import guard


class Folds:
    """The scores of the folds of one round."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, line: Any) -> None:
        """Add what the next fold scored: ``[0]\ttrain-rmse:0.1\ttest-rmse:0.2``."""
        self._lines.append(line if isinstance(line, str) else line.decode())

    def take(self) -> dict[str, float]:
        """Return metric name -> value of the folds added since, by number: ``test-rmse-fold-0``."""
        lines, self._lines = self._lines, []
        found = {}
        for number, line in enumerate(lines):
            for item in line.split()[1:]:
                name, _, value = item.rpartition(":")
                found[f"{name}-fold-{number}"] = float(value)
        return found


#: Those of the cross-validation that runs here.
current: contextvars.ContextVar[Folds | None] = contextvars.ContextVar("autolog_xgboost_folds", default=None)


def evaluate(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Wrap ``CVPack.eval``: look at what a fold scored. It is called for one fold after the other."""
    line = wrapped(*args, **kwargs)
    folds = current.get()
    if folds is not None:
        guard.run("read what a fold scored", folds.add, line)
    return line
