"""Spark DataFrames as MLflow datasets, without running a job: everything is read off the analyzed plan."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import weakref
from typing import Any

from autolog import guard
from autolog.datasets import Dataset
from flavors.pyspark import columns

#: MLflow refuses dataset schemas that are longer.
_SCHEMA_LIMIT = 65_535
_COLUMNS = 1000

#: Descriptions of frames that are alive, by identity. Nothing is put on the user's objects.
_known: dict[int, tuple[weakref.ref[Any], Dataset]] = {}


def is_classic(frame: Any) -> bool:
    """Return whether `frame` is a DataFrame of a session in this process; those of Spark Connect are not."""
    return hasattr(frame, "_jdf")


def schema(frame: Any) -> list[dict[str, Any]]:
    """Return the fields of the frame's schema in Spark's JSON form. Two calls to the JVM; cached by nobody."""
    # Not frame.schema: the first look at it leaves an attribute on the user's object.
    return list(json.loads(frame._jdf.schema().json())["fields"])


def describe(frame: Any, name: str) -> Dataset:
    """Describe a DataFrame under `name`: schema, source and digest, but no row count, which would take a job.

    The digest is that of ``mlflow.data.from_spark``: Spark's hash of the canonical analyzed plan. Sources that are one
    file path or one table are MLflow's ``SparkDatasetSource``, others ``CodeDatasetSource``.

    Raises: what the JVM raises, as when the session was stopped.
    """
    key = id(frame)
    known = _known.get(key)
    if known is not None and known[0]() is frame:
        made = known[1]
    else:
        made = _describe(frame)
        _known[key] = (weakref.ref(frame, lambda _: _known.pop(key, None)), made)
    return made if made.name == name else Dataset(name, *(getattr(made, field) for field in _FIELDS))


_FIELDS = ("digest", "source_type", "source", "schema", "profile")


def _describe(frame: Any) -> Dataset:
    plan = frame._jdf.queryExecution().analyzed()
    digest = hashlib.md5(struct.pack("<q", plan.semanticHash()), usedforsecurity=False).hexdigest()[:8]
    specs = columns.specs(schema(frame)[:_COLUMNS])
    text = json.dumps({"mlflow_colspec": specs})
    source = guard.attempt(_source, plan).value
    return Dataset(
        name="dataset",
        digest=digest,
        source_type="spark" if source else "code",
        source=json.dumps(source or _code_source()),
        schema=text if specs and len(text) <= _SCHEMA_LIMIT else None,
        profile=None,
    )


def _code_source() -> dict[str, Any]:
    script = sys.argv[0] if sys.argv else ""
    return {"tags": {"mlflow.source.name": script, "mlflow.source.type": "LOCAL"}}


def _source(plan: Any) -> dict[str, str] | None:
    """Return the one table or path that the plan reads, or None.

    Not ``DataFrame.inputFiles()``: that runs the optimizer, which may list a table's partitions in a job.
    """
    leaves = plan.collectLeaves()
    if leaves.size() != 1:
        return None
    leaf = leaves.apply(0)
    if leaf.getClass().getSimpleName() != "LogicalRelation":
        return None
    table = leaf.catalogTable()
    if table.isDefined():
        return {"table_name": table.get().identifier().unquotedString()}
    relation = leaf.relation()
    if relation.getClass().getSimpleName() != "HadoopFsRelation":
        return None
    roots = relation.location().rootPaths()
    return {"path": roots.apply(0).toString()} if roots.size() == 1 else None
