"""What was said about a run: small immutable records, made of JSON values only, in the order in which they were said.

A record is noted on the training thread, so making one costs well under a microsecond. Runs and models are named
by keys chosen here; the sender maps them to the ids that the tracking store gives.

Times are milliseconds since the epoch, as MLflow stores them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar


def now() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class OpenRun(NamedTuple):
    """A run begins. `adopt` is the id of the user's own MLflow run where there is one; it is never ended by us."""

    run: str
    start_time: int
    tracking_uri: str | None
    experiment: str | None
    experiment_id: str | None
    cwd: str
    adopt: str | None = None
    parent: str | None = None
    name: str | None = None


class Params(NamedTuple):
    """Parameters of a run; values are already text."""

    run: str
    values: Mapping[str, str]


class Tags(NamedTuple):
    """Tags of a run; values are already text."""

    run: str
    values: Mapping[str, str]


class Points(NamedTuple):
    """Metric values of one moment, optionally linked to a model (by its key) and a dataset (by name and digest)."""

    run: str
    step: int
    time: int
    values: Mapping[str, float]
    model: str | None = None
    dataset: tuple[str, str] | None = None


class DatasetInput(NamedTuple):
    """A dataset that the run used. The fields are those of MLflow's ``entities.Dataset``; `context` is its role."""

    run: str
    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None
    profile: str | None
    context: str


class Text(NamedTuple):
    """A small text artifact of the run, at `path` below its artifact root."""

    run: str
    path: str
    text: str


class DeclareModel(NamedTuple):
    """A model will follow. Metrics may be linked to its key from here on."""

    run: str
    model: str
    name: str
    step: int
    params: Mapping[str, str]
    tags: Mapping[str, str]
    register_as: str | None = None
    metrics_since: int | None = None


class ModelFiles(NamedTuple):
    """The declared model's files are complete in the spool folder `blob`. `package` says how they form an MLmodel."""

    run: str
    model: str
    blob: str
    package: Mapping[str, Any]


class ModelFailed(NamedTuple):
    """The declared model could not be written; its entity is closed as FAILED."""

    run: str
    model: str
    reason: str


class DropModels(NamedTuple):
    """Checkpoints that retention no longer keeps."""

    run: str
    models: tuple[str, ...]


class Derive(NamedTuple):
    """Arrays in `blob` (an ``.npz``) from which `flavor` computes metrics in the sender, off the training process."""

    run: str
    flavor: str
    what: str
    blob: str
    step: int
    time: int
    model: str | None = None
    dataset: tuple[str, str] | None = None


class EndRun(NamedTuple):
    """The run ended with `status`, one of MLflow's FINISHED, FAILED, KILLED."""

    run: str
    status: str
    end_time: int


Record = (
    OpenRun
    | Params
    | Tags
    | Points
    | DatasetInput
    | Text
    | DeclareModel
    | ModelFiles
    | ModelFailed
    | DropModels
    | Derive
    | EndRun
)

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        OpenRun,
        Params,
        Tags,
        Points,
        DatasetInput,
        Text,
        DeclareModel,
        ModelFiles,
        ModelFailed,
        DropModels,
        Derive,
        EndRun,
    )
}


#: Consecutive points of one run share a row of the spool: many small rows cost several times as much to write.
_SERIES = "Series"
_LONGEST_SERIES = 500


def _number(value: object) -> float:
    # numpy and torch scalars arrive here, on the writer thread, as what the user computed.
    return float(value)  # type: ignore[arg-type]


# Made once: json.dumps with arguments makes one for each call, which takes longer than encoding a record.
_to_json = json.JSONEncoder(default=_number, separators=(",", ":")).encode


def encode(records: Iterable[Record]) -> Iterator[tuple[str, str, str]]:
    """Yield (run, kind, JSON text) as the spool stores records, in their order."""
    series: list[tuple[Any, ...]] = []
    of = ""
    for record in records:
        if isinstance(record, Points):
            if series and (record.run != of or len(series) >= _LONGEST_SERIES):
                yield of, _SERIES, _to_json(series)
                series = []
            of = record.run
            series.append(record[1:])
            continue
        if series:
            yield of, _SERIES, _to_json(series)
            series = []
        yield record.run, type(record).__name__, _to_json(record[1:])
    if series:
        yield of, _SERIES, _to_json(series)


def decode(run: str, kind: str, body: str) -> list[Record]:
    """Return the records that :func:`encode` made one row of.

    Raises: KeyError for a kind that this version does not know.
    """
    fields = json.loads(body)
    if kind == _SERIES:
        return [_linked(Points(run, *point)) for point in fields]
    made: Record = _KINDS[kind](run, *fields)
    return [_linked(made) if isinstance(made, Derive) else made]


_Linked = TypeVar("_Linked", Points, Derive)


def _linked(record: _Linked) -> _Linked:
    # JSON has no tuples.
    return record if record.dataset is None else record._replace(dataset=(record.dataset[0], record.dataset[1]))
