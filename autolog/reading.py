"""What the commands read from a tracking store, through MLflow's client: runs, their curves and models; and a trial.

A room of its own because it imports mlflow, which only the sender's modules do otherwise: it is for the command line,
never for the training process.
"""

from __future__ import annotations

import math
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from autolog import guard
from autolog.faults import Fault, fault, http_status, reason
from autolog.ranking import direction
from autolog.uris import absolute_uri, without_credentials, working_folder

#: How many of the newest runs are looked through for the beginning of an id, and per request.
NEWEST, PAGE = 5000, 1000
#: Requests at a time to a server.
TOGETHER = 8
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric's history: (step, value) in the order of steps, and within one of time. Never empty."""

    name: str
    points: tuple[tuple[int, float], ...]

    @property
    def values(self) -> list[float]:
        """Its values."""
        return [value for _, value in self.points]

    @property
    def last(self) -> float:
        """Its last value."""
        return self.points[-1][1]

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, value) of the best point, the first of equals; None where the name does not say what is better."""
        finite = [point for point in self.points if math.isfinite(point[1])]
        way = direction(self.name)
        if way is None or not finite:
            return None
        return (min if way == "min" else max)(finite, key=lambda point: point[1])


@dataclass(frozen=True, slots=True)
class Model:
    """A LoggedModel of a run."""

    model_id: str
    name: str
    step: int
    status: str
    metrics: dict[str, float]

    @property
    def uri(self) -> str:
        """What ``mlflow.<flavor>.load_model`` takes."""
        return f"models:/{self.model_id}"


@dataclass(frozen=True, slots=True)
class Child:
    """A run inside another: a candidate of a search, a training inside a run of the user's."""

    run_id: str
    name: str
    status: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run as the store has it."""

    run_id: str
    name: str
    experiment: str
    experiment_id: str
    status: str
    start_time: int
    end_time: int | None
    params: dict[str, str]
    tags: dict[str, str]
    curves: tuple[Curve, ...]
    models: tuple[Model, ...]
    children: tuple[Child, ...]


def store_uri(given: str | None) -> str:
    """Return the tracking URI that is meant: `given`, MLFLOW_TRACKING_URI, or MLflow's default in this folder."""
    return absolute_uri(given or os.environ.get("MLFLOW_TRACKING_URI") or None, working_folder())


def is_server(uri: str) -> bool:
    """Return whether the store is reached over HTTP."""
    return urlsplit(uri).scheme in ("http", "https")


class NotFoundError(LookupError):
    """The store has no such run, or several."""


