"""Stores and the runs in them: reached, made where they are not there yet, and found again after a crash."""

from __future__ import annotations

import importlib
import os
import time
from typing import Any
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from autolog import attempts, guard, newstore
from autolog.records import OpenRun
from autolog.spool import Id, Spool
from autolog.uris import absolute_uri

#: How claimants that are the training process itself are named, and how long the sender waits for one.
OWNER, CLAIM_SECONDS = "owner-", 10.0
#: How long the sender of a carried call waits for the parent's run, which another process opens.
PARENT_SECONDS = 15.0

#: In front of a run's key: marks one that the training process failed to create, as far as it knows.
_TRIED = "tried:"

#: The tag by which a run that was created just before a crash is found again.
RUN_KEY = "autolog.run"


def prepare(uri: str) -> None:
    """Import what a client of the store at `uri` needs, and open nothing."""
    if urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


def connect(uri: str) -> MlflowClient:
    """Return a client of the store at `uri`; a sqlite store that is not there yet is made whole first.

    Raises: what MLflow raises for a URI that it does not know; OSError.
    """
    newstore.make_ready(uri, _create_sqlite_store)
    return MlflowClient(tracking_uri=uri)


def _create_sqlite_store(uri: str) -> None:
    from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH).engine.dispose()


def open_remote(spool: Spool, client: MlflowClient, record: OpenRun, claimant: str, *, claimed: bool) -> str:
    """Create the run that `record` opens in the store, bind its key to it, and return its id.

    Called by who claimed the key: the sender, or the training process inside a logging call of the user's own;
    claimed: whether nobody had before, so that the run cannot be there already and is not looked for.
    """
    parent = _parent(spool, client, record, claimant)
    if parent is not None and parent.remote is not None:
        # A child is found below its parent only in the same experiment, whatever is chosen by now.
        record = record._replace(experiment_id=parent.detail["experiment_id"])
    parent_id = parent.remote if parent else None
    # A carried call may be at work in other processes, too, whose spools are others.
    look_up = not claimed or record.call is not None or spool.in_doubt or spool.meta(_TRIED + record.run) is not None
    created = _create_run(client, record, parent=parent_id, look_up=look_up)
    run_id = str(created.info.run_id)
    uri = absolute_uri(record.tracking_uri, record.cwd)
    detail = {"uri": uri, "state": "open", "experiment_id": str(created.info.experiment_id)}
    detail["name"], detail["artifacts"] = str(created.info.run_name), str(created.info.artifact_uri)
    if record.system_metrics:
        detail["system"] = "yes"
    if record.call or record.ends_parent:
        detail["parent"], detail["parent_id"] = record.parent or "", parent_id or ""
        detail["attempted"] = record.call if record.call and record.attempt else ""
        detail["ends_parent"] = "yes" if record.ends_parent else ""
        if parent_id and record.ends_parent:
            attempts.begin_parent(client, parent_id)
    spool.bind(f"run:{record.run}", run_id, claimant, detail)
    return run_id


def _parent(spool: Spool, client: MlflowClient, record: OpenRun, claimant: str) -> Id | None:
    """Return what is known of the run that the one to be opened is a child of.

    The parent of a carried call belongs to another process, whose own sender may not have come to it yet: it is looked
    for by its key, for :data:`PARENT_SECONDS` the first time; and once more when the child ends.
    """
    if record.parent is None:
        return None
    key = f"run:{record.parent}"
    known = spool.lookup(key)
    if record.call is None or (known is not None and known.remote is not None):
        return known
    if record.parent_id is not None:
        found = client.get_run(record.parent_id)
    else:
        experiment_id = record.experiment_id or _experiment(client, record.experiment)
        deadline = time.monotonic() + (PARENT_SECONDS if known is None else 0.0)
        while (found := find_run(client, experiment_id, record.parent)) is None and time.monotonic() < deadline:
            time.sleep(0.1)
    if found is None:
        spool.claim(key, claimant)
        return None
    detail = {"uri": "", "state": "elsewhere", "experiment_id": str(found.info.experiment_id)}
    spool.bind(key, str(found.info.run_id), claimant, detail)
    return spool.lookup(key)


def open_for_owner(spool: Spool, record: OpenRun) -> str | None:
    """Create a run of ours inside the user's own logging call, unless the sender is at it; return its id.

    So that the call takes what starting a run of its own would have taken, and never waits for the sender.
    """
    key = f"run:{record.run}"
    claimant = f"{OWNER}{os.getpid()}"
    if not spool.claim(key, claimant):
        return None

    def create() -> str:
        client = connect(absolute_uri(record.tracking_uri, record.cwd))
        return open_remote(spool, client, record, claimant, claimed=True)

    made = guard.attempt(create)
    if made.error is not None:
        spool.set_meta(_TRIED + record.run, "1")  # The store may have created it all the same.
        spool.unclaim(key)
        raise made.error
    return made.value


def _create_run(client: MlflowClient, record: OpenRun, *, parent: str | None, look_up: bool) -> Any:
    """Create the run that `record` opens; look_up: unless it was created just before a crash, and is there."""
    experiment_id = record.experiment_id or _experiment(client, record.experiment)
    found = find_run(client, experiment_id, record.run) if look_up else None
    if found is not None:
        return found
    tags = {RUN_KEY: record.run}
    if record.call and record.attempt:
        tags |= {attempts.CALL: record.call, attempts.ATTEMPT: str(record.attempt)}
    if parent:
        tags[MLFLOW_PARENT_RUN_ID] = parent
    return client.create_run(experiment_id, start_time=record.start_time, tags=tags, run_name=record.name)


def find_run(client: MlflowClient, experiment_id: str, key: str) -> Any:
    """Return the run with that key of ours, None where there is none."""
    found = client.search_runs([experiment_id], filter_string=f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
    return found[0] if found else None


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
