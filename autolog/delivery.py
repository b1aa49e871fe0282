"""Records become MLflow client calls. With ``sender.py`` and ``mlmodel.py`` the only importer of mlflow.

Limits and field names are those of ``mlflow.utils.validation`` (MLflow 3): 250 characters a key, 6,000 a parameter,
8,000 a tag (counted here as characters), 100 parameters or tags, 1,000 metrics and 1,000 entities a batch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mlflow import MlflowClient
from mlflow.entities import Dataset, InputTag, LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.entities import DatasetInput as MlflowDatasetInput
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from autolog import guard, mlmodel, newstore
from autolog.records import (
    DatasetInput,
    DeclareModel,
    Derive,
    DropModels,
    EndRun,
    ModelFailed,
    ModelFiles,
    OpenRun,
    Params,
    Points,
    Tags,
    Text,
)
from autolog.registry import load_flavor
from autolog.spool import Row, Spool

KEY_LIMIT, PARAM_LIMIT, TAG_LIMIT = 250, 6000, 8000
BATCH_METRICS, BATCH_PARAMS, BATCH_TAGS = 1000, 100, 100

#: How claimants that are the training process itself are named, and how long the sender waits for one.
OWNER, CLAIM_SECONDS = "owner-", 10.0

#: The tags by which a run or model that was created just before a crash is found again.
RUN_KEY, MODEL_KEY = "autolog.run", "autolog.model"


def transient(error: BaseException) -> bool:
    """Return whether trying again later may help: the store is away, busy, full, or refuses the credentials."""
    if isinstance(error, MlflowException):
        return error.get_http_status_code() >= 500 or error.get_http_status_code() in (401, 403, 408, 429)
    # Under a database URI the store is in this process: it may be locked, full, or not complete yet.
    raised_by = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or raised_by in ("sqlalchemy", "alembic", "sqlite3")


class _Batch:
    """What one ``log_batch`` call may carry for one run."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.uncertain = False


