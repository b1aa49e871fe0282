"""Which functions of ``sklearn.metrics`` are metrics. How they are recorded is :mod:`autolog.predictions`."""

from __future__ import annotations

import inspect
from typing import Any

_NO_METRIC = {"check_scoring", "get_scorer", "make_scorer", "get_scorer_names"}


def is_metric(name: str, function: Any) -> bool:
    """Return whether a public name of ``sklearn.metrics`` is a metric function."""
    return inspect.isfunction(function) and name not in _NO_METRIC and not name.startswith("plot_")
