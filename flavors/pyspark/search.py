"""What a parameter search found: a child run per point of its grid, as MLflow makes them, and the best point."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from autolog import runtime
from autolog.run import Run
from flavors.pyspark import stages
from flavors.pyspark.stages import ParamMap


def record(run: Run, search: Any, model: Any, named: Mapping[str, str], extra: ParamMap | None) -> None:
    """Record the points of a ``CrossValidator`` or ``TrainValidationSplit``.

    Child runs have the params of the tuned estimator at that point and ``avg_<metric>``, ``std_<metric>`` (cross
    validation) or ``<metric>``; the search itself gets ``best_<stage>.<param>``, ``best_parameters.json`` and
    ``search_results.csv``.
    """
    values = stages.param_values(search, extra)
    points = stages.tuning_maps(search, named, extra)
    scores = _scores(values["evaluator"], model, extra)
    if not points or not scores:
        return
    best = points[_best(values["evaluator"], next(iter(scores.values())))]
    run.params({f"best_{name}": value for name, value in best.items()})
    run.text("best_parameters.json", json.dumps(best, indent=2, default=str))
    run.text("search_results.csv", _table(points, scores))
    tuned = values["estimator"]
    for index, point in enumerate(values["estimatorParamMaps"]):
        child = runtime.open_run("pyspark", parent=run)
        child.tags(stages.tags(tuned))
        child.params(stages.params(tuned, named, {**(extra or {}), **point}))
        child.metrics({name: numbers[index] for name, numbers in scores.items()})
        child.end()
        runtime.closed(child)


def _scores(evaluator: Any, model: Any, extra: ParamMap | None) -> dict[str, list[float]]:
    """Return metric name -> one value per point; what the search was decided by comes first."""
    metric = stages.param_values(evaluator, extra).get("metricName") or type(evaluator).__name__
    if hasattr(model, "avgMetrics"):
        scores = {f"avg_{metric}": [float(value) for value in model.avgMetrics]}
        if getattr(model, "stdMetrics", None):
            scores[f"std_{metric}"] = [float(value) for value in model.stdMetrics]
        return scores
    return {str(metric): [float(value) for value in model.validationMetrics]}


def _best(evaluator: Any, values: list[float]) -> int:
    import numpy as np

    # The rule of pyspark.ml.tuning itself, ties and NaN included.
    return int(np.argmax(values) if evaluator.isLargerBetter() else np.argmin(values))


def _table(points: list[dict[str, Any]], scores: Mapping[str, list[float]]) -> str:
    columns = list(dict.fromkeys(name for point in points for name in point))
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["params", *scores, *(f"param.{name}" for name in columns)])
    for index, point in enumerate(points):
        numbers = [values[index] for values in scores.values()]
        rows.writerow([json.dumps(point, default=str), *numbers, *(point.get(name, "") for name in columns)])
    return text.getvalue()
