"""Records become MLflow client calls. Of the modules that do so the one that is asked.

Beside it: ``opening.py`` (stores and runs), ``batches.py`` (numbers), ``uploads.py`` (files), ``logged_models.py``.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, InputTag, LoggedModelStatus, Metric
from mlflow.entities import DatasetInput as MlflowDatasetInput
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from autolog import attempts, endings, figures, garbage, guard
from autolog.aside import Held, named
from autolog.batches import (
    Batch,
    RunBatches,
    RunGoneError,
    clean_text,
    is_gone,
)
from autolog.faults import Fault, fault, http_status, reason
from autolog.logged_models import LoggedModels
from autolog.opening import CLAIM_SECONDS, OWNER, connect, find_run, open_remote, prepare
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
from autolog.registry import load_flavor
from autolog.spool import MOVED, Row, Spool
from autolog.uploads import RunFiles
from autolog.uris import absolute_uri, is_file_store, without_credentials

#: Rows that the store fails at, one after the other, before it is taken to be the store's own failure.
LOOK_AHEAD = 5
#: Records that are read at a time when something behind those that fail is looked for.
PAGE = 2000
#: What may come into the store before numbers, texts and inputs that were said before it: these wait to go together, as
#: a request costs far more than what is in it. Anything else must find them there, as a model does that is linked to
#: what its run holds, or takes long.
_BESIDE = (DeclareModel, Derive, Figure, ModelFailed, Text)


def transient(error: BaseException) -> bool:
    """Return whether trying again later may help: the store is away, busy, full, fails, or refuses the credentials."""
    return fault(error) is not Fault.REFUSED


class Delivery:
    """Sends the records of one spool. Safe to begin anew at any point: see :meth:`send`."""

    def __init__(self, spool: Spool, *, own_process: bool) -> None:
        """Deliver `spool`; `own_process` says that this process's working folder may be changed."""
        self._spool = spool
        self._own_process = own_process
        self._me = f"sender-{os.getpid()}"
        self._clients: dict[str, MlflowClient] = {}
        self._batches: dict[str, Batch] = {}
        self._senders: dict[str, RunBatches] = {}
        self._files: dict[str, RunFiles] = {}
        self._gone: set[str] = set()
        self._held = Held(row.record for row in spool.aside())
        #: Rows that were set aside before: what the store does with others need not be known a second time.
        self._returned: set[int] = set()
        self._places: dict[str, tuple[MlflowClient, str, dict[str, str]]] = {}
        self._attempted = int(spool.meta("attempted") or 0)
        self._models = LoggedModels(spool, self._me, self._client)
        self._figures: list[Figure] = []
        self._spent: list[Path] = []

    # -- the loop's two calls -------------------------------------------------------------------------------------

    def send(self, rows: Sequence[Row]) -> None:
        """Deliver `rows`, in order, and delete them from the spool.

        Before anything is sent, the sequence number that it goes up to is stored: rows at or below the stored one may
        have reached the store already and are compared with what it holds before they are sent again.

        Raises: what the store raises while it cannot be used; nothing is deleted then.
        """
        if self._held and any(self._held.holds(row.record) for row in rows):
            self.send_apart(rows)
            return
        last = rows[-1].seq
        self._send(rows)
        self._spool.delivered(last)
        self._spool.clear_problems("store")

    def _send(self, rows: Sequence[Row]) -> None:
        certain_from = self._attempted
        last = rows[-1].seq
        if last > self._attempted:
            self._spool.set_meta("attempted", str(last))
            self._attempted = last
        self._batches.clear()
        self._figures.clear()
        self._spent.clear()
        for files in self._files.values():
            files.forget()
        for row in rows:
            self._one(row, uncertain=row.seq <= certain_from)
        for run in list(self._batches):
            try:
                self._flush(run)
            except RunGoneError as error:
                self._give_up(run, error)
        self._draw()
        for files in self._files.values():
            files.check()
        for blob in self._spent:
            blob.unlink(missing_ok=True)

    def send_apart(self, rows: Sequence[Row]) -> None:
        """Deliver row by row, and set those aside that the store fails at while it takes others that come later.

        Where it takes none of them, it is the store that fails: nothing is set aside then.

        Raises: what the store raised first, if it took nothing.
        """
        # Sequence numbers of rows, and what the store said; None for those that only wait for one of the others.
        stuck: dict[int, BaseException | None] = {}
        held = Held(row.record for row in self._spool.aside())
        first: BaseException | None = None
        failed = 0
        while rows:
            for seq, group in groupby(rows, lambda row: row.seq):
                each = list(group)
                if any(held.holds(row.record) for row in each):
                    stuck[seq] = None
                    for row in each:
                        held.add(row.record)
                    continue
                sent = guard.attempt(self._send, each)
                if sent.error is None:
                    self._set_aside(stuck)
                    stuck.clear()
                    failed = 0
                    self._spool.forget(seq)
                    self._spool.clear_problems("store")
                    continue
                first = first or sent.error
                if fault(sent.error) is Fault.AWAY:
                    raise sent.error
                stuck[seq] = sent.error
                for row in each:
                    held.add(row.record)
                failed += seq not in self._returned
                if failed >= LOOK_AHEAD:
                    raise first
            if not self._in_doubt(stuck):
                break
            rows = self._spool.pending(PAGE, after=rows[-1].seq)
        if first is not None and self._in_doubt(stuck):
            raise first
        self._set_aside(stuck)

    def _in_doubt(self, stuck: Mapping[int, BaseException | None]) -> bool:
        """Return whether the store may be to blame for any of the errors, rather than the rows that met them."""
        return any(
            error is not None and fault(error) is not Fault.REFUSED and seq not in self._returned
            for seq, error in stuck.items()
        )

    def _set_aside(self, stuck: Mapping[int, BaseException | None]) -> None:
        if not stuck:
            return
        rows = self._spool.set_aside(list(stuck))
        for row in rows:
            self._held.add(row.record)
        for seq, group in groupby(rows, lambda row: row.seq):
            error = stuck[seq]
            if error is not None:
                self._spool.problem(
                    "aside",
                    f"{named(next(group).record)}: {self.explain(error)}, which takes the rest. It is set aside in "
                    f"{self._spool.folder}, and tried again now and then, or with: autolog sync",
                )

    def take_back(self) -> bool:
        """Have what is set aside tried again; return whether there was any."""
        self._held = Held()
        self._spool.clear_problems("aside")
        returned = self._spool.take_back()
        self._returned.update(returned)
        return bool(returned)

    def close_open(self) -> None:
        """Close what the dead training process left open: models as FAILED, runs as FAILED or, where a signal was sent,
        as KILLED, or as its exit code says where they ended with it; the user's own runs untouched.
        """
        if (self._spool.folder / MOVED).exists():
            return  # It went on in another spool, which says how its runs ended.
        signalled = endings.signal_in(self._spool.folder)
        died = ("FAILED", "the training process died") if signalled is None else ("KILLED", signalled[0])
        code = endings.exit_code_in(self._spool.folder)
        for key, known in self._spool.keys("model:").items():
            if known.remote and known.detail.get("state") in ("created", "declared"):
                client = self._clients_for(known.detail)
                self._refusable(key, client.finalize_logged_model, known.remote, LoggedModelStatus.FAILED)
                self._spool.bind(key, known.remote, self._me, {**known.detail, "state": "failed"})
        for key, known in self._spool.keys("run:").items():
            if known.remote and known.detail.get("state") == "open":
                client = self._clients_for(known.detail)
                end_time = time.time_ns() // 1_000_000
                status, cause = died
                if code is not None and (said := known.detail.get("end_time")):
                    status, cause, end_time = "FAILED" if code else "FINISHED", f"exit code {code}", int(said)
                if status != "FINISHED":
                    self._refusable(key, client.set_tag, known.remote, "autolog.ended", cause)
                if signalled is not None:
                    files = self._files_of(client, known.remote, known.detail)
                    self._refusable(key, files.text, "traceback.txt", signalled[1])
                    files.check()
                self._refusable(key, client.set_terminated, known.remote, status, end_time)
                self._refusable(key, self._call_ended, client, known.remote, known.detail, end_time)
                self._spool.bind(key, known.remote, self._me, {**known.detail, "state": "ended"})

    def explain(self, error: BaseException) -> str:
        """Return one sentence for people about a store that cannot be used now."""
        uris = ", ".join(sorted(without_credentials(uri) for uri in self._clients)) or "the tracking store"
        what = {
            Fault.AWAY: "cannot be reached",
            Fault.DENIED: "refuses the credentials" if http_status(error) in (401, 403) else "has no room for it",
            Fault.FAILED: "fails at it",
            Fault.REFUSED: "refuses it",
        }[fault(error)]
        return f"{uris} {what} ({reason(error)})"

    # -- one record -----------------------------------------------------------------------------------------------

    def _one(self, row: Row, *, uncertain: bool) -> None:
        record = row.record
        if record.run in self._gone:
            if isinstance(record, EndRun):
                self._superseded(record.run)  # Models and child runs may have come after it was gone.
            return
        try:
            self._take(record, uncertain=uncertain)
        except RunGoneError as error:
            self._give_up(record.run, error)

    def _take(self, record: Record, *, uncertain: bool) -> None:
        if isinstance(record, Points | Params | Tags | DatasetInput):
            batch = self._batches.setdefault(record.run, Batch())
            if isinstance(record, Points):
                batch.metrics.extend(self._metrics(record))
                batch.uncertain |= uncertain
            elif isinstance(record, Params):
                batch.params.update(record.values)
            elif isinstance(record, Tags):
                batch.tags.update(record.values)
            else:
                batch.datasets.append(_input(record))
            if batch.full:
                self._flush(record.run, rest=False)
            return
        # What was tried before may have failed at files, whose place can be away while the store is not.
        if uncertain or not self._goes_beside(record):
            self._flush(record.run)
        handler = self._HANDLERS[type(record)]
        # Only a derivation sends points itself; whether they may have been sent before is known here.
        more = {"uncertain": uncertain} if isinstance(record, Derive) else {}
        sent = guard.attempt(handler, self, record, **more)
        if sent.error is None:
            return
        if isinstance(record, OpenRun) and record.adopt is None:
            raise sent.error  # All that follows of the run would be lost with it.
        if fault(sent.error) is not Fault.REFUSED:
            raise sent.error
        self._refused(record.run, f"a {type(record).__name__} record", sent.error)

    def _goes_beside(self, record: Record) -> bool:
        """Return whether numbers that were said before `record` may come into the store after it."""
        return isinstance(record, _BESIDE) or (isinstance(record, ModelFiles) and self._models.quick(record))

    def _refused(self, run: str, what: str, error: BaseException) -> None:
        """Say that `what` of a run is lost, unless that is because the run is gone.

        Raises: RunGoneError where it is.
        """
        if isinstance(error, RunGoneError):
            raise error
        if isinstance(error, MlflowException):
            client, run_id, _ = self._where(run)
            if is_gone(client, run_id):
                raise RunGoneError(f"run {run_id} was deleted in the store") from error
        self._lost(what, error)

    def _give_up(self, run: str, error: BaseException) -> None:
        self._gone.add(run)
        self._batches.pop(run, None)
        if not self._superseded(run):
            self._spool.problem("gone", f"{error}; what was recorded for it since then is not")

    def _superseded(self, run: str) -> bool:
        """Return whether another attempt at a run's carried call stands; then discard what came late of this one."""
        return bool(guard.attempt(lambda: attempts.sweep(*self._where(run)[:2])).value)

    def _open_run(self, record: OpenRun) -> None:
        if self._own_process and Path(record.cwd).is_dir():
            os.chdir(record.cwd)  # MLflow puts ./mlruns, the artifacts of a new sqlite store, where the process is.
        uri = absolute_uri(record.tracking_uri, record.cwd)
        client = self._client(uri)
        key = f"run:{record.run}"
        if record.adopt:
            run = client.get_run(record.adopt)
            detail = {
                "uri": uri,
                "state": "adopted",
                "experiment_id": run.info.experiment_id,
                "name": run.info.run_name,
                "artifacts": run.info.artifact_uri,
            }
            if record.system_metrics:
                detail["system"] = "yes"
            self._spool.bind(key, record.adopt, self._me, detail)
        elif (claimed := self._spool.claim(key, self._me)) or not self._bound_by_owner(key):
            open_remote(self._spool, client, record, self._me, claimed=claimed)

    def _bound_by_owner(self, key: str) -> bool:
        """Wait for the training process where it said that it creates this run; return whether the run exists."""
        deadline = time.monotonic() + CLAIM_SECONDS
        while (known := self._spool.lookup(key)) is not None:
            if known.remote is not None:
                return True
            if not known.claimant.startswith(OWNER) or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return False

    def _text(self, record: Text) -> None:
        self._files_of(*self._where(record.run)).text(record.path, clean_text(record.text))

    def _figure(self, record: Figure) -> None:
        # Drawn after the rest of the chunk: a picture takes as long as all numbers of a short run, and is looked at
        # later than these.
        self._figures.append(record)

    def _draw(self) -> None:
        """Draw and upload what was put off. May be repeated as a whole."""
        for record in self._figures:
            if record.run in self._gone:
                continue
            drawn = guard.attempt(self._draw_one, record)
            if drawn.error is not None:
                if transient(drawn.error):
                    raise drawn.error
                try:
                    self._refused(record.run, f"the picture {record.path}", drawn.error)
                except RunGoneError as error:
                    self._give_up(record.run, error)

    def _draw_one(self, record: Figure) -> None:
        files = self._files_of(*self._where(record.run))
        with tempfile.TemporaryDirectory(dir=self._spool.blobs, prefix="figure-") as folder:
            path = Path(folder) / record.path.rpartition("/")[2]
            drawn = guard.attempt(figures.draw, record.kind, record.data, path)
            if isinstance(drawn.error, ImportError):
                self._spool.problem(
                    "figures",
                    "pictures are not drawn, their numbers are kept as JSON, because matplotlib is missing; "
                    "run: pip install matplotlib",
                )
                files.json(record.path + ".json", {"kind": record.kind, **record.data})
            elif drawn.error is not None:
                raise drawn.error
            else:
                files.file(record.path, path)

    def _declare_model(self, record: DeclareModel) -> None:
        client, run_id, run = self._where(record.run)
        self._models.declare(record, client, run_id, run)

    def _model_files(self, record: ModelFiles) -> None:
        self._models.files(record, self._to(*self._where(record.run)))

    def _derive(self, record: Derive, *, uncertain: bool) -> None:
        blob = self._spool.blobs / record.blob
        if not blob.exists():  # Delivered before a crash that came between the delivery and its acknowledgement.
            return
        made = load_flavor(record.flavor).derive(record.what, blob)
        points = Points(record.run, record.step, record.time, made.metrics, record.model, record.dataset)
        batch = self._batches.setdefault(record.run, Batch())
        batch.metrics.extend(self._metrics(points))
        batch.uncertain |= uncertain
        # For who says at the end what was recorded.
        known = json.loads(self._spool.meta(f"derived:{record.run}") or "{}")
        known |= {name: (record.step, value) for name, value in made.metrics.items()}
        self._spool.set_meta(f"derived:{record.run}", json.dumps(known, default=float))
        for path, text in made.texts.items():
            self._text(Text(record.run, path, text))
        self._figures += [Figure(record.run, path, kind, data) for path, (kind, data) in made.figures.items()]
        self._spent.append(blob)

    def _end_run(self, record: EndRun) -> None:
        client, run_id, detail = self._where(record.run)
        if detail["state"] == "adopted":
            if detail.pop("system", None):
                self._spool.bind(f"run:{record.run}", run_id, self._me, detail)
            return  # The user's own run ends when the user ends it.
        if record.status == endings.AS_EXIT_CODE:  # For close_open.
            self._spool.bind(f"run:{record.run}", run_id, self._me, {**detail, "end_time": str(record.end_time)})
            return
        client.set_terminated(run_id, record.status, record.end_time)
        self._call_ended(client, run_id, detail, record.end_time)
        self._spool.bind(f"run:{record.run}", run_id, self._me, {**detail, "state": "ended"})
        self._places.pop(record.run, None)

    def _call_ended(self, client: MlflowClient, run_id: str, detail: Mapping[str, str], end_time: int) -> None:
        """Do what the end of a carried call's run entails for other runs; `detail` is what is kept of the run."""
        parent = detail.get("parent_id")
        if not parent and detail.get("parent"):
            found = find_run(client, detail["experiment_id"], detail["parent"])
            if found is None:
                raise LookupError(f"the run that run {run_id} is a part of is not in the store")
            parent = str(found.info.run_id)
            client.set_tag(run_id, MLFLOW_PARENT_RUN_ID, parent)
        if detail.get("attempted"):
            attempts.settle(client, detail["experiment_id"], detail["attempted"])
        if parent and detail.get("ends_parent"):
            attempts.end_parent(client, detail["experiment_id"], parent, end_time)

    _HANDLERS: dict[type, Callable[..., None]] = {
        OpenRun: _open_run,
        Text: _text,
        Figure: _figure,
        DeclareModel: _declare_model,
        ModelFiles: _model_files,
        ModelFailed: lambda self, record: self._models.failed(record),
        DropModels: lambda self, record: self._models.drop(record),
        Derive: _derive,
        EndRun: _end_run,
    }

    # -- batches --------------------------------------------------------------------------------------------------

    def _metrics(self, record: Points) -> Iterable[Metric]:
        model = self._spool.lookup(f"model:{record.model}") if record.model else None
        client, run_id, detail = self._where(record.run)
        names = self._to(client, run_id, detail).metric_names
        name, digest = record.dataset or (None, None)
        if is_file_store(detail["uri"]):
            # MLflow's file store reads a metric that is linked to a dataset back as one of step 0.
            name = digest = None
        for key, value in record.values.items():
            yield Metric(
                key=names.key(key),
                value=value,
                timestamp=record.time,
                step=record.step,
                model_id=model.remote if model else None,
                dataset_name=name,
                dataset_digest=digest,
                run_id=run_id,
            )

    def _flush(self, run: str, *, rest: bool = True) -> None:
        batch = self._batches.pop(run, None)
        if batch is None:
            return
        self._to(*self._where(run)).send(batch, rest=rest)
        if batch.metrics:
            self._batches[run] = batch

    def _to(self, client: MlflowClient, run_id: str, detail: Mapping[str, str]) -> RunBatches:
        sender = self._senders.get(run_id)
        if sender is None:
            files = self._files_of(client, run_id, detail)
            sender = self._senders[run_id] = RunBatches(
                client,
                run_id,
                files,
                keeps_once=not is_file_store(detail["uri"]),
                lost=self._lost,
                said=self._limit,
            )
        return sender

    def _files_of(self, client: MlflowClient, run_id: str, detail: Mapping[str, str]) -> RunFiles:
        files = self._files.get(run_id)
        if files is None:
            # A spool of an earlier version does not name the location.
            files = self._files[run_id] = RunFiles(client, run_id, detail.get("artifacts"))
        return files

    def _limit(self, message: str) -> None:
        self._spool.problem("limit", message)

    # -- the store ------------------------------------------------------------------------------------------------

    def _client(self, uri: str) -> MlflowClient:
        client = self._clients.get(uri)
        if client is None:
            with garbage.uncollected(before_a_store=True):
                prepare(uri)
            client = self._clients[uri] = connect(uri)
        return client

    def _clients_for(self, detail: dict[str, str]) -> MlflowClient:
        return self._client(detail["uri"])

    def _where(self, run: str) -> tuple[MlflowClient, str, dict[str, str]]:
        """Return the client, the id and what else is known of a run. Asked for every point, so kept while it is open.

        Raises: RunGoneError for a run that was never opened in the store.
        """
        place = self._places.get(run)
        if place is None:
            known = self._spool.lookup(f"run:{run}")
            if known is None or known.remote is None:
                raise RunGoneError(f"run {run} was never opened in the store")
            place = self._places[run] = self._clients_for(known.detail), known.remote, known.detail
        return place

    def _refusable(self, what: str, call: Callable[..., object], *args: object) -> None:
        """Make a call that the store may refuse for good, as for a run that was deleted meanwhile."""
        done = guard.attempt(call, *args)
        if done.error is not None:
            if transient(done.error):
                raise done.error
            self._lost(what, done.error)

    def _lost(self, what: str, error: BaseException) -> None:
        self._spool.problem("refused", f"{what} was refused by the store: {reason(error)}")


def _input(record: DatasetInput) -> MlflowDatasetInput:
    dataset = Dataset(
        name=clean_text(record.name),
        digest=record.digest,
        source_type=record.source_type,
        source=clean_text(record.source),
        schema=record.schema and clean_text(record.schema),
        profile=record.profile and clean_text(record.profile),
    )
    return MlflowDatasetInput(dataset=dataset, tags=[InputTag(key="mlflow.data.context", value=record.context)])
