"""What was said about a run: small immutable records, made of JSON values only, in the order in which they were said.

A record is noted on the training thread, so making one costs well under a microsecond. Runs and models are named
by keys chosen here; the sender maps them to the ids that the tracking store gives.

Times are milliseconds since the epoch, as MLflow stores them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple


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


def _number(value: object) -> float:
    # numpy and torch scalars arrive here, on the writer thread, as what the user computed.
    return float(value)  # type: ignore[arg-type]


def encode(record: Record) -> tuple[str, str, str]:
    """Return (run, kind, JSON text) of a record, as the spool stores it."""
    return record.run, type(record).__name__, json.dumps(record[1:], default=_number, separators=(",", ":"))


def decode(run: str, kind: str, body: str) -> Record:
    """Return the record that :func:`encode` stored.

    Raises: KeyError for a kind that this version does not know.
    """
    fields = json.loads(body)
    made = _KINDS[kind](run, *fields)
    if isinstance(made, Points | Derive) and made.dataset is not None:
        made = made._replace(dataset=(made.dataset[0], made.dataset[1]))
    return made  # type: ignore[no-any-return]
