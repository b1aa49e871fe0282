"""Models in the store: declared, completed and uploaded, closed as READY or FAILED, deleted; each step repeatable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

from autolog import guard, mlmodel, uploads
from autolog.batches import PARAM_LIMIT, TAG_LIMIT, Names, RunBatches, clean_text, cut
from autolog.faults import reason
from autolog.records import DeclareModel, DropModels, ModelFailed, ModelFiles
from autolog.registry import load_flavor
from autolog.spool import Spool
from autolog.uris import is_file_store

#: Bytes of a model's files, and seconds that a flavor took to complete the last ones, up to which they are quick.
QUICK_BYTES, QUICK_SECONDS = 16 * 1024, 0.05
#: The tag by which a model that was created just before a crash is found again.
MODEL_KEY = "autolog.model"


class LoggedModels:
    """The models of one spool.

    me: how its sender claims keys. client: returns the client of a tracking URI.
    """

    def __init__(self, spool: Spool, me: str, client: Callable[[str], MlflowClient]) -> None:
        self._spool = spool
        self._me = me
        self._client = client
        #: Flavor -> seconds that completing a model's files took it the last time.
        self._finishing: dict[str, float] = {}

    def declare(self, record: DeclareModel, client: MlflowClient, run_id: str, run: Mapping[str, str]) -> None:
        """Create the model and link it to its run.

        client, run_id, run: where the run is and what else is known of it.
        """
        key = f"model:{record.model}"
        known = self._spool.lookup(key)
        if known is not None and known.remote and known.detail["state"] != "created":
            return
        # Created, bound, linked to its run: after a death in between, what was done is looked up, not done again.
        # The store refuses to link twice.
        again = not self._spool.claim(key, self._me) or self._spool.in_doubt
        if known is None or known.remote is None:
            model = _create(client, record, run_id, run["experiment_id"], look_up=again)
            detail = {
                "uri": run["uri"],
                "run_id": run_id,
                "state": "created",
                "register_as": record.register_as or "",
                "artifacts": model.artifact_location,
            }
            if record.metrics_since is not None:
                detail["metrics_since"] = str(record.metrics_since)
            self._spool.bind(key, model.model_id, self._me, detail)
            model_id = model.model_id
        else:
            model_id, detail = known.remote, known.detail
        linked = again and any(output.model_id == model_id for output in client.get_run(run_id).outputs.model_outputs)
        if not linked:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, record.step)])
        self._spool.bind(key, model_id, self._me, {**detail, "state": "declared"})

    def quick(self, record: ModelFiles) -> bool:
        """Return whether numbers of the run can be sent after the model's files.

        These take no longer than a request or two then, and nothing of the run is looked up for the model.
        """
        known = self._spool.lookup(f"model:{record.model}")
        if known is not None and "metrics_since" in known.detail:
            return False
        flavor = record.package.get("finish")
        if flavor and self._finishing.get(flavor, math.inf) > QUICK_SECONDS:
            return False
        files = (self._spool.blobs / record.blob).rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file()) <= QUICK_BYTES

    def files(self, record: ModelFiles, batches: RunBatches) -> None:
        """Complete the model's files, upload them and close it as READY; batches: sends metrics of its run.

        Raises: OSError where not all of them arrived.
        """
        key = f"model:{record.model}"
        known = self._spool.lookup(key)
        if known is None or known.remote is None or known.detail["state"] == "ready":
            return
        client = self._client(known.detail["uri"])
        folder = self._spool.blobs / record.blob
        package = self._finished(folder, record)
        mlmodel.compose(
            folder,
            package,
            model_id=known.remote,
            run_id=known.detail["run_id"],
            artifact_path=known.detail["artifacts"],
        )
        _upload(client, known.remote, folder, known.detail["artifacts"])
        if package.get("tags"):
            client.set_logged_model_tags(known.remote, package["tags"])
        if "metrics_since" in known.detail and not is_file_store(known.detail["uri"]):
            _link_by_hand(client, known.detail["run_id"], known.remote, int(known.detail["metrics_since"]), batches)
        client.finalize_logged_model(known.remote, LoggedModelStatus.READY)
        if known.detail["register_as"]:
            _register(client, known.remote, known.detail)
        self._spool.bind(key, known.remote, self._me, {**known.detail, "state": "ready"})
        mlmodel.discard(folder)

    def _finished(self, folder: Path, record: ModelFiles) -> Mapping[str, Any]:
        """Have the flavor complete the model's files, where it asked for that."""
        flavor = record.package.get("finish")
        if not flavor:
            return record.package
        began = time.perf_counter()
        done = guard.attempt(lambda: load_flavor(flavor).finish_model(folder, record.package))
        self._finishing[flavor] = time.perf_counter() - began
        if done.value is None:
            # Said once, however many checkpoints it is true of.
            why = reason(done.error or TypeError("nothing was returned"))
            self._spool.problem("refused", f"models stay in their first format, as they cannot be converted: {why}")
            return record.package
        return done.value

    def failed(self, record: ModelFailed) -> None:
        """Close a model whose files will not come."""
        key = f"model:{record.model}"
        known = self._spool.lookup(key)
        if known is not None and known.remote is not None:
            client = self._client(known.detail["uri"])
            client.set_logged_model_tags(known.remote, {"autolog.failed": cut(record.reason, TAG_LIMIT)})
            client.finalize_logged_model(known.remote, LoggedModelStatus.FAILED)
            self._spool.bind(key, known.remote, self._me, {**known.detail, "state": "failed"})

    def drop(self, record: DropModels) -> None:
        """Delete checkpoints that retention no longer keeps."""
        for model in record.models:
            known = self._spool.lookup(f"model:{model}")
            if known is not None and known.remote is not None and known.detail["state"] != "dropped":
                self._client(known.detail["uri"]).delete_logged_model(known.remote)
                self._spool.bind(f"model:{model}", known.remote, self._me, {**known.detail, "state": "dropped"})


