"""What was said about a run: small immutable records, made of JSON values only, in the order in which they were said.

A record is noted on the training thread, so making one costs well under a microsecond. Runs and models are named
by keys chosen here; the sender maps them to the ids that the tracking store gives.

Times are milliseconds since the epoch, as MLflow stores them.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar


def now() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class OpenRun(NamedTuple):
    """A run begins. `adopt` is the id of the user's own MLflow run where there is one; it is never ended by us.

    The next four are those of a call that was carried (:mod:`autolog.carry`): the parent's id in the store, where it is
    known; the call that this run records, where the parent belongs to another process; the number of the attempt at
    it, 0 where it is not tried again; and whether the parent ends with the last of its calls.
    """

    run: str
    start_time: int
    tracking_uri: str | None
    experiment: str | None
    experiment_id: str | None
    cwd: str
    adopt: str | None = None
    parent: str | None = None
    name: str | None = None
    parent_id: str | None = None
    call: str | None = None
    attempt: int = 0
    ends_parent: bool = False
    #: Whether the sender is to record the machine's metrics while the run is open.
    system_metrics: bool = False


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


class Block:
    """Values of several metrics over consecutive steps, which may still grow while it waits to be written.

    For metrics that a framework keeps in lists of its own: noting a step then costs an append to `times`. Whoever
    takes the block first, the writer or the training thread, decides how far it goes; later steps are the next one's.
    It is stored and delivered as :class:`Points`.

    times: time of each step of the whole training; values: metric name -> value of each, appended to before `times`.
    first: index in both of the first step that is this block's; step: the number of that step.
    """

    __slots__ = ("_lock", "_rows", "first", "run", "step", "taken", "times", "values")

    def __init__(
        self, run: str, step: int, times: Sequence[int], values: Mapping[str, Sequence[float]], first: int
    ) -> None:
        self.run = run
        self.step = step
        self.times = times
        self.values = values
        self.first = first
        #: The index after the last step that is this block's; None while it grows.
        self.taken: int | None = None
        self._rows: tuple[list[int], dict[str, list[float]]] = ([], {})
        self._lock = threading.Lock()

    def take(self) -> tuple[list[int], dict[str, list[float]]]:
        """Close the block; return its times and values. The lists may change afterwards; these are copies."""
        with self._lock:
            if self.taken is None:
                end = len(self.times)
                part = slice(self.first, end)
                self._rows = list(self.times[part]), {name: list(v[part]) for name, v in self.values.items()}
                self.taken = end
                self.times, self.values = (), {}
            return self._rows


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


class Figure(NamedTuple):
    """A picture of `kind` (see :mod:`autolog.figures`), drawn by the sender from `data`, at `path` as a text is."""

    run: str
    path: str
    kind: str
    data: Mapping[str, Any]


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
    """The run ended with `status`, one of MLflow's FINISHED, FAILED, KILLED, or with what the exit code will say."""

    run: str
    status: str
    end_time: int


Record = (
    OpenRun
    | Params
    | Tags
    | Points
    | Block
    | DatasetInput
    | Text
    | Figure
    | DeclareModel
    | ModelFiles
    | ModelFailed
    | DropModels
    | Derive
    | EndRun
)

#: What a training says while it runs, which can be collected for a while before it is sent. A model, a picture or the
#: end of a run is what somebody may look for.
CAN_WAIT = (OpenRun, Params, Tags, DatasetInput, Points, Block)

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        OpenRun,
        Params,
        Tags,
        Points,
        DatasetInput,
        Text,
        Figure,
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
_BLOCK = "Block"


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
        if isinstance(record, Block):
            yield from _encode_block(record)
            continue
        yield record.run, type(record).__name__, _to_json(record[1:])
    if series:
        yield of, _SERIES, _to_json(series)


def _encode_block(block: Block) -> Iterator[tuple[str, str, str]]:
    times, values = block.take()
    for start in range(0, len(times), _LONGEST_SERIES):
        part = slice(start, start + _LONGEST_SERIES)
        columns = {name: _pack("d", column[part]) for name, column in values.items()}
        yield block.run, _BLOCK, _to_json((block.step + start, _pack("q", times[part]), columns))


def _pack(kind: str, values: Sequence[float]) -> str:
    """Return numbers as base64 of their bytes: in a tenth of the time of their digits, during which nothing trains.

    kind: as of :mod:`struct`.
    """
    return base64.b64encode(struct.pack(f"<{len(values)}{kind}", *values)).decode("ascii")


def _unpack(kind: str, text: str) -> tuple[Any, ...]:
    data = base64.b64decode(text)
    return struct.unpack(f"<{len(data) // 8}{kind}", data)


def decode(run: str, kind: str, body: str) -> list[Record]:
    """Return the records that :func:`encode` made one row of.

    Raises: KeyError for a kind that this version does not know.
    """
    fields = json.loads(body)
    if kind == _SERIES:
        return [_linked(Points(run, *point)) for point in fields]
    if kind == _BLOCK:
        step, times, columns = fields
        unpacked = {name: _unpack("d", column) for name, column in columns.items()}
        return [
            Points(run, step + i, time, {name: column[i] for name, column in unpacked.items()})
            for i, time in enumerate(_unpack("q", times))
        ]
    made: Record = _KINDS[kind](run, *fields)
    return [_linked(made) if isinstance(made, Derive) else made]


_Linked = TypeVar("_Linked", Points, Derive)


def _linked(record: _Linked) -> _Linked:
    # JSON has no tuples.
    return record if record.dataset is None else record._replace(dataset=(record.dataset[0], record.dataset[1]))
