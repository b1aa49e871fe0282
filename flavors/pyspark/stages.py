"""Estimators, their stages and params under the names that MLflow gives them (``mlflow/pyspark/ml/__init__.py``).

A stage is named by its class, numbered ``_1``, ``_2`` in depth-first order where a class occurs more than once. All of
this reads the Python side of the stages only: no call to the JVM is made.

Param maps passed to ``fit(dataset, params)`` are `extra` here: laid over the stages' own values as
``Params.copy(extra)`` would, without making the copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

ParamMap = Mapping[Any, Any]


def param_values(stage: Any, extra: ParamMap | None = None) -> dict[str, Any]:
    """Return name -> value of the params of `stage` that are set or have a default, by name."""
    merged = stage.extractParamMap(dict(extra or {}))
    return {
        param.name: value
        for param, value in sorted(merged.items(), key=lambda item: item[0].name)
        if param.parent == stage.uid
    }


def is_pipeline(stage: Any) -> bool:
    """Return whether `stage` is a pipeline estimator."""
    from pyspark.ml import Pipeline

    return isinstance(stage, Pipeline)


def is_search(stage: Any) -> bool:
    """Return whether `stage` is a parameter search."""
    from pyspark.ml.tuning import CrossValidator, TrainValidationSplit

    return isinstance(stage, CrossValidator | TrainValidationSplit)


def fitted(model: Any) -> list[Any] | None:
    """Return what a fitted pipeline or search consists of: its stages, its best model; None for any other object."""
    best = getattr(model, "bestModel", None)
    if best is not None:
        return [best]
    inner = getattr(model, "stages", None)
    return inner if isinstance(inner, list) else None


def flat(model: Any) -> list[Any]:
    """Return the fitted stages that data goes through, in order."""
    inner = fitted(model)
    return [model] if inner is None else [each for stage in inner for each in flat(stage)]


def flow(estimator: Any, extra: ParamMap | None = None) -> Iterator[Any]:
    """Yield the stages that data goes through on the way through an estimator, in order; a search after its own."""
    if is_pipeline(estimator):
        for stage in param_values(estimator, extra).get("stages") or ():
            yield from flow(stage, extra)
    elif is_search(estimator):
        yield from flow(param_values(estimator, extra)["estimator"], extra)
        yield estimator
    elif (inner := fitted(estimator)) is not None:  # A model that was fitted before, as a stage.
        for stage in inner:
            yield from flow(stage, extra)
    else:
        yield estimator


def _nested(stage: Any, extra: ParamMap | None) -> dict[str, Any]:
    """Return the params of `stage` that are stages or evaluators themselves."""
    from pyspark.ml.param import Params

    return {name: value for name, value in param_values(stage, extra).items() if isinstance(value, Params)}


def walk(stage: Any, extra: ParamMap | None = None) -> Iterator[Any]:
    """Yield `stage` and what is nested in it, depth first."""
    yield stage
    inner = _stages(stage, extra) if is_pipeline(stage) else _nested(stage, extra).values()
    for each in inner:
        yield from walk(each, extra)


def _stages(pipeline: Any, extra: ParamMap | None) -> list[Any]:
    return list(param_values(pipeline, extra).get("stages") or ())


def names(estimator: Any, extra: ParamMap | None = None) -> dict[str, str]:
    """Return uid -> name of `estimator` and everything nested in it."""
    counts: Counter[str] = Counter()
    numbered = {}
    for stage in walk(estimator, extra):
        kind = type(stage).__name__
        counts[kind] += 1
        numbered[stage.uid] = (kind, counts[kind])
    return {uid: f"{kind}_{number}" if counts[kind] > 1 else kind for uid, (kind, number) in numbered.items()}


def params(
    estimator: Any, named: Mapping[str, str], extra: ParamMap | None = None, *, prefix: str = ""
) -> dict[str, Any]:
    """Return the params of `estimator` and its stages, those of stages as ``<stage>.<param>``.

    Those of the estimator inside a search are left out: its runs differ in them.
    """
    from pyspark.ml.param import Params

    found: dict[str, Any] = {}
    search = is_search(estimator)
    for name, value in param_values(estimator, extra).items():
        if is_pipeline(estimator) and name == "stages":
            stages = list(value or ())
            found[prefix + name] = [named[stage.uid] for stage in stages]
            for stage in stages:
                found.update(params(stage, named, extra, prefix=named[stage.uid] + "."))
        elif search and name == "estimator":
            found[prefix + name] = named[value.uid]
        elif search and name == "estimatorParamMaps":
            pass
        elif isinstance(value, Params):
            found[prefix + name] = named[value.uid]
            found.update(params(value, named, extra, prefix=named[value.uid] + "."))
        else:
            found[prefix + name] = value
    return found


def info(estimator: Any, named: Mapping[str, str], extra: ParamMap | None = None) -> dict[str, Any]:
    """Return the content of MLflow's artifact ``estimator_info.json``, empty for a plain estimator."""
    made: dict[str, Any] = {}
    if is_pipeline(estimator) or is_search(estimator) or _nested(estimator, extra):
        made["hierarchy"] = _hierarchy(estimator, named, extra)
    for stage in walk(estimator, extra):
        tuned = param_values(stage, extra).get("estimator") if is_search(stage) else None
        if tuned is not None:
            made[named[stage.uid]] = {
                "tuning_parameter_map_list": tuning_maps(stage, named, extra),
                "tuned_estimator_parameter_map": params(tuned, named, extra, prefix=named[tuned.uid] + "."),
            }
    return made


def _hierarchy(stage: Any, named: Mapping[str, str], extra: ParamMap | None) -> dict[str, Any]:
    made: dict[str, Any] = {"name": named[stage.uid]}
    if is_pipeline(stage):
        made["stages"] = [_hierarchy(each, named, extra) for each in _stages(stage, extra)]
        return made
    nested = {name: _hierarchy(each, named, extra) for name, each in _nested(stage, extra).items()}
    if is_search(stage):
        made["evaluator"] = nested["evaluator"]
        made["tuned_estimator"] = nested["estimator"]
    elif type(stage).__name__ == "OneVsRest":
        made["classifier"] = nested["classifier"]
    elif nested:
        made["params"] = nested
    return made


def tuning_maps(search: Any, named: Mapping[str, str], extra: ParamMap | None = None) -> list[dict[str, Any]]:
    """Return the grid of a search as ``<stage>.<param>`` -> value, one dict per point."""
    return [
        {f"{named.get(param.parent, param.parent)}.{param.name}": value for param, value in point.items()}
        for point in param_values(search, extra).get("estimatorParamMaps") or ()
    ]


def tags(estimator: Any) -> dict[str, str]:
    """Return MLflow's tags that say what kind of estimator it is."""
    kind = type(estimator)
    return {"estimator_name": kind.__name__, "estimator_class": f"{kind.__module__}.{kind.__name__}"}
