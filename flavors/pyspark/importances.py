"""What a fitted model weighs its features by: coefficients and importances, under the names of the raw columns.

All of it is on the driver: reading it takes calls to the JVM, but no job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flavors.pyspark import features, frames, stages
from flavors.pyspark.features import Places

#: Features told of at most, those of greatest magnitude: hashed text has 262,144.
_LIMIT = 5_000


@dataclass(frozen=True, slots=True)
class Weights:
    """One kind of weights: the artifact ``<name>.json`` and what the picture ``<name>.png`` shows."""

    name: str
    content: dict[str, Any]
    #: Feature -> length of its bar.
    bars: dict[str, float] = field(default_factory=dict)
    axis: str = ""


def read(model: Any, frame: Any, types: Iterable[str]) -> list[Weights]:
    """Return what the last stage of `model` that has such weights weighs its features by; empty where none has.

    frame: what this stage was fitted on. types: kinds of importance, for XGBoost's models.
    """
    stage = next((each for each in reversed(stages.flat(model)) if _reader(each) is not None), None)
    reader = _reader(stage)
    if stage is None or reader is None:
        return []
    fields = frames.schema(frame)
    values = stages.param_values(stage)
    found = features.follow(model, fields)
    several = values.get("features_cols")
    column = str(values.get("featuresCol") or "features")
    places = Places(len(several), lambda index: str(several[index])) if several else found.get(column)

    def names(size: int) -> Places:
        return places if places is not None and places.size == size else features.numbered(column, size)

    label = next((each for each in fields if each["name"] == values.get("labelCol")), None)
    return list(reader(stage, names, features.categories(label), types))


_Names = Callable[[int], Places]
_Reader = Callable[[Any, _Names, "list[str] | None", Iterable[str]], Iterable[Weights]]


def _reader(stage: Any) -> _Reader | None:
    if hasattr(type(stage), "get_feature_importances") and hasattr(type(stage), "get_booster"):
        return _boosted
    if type(stage).__name__ == "OneVsRestModel":
        return _one_vs_rest
    for attribute, reader in _READERS.items():
        if hasattr(type(stage), attribute):
            return reader
    return None


def _trees(stage: Any, names: _Names, classes: list[str] | None, types: Iterable[str]) -> Iterable[Weights]:
    vector = stage.featureImportances
    bars = _largest(names(int(vector.size)), *_entries(vector))
    yield Weights("feature_importances", bars, bars, "importance")


def _matrix(stage: Any, names: _Names, classes: list[str] | None, types: Iterable[str]) -> Iterable[Weights]:
    matrix, intercepts = stage.coefficientMatrix.toArray(), stage.interceptVector.toArray().tolist()
    if len(matrix) == 1:  # Binary: what speaks for the second class.
        bars = _largest(names(matrix.shape[1]), *_dense(matrix[0]))
        yield Weights("coefficients", {"intercept": intercepts[0], "coefficients": bars}, bars, "coefficient")
    else:
        yield _by_class(matrix, intercepts, names, classes)


def _one_vs_rest(stage: Any, names: _Names, classes: list[str] | None, types: Iterable[str]) -> Iterable[Weights]:
    import numpy as np

    if all(hasattr(type(each), "coefficients") for each in stage.models):
        matrix = np.stack([each.coefficients.toArray() for each in stage.models])
        yield _by_class(matrix, [float(each.intercept) for each in stage.models], names, classes)


def _by_class(matrix: Any, intercepts: list[float], names: _Names, classes: list[str] | None) -> Weights:
    """Return one set of coefficients per class; a bar is the mean magnitude over the classes."""
    import numpy as np

    count, size = matrix.shape
    places = names(size)
    known = classes if classes is not None and len(classes) == count else [str(i) for i in range(count)]
    content = {
        name: {"intercept": intercept, "coefficients": _largest(places, *_dense(row))}
        for name, row, intercept in zip(known, matrix, intercepts, strict=True)
    }
    bars = _largest(places, *_dense(np.abs(matrix).mean(axis=0)))
    return Weights("coefficients", {"classes": content}, bars, f"mean |coefficient| over {count} classes")


def _vector(stage: Any, names: _Names, classes: list[str] | None, types: Iterable[str]) -> Iterable[Weights]:
    machine = hasattr(type(stage), "factors")  # A factorization machine: linear weights, and factors besides.
    vector = stage.linear if machine else stage.coefficients
    bars = _largest(names(int(vector.size)), *_entries(vector))
    content = {"intercept": float(stage.intercept), "linear" if machine else "coefficients": bars}
    yield Weights("coefficients", content, bars, "linear weight" if machine else "coefficient")


def _boosted(stage: Any, names: _Names, classes: list[str] | None, types: Iterable[str]) -> Iterable[Weights]:
    import numpy as np

    booster = stage.get_booster()
    size = int(booster.num_features())
    places = names(size)
    own = booster.feature_names or [f"f{index}" for index in range(size)]
    for kind in types:
        scores = stage.get_feature_importances(importance_type=kind)
        found = [(index, scores[name]) for index, name in enumerate(own) if isinstance(scores.get(name), int | float)]
        bars = _largest(places, np.array([index for index, _ in found], int), np.array([value for _, value in found]))
        # The names of MLflow's artifacts for XGBoost.
        yield Weights(f"feature_importance_{kind}", bars, bars, kind)


#: Attribute of a model's class -> what reads it; the first that is there counts.
_READERS: Mapping[str, _Reader] = {
    "featureImportances": _trees,
    "coefficientMatrix": _matrix,
    "coefficients": _vector,
    "linear": _vector,
}


def _entries(vector: Any) -> tuple[Any, Any]:
    """Return indices and values of what a sparse vector holds, or of all of a dense one."""
    return (vector.indices, vector.values) if hasattr(vector, "indices") else _dense(vector.toArray())


def _dense(values: Any) -> tuple[Any, Any]:
    import numpy as np

    return np.arange(len(values)), values


def _largest(places: Places, indices: Any, values: Any) -> dict[str, float]:
    """Return name -> value of the greatest by magnitude, in the order of the vector."""
    import numpy as np

    known = np.isfinite(values)
    indices, values = indices[known], values[known]
    if len(values) > _LIMIT:
        kept = np.sort(np.argsort(-np.abs(values), kind="stable")[:_LIMIT])
        indices, values = indices[kept], values[kept]
    made: dict[str, float] = {}
    for index, value in zip(indices.tolist(), values.tolist(), strict=True):
        name = places.name(index)
        made[name if name not in made else f"{name} [{index}]"] = float(value)
    return made
