"""Metrics, parameters, tags and datasets: brought into the form and the numbers that MLflow takes, and sent in batches.

Limits and field names are those of ``mlflow.utils.validation`` (MLflow 3): 250 characters a key, 6,000 a parameter,
8,000 a tag (counted here as characters), 100 parameters or tags, 1,000 metrics and 1,000 entities a batch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from autolog import guard
from autolog.faults import Fault, fault
from autolog.uploads import RunFiles

KEY_LIMIT, PARAM_LIMIT, TAG_LIMIT = 250, 6000, 8000
BATCH_METRICS, BATCH_PARAMS, BATCH_TAGS, BATCH_ALL = 1000, 100, 100, 1000

#: Parameters of a run that are parameters in the store, which needs milliseconds for each; the rest is a file.
MOST_PARAMS = 2000
LONG_PARAMS, MORE_PARAMS = "autolog/long_params.json", "autolog/more_params.json"


class RunGoneError(LookupError):
    """The run was deleted in the store."""


class Batch:
    """What is collected for one run before it is sent."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.datasets: list[DatasetInput] = []
        #: Whether the metrics may be in the store already.
        self.uncertain = False

    @property
    def full(self) -> bool:
        """Whether one request can take no more."""
        return len(self.metrics) + len(self.params) + len(self.tags) >= BATCH_ALL


class Names:
    """The keys of one run as MLflow takes them, such that two that differ only in what it does not take stay two."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def key(self, name: str) -> str:
        """Return the key of `name`: :func:`clean_key`, with six hex digits of the name's hash where that is taken."""
        key = clean_key(name)
        if self._said.setdefault(key, name) == name:
            return key
        mark = hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=3).hexdigest()
        return f"{cut(key, KEY_LIMIT - 7)}_{mark}"


