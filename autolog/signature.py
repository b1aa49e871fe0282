"""What a model takes and gives, as an MLflow model signature, without importing mlflow.

The form is that of ``mlflow.models.ModelSignature.to_dict()``: ``inputs`` and ``outputs`` are JSON texts of either
column specs (``{"type": "double", "name": "x", "required": true}``) or tensor specs (``{"type": "tensor",
"tensor-spec": {"dtype": "float64", "shape": [-1, 4]}}``); type names are those of ``mlflow.types.DataType``.
The rules which value becomes what are those of ``mlflow.models.infer_signature``.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Schema = list[dict[str, Any]]

#: Rows looked at to see whether a column has missing values.
_ROWS = 100


def signature(inputs: Schema | None, outputs: Schema | None) -> dict[str, str] | None:
    """Return the signature made of two schemas, or None where there are no inputs."""
    if not inputs:
        return None
    made = {"inputs": json.dumps(inputs)}
    if outputs:
        made["outputs"] = json.dumps(outputs)
    return made


def schema(data: Any) -> Schema | None:
    """Return the schema of arrays, frames, series, sparse matrices or lists; None where none can be told.

    data: array-like, the first axis being the batch. Costs the same whatever the number of rows.
    """
    if data is None:
        return None
    if _is_frame(data):
        missing, columns = _missing(data), _columns(data)
        # Text of a dtype takes longer than all else of a column.
        kinds = {dtype: str(dtype) for dtype in {dtype for _, dtype in columns}}
        return [column(name, kinds[dtype], missing[i]) for i, (name, dtype) in enumerate(columns)]
    if isinstance(data, Mapping):
        parts = [(name, schema(value)) for name, value in data.items()]
        return [{**spec[0], "name": str(name)} for name, spec in parts if spec] or None
    dtype, shape = getattr(data, "dtype", None), getattr(data, "shape", None)
    if dtype is not None and shape is not None and hasattr(data, "to_numpy") and len(shape) == 1:
        return [column(getattr(data, "name", None), str(dtype), False)]
    if dtype is not None and shape is not None:
        return tensor(dtype, shape)
    if isinstance(data, Sequence) and len(data) and not isinstance(data, str | bytes):
        if all(isinstance(value, str) for value in data[:_ROWS]):
            return [column(None, "str", False)]
        import numpy as np

        sample = np.asarray(data[:_ROWS])
        return tensor(sample.dtype, sample.shape) if sample.dtype != object else None
    return None


def tensor(dtype: Any, shape: Sequence[int], name: str | None = None) -> Schema | None:
    """Return the schema of an array or tensor whose first axis is the batch.

    dtype: a numpy or torch dtype, or its name.
    """
    kind = str(dtype).removeprefix("torch.")
    if kind.startswith(("<U", ">U", "|U", "str")):
        kind = "str"
    elif kind.startswith("|S"):
        kind = "bytes"
    elif kind == "object":
        return [column(name, "object", False)]
    spec: dict[str, Any] = {"type": "tensor"}
    if name is not None:
        spec["name"] = name
    batch = [-1, *(int(size) for size in shape[1:])] if len(shape) else [-1]
    spec["tensor-spec"] = {"dtype": kind, "shape": batch}
    return [spec]


def column(name: str | None, dtype: str, has_missing: bool) -> dict[str, Any]:
    """Return the column spec for a pandas, polars or numpy dtype name."""
    spec: dict[str, Any] = {"type": _column_type(dtype)}
    if name is not None:
        spec["name"] = str(name)
    spec["required"] = not has_missing
    return spec


@functools.cache
def _column_type(dtype: str) -> str:
    kind = dtype.lower()
    if kind in ("bool", "boolean"):
        return "boolean"
    if kind in ("int8", "int16", "int32", "uint8", "uint16"):
        return "integer"
    if kind.startswith(("int", "uint")):
        return "long"
    if kind in ("float16", "float32"):
        return "float"
    if kind.startswith(("float", "double", "decimal")):
        return "double"
    if kind.startswith(("datetime", "date")):
        return "datetime"
    if kind in ("binary", "bytes"):
        return "binary"
    return "string"


def _is_frame(data: Any) -> bool:
    for name in ("pandas", "polars"):
        module = sys.modules.get(name)
        if module is not None and isinstance(data, module.DataFrame):
            return True
    return False


def _columns(frame: Any) -> list[tuple[Any, Any]]:
    dtypes = frame.dtypes
    return list(zip(frame.columns, dtypes, strict=True))


def _missing(frame: Any) -> list[bool]:
    """Return for each column whether values are missing among the first rows."""
    # All columns at once: one by one they take longer than a short fit.
    if hasattr(frame, "iloc"):
        return [bool(each) for each in frame.iloc[:_ROWS].isna().to_numpy().any(axis=0)]
    return [number > 0 for number in frame[:_ROWS].null_count().row(0)]


def example(data: Any, rows: int = 5) -> dict[str, Any] | None:
    """Return the first `rows` rows as JSON values, for MLflow's input example; None where that cannot be."""
    if _is_frame(data):
        head = data.head(rows)
        values = head.to_numpy().tolist() if hasattr(head, "iloc") else [list(row) for row in head.rows()]
        return {"kind": "dataframe", "columns": [str(name) for name in data.columns], "data": values}
    dtype = getattr(data, "dtype", None)
    if dtype is not None and str(dtype) != "object" and hasattr(data, "tolist") and len(getattr(data, "shape", ())):
        return {"kind": "ndarray", "dtype": str(dtype), "data": data[:rows].tolist()}
    return None
