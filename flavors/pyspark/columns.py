"""Columns: which of them a pipeline really takes, and what MLflow calls their types.

Both work on plain values: params as :mod:`flavors.pyspark.stages` reads them, and Spark's JSON form of a schema
(``StructType.json()``). No call to the JVM is made here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flavors.pyspark import stages
from flavors.pyspark.stages import ParamMap

_INPUTS = ("inputCol", "inputCols", "featuresCol", "features_cols", "userCol", "itemCol", "itemsCol", "offsetCol")
_OUTPUTS = (
    "outputCol",
    "outputCols",
    "predictionCol",
    "probabilityCol",
    "rawPredictionCol",
    "linkPredictionCol",
    "quantilesCol",
    "leafCol",
    "topicDistributionCol",
)
#: Read by ``fit`` only.
_TRAINING = ("labelCol", "weightCol", "ratingCol", "censorCol", "validationIndicatorCol", "foldCol")

_RESPONSE = re.compile(r"\s*([^~\s]+)\s*~")


@dataclass(frozen=True, slots=True)
class Consumed:
    """What a fitted estimator reads of a frame when it predicts.

    columns: names, or None where a stage (SQL, a formula) may read any column.
    training: columns that only ``fit`` reads: labels, weights, folds.
    """

    columns: tuple[str, ...] | None
    training: frozenset[str]

    def of(self, available: list[str]) -> list[str] | None:
        """Return those of the frame's columns that are read, in its order; None where that cannot be told."""
        if self.columns is not None:
            # Spark resolves names regardless of case unless told otherwise.
            wanted = {name.lower() for name in self.columns}
            found = [name for name in available if name in self.columns or name.lower() in wanted]
            if len({name.lower() for name in found}) == len(wanted):
                return found
        rest = [name for name in available if name not in self.training]
        return rest or None


def consumed(estimator: Any, extra: ParamMap | None = None) -> Consumed:
    """Follow columns through the stages of `estimator`."""
    inputs: list[str] = []
    outputs: set[str] = set()
    training: list[str] = []
    indexed: dict[str, str] = {}
    traceable = True
    for stage in _flat(estimator, extra):
        values = stages.param_values(stage, extra)
        kind = type(stage).__name__
        training += [name for name in _columns(values, _TRAINING) if name not in outputs]
        if kind == "RFormula":
            # Its featuresCol and labelCol are what it makes.
            traceable = False
            response = _RESPONSE.match(str(values.get("formula") or ""))
            training += [response[1]] if response else []
            outputs |= {str(values["featuresCol"]), str(values["labelCol"])}
            continue
        taken = list(_columns(values, _INPUTS))
        made = list(_columns(values, _OUTPUTS))
        if not taken and kind not in ("CrossValidator", "TrainValidationSplit"):
            traceable = False
        if values.get("features_cols"):
            taken = list(values["features_cols"])  # XGBoost's estimators have the default of featuresCol all the same.
        if kind == "StringIndexer":
            several = "inputCols" in values
            taken = list(values["inputCols"]) if several else taken
            made = list(values.get("outputCols") or ()) if several else made
            # A fitted indexer is content with a frame that lacks its input: what it makes of a label is no input.
            indexed.update({out: name for name, out in zip(taken, made, strict=False) if name not in outputs})
        else:
            inputs += [name for name in taken if name not in outputs]
            inputs += [indexed.pop(name) for name in taken if name in indexed]
        outputs |= set(made)
    labels = {values for values in _labels(estimator, extra) if values in indexed}
    training += [indexed.pop(label) for label in sorted(labels)]
    inputs += indexed.values()
    unique = tuple(dict.fromkeys(inputs))
    return Consumed(unique if traceable and unique else None, frozenset(training) - set(unique if traceable else ()))


def _labels(estimator: Any, extra: ParamMap | None) -> Iterator[str]:
    for stage in _flat(estimator, extra):
        yield from _columns(stages.param_values(stage, extra), _TRAINING)


def _flat(estimator: Any, extra: ParamMap | None) -> Iterator[Any]:
    """Yield the stages that data goes through, in order."""
    if stages.is_pipeline(estimator):
        for stage in stages.param_values(estimator, extra).get("stages") or ():
            yield from _flat(stage, extra)
    elif stages.is_search(estimator):
        yield from _flat(stages.param_values(estimator, extra)["estimator"], extra)
        yield estimator
    else:
        yield estimator


def _columns(values: dict[str, Any], kinds: tuple[str, ...]) -> Iterator[str]:
    for kind in kinds:
        value = values.get(kind)
        for name in value if isinstance(value, list | tuple) else (value,):
            if isinstance(name, str) and name:
                yield name


# -- types ----------------------------------------------------------------------------------------------------------

_SCALARS = {
    "boolean": "boolean",
    "byte": "integer",
    "short": "integer",
    "integer": "integer",
    "long": "long",
    "float": "float",
    "double": "double",
    "string": "string",
    "binary": "binary",
    "date": "datetime",
    "timestamp": "datetime",
    "timestamp_ntz": "datetime",
}


def specs(fields: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return MLflow's column specs of the `fields` of a Spark schema; a field of unknown type has none."""
    made = []
    for field in fields:
        spec = mlflow_type(field["type"])
        if spec is not None:
            # All required, as MLflow's own inference has it: Spark calls nearly every column nullable.
            made.append({**spec, "name": field["name"], "required": True})
    return made


def mlflow_type(kind: Any) -> dict[str, Any] | None:
    """Return MLflow's JSON for a Spark type, or None where there is none (``mlflow.types.schema``).

    kind: as ``DataType.jsonValue()`` has it, a name or a dict.
    """
    if isinstance(kind, str):
        if kind.startswith("decimal"):
            return {"type": "double"}
        if kind.startswith(("char", "varchar", "string")):
            return {"type": "string"}
        return {"type": _SCALARS[kind]} if kind in _SCALARS else None
    if kind["type"] == "udt":
        is_vector = kind.get("class") == "org.apache.spark.ml.linalg.VectorUDT"
        return {"type": "sparkml_vector"} if is_vector else None
    if kind["type"] == "array":
        items = mlflow_type(kind["elementType"])
        return {"type": "array", "items": items} if items else None
    if kind["type"] == "map":
        values = mlflow_type(kind["valueType"])
        return {"type": "map", "values": values} if values and kind["keyType"] == "string" else None
    if kind["type"] == "struct":
        properties = {}
        for field in kind["fields"]:
            spec = mlflow_type(field["type"])
            if spec is None:
                return None
            properties[field["name"]] = {**spec, "required": not field["nullable"]}
        return {"type": "object", "properties": properties} if properties else None
    return None
