"""Spark DataFrames as MLflow datasets, without running a job: everything is read off the analyzed plan."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import weakref
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from autolog import guard
from autolog.datasets import Dataset
from flavors.pyspark import schemas

#: MLflow refuses dataset schemas that are longer.
_SCHEMA_LIMIT = 65_535
_COLUMNS = 1000
#: Paths told of a source of several.
_PATHS = 20

#: Descriptions of frames that are alive, by identity. Nothing is put on the user's objects.
_known: dict[int, tuple[weakref.ref[Any], Dataset]] = {}


def is_classic(frame: Any) -> bool:
    """Return whether `frame` is a DataFrame of a session in this process."""
    return hasattr(frame, "_jdf")


def is_remote(frame: Any) -> bool:
    """Return whether `frame` is a DataFrame of Spark Connect."""
    return type(frame).__module__.startswith("pyspark.sql.connect")


def schema(frame: Any) -> list[schemas.Field]:
    """Return the fields of the frame's schema in Spark's JSON form. Two calls to the JVM; cached by nobody."""
    # Not frame.schema: the first look at it leaves an attribute on the user's object.
    if is_remote(frame):
        client = frame.sparkSession.client
        return list(client.schema(frame._plan.to_proto(client)).jsonValue()["fields"])
    return list(json.loads(frame._jdf.schema().json())["fields"])


def sql_parser(frame: Any) -> Callable[[str], str]:
    """Return a function that parses a statement into the JSON form of Spark's logical plan; it analyzes nothing."""

    def parse(statement: str) -> str:
        parser = frame.sparkSession._jsparkSession.sessionState().sqlParser()
        return str(parser.parsePlan(statement).toJSON())

    return parse


def describe(frame: Any, name: str) -> Dataset:
    """Describe a DataFrame under `name`: schema, source and digest, but no row count, which would take a job.

    The digest is that of ``mlflow.data.from_spark``: Spark's hash of the canonical analyzed plan. Sources that are
    files or one table are MLflow's ``SparkDatasetSource``, without credentials; others ``CodeDatasetSource``.

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
    plan = None if is_remote(frame) else frame._jdf.queryExecution().analyzed()
    number = frame.semanticHash() if plan is None else plan.semanticHash()
    digest = hashlib.md5(struct.pack("<q", number), usedforsecurity=False).hexdigest()[:8]
    specs = schemas.specs(schema(frame)[:_COLUMNS])
    text = json.dumps({"mlflow_colspec": specs})
    source = None if plan is None else guard.attempt(_source, plan).value
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
    """Return the one table, or the files, that the plan reads, or None.

    Not ``DataFrame.inputFiles()``: that runs the optimizer, which may list a table's partitions in a job.
    """
    leaves = plan.collectLeaves()
    if leaves.size() != 1:
        return None
    leaf = leaves.apply(0)
    kind = leaf.getClass().getSimpleName()
    if kind == "HiveTableRelation":
        return {"table_name": str(leaf.tableMeta().identifier().unquotedString())}
    if kind == "DataSourceV2Relation":
        # Iceberg, Delta and the like; without an identifier it was read by path or by options, of any kind.
        named = leaf.identifier()
        if not named.isDefined():
            return None
        catalog = leaf.catalog()
        prefix = f"{catalog.get().name()}." if catalog.isDefined() else ""
        return {"table_name": f"{prefix}{named.get()}"}
    if kind != "LogicalRelation":
        return None
    table = leaf.catalogTable()
    if table.isDefined():
        return {"table_name": str(table.get().identifier().unquotedString())}
    relation = leaf.relation()
    if relation.getClass().getSimpleName() != "HadoopFsRelation":
        return None
    roots = relation.location().rootPaths()
    paths = [public_url(roots.apply(index).toString()) for index in range(min(roots.size(), _PATHS))]
    return {"path": ",".join(paths) + (",..." if roots.size() > _PATHS else "")} if paths else None


def public_url(url: str) -> str:
    """Return `url` without what lets its reader in: a password, access keys, a signed query.

    ``container@account`` of Azure's schemes is no secret and stays.
    """
    # A secret key may have slashes in it; a port has not.
    url = re.sub(r"^([\w+.-]+://)[^/@:]+:(?!\d+(?:/|$))[^@]*@", r"\1", url)
    parts = urlsplit(url)
    if not parts.netloc:
        return url
    if "@" in parts.netloc and parts.scheme.startswith("s3"):
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return urlunsplit(parts._replace(query=""))
