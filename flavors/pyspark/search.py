"""What a parameter search found: a child run per point of its grid, as MLflow makes them, and the best point."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from autolog import runtime
from autolog.run import Run
from flavors.pyspark import stages
from flavors.pyspark.stages import ParamMap


def fitted(estimator: Any, model: Any, extra: ParamMap | None = None) -> Iterator[tuple[Any, Any]]:
    """Yield (search, its model) for each search in `estimator`: itself, or a stage of a pipeline, however deep."""
    if stages.is_search(estimator):
        yield estimator, model
    elif stages.is_pipeline(estimator):
        parts = stages.param_values(estimator, extra).get("stages") or ()
        made = stages.fitted(model) or []
        if len(made) == len(parts):  # A user's own kind of pipeline may make anything of its stages.
            for part, model in zip(parts, made, strict=True):
                yield from fitted(part, model, extra)


def record(run: Run, estimator: Any, model: Any, named: Mapping[str, str], extra: ParamMap | None) -> None:
    """Record the points of every ``CrossValidator`` and ``TrainValidationSplit`` in a fitted estimator.

    Child runs have the params of the tuned estimator at that point and ``avg_<metric>``, ``std_<metric>`` (cross
    validation) or ``<metric>``; `run` gets ``best_<stage>.<param>``, ``best_parameters.json`` and
    ``search_results.csv``, the latter two in a folder named by the search where there are several.
    """
    searches = list(fitted(estimator, model, extra))
    for search, found in searches:
        folder = f"{named[search.uid]}/" if len(searches) > 1 else ""
        _record(run, search, found, named, extra, folder)


def _record(run: Run, search: Any, model: Any, named: Mapping[str, str], extra: ParamMap | None, folder: str) -> None:
    values = stages.param_values(search, extra)
    points = stages.tuning_maps(search, named, extra)
    scores = _scores(values["evaluator"], model, extra)
    if not points or not scores:
        return
    best = points[_best(values["evaluator"], next(iter(scores.values())))]
    run.params({f"best_{name}": value for name, value in best.items()})
    run.text(f"{folder}best_parameters.json", json.dumps(best, indent=2, default=str))
    run.text(f"{folder}search_results.csv", _table(points, scores))
    tuned = values["estimator"]
    tags = stages.tags(tuned)
    for index, point in enumerate(values["estimatorParamMaps"]):
        child = runtime.open_run("pyspark", parent=run)
        # What may share a request is said in a row.
        child.tags(tags)
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
