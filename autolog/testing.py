"""For tests of flavors: :func:`capture` keeps what a training says, :class:`FlavorContract` checks how it is said.

What is captured has gone the real way: from the hook to a run, over the deque and the writer thread, encoded into a
spool and read back from it. It ends there: there is no sender, no tracking store, and mlflow is not imported.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolog import api, registry, runtime
from autolog.contract import FlavorContract
from autolog.records import (
    DatasetInput,
    DeclareModel,
    Derive,
    DropModels,
    EndRun,
    Figure,
    ModelFailed,
    ModelFiles,
    OpenRun,
    Params,
    Points,
    Record,
    Tags,
    Text,
)
from autolog.spool import Lease, Spool
from autolog.writer import Writer

Point = tuple[str, int, float]


@dataclass(slots=True)
class CapturedModel:
    """A model or checkpoint that a run recorded.

    status: "PENDING" until its files are there, then "READY"; "FAILED"; or "DELETED" by retention.
    metrics: (name, step, value) of the points that are linked to it.
    folder: where its files are, as the flavor wrote them, without the MLmodel that the sender makes of `package`.
    package: what :meth:`autolog.models.ModelSnapshot.write` returned.
    """

    name: str
    step: int
    params: dict[str, str]
    tags: dict[str, str]
    register_as: str | None
    status: str = "PENDING"
    metrics: list[Point] = field(default_factory=list)
    folder: Path | None = None
    package: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        """Path below the model's folder -> content."""
        if self.folder is None:
            return {}
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}


@dataclass(slots=True)
class CapturedRun:
    """One run as a flavor said it.

    key: of the run; parent: key of the run that it is a child of; adopted: id of the user's MLflow run.
    metrics: (name, step, value) in the order in which they were said; those that the sender computes come last.
    datasets: (name, context) -> the input. texts: path -> text. figures: path -> (kind, data).
    status: "RUNNING" until it has ended.
    """

    key: str
    parent: str | None = None
    adopted: str | None = None
    name: str | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[Point] = field(default_factory=list)
    datasets: dict[tuple[str, str], DatasetInput] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    figures: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    models: list[CapturedModel] = field(default_factory=list)
    status: str = "RUNNING"
    _said: set[tuple[str, int, int, float]] = field(default_factory=set, repr=False)

    def history(self, name: str) -> list[tuple[int, float]]:
        """Return (step, value) of one metric, in the order in which they were said."""
        return [(step, value) for key, step, value in self.metrics if key == name]

    @property
    def latest(self) -> dict[str, float]:
        """Metric name -> the value of its highest step, as MLflow shows a run's metrics."""
        return {name: value for name, _, value in sorted(self.metrics, key=lambda point: point[1])}


class _KeepingWriter(Writer):
    """The writer with a spool in a folder of its own, which nobody delivers and no later training finds."""

    def __init__(self, folder: Path) -> None:
        super().__init__("none")
        self._place = folder

    def _open(self) -> tuple[Spool, Lease]:
        folder = self._place / "spool"
        folder.mkdir(mode=0o700)
        (folder / "blobs").mkdir(mode=0o700)
        lease = Lease(folder / "owner.lock")
        lease.acquire()
        spool = Spool(folder, new=True)
        self.folder = folder
        return spool, lease

    def flush(self, timeout: float, waiting: Callable[[int | None], None] | None = None) -> bool:
        """Wait until everything noted so far is kept; False when `timeout` seconds ran out. `waiting` is not called."""
        return self.spooled(timeout) is not None

    def handed_over(self, timeout: float) -> bool:
        """Wait as :meth:`flush` does."""
        return self.flush(timeout)


