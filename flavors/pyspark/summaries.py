"""What a model's training summary holds on the driver. Whatever takes a job to compute is not asked for."""

from __future__ import annotations

from typing import Any

#: Model class -> attributes of its summary that are plain values of the driver, as of Spark's source.
_VALUES = {
    "LogisticRegressionModel": ("objectiveHistory", "totalIterations"),
    "LinearRegressionModel": ("objectiveHistory", "totalIterations"),
    "LinearSVCModel": ("objectiveHistory", "totalIterations"),
    "FMClassificationModel": ("objectiveHistory", "totalIterations"),
    "MultilayerPerceptronClassificationModel": ("objectiveHistory", "totalIterations"),
    "KMeansModel": ("trainingCost", "numIter"),
    "BisectingKMeansModel": ("trainingCost", "numIter"),
    "GaussianMixtureModel": ("logLikelihood", "numIter"),
}


def read(context: Any, model: Any) -> list[tuple[int, dict[str, float]]]:
    """Return (step, metrics) of the last stage of `model` that has a training summary; empty where none has.

    Scalars are of step 0; ``objectiveHistory`` has one value per iteration, the first before any.
    """
    from pyspark.ml.common import _java2py

    stage = next((each for each in reversed(_stages(model)) if type(each).__name__ in _VALUES), None)
    if stage is None or not stage._java_obj.hasSummary():
        return []
    summary = stage._java_obj.summary()
    found = {name: _java2py(context, getattr(summary, name)()) for name in _VALUES[type(stage).__name__]}
    history = found.pop("objectiveHistory", None)
    if history is not None and list(history) == [0.0]:
        return []  # What Spark puts there where nothing was iterated, as by the normal equation.
    points = [(0, {name: float(value) for name, value in found.items()})]
    points += [(step, {"objectiveHistory": float(value)}) for step, value in enumerate(history or ())]
    return points


def _stages(model: Any) -> list[Any]:
    best = getattr(model, "bestModel", None)
    if best is not None:
        return _stages(best)
    inner = getattr(model, "stages", None)
    if not isinstance(inner, list):
        return [model]
    return [each for stage in inner for each in _stages(stage)]
