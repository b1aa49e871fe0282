"""Several attempts at one carried call: one stands, whatever the order in which they end."""

from __future__ import annotations

import uuid

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, ViewType

from autolog import attempts


class Calls:
    """One call in an experiment of its own, and the attempts at it."""

    def __init__(self, store_uri: str) -> None:
        self.client = MlflowClient(tracking_uri=store_uri)
        self.experiment_id = self.client.create_experiment(f"attempts-{uuid.uuid4().hex}")
        self.parent = self.client.create_run(self.experiment_id).info.run_id
        self.names: dict[str, str] = {}

    def begin(self, attempt: int) -> str:
        tags = {attempts.CALL: "call", attempts.ATTEMPT: str(attempt), "mlflow.parentRunId": self.parent}
        run_id = self.client.create_run(self.experiment_id, tags=tags).info.run_id
        self.names[run_id] = str(attempt)
        return run_id

    def end(self, run_id: str, status: str) -> None:
        """As a sender does: close the run, then look at the others."""
        if self.client.get_run(run_id).info.lifecycle_stage == "active":
            self.client.set_terminated(run_id, status)
        attempts.settle(self.client, self.experiment_id, "call")

    def standing(self) -> list[tuple[str, str]]:
        runs = self.client.search_runs([self.experiment_id], f"tags.`{attempts.CALL}` = 'call'")
        return [(self.names[run.info.run_id], run.info.status) for run in runs]

    def superseded(self) -> dict[str, str]:
        runs = self.client.search_runs([self.experiment_id], run_view_type=ViewType.DELETED_ONLY)
        return {self.names[run.info.run_id]: self.names[run.data.tags[attempts.SUPERSEDED_BY]] for run in runs}


@pytest.fixture
def calls(store_uri: str) -> Calls:
    return Calls(store_uri)


@pytest.mark.parametrize(
    ("ends", "stands"),
    [
        ({1: "FINISHED"}, ("1", "FINISHED")),
        ({1: "FAILED", 2: "FINISHED"}, ("2", "FINISHED")),
        ({1: "FAILED", 2: "FAILED", 3: "FAILED"}, ("3", "FAILED")),
        ({1: "FINISHED", 2: "KILLED"}, ("1", "FINISHED")),
        ({1: "FINISHED", 2: "FINISHED"}, ("2", "FINISHED")),
    ],
)
def test_one_attempt_stands_in_whatever_order_they_end(store_uri: str, ends: dict[int, str], stands) -> None:
    for order in (list(ends), list(reversed(ends)))[: len(ends)]:
        calls = Calls(store_uri)
        runs = {attempt: calls.begin(attempt) for attempt in ends}
        for attempt in order:
            calls.end(runs[attempt], ends[attempt])
        assert calls.standing() == [stands], order
        assert sorted(calls.superseded()) == sorted(str(attempt) for attempt in ends if str(attempt) != stands[0])


def test_an_attempt_whose_machine_is_gone_is_superseded(calls: Calls) -> None:
    lost, second = calls.begin(1), calls.begin(2)
    calls.end(second, "FINISHED")
    assert calls.standing() == [("2", "FINISHED")]
    assert calls.superseded() == {"1": "2"}
    assert calls.client.get_run(second).data.tags[attempts.RETRIED] == lost


def test_a_later_attempt_that_still_runs_is_left_alone(calls: Calls) -> None:
    first, second = calls.begin(1), calls.begin(2)
    calls.end(first, "FINISHED")
    assert sorted(calls.standing()) == [("1", "FINISHED"), ("2", "RUNNING")]
    calls.end(second, "FINISHED")
    assert calls.standing() == [("2", "FINISHED")]


def test_models_and_versions_of_superseded_attempts_go_with_them(calls: Calls) -> None:
    client, name = calls.client, f"model-{uuid.uuid4().hex}"
    client.create_registered_model(name)
    for attempt in (1, 2):
        run_id = calls.begin(attempt)
        model = client.create_logged_model(calls.experiment_id, "model", source_run_id=run_id)
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        client.create_model_version(name, model.artifact_location, run_id=run_id, model_id=model.model_id)
        calls.end(run_id, "FINISHED")
    (model,) = client.search_logged_models([calls.experiment_id])
    assert calls.names[model.source_run_id] == "2"
    (version,) = client.search_model_versions(f"name = '{name}'")
    assert calls.names[version.run_id] == "2"


def test_the_parent_ends_with_the_last_of_its_calls(calls: Calls) -> None:
    client, first, second = calls.client, calls.begin(1), calls.begin(2)

    def status() -> tuple[str, int | None]:
        info = client.get_run(calls.parent).info
        return info.status, info.end_time

    client.set_terminated(first, "FINISHED", 1000)
    attempts.end_parent(client, calls.experiment_id, calls.parent, 1000)
    assert status() == ("RUNNING", None)
    client.set_terminated(second, "FAILED", 2000)
    attempts.end_parent(client, calls.experiment_id, calls.parent, 2000)
    assert status() == ("FINISHED", 2000)
    attempts.begin_parent(client, calls.parent)
    assert status()[0] == "RUNNING"
    client.set_terminated(calls.parent, "FAILED", 3000)  # The driver failed.
    attempts.end_parent(client, calls.experiment_id, calls.parent, 4000)
    attempts.begin_parent(client, calls.parent)
    assert status() == ("FAILED", 3000)