class Capture:
    """What was said inside a :func:`capture` block; may be read inside it and afterwards."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mlflow-autolog-capture-"))
        self._writer = _KeepingWriter(self._folder)
        weakref.finalize(self, shutil.rmtree, self._folder, True)

    @property
    def records(self) -> list[Record]:
        """Everything that was said, in its order.

        Raises: TimeoutError where what was said is not kept within a minute.
        """
        if not self._writer.closing.is_set() and self._writer.spooled(60.0) is None:
            raise TimeoutError("the captured records are not written after 60 s")
        if self._writer.folder is None:
            return []
        spool = Spool(self._writer.folder)
        try:
            return [row.record for row in spool.pending(limit=10**9)]
        finally:
            spool.close()

    @property
    def runs(self) -> list[CapturedRun]:
        """The runs that were opened, oldest first."""
        return _assemble(self.records, self._writer.folder)

    @property
    def run(self) -> CapturedRun:
        """The only run.

        Raises: AssertionError where there is none or more than one.
        """
        runs = self.runs
        if len(runs) != 1:
            raise AssertionError(f"{len(runs)} runs were recorded, not one: {[run.tags for run in runs]}")
        return runs[0]


@contextmanager
def capture(*flavors: str, **settings: Any) -> Iterator[Capture]:
    """Switch autologging on and keep what is said, instead of recording it in a tracking store.

    flavors, settings: as of :func:`autolog.autolog`.

    A flavor is found by its entry point, so the distribution that has it must be installed (``pip install -e .`` will
    do). The user's own ``mlflow`` calls are not captured.

    Raises: RuntimeError where autologging is switched on already.

    Example::

        with capture("xgboost") as seen:
            xgboost.train({"max_depth": 2}, data, 3, evals=[(data, "train")])
        assert seen.run.params["max_depth"] == "2"
        assert [step for step, _ in seen.run.history("train-rmse")] == [0, 1, 2]
    """
    if runtime.enabled:
        raise RuntimeError("autologging is switched on already; call autolog.disable() before capture()")
    before = runtime.writer, runtime.config
    seen = Capture()
    runtime.writer = seen._writer
    try:
        api.autolog(*flavors, **settings)
        try:
            yield seen
        finally:
            api.disable()
            seen._writer.spooled(60.0)
            seen._writer.close()
    finally:
        runtime.writer, runtime.config = before


def _assemble(records: list[Record], folder: Path | None) -> list[CapturedRun]:
    runs: dict[str, CapturedRun] = {}
    models: dict[str, CapturedModel] = {}
    for record in records:
        if isinstance(record, OpenRun):
            runs[record.run] = CapturedRun(record.run, record.parent, record.adopt, record.name)
            continue
        assert folder is not None
        run = runs[record.run]
        if isinstance(record, Params):
            run.params.update(record.values)
        elif isinstance(record, Tags):
            run.tags.update(record.values)
        elif isinstance(record, Points):
            _add_points(run, models, record)
        elif isinstance(record, DatasetInput):
            run.datasets[record.name, record.context] = record
        elif isinstance(record, Text):
            run.texts[record.path] = record.text
        elif isinstance(record, Figure):
            run.figures[record.path] = (record.kind, record.data)
        elif isinstance(record, EndRun):
            run.status = record.status
        elif isinstance(record, Derive):
            continue
        else:
            _tell_model(run, models, record, folder)
    for record in records:
        if isinstance(record, Derive):
            assert folder is not None
            _compute(runs[record.run], models, record, folder)
    return list(runs.values())


def _tell_model(run: CapturedRun, models: dict[str, CapturedModel], record: Record, folder: Path) -> None:
    if isinstance(record, DeclareModel):
        made = CapturedModel(record.name, record.step, dict(record.params), dict(record.tags), record.register_as)
        models[record.model] = made
        run.models.append(made)
    elif isinstance(record, ModelFiles):
        model = models[record.model]
        model.status, model.folder, model.package = "READY", folder / "blobs" / record.blob, record.package
    elif isinstance(record, ModelFailed):
        models[record.model].status = "FAILED"
    elif isinstance(record, DropModels):
        for key in record.models:
            models[key].status = "DELETED"


def _add_points(run: CapturedRun, models: Mapping[str, CapturedModel], record: Points) -> None:
    points = [(name, record.step, float(value)) for name, value in record.values.items()]
    for point in points:
        # What is said again, at the same moment, to link it to a model is one point in the store, too.
        said = (point[0], point[1], record.time, point[2])
        if said not in run._said:
            run._said.add(said)
            run.metrics.append(point)
    if record.model is not None:
        models[record.model].metrics += points


def _compute(run: CapturedRun, models: Mapping[str, CapturedModel], record: Derive, folder: Path) -> None:
    """Do what the sender does with arrays: have the flavor make metrics and pictures of them."""
    made = registry.load_flavor(record.flavor).derive(record.what, folder / "blobs" / record.blob)
    _add_points(run, models, Points(record.run, record.step, record.time, made.metrics, record.model))
    run.texts.update(made.texts)
    run.figures.update(made.figures)


__all__ = ["Capture", "CapturedModel", "CapturedRun", "FlavorContract", "capture"]