class Delivery:
    """Sends the records of one spool. Safe to begin anew at any point: see :meth:`send`."""

    def __init__(self, spool: Spool, *, own_process: bool) -> None:
        """Deliver `spool`; `own_process` says that this process's working folder may be changed."""
        self._spool = spool
        self._own_process = own_process
        self._me = f"sender-{os.getpid()}"
        self._clients: dict[str, MlflowClient] = {}
        self._batches: dict[str, _Batch] = {}
        self._places: dict[str, tuple[MlflowClient, str, dict[str, str]]] = {}
        self._attempted = int(spool.meta("attempted") or 0)

    # -- the loop's two calls -------------------------------------------------------------------------------------

    def send(self, rows: Sequence[Row]) -> None:
        """Deliver `rows`, in order, and delete them from the spool.

        Before anything is sent, the sequence number that it goes up to is stored: rows at or below the stored one may
        have reached the store already and are compared with what it holds before they are sent again.

        Raises: what the store raises while it cannot be reached; nothing is deleted then.
        """
        certain_from = self._attempted
        last = rows[-1].seq
        if last > self._attempted:
            self._spool.set_meta("attempted", str(last))
            self._attempted = last
        self._batches.clear()
        for row in rows:
            self._one(row, uncertain=row.seq <= certain_from)
        for run in list(self._batches):
            self._flush(run)
        self._spool.delivered(last)
        self._spool.clear_problems("store")

    def close_open(self) -> None:
        """Close what the dead training process left open: models and runs as FAILED, the user's own runs untouched."""
        for key, known in self._spool.keys("model:").items():
            if known.remote and known.detail.get("state") in ("created", "declared"):
                client = self._clients_for(known.detail)
                self._refusable(key, client.finalize_logged_model, known.remote, LoggedModelStatus.FAILED)
                self._spool.bind(key, known.remote, self._me, {**known.detail, "state": "failed"})
        for key, known in self._spool.keys("run:").items():
            if known.remote and known.detail.get("state") == "open":
                client = self._clients_for(known.detail)
                self._refusable(key, client.set_tag, known.remote, "autolog.ended", "the training process died")
                self._refusable(key, client.set_terminated, known.remote, "FAILED")
                self._spool.bind(key, known.remote, self._me, {**known.detail, "state": "ended"})

    def explain(self, error: BaseException) -> str:
        """Return one sentence for people about a store that cannot be used now."""
        uris = ", ".join(sorted(without_credentials(uri) for uri in self._clients)) or "the tracking store"
        if isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
            return f"{uris} refuses the credentials ({_short(error)})"
        if transient(error):
            return f"{uris} cannot be reached ({_short(error)})"
        return f"{uris}: {type(error).__name__}: {_short(error)}"

    # -- one record -----------------------------------------------------------------------------------------------

    def _one(self, row: Row, *, uncertain: bool) -> None:
        record = row.record
        if isinstance(record, Points | Params | Tags):
            batch = self._batches.setdefault(record.run, _Batch())
            if isinstance(record, Points):
                batch.metrics.extend(self._metrics(record))
                batch.uncertain |= uncertain
            elif isinstance(record, Params):
                batch.params.update(record.values)
            else:
                batch.tags.update(record.values)
            if len(batch.metrics) >= BATCH_METRICS:
                self._flush(record.run)
            return
        # Anything else must find what was said before it in the store.
        self._flush(record.run)
        handler = self._HANDLERS[type(record)]
        # Only a derivation sends points itself; whether they may have been sent before is known here.
        more = {"uncertain": uncertain} if isinstance(record, Derive) else {}
        sent = guard.attempt(handler, self, record, **more)
        if sent.error is not None:
            if transient(sent.error):
                raise sent.error
            self._lost(f"a {type(record).__name__} record", sent.error)

    def _open_run(self, record: OpenRun) -> None:
        if self._own_process and Path(record.cwd).is_dir():
            os.chdir(record.cwd)  # MLflow puts ./mlruns, the artifacts of a new sqlite store, where the process is.
        uri = absolute_uri(record.tracking_uri, record.cwd)
        client = self._client(uri)
        key = f"run:{record.run}"
        if record.adopt:
            run = client.get_run(record.adopt)
            detail = {"uri": uri, "state": "adopted", "experiment_id": run.info.experiment_id}
            self._spool.bind(key, record.adopt, self._me, detail)
        elif self._spool.claim(key, self._me) or not self._bound_by_owner(key):
            open_remote(self._spool, client, record, self._me)

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

    def _dataset(self, record: DatasetInput) -> None:
        dataset = Dataset(
            name=record.name,
            digest=record.digest,
            source_type=record.source_type,
            source=record.source,
            schema=record.schema,
            profile=record.profile,
        )
        tags = [InputTag(key="mlflow.data.context", value=record.context)]
        client, run_id, _ = self._where(record.run)
        client.log_inputs(run_id, [MlflowDatasetInput(dataset=dataset, tags=tags)])

    def _text(self, record: Text) -> None:
        client, run_id, _ = self._where(record.run)
        client.log_text(run_id, record.text, record.path)

    def _declare_model(self, record: DeclareModel) -> None:
        key = f"model:{record.model}"
        known = self._spool.lookup(key)
        if known is not None and known.remote and known.detail["state"] != "created":
            return
        client, run_id, run = self._where(record.run)
        # Created, bound, linked to its run: after a death in between, what was done is looked up, not done again.
        # The store refuses to link twice.
        again = not self._spool.claim(key, self._me)
        if known is None or known.remote is None:
            model = self._create_model(client, record, run_id, run["experiment_id"], look_up=again)
            detail = {
                "uri": run["uri"],
                "run_id": run_id,
                "state": "created",
                "register_as": record.register_as or "",
                "artifacts": model.artifact_location,
            }
            self._spool.bind(key, model.model_id, self._me, detail)
            model_id = model.model_id
        else:
            model_id, detail = known.remote, known.detail
        linked = again and any(output.model_id == model_id for output in client.get_run(run_id).outputs.model_outputs)
        if not linked:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, record.step)])
        if record.metrics_since is not None and not _is_file_store(run):
            self._link_by_hand(client, run_id, model_id, record.metrics_since)
        self._spool.bind(key, model_id, self._me, {**detail, "state": "declared"})

    def _link_by_hand(self, client: MlflowClient, run_id: str, model_id: str, since: int) -> None:
        """Link the metrics that the user logged last to the model: the same points again, which SQL stores keep once.

        The file store would keep them twice.
        """
        stored = client.get_run(run_id).data._metric_objs
        recent = [metric for metric in stored if metric.timestamp >= since]
        linked = [Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id, run_id=run_id) for m in recent]
        for start in range(0, len(linked), BATCH_METRICS):
            self._log_batch(client, run_id, linked[start : start + BATCH_METRICS], [], [])

    def _create_model(
        self, client: MlflowClient, record: DeclareModel, run_id: str, experiment_id: str, *, look_up: bool
    ) -> Any:
        if look_up:
            found = client.search_logged_models(
                [experiment_id], filter_string=f"tags.`{MODEL_KEY}` = '{record.model}'", max_results=1
            )
            if found:
                return found[0]
        return client.create_logged_model(
            experiment_id,
            name=record.name,
            source_run_id=run_id,
            params={clean_key(k): _cut(v, PARAM_LIMIT) for k, v in record.params.items()},
            tags={**record.tags, MODEL_KEY: record.model},
        )

    def _model_files(self, record: ModelFiles) -> None:
        key = f"model:{record.model}"
        known = self._spool.lookup(key)
        if known is None or known.remote is None or known.detail["state"] == "ready":
            return
        client = self._clients_for(known.detail)
        folder = self._spool.blobs / record.blob
        mlmodel.compose(
            folder,
            record.package,
            model_id=known.remote,
            run_id=known.detail["run_id"],
            artifact_path=known.detail["artifacts"],
        )
        client.log_model_artifacts(known.remote, str(folder))
        client.finalize_logged_model(known.remote, LoggedModelStatus.READY)
        if known.detail["register_as"]:
            self._register(client, known.remote, known.detail)
        self._spool.bind(key, known.remote, self._me, {**known.detail, "state": "ready"})
        mlmodel.discard(folder)

    def _register(self, client: MlflowClient, model_id: str, detail: dict[str, str]) -> None:
        name = detail["register_as"]
        made = guard.attempt(client.create_registered_model, name)
        if made.error is not None and not _has_code(made.error, RESOURCE_ALREADY_EXISTS):
            raise made.error
        # Found again by its source: SQL registries do not keep the model_id.
        source = detail["artifacts"]
        if not any(version.source == source for version in client.search_model_versions(f"name = '{name}'")):
            client.create_model_version(name, source, run_id=detail["run_id"], model_id=model_id)

    def _model_failed(self, record: ModelFailed) -> None:
        key = f"model:{record.model}"
        known = self._spool.lookup(key)
        if known is not None and known.remote is not None:
            client = self._clients_for(known.detail)
            client.set_logged_model_tags(known.remote, {"autolog.failed": _cut(record.reason, TAG_LIMIT)})
            client.finalize_logged_model(known.remote, LoggedModelStatus.FAILED)
            self._spool.bind(key, known.remote, self._me, {**known.detail, "state": "failed"})

    def _drop_models(self, record: DropModels) -> None:
        for model in record.models:
            known = self._spool.lookup(f"model:{model}")
            if known is not None and known.remote is not None and known.detail["state"] != "dropped":
                self._clients_for(known.detail).delete_logged_model(known.remote)
                self._spool.bind(f"model:{model}", known.remote, self._me, {**known.detail, "state": "dropped"})

    def _derive(self, record: Derive, *, uncertain: bool) -> None:
        blob = self._spool.blobs / record.blob
        if not blob.exists():  # Delivered before a crash that came between the delivery and its acknowledgement.
            return
        values = load_flavor(record.flavor).derive(record.what, blob)
        points = Points(record.run, record.step, record.time, values, record.model, record.dataset)
        batch = self._batches.setdefault(record.run, _Batch())
        batch.metrics.extend(self._metrics(points))
        batch.uncertain = uncertain
        self._flush(record.run)
        blob.unlink()

    def _end_run(self, record: EndRun) -> None:
        client, run_id, detail = self._where(record.run)
        if detail["state"] == "adopted":
            return  # The user's own run ends when the user ends it.
        client.set_terminated(run_id, record.status, record.end_time)
        self._spool.bind(f"run:{record.run}", run_id, self._me, {**detail, "state": "ended"})
        self._places.pop(record.run, None)

    _HANDLERS: dict[type, Callable[..., None]] = {
        OpenRun: _open_run,
        DatasetInput: _dataset,
        Text: _text,
        DeclareModel: _declare_model,
        ModelFiles: _model_files,
        ModelFailed: _model_failed,
        DropModels: _drop_models,
        Derive: _derive,
        EndRun: _end_run,
    }

    # -- batches --------------------------------------------------------------------------------------------------

    def _metrics(self, record: Points) -> Iterable[Metric]:
        model = self._spool.lookup(f"model:{record.model}") if record.model else None
        _, run_id, detail = self._where(record.run)
        name, digest = record.dataset or (None, None)
        if _is_file_store(detail):
            # MLflow's file store reads a metric that is linked to a dataset back as one of step 0.
            name = digest = None
        for key, value in record.values.items():
            yield Metric(
                key=clean_key(key),
                value=value,
                timestamp=record.time,
                step=record.step,
                model_id=model.remote if model else None,
                dataset_name=name,
                dataset_digest=digest,
                run_id=run_id,
            )

    def _flush(self, run: str) -> None:
        batch = self._batches.pop(run, None)
        if batch is None:
            return
        client, run_id, _ = self._where(run)
        metrics = self._unsent(client, run_id, batch.metrics) if batch.uncertain else batch.metrics
        params = self._fit_params(client, run_id, batch.params)
        tags = [RunTag(clean_key(k), _cut(v, TAG_LIMIT)) for k, v in batch.tags.items()]
        while metrics or params or tags:
            now = (metrics[:BATCH_METRICS], params[:BATCH_PARAMS], tags[:BATCH_TAGS])
            # 1,000 entities in all.
            now = (now[0][: 1000 - len(now[1]) - len(now[2])], now[1], now[2])
            self._log_batch(client, run_id, *now)
            metrics, params, tags = metrics[len(now[0]) :], params[len(now[1]) :], tags[len(now[2]) :]

    def _log_batch(
        self, client: MlflowClient, run_id: str, metrics: list[Metric], params: list[Param], tags: list[RunTag]
    ) -> None:
        sent = guard.attempt(client.log_batch, run_id, metrics=metrics, params=params, tags=tags, synchronous=True)
        if sent.error is None:
            return
        if transient(sent.error):
            raise sent.error
        if len(metrics) + len(params) + len(tags) == 1:
            what = [*metrics, *params, *tags][0]
            self._lost(f"{type(what).__name__.lower()} {what.key!r} of run {run_id}", sent.error)
            return
        # Something in it is refused: halve, so that only that something is lost.
        for half in _halves(metrics, params, tags):
            self._log_batch(client, run_id, *half)

    def _unsent(self, client: MlflowClient, run_id: str, metrics: list[Metric]) -> list[Metric]:
        held: dict[str, set[tuple[int, int, str]]] = {}
        for key in {metric.key for metric in metrics}:
            history = client.get_metric_history(run_id, key)
            held[key] = {(point.timestamp, point.step, repr(float(point.value))) for point in history}
        # MLflow stores infinities as the largest float.
        return [m for m in metrics if (m.timestamp, m.step, repr(_as_stored(m.value))) not in held[m.key]]

    def _fit_params(self, client: MlflowClient, run_id: str, params: dict[str, str]) -> list[Param]:
        long = {k: v for k, v in params.items() if len(v) > PARAM_LIMIT or len(k) > KEY_LIMIT}
        if long:
            client.log_dict(run_id, long, "autolog/long_params.json")
        return [Param(clean_key(k), _cut(v, PARAM_LIMIT)) for k, v in params.items()]

    # -- the store ------------------------------------------------------------------------------------------------

    def _client(self, uri: str) -> MlflowClient:
        client = self._clients.get(uri)
        if client is None:
            client = self._clients[uri] = _connect(uri)
        return client

    def _clients_for(self, detail: dict[str, str]) -> MlflowClient:
        return self._client(detail["uri"])

    def _where(self, run: str) -> tuple[MlflowClient, str, dict[str, str]]:
        """Return the client, the id and what else is known of a run. Asked for every point, so kept while it is open.

        Raises: LookupError for a run that was never opened in the store.
        """
        place = self._places.get(run)
        if place is None:
            known = self._spool.lookup(f"run:{run}")
            if known is None or known.remote is None:
                raise LookupError(f"run {run} was never opened in the store")
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
        self._spool.problem("refused", f"{what} was refused by the store: {_short(error)}")


