"""What a model says of its training without a job: values that Spark left on the driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autolog import predictions
from flavors.pyspark import stages

#: Model class -> attributes of its training summary that are plain values of the driver, as of Spark's source. The
#: others (accuracy, r2, deviance, cluster sizes) are computed by a job when they are first asked for.
_SUMMARIES = {
    "LogisticRegressionModel": ("objectiveHistory", "totalIterations"),
    "LinearRegressionModel": ("objectiveHistory", "totalIterations"),
    "LinearSVCModel": ("objectiveHistory", "totalIterations"),
    "FMClassificationModel": ("objectiveHistory", "totalIterations"),
    "MultilayerPerceptronClassificationModel": ("objectiveHistory", "totalIterations"),
    "GeneralizedLinearRegressionModel": ("numIterations",),
    "KMeansModel": ("trainingCost", "numIter"),
    "BisectingKMeansModel": ("trainingCost", "numIter"),
    "GaussianMixtureModel": ("logLikelihood", "numIter"),
}

#: What is recorded of every training, whether anybody asks for it or not.
FREE = frozenset(name for names in _SUMMARIES.values() for name in names)

#: Model class -> properties that say how large the model became, and their keys.
_TREES = {"depth": "depth", "numNodes": "numNodes"}
_ENSEMBLE = {"getNumTrees": "numTrees", "totalNumNodes": "totalNumNodes"}
_SIZES = {
    "DecisionTreeClassificationModel": _TREES,
    "DecisionTreeRegressionModel": _TREES,
    "RandomForestClassificationModel": _ENSEMBLE,
    "RandomForestRegressionModel": _ENSEMBLE,
    "GBTClassificationModel": _ENSEMBLE,
    "GBTRegressionModel": _ENSEMBLE,
}

Point = tuple[int, dict[str, float]]


def read(model: Any) -> list[Point]:
    """Return (step, metrics) of the last stage of `model` that has any; empty where none has.

    Scalars are of step 0. Histories have one value per iteration: ``objectiveHistory``, the first before any iteration,
    and those of XGBoost's models, ``<dataset>-<metric>`` as XGBoost itself names them.
    """
    with predictions.nested():  # Nobody else has asked for it.
        for stage in reversed(stages.flat(model)):
            points = list(_points(stage))
            if points:
                return points
    return []


def _points(stage: Any) -> Iterator[Point]:
    kind = type(stage).__name__
    if kind in _SUMMARIES and stage.hasSummary:
        summary = stage.summary
        summary = summary() if callable(summary) else summary  # Spark has it both ways.
        yield from _summary({name: getattr(summary, name) for name in _SUMMARIES[kind]})
    elif kind in _SIZES:
        yield 0, {key: float(getattr(stage, name)) for name, key in _SIZES[kind].items()}
    elif getattr(stage, "training_summary", None) is not None:
        yield from _boosting(stage.training_summary)


def _summary(found: dict[str, Any]) -> Iterator[Point]:
    history = found.pop("objectiveHistory", None)
    if history is not None and list(history) == [0.0]:
        return  # What Spark puts there where nothing was iterated, as by the normal equation.
    yield 0, {name: float(value) for name, value in found.items()}
    for step, value in enumerate(history or ()):
        yield step, {"objectiveHistory": float(value)}


def _boosting(summary: Any) -> Iterator[Point]:
    """Yield the rounds of an ``xgboost.spark`` training (``XGBoostTrainingSummary``)."""
    for name, histories in (
        ("training", summary.train_objective_history),
        ("validation", summary.validation_objective_history),
    ):
        for metric, values in histories.items():
            for step, value in enumerate(values):
                yield step, {f"{name}-{metric}": float(value)}
