"""What a ``DMatrix`` can say about itself without its content being read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import weakref
from typing import Any

from autolog import datasets, guard, signature
from autolog.datasets import Dataset
from autolog.signature import Schema

#: XGBoost hands out labels as a copy; above this many they are not asked for.
_LABELS = 200_000
_SAMPLE = 256
#: Rows whose features are looked at, and values in all.
_ROWS, _PRESENT = 64, 20_000
#: Matrices that keep bins rather than values.
_BINNED = ("QuantileDMatrix", "ExtMemQuantileDMatrix")
#: Bins of more columns than this are not asked for.
_CUT_COLUMNS = 2_000
#: More columns than this make a schema that nobody reads and no store takes.
_COLUMNS = 10_000

#: What :func:`_content` found of matrices that are alive: their features cannot be changed, and looking at them takes
#: as long as everything else that is said of a matrix.
_contents: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

#: Feature types of XGBoost (``DMatrix.feature_types``) -> MLflow column types. XGBoost keeps all of them as float32,
#: of which a double column takes more: MLflow refuses doubles for a float column.
_TYPES = {"float": "double", "q": "double", "int": "long", "i": "boolean"}


def describe(matrix: Any, name: str) -> Dataset | None:
    """Describe a DMatrix, at a cost that does not grow with its features; None for anything else.

    The digest covers the numbers of rows, columns and present values, feature names and types, and an evenly spaced
    sample of labels, weights and features: 64 rows of a DMatrix, the bins of a quantile matrix. A matrix that is read
    from outside of memory can give neither.
    """
    import xgboost

    if not isinstance(matrix, xgboost.DMatrix):
        return None
    rows, columns = int(matrix.num_row()), int(matrix.num_col())
    facts = [type(matrix).__name__, rows, columns, int(matrix.num_nonmissing())]
    facts += [_hash(repr((matrix.feature_names, matrix.feature_types)).encode())]
    if rows <= _LABELS:
        facts += [_sample(matrix.get_label()), _sample(matrix.get_weight())]
    facts += [guard.attempt(_features, matrix, rows, columns).value or ""]
    made = datasets.describe(facts, name=name)
    if made is None:
        return None
    specs = schema(matrix)
    text = None
    if specs and "name" in specs[0]:
        text = json.dumps({"mlflow_colspec": specs})
    elif specs:
        features = json.dumps(signature.tensor("float32", (rows, columns)))
        text = json.dumps({"mlflow_tensorspec": {"features": features, "targets": None}})
    profile = {"features_shape": [rows, columns], "features_size": rows * columns}
    return dataclasses.replace(
        made, schema=text if text is None or len(text) <= 65_535 else None, profile=json.dumps(profile)
    )


def schema(matrix: Any) -> Schema | None:
    """Return the columns that a model trained on this DMatrix takes; without names where it has none.

    None where there are categories, which MLflow has no column type for, or too many columns.
    """
    import xgboost

    if not isinstance(matrix, xgboost.DMatrix):
        return None
    columns = int(matrix.num_col())
    names, types = matrix.feature_names, matrix.feature_types or ["q"] * columns
    if columns > _COLUMNS or len(types) != columns or any(kind not in _TYPES for kind in types):
        return None
    if names is None:
        # Columns without names take frames, arrays of any precision and lists; a tensor would refuse all but float32.
        return [{"type": "double", "required": True}] * columns
    return [{"type": _TYPES[kind], "name": name, "required": True} for name, kind in zip(names, types, strict=True)]


def _features(matrix: Any, rows: int, columns: int) -> str:
    if rows == 0 or columns == 0:
        return ""
    content = _contents.get(matrix)
    if content is None:
        content = _contents[matrix] = _content(matrix, rows, columns)
    if rows <= _LABELS or type(matrix).__name__ in _BINNED:
        return content
    # Else they are looked at in all rows. These can be changed.
    part = matrix.slice(_picked(rows, columns), allow_groups=True)
    return content + _sample(part.get_label()) + _sample(part.get_weight())


def _content(matrix: Any, rows: int, columns: int) -> str:
    if type(matrix).__name__ in _BINNED:
        if columns > _CUT_COLUMNS:
            return ""
        borders, cuts = matrix.get_quantile_cut()
        return _sample(borders) + _sample(cuts)
    data = matrix.slice(_picked(rows, columns), allow_groups=True).get_data()
    return _hash(b"".join(values.tobytes() for values in (data.indptr, data.indices, data.data)))


def _picked(rows: int, columns: int) -> Any:
    """Return the numbers of the rows whose features are looked at."""
    import numpy as np

    number = min(rows, _ROWS, max(1, _PRESENT // columns))
    return np.unique(np.linspace(0, rows - 1, number).astype(np.int32))


def _sample(values: Any) -> str:
    import numpy as np

    if not isinstance(values, np.ndarray):  # On a GPU: reading it would wait for the device.
        return ""
    picked = values[np.linspace(0, len(values) - 1, min(len(values), _SAMPLE)).astype(int)] if len(values) else values
    return f"{values.shape}{_hash(picked.tobytes())}"


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()
