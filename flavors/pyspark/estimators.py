"""What is said about one outermost ``fit``."""

from __future__ import annotations

import json
import weakref
from collections.abc import Generator
from typing import Any

from autolog import guard, runtime, scope
from autolog.patching import Call
from autolog.run import Run
from autolog.scope import Scope
from flavors.pyspark import multiple, search, stages
from flavors.pyspark.stages import ParamMap
from flavors.pyspark.training import Training

#: What is being recorded, by the scope of the outermost ``fit``.
_trainings: weakref.WeakKeyDictionary[Scope, Training] = weakref.WeakKeyDictionary()


def opens_run(call: Call) -> bool:
    """Return whether fitting this estimator alone is a training: featurizers are not, nor pipelines of nothing else."""
    return not _is_featurizer(call.instance)


def _is_featurizer(stage: Any) -> bool:
    """Return whether a stage only makes columns for others."""
    kind = type(stage)
    if kind.__module__.startswith("pyspark.ml.feature"):
        return True
    inner = stages.param_values(stage).get("stages") if stages.is_pipeline(stage) else stages.fitted(stage)
    if inner is not None:
        return len(inner) > 0 and all(_is_featurizer(each) for each in inner)
    makes_column = hasattr(kind, "outputCol") or hasattr(kind, "outputCols")
    return makes_column and not hasattr(kind, "predictionCol")


def joins(call: Call, outer: Scope) -> bool:
    """Return whether a ``fit`` inside another one is of interest: it shows the frame that a stage was fitted on."""
    return outer in _trainings


def fit(call: Call) -> Generator[None, Any, None]:
    """Record one training: params, dataset, model, training summary. Nothing here runs a Spark job."""
    here = call.scope
    assert here is not None
    frame, given = _arguments(call)
    if (outer := _trainings.get(here)) is not None:
        outer.fitted_on(call.instance, frame)
        yield
        return
    if (group := multiple.current()) is not None:
        here.run = runtime.open_run("pyspark", parent=group.run)
    estimator, run = call.instance, call.run
    extra = given if isinstance(given, dict) else None
    named = describe(run, estimator, extra)
    # Inside fitMultiple the frame is Spark's own variable.
    training = Training(frame, group.name if group is not None else call.name_of(frame) or "dataset")
    try:
        _trainings[here] = training
        training.fitted_on(estimator, frame)
        training.describe(run)

        result = yield

        if isinstance(given, list | tuple):
            for model, point in zip(result, given, strict=True):
                child = runtime.open_run("pyspark", parent=run)
                child.tags(stages.tags(estimator))
                child.params(stages.params(estimator, named, point))
                training.describe(child)
                _outcome(child, training, estimator, model, named, point)
                child.end()
                runtime.closed(child)
        else:
            _outcome(run, training, estimator, result, named, extra)
    finally:
        training.hold.release_after(run)


def fit_multiple(call: Call) -> Generator[None, Any, None]:
    """Record a call of ``fitMultiple`` that the user made: its models become child runs as they are taken."""
    from pyspark.ml.base import _FitMultipleIterator

    models = yield
    # An estimator with an iterator of its own fits as it likes, and its calls of fit, if any, are runs of their own.
    if scope.current() is not None or type(models) is not _FitMultipleIterator:
        return
    if not runtime.may_record("pyspark") or not opens_run(call):
        return
    run = runtime.open_run("pyspark")
    describe(run, call.instance, None)
    frame, _ = _arguments(call)
    training = Training(frame, call.name_of(frame) or "dataset")
    training.describe(run)
    training.hold.release_after(run)
    multiple.follow(models, run, models.numModel, training.name)


def not_recorded(call: Call) -> Generator[None, Any, None]:
    """Say once that the estimators of ``pyspark.ml.connect``, which share nothing with Spark ML's, are not recorded."""
    guard.say_once(
        "spark-ml-connect",
        "mlflow-autolog does not record the estimators of pyspark.ml.connect; those of pyspark.ml are recorded, on "
        "Spark Connect, too.",
    )
    yield


def describe(run: Run, estimator: Any, extra: ParamMap | None) -> dict[str, str]:
    """Record what an estimator is; return the names of its stages by uid."""
    run.tags(stages.tags(estimator))
    named = guard.run("read the estimator's stages", stages.names, estimator, extra) or {}
    params = guard.run("read the estimator's params", stages.params, estimator, named, extra)
    if params:
        run.params(params)
    info = guard.run("read the estimator's hierarchy", stages.info, estimator, named, extra)
    if info:
        run.text("estimator_info.json", json.dumps(info, indent=2, default=str))
    return named


def _arguments(call: Call) -> tuple[Any, Any]:
    frame = call.args[0] if call.args else call.kwargs.get("dataset")
    return frame, call.args[1] if len(call.args) > 1 else call.kwargs.get("params")


def _outcome(
    run: Run, training: Training, estimator: Any, model: Any, named: dict[str, str], extra: ParamMap | None
) -> None:
    """Record what came out: candidates of a search, the model, and what it says of itself."""
    guard.run("record the search", search.record, run, estimator, model, named, extra)
    training.model(run, model, estimator, extra)