def _is_file_store(detail: dict[str, str]) -> bool:
    return detail["uri"].startswith("file:")


def _connect(uri: str) -> MlflowClient:
    newstore.make_ready(uri, _create_sqlite_store)
    return MlflowClient(tracking_uri=uri)


def _create_sqlite_store(uri: str) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


def open_remote(spool: Spool, client: MlflowClient, record: OpenRun, claimant: str) -> str:
    """Create the run that `record` opens in the store, bind its key to it, and return its id.

    Called by who claimed the key: the sender, or the training process inside a logging call of the user's own.
    """
    parent = spool.lookup(f"run:{record.parent}") if record.parent else None
    created = _create_run(client, record, parent=parent.remote if parent else None)
    run_id = str(created.info.run_id)
    uri = absolute_uri(record.tracking_uri, record.cwd)
    detail = {"uri": uri, "state": "open", "experiment_id": str(created.info.experiment_id)}
    spool.bind(f"run:{record.run}", run_id, claimant, detail)
    return run_id


def open_for_owner(spool: Spool, record: OpenRun) -> str | None:
    """Create a run of ours inside the user's own logging call, unless the sender is at it; return its id.

    So that the call takes what starting a run of its own would have taken, and never waits for the sender.
    """
    key = f"run:{record.run}"
    claimant = f"{OWNER}{os.getpid()}"
    if not spool.claim(key, claimant):
        return None

    def create() -> str:
        client = _connect(absolute_uri(record.tracking_uri, record.cwd))
        return open_remote(spool, client, record, claimant)

    made = guard.attempt(create)
    if made.error is not None:
        spool.unclaim(key)
        raise made.error
    return made.value