def _create(client: MlflowClient, record: DeclareModel, run_id: str, experiment_id: str, *, look_up: bool) -> Any:
    if look_up:
        found = client.search_logged_models(
            [experiment_id], filter_string=f"tags.`{MODEL_KEY}` = '{record.model}'", max_results=1
        )
        if found:
            return found[0]
    names = Names()
    return client.create_logged_model(
        experiment_id,
        name=record.name,
        source_run_id=run_id,
        params={names.key(clean_text(k)): cut(clean_text(v), PARAM_LIMIT) for k, v in record.params.items()},
        tags={**record.tags, MODEL_KEY: record.model},
    )


def _link_by_hand(client: MlflowClient, run_id: str, model_id: str, since: int, batches: RunBatches) -> None:
    """Link the metrics that the user logged last to the model: the same points again, which SQL stores keep once.

    The file store would keep them twice. What is linked already stays as it is: it may be linked to a dataset, too.
    """
    linked_already = {metric.key for metric in client.get_logged_model(model_id).metrics or ()}
    stored = client.get_run(run_id).data._metric_objs
    recent = [metric for metric in stored if metric.timestamp >= since and metric.key not in linked_already]
    linked = [Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id, run_id=run_id) for m in recent]
    batches.again(linked)


def _upload(client: MlflowClient, model_id: str, folder: Path, artifacts: str) -> None:
    """Upload all files of a model.

    Raises: OSError where not all of them arrived.
    """
    repository = uploads.repository(client, artifacts)
    repository.log_artifacts(str(folder))
    files = [path for path in folder.rglob("*") if path.is_file()]
    sent = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    uploads.check(sent, artifacts, repository, f"model {model_id}")


def _register(client: MlflowClient, model_id: str, detail: dict[str, str]) -> None:
    name = detail["register_as"]
    made = guard.attempt(client.create_registered_model, name)
    if made.error is not None and not _has_code(made.error, RESOURCE_ALREADY_EXISTS):
        raise made.error
    # Found again by its source: SQL registries do not keep the model_id.
    source = detail["artifacts"]
    if not any(version.source == source for version in client.search_model_versions(f"name = '{name}'")):
        client.create_model_version(name, source, run_id=detail["run_id"], model_id=model_id)


def _has_code(error: BaseException, code: int) -> bool:
    return isinstance(error, MlflowException) and error.error_code == ErrorCode.Name(code)