class RunBatches:
    """Sends the batches of one run.

    files: takes parameters that are too long or too many. keeps_once: whether the store has a point once that is sent
    twice, as SQL stores do. lost: takes what the store refuses for good, and the error.
    said: takes what people should know.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        files: RunFiles,
        *,
        keeps_once: bool,
        lost: Callable[[str, BaseException], None],
        said: Callable[[str], None],
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._files = files
        self._keeps_once = keeps_once
        self._lost = lost
        self._said = said
        self._params: set[str] = set()
        self._param_names = Names()
        #: The keys of its metrics.
        self.metric_names = Names()

    def send(self, batch: Batch, *, rest: bool = True) -> None:
        """Send `batch`, which is empty then; rest: also the metrics that are left over from full requests.

        Raises: what the store raises while it cannot be used; RunGoneError. The batch is to be made anew then.
        """
        # First: metrics name the datasets that they belong to.
        self._log_inputs(batch.datasets)
        metrics = self._unsent(batch)
        params = self._fit(batch.params)
        tags = [RunTag(clean_key(k), cut(clean_text(v), TAG_LIMIT)) for k, v in batch.tags.items()]
        while params or tags or (metrics if rest else len(metrics) >= BATCH_METRICS):
            now = (metrics[:BATCH_METRICS], params[:BATCH_PARAMS], tags[:BATCH_TAGS])
            now = (now[0][: BATCH_ALL - len(now[1]) - len(now[2])], now[1], now[2])
            self._log(*now)
            metrics, params, tags = metrics[len(now[0]) :], params[len(now[1]) :], tags[len(now[2]) :]
        batch.metrics, batch.params, batch.tags, batch.datasets = metrics, {}, {}, []

    def again(self, metrics: list[Metric]) -> None:
        """Send metrics as they are, in batches."""
        for start in range(0, len(metrics), BATCH_METRICS):
            self._log(metrics[start : start + BATCH_METRICS], [], [])

    def _log(self, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        alone = len(metrics) + len(params) + len(tags) == 1
        error = self._refusal(
            self._client.log_batch,
            self._run_id,
            metrics=metrics,
            params=params,
            tags=tags,
            synchronous=True,
            alone=alone,
        )
        if error is None:
            return
        if alone:
            what = [*metrics, *params, *tags][0]
            self._lost(f"{type(what).__name__.lower()} {what.key!r} of run {self._run_id}", error)
            return
        for half in _halves(metrics, params, tags):  # Something in it is refused: find it, so that only that is lost.
            self._log(*half)

    def _log_inputs(self, datasets: list[DatasetInput]) -> None:
        alone = len(datasets) == 1
        error = self._refusal(self._client.log_inputs, self._run_id, datasets, alone=alone) if datasets else None
        if error is None:
            return
        if alone:
            self._lost(f"dataset {datasets[0].dataset.name!r} of run {self._run_id}", error)
            return
        for each in datasets:
            self._log_inputs([each])

    def _refusal(self, call: Callable[..., object], *args: Any, alone: bool, **settings: Any) -> BaseException | None:
        """Make a call about the run; return what the store refuses it with, None where it does not.

        alone: it is about one thing, which is lost if it is refused, so it is made once more. MLflow looks whether it
        has a data set, and only then adds it: of two senders that bring the same at once, one is refused, and finds it
        there the second time. Of a call about several things each is tried by itself anyway.

        Raises: what the store raises while it cannot be used; RunGoneError.
        """
        sent = guard.attempt(call, *args, **settings)
        if alone and sent.error is not None and fault(sent.error) is Fault.REFUSED:
            sent = guard.attempt(call, *args, **settings)
        if sent.error is None:
            return None
        if fault(sent.error) is not Fault.REFUSED:
            raise sent.error
        if is_gone(self._client, self._run_id):
            raise RunGoneError(self._run_id)
        return sent.error

    def _unsent(self, batch: Batch) -> list[Metric]:
        """Return what the store lacks of the metrics of `batch`.

        A point of a model's is often one that its run has already, which is then said again with the model: SQL stores
        keep it once and link it, but only after they have tried to take all that comes with it.
        """
        models = {metric.model_id for metric in batch.metrics if metric.model_id}
        if not models and not batch.uncertain:
            return batch.metrics
        again = {_point(metric) for metric in batch.metrics if metric.model_id}
        metrics = [metric for metric in batch.metrics if metric.model_id or _point(metric) not in again]
        if self._keeps_once and not batch.uncertain:
            return metrics
        held = set[_Point]()
        for key in {metric.key for metric in metrics if batch.uncertain or metric.model_id}:
            held.update(_point(metric) for metric in self._client.get_metric_history(self._run_id, key))
        linked = {model: self._points_of(model) for model in models}
        unsent = []
        for metric in metrics:
            point, of_model = _point(metric), linked.get(metric.model_id)
            if point not in held:
                unsent.append(metric)
            elif of_model is not None and point not in of_model:
                if self._keeps_once:
                    unsent.append(metric)
                elif not batch.uncertain:  # Else it may be linked already: a file store shows the last link only.
                    self._said(
                        "some metrics are of their runs only and not of their models, as a file store would keep them "
                        "twice; a store on SQLite does not: MLFLOW_TRACKING_URI=sqlite:///mlflow.db"
                    )
        return unsent

    def _points_of(self, model_id: str) -> set[_Point] | None:
        """Return the metrics that a model has; None for one that an earlier sender deleted, with nothing left to link.

        Raises: what the store raises while it cannot be used.
        """
        found = guard.attempt(self._client.get_logged_model, model_id)
        if found.error is not None and fault(found.error) is not Fault.REFUSED:
            raise found.error
        return None if found.value is None else {_point(metric) for metric in found.value.metrics or ()}

    def _fit(self, params: dict[str, str]) -> list[Param]:
        params = {clean_text(k): clean_text(v) for k, v in params.items()}
        long = {k: v for k, v in params.items() if len(v) > PARAM_LIMIT or len(k) > KEY_LIMIT}
        if long:
            self._keep(LONG_PARAMS, long)
        taken, rest = {}, {}
        for key, value in params.items():
            if key in self._params or len(self._params) < MOST_PARAMS:
                self._params.add(key)
                taken[key] = value
            else:
                rest[key] = value
        if rest:
            self._keep(MORE_PARAMS, rest)
            self._said(
                f"run {self._run_id} has more than {MOST_PARAMS:,} parameters, which MLflow would take long to store; "
                f"the others are in its artifact {MORE_PARAMS}"
            )
        return [Param(self._param_names.key(k), cut(v, PARAM_LIMIT)) for k, v in taken.items()]

    def _keep(self, path: str, values: dict[str, str]) -> None:
        """Put `values` into a JSON artifact, beside those that are in it already."""
        folder = path.rpartition("/")[0]
        if any(item.path == path for item in self._client.list_artifacts(self._run_id, folder)):
            with TemporaryDirectory() as here:
                kept = Path(self._client.download_artifacts(self._run_id, path, here)).read_text()
                values = {**json.loads(kept), **values}
        self._files.json(path, values)


def is_gone(client: MlflowClient, run_id: str) -> bool:
    """Return whether a run was deleted in the store."""
    found = guard.attempt(client.get_run, run_id)
    if found.value is not None:
        return bool(found.value.info.lifecycle_stage != "active")
    return isinstance(found.error, MlflowException) and found.error.error_code == "RESOURCE_DOES_NOT_EXIST"


def clean_text(text: str) -> str:
    """Return `text` as every store takes it: PostgreSQL has no NUL, UTF-8 no half of a surrogate pair."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def clean_key(key: str) -> str:
    """Return `key` in the characters that MLflow allows in names, at most 250 of them.

    MLflow allows alphanumerics, ``_ - . space : /``, and what is a path only where it is in its shortest form;
    XGBoost's ``@`` becomes ``_at_`` as in MLflow's own autologging.
    """
    key = key.replace("@", "_at_")
    key = "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in key)
    if not key or key[0] in "/." or "//" in key or "/." in key or key[-1] == "/":
        parts = [part for part in key.split("/") if part not in ("", ".")]
        key = "/".join("__" if part == ".." else part for part in parts) or "_"
    return cut(key, KEY_LIMIT)


def cut(text: str, limit: int) -> str:
    """Return `text`, or as much of it as `limit` characters hold, marked by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


#: What points differ in: key, time, step, value.
_Point = tuple[str, int, int, str]


def _point(metric: Metric) -> _Point:
    # MLflow stores infinities as the largest float.
    return metric.key, metric.timestamp, metric.step, repr(_as_stored(metric.value))


def _as_stored(value: float) -> float:
    if math.isnan(value):
        return value
    if math.isinf(value):
        return math.copysign(1.7976931348623157e308, value)
    return float(value)


def _halves(*parts: list[Any]) -> list[list[list[Any]]]:
    """Split several lists, taken as one, in the middle."""
    middle = (sum(len(part) for part in parts) + 1) // 2
    first, second = [], []
    for part in parts:
        cut_at = min(len(part), middle)
        first.append(part[:cut_at])
        second.append(part[cut_at:])
        middle -= cut_at
    return [first, second]
