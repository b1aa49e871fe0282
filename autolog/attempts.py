"""A call that an engine tries several times is one run; and the run that holds such calls ends with the last of them.

Runs in the senders of the worker processes, which know of each other only through the tracking store. Each first
closes its own run there and then looks at the others, so that whoever comes last sees all.
"""

from __future__ import annotations

from typing import Any

from autolog import guard

#: Tags of a run: which call it records, and which attempt at it, a number that grows.
CALL, ATTEMPT = "autolog.call", "autolog.attempt"
#: Tags that say what became of the others: on the run that stands, their ids; on each of them, the one that stands.
RETRIED, SUPERSEDED_BY = "autolog.retried", "autolog.superseded_by"


def settle(client: Any, experiment_id: str, call: str) -> None:
    """Keep one run of `call`: the latest attempt that finished, else the latest that ended.

    The others go to MLflow's trash, from where they can be restored, with their models and child runs: earlier
    attempts, of which the engine kept nothing, and the slower of speculative copies. A later attempt that still runs
    is left to itself, so that two attempts which end together never remove each other.

    client: an ``MlflowClient``. Raises: what the store raises while it cannot be reached.
    """
    runs = client.search_runs([experiment_id], filter_string=f"tags.`{CALL}` = '{call}'", max_results=1000)
    ended = [run for run in runs if run.info.status not in ("RUNNING", "SCHEDULED")]
    finished = [run for run in ended if run.info.status == "FINISHED"]
    if len(runs) < 2 or not ended:
        return
    standing = max(finished or ended, key=_attempt)
    others = [
        run
        for run in runs
        if run is not standing and (run in ended or (bool(finished) and _attempt(run) < _attempt(standing)))
    ]
    known = standing.data.tags.get(RETRIED, "")
    ids = [*filter(None, known.split(",")), *(run.info.run_id for run in others)]
    client.set_tag(standing.info.run_id, RETRIED, ",".join(dict.fromkeys(ids)))
    for run in others:
        _discard(client, run, standing.info.run_id)


def _attempt(run: Any) -> int:
    return int(run.data.tags.get(ATTEMPT, 0))


def sweep(client: Any, run_id: str) -> bool:
    """Discard what was recorded for a run since :func:`settle` discarded it; return whether it did.

    The attempt went on meanwhile, and its sender notices only when the store refuses something.
    """
    run = client.get_run(run_id)
    standing = run.data.tags.get(SUPERSEDED_BY)
    if standing is None:
        return False
    _discard(client, run, standing)
    return True


def _discard(client: Any, run: Any, standing: str) -> None:
    """Move a run, its models and the runs below it to the trash."""
    run_id, experiment_id = run.info.run_id, run.info.experiment_id
    of_it = f"tags.`mlflow.parentRunId` = '{run_id}'"
    while below := client.search_runs([experiment_id], filter_string=of_it, max_results=1000):
        for child in below:
            _discard(client, child, standing)
    for version in client.search_model_versions(f"run_id = '{run_id}'"):
        client.delete_model_version(version.name, version.version)
    for model in client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{run_id}'"):
        client.delete_logged_model(model.model_id)
    if run.info.lifecycle_stage == "deleted":
        return
    client.set_tag(run_id, SUPERSEDED_BY, standing)
    gone = guard.attempt(client.delete_run, run_id)
    if gone.error is not None and client.get_run(run_id).info.lifecycle_stage != "deleted":
        raise gone.error


def begin_parent(client: Any, parent_id: str) -> None:
    """Reopen the run that holds the calls, if it looked finished between two of them."""
    if client.get_run(parent_id).info.status == "FINISHED":
        client.update_run(parent_id, status="RUNNING")


def end_parent(client: Any, experiment_id: str, parent_id: str, end_time: int) -> None:
    """Finish the run that holds the calls where none of them runs any more; FAILED and KILLED stay.

    end_time: of the call that has just ended, in milliseconds since the epoch.
    """
    parent = client.get_run(parent_id)
    if parent.info.status not in ("RUNNING", "FINISHED"):
        return
    of_it = f"tags.`mlflow.parentRunId` = '{parent_id}' and attributes.status = 'RUNNING'"
    if not client.search_runs([experiment_id], filter_string=of_it, max_results=1):
        client.set_terminated(parent_id, "FINISHED", max(end_time, parent.info.end_time or 0))
