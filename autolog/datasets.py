"""What a training used, in a time that does not depend on its size.

The digest covers shape, types, names and content: all of it up to 256 KiB of an array, beyond that evenly spaced rows
and columns, some thousand cells. Data sets that differ get different digests unless they differ only in cells that were
not looked at. Field formats are those of
``mlflow.data`` (``PandasDataset``, ``NumpyDataset``, ``CodeDatasetSource``).
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autolog.signature import schema

#: Columns looked at, and rows: as many as make about this many cells, within limits.
_COLUMNS, _CELLS, _FEWEST_ROWS, _MOST_ROWS = 64, 4096, 64, 1024
#: Cells looked at along each further axis.
_CELLS_ACROSS = 16
#: Bytes of an array up to which its whole content is looked at.
_WHOLE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset as MLflow's run inputs show it. `key` links metrics to it."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None
    profile: str | None

    @property
    def key(self) -> tuple[str, str]:
        """Name and digest, by which MLflow identifies a dataset."""
        return self.name, self.digest


def describe(features: Any, targets: Any = None, *, name: str = "dataset") -> Dataset | None:
    """Describe training or evaluation data; None where it is of no kind that can be told apart.

    features: array-like, frame, sparse matrix or list of n rows; targets: the same, or None.
    """
    parts = [part for part in (features, targets) if part is not None]
    if not parts:
        return None
    return made_of(parts, name=name, schema=_schema(features, targets), profile=_profile(features, targets))


def made_of(parts: Iterable[Any], *, name: str, schema: str | None, profile: str | None) -> Dataset | None:
    """Return a dataset whose digest is that of `parts`, each as :func:`describe` takes it, or a text.

    schema, profile: JSON texts as MLflow's ``Dataset`` entity has them. None where a part is of no known kind.
    """
    digest = hashlib.blake2b(digest_size=4)
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode(errors="surrogatepass"))
        elif not _feed(digest, part):
            return None
    tags = {"mlflow.source.name": sys.argv[0] if sys.argv else "", "mlflow.source.type": "LOCAL"}
    return Dataset(name, digest.hexdigest(), "code", json.dumps({"tags": tags}), schema, profile)


def spread(length: int, limit: int) -> list[int]:
    """Return at most `limit` evenly spaced indices below `length`, the first and the last among them."""
    if length <= limit:
        return list(range(length))
    return [i * (length - 1) // (limit - 1) for i in range(limit)]


def _rows(shape: Sequence[int]) -> list[int]:
    """Return which rows to look at in data of this shape."""
    columns = min(max(shape[1], 1), _COLUMNS) if len(shape) > 1 else 1
    return spread(shape[0], min(max(_CELLS // columns, _FEWEST_ROWS), _MOST_ROWS))


def _feed(digest: Any, data: Any) -> bool:
    """Add `data` to the digest; False where it is of no known kind."""
    shape = getattr(data, "shape", None)
    if hasattr(data, "iloc") or hasattr(data, "get_column") or hasattr(data, "to_frame"):
        _feed_frame(digest, data)
    elif shape is not None and hasattr(data, "tocsr"):
        _feed_sparse(digest, data)
    elif shape is not None and hasattr(data, "dtype"):
        _feed_array(digest, data)
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        digest.update(f"list{len(data)}".encode())
        for i in spread(len(data), _FEWEST_ROWS * 4):
            digest.update(repr(data[i])[:1000].encode())
    else:
        return False
    return True


def _feed_array(digest: Any, array: Any) -> None:
    digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
    if len(array.shape) == 0 or (0 < getattr(array, "nbytes", 0) <= _WHOLE and str(array.dtype) != "object"):
        sample = array
    elif len(array.shape) == 1:
        sample = array[_rows(array.shape)]
    elif len(array.shape) == 2:
        sample = array[_rows(array.shape)][:, spread(array.shape[1], _COLUMNS)]
    else:
        # A view of every so many cells first: the rows of pictures are too large to be copied whole.
        cells = (slice(None), *(slice(None, None, -(-int(n) // _CELLS_ACROSS) or 1) for n in array.shape[1:]))
        sample = array[cells][spread(array.shape[0], _FEWEST_ROWS)]
    if hasattr(sample, "detach"):
        sample = sample.detach().cpu()
        # numpy has no such type.
        sample = (sample.float() if "bfloat" in str(sample.dtype) or "float8" in str(sample.dtype) else sample).numpy()
    digest.update(repr(sample.tolist()).encode() if str(array.dtype) == "object" else sample.tobytes())


def _feed_sparse(digest: Any, matrix: Any) -> None:
    digest.update(f"{matrix.format}{matrix.dtype}{matrix.shape}{matrix.nnz}".encode())
    for part in ("data", "indices", "indptr", "row", "col"):
        values = getattr(matrix, part, None)
        if values is not None and getattr(values, "ndim", 0) == 1:
            digest.update(values[_rows(values.shape)].tobytes())


def _feed_frame(digest: Any, frame: Any) -> None:
    shape = tuple(frame.shape)
    digest.update(repr(shape).encode())
    rows = _rows(shape)
    if len(shape) == 1:
        digest.update(f"{getattr(frame, 'name', '')}{frame.dtype}".encode())
        picked = frame.iloc[rows] if hasattr(frame, "iloc") else frame[rows]
        _feed_values(digest, picked.to_numpy())
        return
    names = list(frame.columns)
    digest.update(repr(names[:1000]).encode())
    columns = spread(shape[1], _COLUMNS)
    # All cells at once: a column of a frame takes longer to get than its cells.
    if hasattr(frame, "iloc"):
        picked = frame.iloc[rows, columns]
        digest.update(repr([str(dtype) for dtype in picked.dtypes]).encode())
        _feed_values(digest, picked.to_numpy())
    else:
        picked = frame.select([names[i] for i in columns])[rows]
        digest.update(f"{picked.dtypes}{picked.rows()}".encode())


def _feed_values(digest: Any, values: Any) -> None:
    digest.update(values.tobytes() if values.dtype.kind in "iufbM" else repr(values.tolist()).encode())


def _schema(features: Any, targets: Any) -> str | None:
    specs = schema(features)
    if not specs:
        return None
    if specs[0]["type"] == "tensor":
        return json.dumps({"mlflow_tensorspec": {"features": json.dumps(specs), "targets": _targets(targets)}})
    if len(specs) > 1000:  # MLflow refuses a dataset schema of more than 65,535 characters... of JSON.
        specs = specs[:1000]
    text = json.dumps({"mlflow_colspec": specs})
    return text if len(text) <= 65_535 else None


def _targets(targets: Any) -> str | None:
    specs = schema(targets)
    return json.dumps(specs) if specs and specs[0]["type"] == "tensor" else None


def _profile(features: Any, targets: Any) -> str | None:
    shape = getattr(features, "shape", None)
    if shape is None:
        return json.dumps({"num_rows": len(features)})
    size = 1
    for extent in shape:
        size *= int(extent)
    if hasattr(features, "columns"):
        return json.dumps({"num_rows": int(shape[0]), "num_elements": size})
    profile: dict[str, Any] = {"features_shape": [int(n) for n in shape], "features_size": size}
    if (nbytes := getattr(features, "nbytes", None)) is not None:
        profile["features_nbytes"] = int(nbytes)
    if (target_shape := getattr(targets, "shape", None)) is not None:
        profile["targets_shape"] = [int(n) for n in target_shape]
    return json.dumps(profile)
