"""Spark's types as MLflow calls them.

Works on Spark's JSON form of a schema (``StructType.json()``). No call to the JVM is made here.
"""

from __future__ import annotations

from typing import Any

#: A field of a schema as ``StructField.jsonValue()`` has it: name, type, nullable, metadata.
Field = dict[str, Any]

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


def specs(fields: list[Field]) -> list[dict[str, Any]]:
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
        return {"type": "sparkml_vector"} if is_vector(kind) else None
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


def is_vector(kind: Any) -> bool:
    """Return whether a type is Spark ML's vector."""
    return isinstance(kind, dict) and kind.get("class") == "org.apache.spark.ml.linalg.VectorUDT"
