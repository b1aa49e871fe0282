"""Run: everything that a flavor can say. Each call notes a record and returns at once."""

from __future__ import annotations

import shutil
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolog import guard, redaction
from autolog.datasets import Dataset
from autolog.models import ModelSnapshot
from autolog.records import (
    Block,
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
    now,
)

if TYPE_CHECKING:
    from autolog.config import Config
    from autolog.writer import Writer


@dataclass(frozen=True, slots=True)
class ElsewhereRun:
    """A run that another process records: its key, by which its id in the store is found."""

    key: str


class Run:
    """One MLflow run, ours or the user's own. Made by the core; a flavor gets it as ``call.run``.

    key: names the run until the store has given it an id.
    adopted: the id of the user's active MLflow run where this is one; it is never ended by us.
    """

    __slots__ = (
        "_ended",
        "_params",
        "_writer",
        "adopted",
        "config",
        "flavor",
        "host",
        "key",
        "opened",
        "parent",
        "remote",
        "start_time",
    )

    def __init__(
        self,
        writer: Writer,
        config: Config,
        flavor: str,
        *,
        opening: Mapping[str, Any],
        adopt: str | None = None,
        parent: Run | ElsewhereRun | None = None,
        name: str | None = None,
        key: str | None = None,
        start_time: int | None = None,
    ) -> None:
        self.key = key or uuid.uuid4().hex
        self.config = config
        self.flavor = flavor
        self.adopted = adopt
        #: Its id in the store, once somebody in this process has asked for it.
        self.remote: str | None = None
        self.parent = parent
        #: Key of the run of the carried call that this one is part of; with the call, it ends.
        self.host: str | None = None
        self.start_time = start_time or now()
        self._writer = writer
        self._params: dict[str, str] = {}
        self._ended = False
        self.opened = OpenRun(
            self.key,
            self.start_time,
            adopt=adopt,
            parent=parent.key if parent else None,
            name=name,
            **opening,
        )
        writer.limit(self.key, config.max_points)
        writer.note(self.opened)

    # -- facts ----------------------------------------------------------------------------------------------------

    def params(self, values: Mapping[str, Any]) -> None:
        """Record parameters. Values become text as ``str`` makes it, without secrets: see :mod:`autolog.redaction`."""
        texts = {str(k): redaction.value(str(k), str(v)) for k, v in values.items()}
        self._params.update(texts)
        self._writer.note(Params(self.key, texts))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Record tags."""
        self._writer.note(Tags(self.key, {str(k): redaction.value(str(k), str(v)) for k, v in values.items()}))

    def metrics(
        self,
        values: Mapping[str, float],
        *,
        step: int = 0,
        model: str | None = None,
        dataset: Dataset | None = None,
        time: int | None = None,
    ) -> None:
        """Record metric values of one step.

        values: name -> number. Anything with ``__float__`` will do; it is converted off the training thread, so it
            must not change afterwards.
        model: key of the model that the values are of, as :meth:`model` returned it.
        dataset: what they were computed on.
        """
        self._writer.note(Points(self.key, step, time or now(), values, model, dataset.key if dataset else None))

    def claim(self, names: Iterable[str]) -> None:
        """Leave metrics to the user, who logs them into this run by hand: from here on theirs are the only ones."""
        self._writer.claim(self.key, names)

    def block(
        self, times: Sequence[int], values: Mapping[str, Sequence[float]], *, step: int = 0, first: int = 0
    ) -> Block:
        """Record metrics of consecutive steps from lists that go on growing; return the block, which must be taken.

        times: milliseconds since the epoch, one a step; values: name -> one number a step. first: index of the first
        step that is not recorded yet; step: its number. See :class:`autolog.records.Block`.
        """
        block = Block(self.key, step, times, values, first)
        self._writer.note(block)
        return block

    def dataset(self, dataset: Dataset, context: str) -> None:
        """Record an input; context: its role, "train" or "eval"."""
        self._writer.note(
            DatasetInput(
                self.key,
                dataset.name,
                dataset.digest,
                dataset.source_type,
                redaction.clean(dataset.source),
                dataset.schema,
                dataset.profile,
                context,
            )
        )

    def text(self, path: str, text: str) -> None:
        """Record a text artifact at `path` below the run's artifacts."""
        self._writer.note(Text(self.key, path, redaction.clean(text)))

    def figure(self, path: str, kind: str, data: Mapping[str, Any]) -> None:
        """Record numbers of which the sender draws the picture `path`.

        path: ends with ``.png`` and is below the run's artifacts. kind, data: see :mod:`autolog.figures`; `data` is
            made of JSON values (and scalars with ``__float__``) and must not change afterwards.
        """
        self._writer.note(Figure(self.key, path, kind, data))

    # -- models ---------------------------------------------------------------------------------------------------

    def model(
        self,
        take: ModelSnapshot | Callable[[], ModelSnapshot],
        *,
        name: str = "model",
        step: int = 0,
        tags: Mapping[str, str] | None = None,
        register: bool = False,
        metrics_since: int | None = None,
    ) -> str:
        """Record a model, or a checkpoint of it, as a LoggedModel; return the key that links metrics to it.

        take: the snapshot, or a function that takes it on the worker thread, for models that cannot change.
        register: whether it is the one that ``registered_model_name`` asks for.
        metrics_since: link what the user logged into the run by hand at or after this time (milliseconds since the
            epoch), too, because the model has not changed since.
        """
        key = self.declare_model(name=name, step=step, tags=tags, register=register, metrics_since=metrics_since)
        self.save_model(key, take)
        return key

    def declare_model(
        self,
        *,
        name: str = "model",
        step: int = 0,
        tags: Mapping[str, str] | None = None,
        register: bool = False,
        metrics_since: int | None = None,
    ) -> str:
        """Say that a model will follow, by :meth:`save_model` or :meth:`model_failed`; return its key.

        For a model whose metrics are known before all of it is; arguments as of :meth:`model`.
        """
        key = uuid.uuid4().hex
        register_as = self.config.registered_model_name if register else None
        params = dict(self._params)
        self._writer.note(DeclareModel(self.key, key, name, step, params, dict(tags or {}), register_as, metrics_since))
        return key

    def save_model(self, key: str, take: ModelSnapshot | Callable[[], ModelSnapshot]) -> None:
        """Save the declared model `key`; take: as of :meth:`model`."""
        self._writer.later(self.key, "save the model", lambda: [self._write_model(key, take)])

    def _write_model(self, key: str, take: ModelSnapshot | Callable[[], ModelSnapshot]) -> Record:
        folder = self._blob(key)

        def write() -> dict[str, Any]:
            snapshot = take() if callable(take) else take
            return snapshot.write(folder)

        package = guard.attempt(write)
        if package.error is not None:
            shutil.rmtree(folder, ignore_errors=True)
            guard.report("save the model", package.error)
            return ModelFailed(self.key, key, f"{type(package.error).__name__}: {package.error}")
        assert package.value is not None
        return ModelFiles(self.key, key, folder.name, package.value)

    def model_failed(self, key: str, reason: str) -> None:
        """Close a declared model as FAILED."""
        self._writer.later(self.key, "close a model", lambda: [ModelFailed(self.key, key, reason)])

    def drop_models(self, keys: tuple[str, ...]) -> None:
        """Delete checkpoints that retention no longer keeps."""
        if keys:
            self._writer.later(self.key, "delete old checkpoints", lambda: [DropModels(self.key, keys)])

    def derive(
        self,
        what: str,
        arrays: Mapping[str, Any] | Callable[[], Mapping[str, Any] | None],
        *,
        step: int = 0,
        model: str | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        """Have metrics and pictures made of `arrays` by the flavor's ``derive(what, ...)``, in the sender.

        arrays: name -> numpy array that nobody changes afterwards; or a function that returns them (None for nothing
            to compute), called on the worker thread.
        """
        at = now()

        def save() -> list[Record]:
            import numpy as np

            stored = arrays() if callable(arrays) else arrays
            if stored is None:
                return []
            path = self._blob(f"{uuid.uuid4().hex}.npz")
            with path.open("wb") as file:
                np.savez(file, **stored)
            return [Derive(self.key, self.flavor, what, path.name, step, at, model, dataset.key if dataset else None)]

        self._writer.later(self.key, "compute metrics", save)

    def _blob(self, name: str) -> Path:
        folder = self._writer.folder
        if folder is None:
            # The worker may be faster than the writer's first transaction.
            self._writer.spooled_folder(10.0)
            folder = self._writer.folder
        if folder is None:
            raise OSError("the spool folder cannot be made")
        return folder / "blobs" / name

    def later(self, what: str, job: Callable[[], None], *, quick: bool = False) -> None:
        """Run `job` on the worker thread before the run ends; what: completes "mlflow-autolog could not ...".

        quick: on the thread for numbers, which waits for no model that is being written.
        """

        def run() -> list[Record]:
            job()
            if quick and self._ended:
                # The training is over, and its process may be, too: what was read of it late goes to the disk at once.
                self._writer.kick()
            return []

        self._writer.later(self.key, what, run, quick=quick)

    # -- the end --------------------------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._ended

    def reopen(self) -> None:
        """Go on with a run that was ended, which ends again with another :meth:`end`."""
        self._ended = False

    def end(self, status: str = "FINISHED", error: BaseException | None = None) -> None:
        """End the run, after everything that was said before. The user's own run is left open.

        status: FINISHED, FAILED or KILLED; error: what ended it, kept as the artifact ``traceback.txt``.
        """
        if self._ended:
            return
        self._ended = True
        if error is not None:
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            self.text("traceback.txt", text)
        record = EndRun(self.key, self._writer.success if status == "FINISHED" else status, now())
        if self._writer.busy(self.key):
            self._writer.end_later(record)
        else:
            self._writer.note(record)
            self._writer.kick()