class Store:
    """Reads one tracking store.

    Raises: NotFoundError where there is no store yet. What MLflow's client raises passes.
    """

    def __init__(self, uri: str) -> None:
        path = uri.removeprefix("sqlite:///") if uri.startswith("sqlite:///") else None
        if path is not None and not Path(path).exists():
            # MLflow would make one, for a question.
            raise NotFoundError(f"there is no store at {uri} yet; the first run makes it")
        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri)

    def find(self, text: str, experiment: str | None = None) -> Any:
        """Return the run that `text` means: an id, the beginning of one, a name (the newest such run), or "latest".

        The latest is never a part of another run: of a search it is the search, not its last candidate.

        experiment: the name of the one to look in; None looks in all.

        Raises: NotFoundError.
        """
        if len(text) == 32 and text.isalnum():
            return self.client.get_run(text)
        where = self._experiments(experiment)
        place = f"experiment {experiment!r}" if experiment else without_credentials(self.uri)
        if text == "latest":
            run = next(self._newest(where), None)
            if run is None:
                raise NotFoundError(f"nothing is recorded in {place} yet")
            return self._outermost(run)
        # MLflow's filters have no escape for quotes, but take either kind.
        quote = '"' if "'" in text else "'"
        named = next(self._newest(where, f"attributes.run_name = {quote}{text}{quote}"), None)
        if named is not None:
            return named
        found = []
        for number, run in enumerate(self._newest(where)):
            if number >= NEWEST:
                break
            if run.info.run_id.startswith(text):
                found.append(run)
        if not found:
            raise NotFoundError(f"no run in {place} has the id or name {text!r}")
        if len(found) > 1:
            some = ", ".join(f"{run.info.run_id[:12]} ({run.info.run_name})" for run in found[:4])
            raise NotFoundError(f"{len(found)} runs in {place} have an id that begins with {text!r}: {some}")
        return found[0]

    def _outermost(self, run: Any) -> Any:
        seen = set()
        while (parent := run.data.tags.get(_PARENT)) and parent not in seen:
            seen.add(parent)
            try:
                run = self.client.get_run(parent)
            except MlflowException:  # It is deleted for good.
                break
        return run

    def _experiments(self, name: str | None) -> list[str]:
        if name is not None:
            known = self.client.get_experiment_by_name(name)
            if known is None:
                raise NotFoundError(f"there is no experiment {name!r} in {without_credentials(self.uri)}")
            return [str(known.experiment_id)]
        ids: list[str] = []
        token = None
        while True:
            page = self.client.search_experiments(max_results=PAGE, page_token=token)
            ids += [str(each.experiment_id) for each in page]
            token = page.token
            if not token:
                return ids

    def _newest(self, experiments: Sequence[str], condition: str = "") -> Iterator[Any]:
        token = None
        while experiments:
            page = self.client.search_runs(
                list(experiments),
                filter_string=condition,
                max_results=PAGE if condition == "" else 1,
                order_by=["attributes.start_time DESC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def read(self, run: Any) -> StoredRun:
        """Return everything of a run that is shown, `run` as :meth:`find` returned it."""
        run_id = str(run.info.run_id)
        steps = {output.model_id: output.step for output in run.outputs.model_outputs} if run.outputs else {}
        models = self.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
        read = [
            Model(
                model.model_id,
                str(model.name),
                int(steps.get(model.model_id, 0)),
                str(getattr(model.status, "value", model.status)),
                {metric.key: metric.value for metric in sorted(model.metrics or (), key=lambda each: each.step)},
            )
            for model in models
        ]
        inside = self.client.search_runs(
            [run.info.experiment_id],
            f"tags.`{_PARENT}` = '{run_id}'",
            max_results=PAGE,
            order_by=["attributes.start_time ASC"],
        )
        return StoredRun(
            run_id,
            str(run.info.run_name),
            str(self.client.get_experiment(run.info.experiment_id).name),
            str(run.info.experiment_id),
            str(run.info.status),
            int(run.info.start_time),
            run.info.end_time,
            dict(run.data.params),
            dict(run.data.tags),
            tuple(self._curves(run_id, sorted(run.data.metrics, key=_order))),
            tuple(sorted(read, key=lambda model: (model.step, model.name))),
            tuple(
                Child(str(each.info.run_id), str(each.info.run_name), str(each.info.status), dict(each.data.metrics))
                for each in inside
            ),
        )

    def _curves(self, run_id: str, names: Sequence[str]) -> list[Curve]:
        def read(name: str) -> Curve | None:
            history = self.client.get_metric_history(run_id, name)
            points = sorted((point.step, point.timestamp, point.value) for point in history)
            return Curve(name, tuple((step, value) for step, _, value in points)) if points else None

        with ThreadPoolExecutor(TOGETHER if is_server(self.uri) else 1) as pool:
            return [curve for curve in pool.map(read, names) if curve is not None]


def _order(name: str) -> tuple[bool, str]:
    return name.startswith("system/"), name


# -- trying it out ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a trial: None where it is well, else what is wrong and how to mend it."""

    problem: str | None = None
    fix: str = ""


def reach(uri: str) -> Answer:
    """Ask the store for its experiments."""
    asked = guard.attempt(lambda: MlflowClient(tracking_uri=uri).search_experiments(max_results=1))
    return Answer() if asked.error is None else _explain(uri, asked.error)


def _explain(uri: str, error: Exception) -> Answer:
    kind, why = fault(error), reason(error)
    status = http_status(error)
    if status in (401, 403):
        return Answer(
            f"the store refuses the credentials (HTTP status {status})",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            if status == 401
            else "ask the store's administrator for permission to write",
        )
    if kind is Fault.AWAY and is_server(uri):
        return Answer(
            f"the store cannot be reached ({why})",
            "start it, or correct MLFLOW_TRACKING_URI; until then trainings are kept on disk, for: autolog sync",
        )
    if uri.startswith("sqlite:"):
        return Answer(
            f"the store's file cannot be used ({why})",
            "see that the folder exists and can be written; for a file of an older MLflow: mlflow db upgrade "
            + without_credentials(uri),
        )
    return Answer(f"the store does not work ({why})", "see whether plain MLflow works with this MLFLOW_TRACKING_URI")


@dataclass(slots=True)
class Trial:
    """A run and an artifact that are written, read back and deleted; the steps in their order.

    experiment: the one to write in; where it does not exist yet, MLflow's "Default".
    """

    uri: str
    experiment: str | None = None
    _run: Any = None

    def write(self) -> Answer:
        """Write a run with a parameter, a metric and a tag, and read it back."""
        done = guard.attempt(self._write)
        return done.value if done.value is not None else _explain(self.uri, done.error or OSError())

    def _write(self) -> Answer:
        client = MlflowClient(tracking_uri=self.uri)
        known = client.get_experiment_by_name(self.experiment) if self.experiment else None
        self._run = client.create_run(str(known.experiment_id) if known else "0", run_name="autolog doctor")
        run_id = self._run.info.run_id
        said = uuid.uuid4().hex
        client.log_param(run_id, "said", said)
        client.log_metric(run_id, "value", 0.5, step=3)
        client.set_terminated(run_id, "FINISHED")
        read = client.get_run(run_id)
        points = [(point.step, point.value) for point in client.get_metric_history(run_id, "value")]
        if (read.data.params.get("said"), points, read.info.status) != (said, [(3, 0.5)], "FINISHED"):
            return Answer(
                f"the store gave back something else than was written: {read.data.params}, {points}",
                "see whether a proxy or cache stands before the store",
            )
        return Answer()

    def artifact(self) -> Answer:
        """Write an artifact, read it back and delete it."""
        done = guard.attempt(self._artifact)
        if done.value is not None:
            return done.value
        assert done.error is not None
        where = without_credentials(self._run.info.artifact_uri)
        return Answer(
            f"artifacts cannot be written to {where} ({reason(done.error)})",
            "give this machine access to that place, or have the server hand artifacts on: "
            "mlflow server --serve-artifacts"
            if is_server(self.uri)
            else "see that the folder can be written and has space",
        )

    def _artifact(self) -> Answer:
        client = MlflowClient(tracking_uri=self.uri)
        run_id, said = self._run.info.run_id, uuid.uuid4().hex
        client.log_text(run_id, said, "doctor.txt")
        with tempfile.TemporaryDirectory() as folder:
            read = Path(client.download_artifacts(run_id, "doctor.txt", folder)).read_text()
        # Not every kind of artifact store can delete; what stays is one small file of a deleted run.
        guard.attempt(
            lambda: get_artifact_repository(self._run.info.artifact_uri, tracking_uri=self.uri).delete_artifacts()
        )
        return Answer() if read == said else Answer("an artifact read back is not what was written", "check the disk")

    def delete(self) -> Answer:
        """Delete the run."""
        client = MlflowClient(tracking_uri=self.uri)

        def delete() -> Answer:
            client.delete_run(self._run.info.run_id)
            found = client.search_runs(
                [self._run.info.experiment_id],
                f"attributes.run_id = '{self._run.info.run_id}'",
                run_view_type=ViewType.ACTIVE_ONLY,
            )
            return Answer() if not found else Answer("the run is still there after it was deleted", "ask the store")

        done = guard.attempt(delete)
        return done.value if done.value is not None else _explain(self.uri, done.error or OSError())

    @property
    def begun(self) -> bool:
        """Whether a run was made."""
        return self._run is not None