def _create_run(client: MlflowClient, record: OpenRun, *, parent: str | None) -> Any:
    """Create the run that `record` opens, or return the one that was created just before a crash."""
    experiment_id = record.experiment_id or _experiment(client, record.experiment)
    found = client.search_runs([experiment_id], filter_string=f"tags.`{RUN_KEY}` = '{record.run}'", max_results=1)
    if found:
        return found[0]
    tags = {RUN_KEY: record.run}
    if parent:
        tags[MLFLOW_PARENT_RUN_ID] = parent
    return client.create_run(experiment_id, start_time=record.start_time, tags=tags, run_name=record.name)


def _experiment(client: MlflowClient, name: str | None) -> str:
    if name is None:
        return "0"
    known = client.get_experiment_by_name(name)
    if known is not None:
        return str(known.experiment_id)
    made = guard.attempt(client.create_experiment, name)
    if made.value is not None:
        return str(made.value)
    known = client.get_experiment_by_name(name)  # Another process was faster.
    if known is None:
        assert made.error is not None
        raise made.error
    return str(known.experiment_id)


def absolute_uri(uri: str | None, cwd: str) -> str:
    """Return the tracking URI as seen from folder `cwd`; None means MLflow's own default there."""
    if uri is None:
        # MLflow keeps using an existing ./mlruns file store and starts new folders on sqlite
        # (mlflow.tracking._tracking_service.utils._get_default_tracking_uri).
        runs = Path(cwd) / "mlruns"
        in_files = any(meta.parent.name.isdigit() for meta in runs.glob("*/meta.yaml"))
        uri = "mlruns" if in_files else "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        path = uri[len("sqlite:///") :]
        if path and not path.startswith(":memory:") and not (len(path) > 1 and path[1] == ":"):
            return f"sqlite:///{(Path(cwd) / path).as_posix()}"
    if not urlsplit(uri).scheme:
        return (Path(cwd) / uri).as_uri() if uri != "databricks" else uri
    return uri


def without_credentials(uri: str) -> str:
    """Return `uri` without user name and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def clean_key(key: str) -> str:
    """Return `key` in the characters that MLflow allows in names, at most 250 of them.

    MLflow allows alphanumerics, ``_ - . space : /``; XGBoost's ``@`` becomes ``_at_`` as in MLflow's own autologging.
    """
    key = key.replace("@", "_at_")
    return _cut("".join(c if c.isalnum() or c in "_-. :/" else "_" for c in key), KEY_LIMIT)


def _as_stored(value: float) -> float:
    if math.isnan(value):
        return value
    if math.isinf(value):
        return math.copysign(1.7976931348623157e308, value)
    return float(value)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _short(error: BaseException) -> str:
    return _cut(" ".join(str(error).split()), 300)


def _has_code(error: BaseException, code: int) -> bool:
    return isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(code)


def _halves(*parts: list[Any]) -> list[list[list[Any]]]:
    """Split several lists, taken as one, in the middle."""
    middle = (sum(len(part) for part in parts) + 1) // 2
    first, second = [], []
    for part in parts:
        cut = min(len(part), middle)
        first.append(part[:cut])
        second.append(part[cut:])
        middle -= cut
    return [first, second]
