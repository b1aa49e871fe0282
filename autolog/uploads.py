"""Files that go into a tracking store, and whether they arrived.

An upload over HTTP is acknowledged by a status and nothing else, and what stands before a server, such as the login
page of a network, says yes in its place. So the store is asked for what it lists before the only copy is given up.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.uri import add_databricks_profile_info_to_artifact_uri

from autolog import guard
from autolog.faults import Fault, fault

#: Artifact locations that are reached through a tracking server, and through whatever stands before it.
_OVER_HTTP = ("mlflow-artifacts:", "http:", "https:")


def repository(client: MlflowClient, artifacts: str) -> ArtifactRepository:
    """Return what reads and writes files at the artifact location `artifacts` of a run or a model.

    As ``MlflowClient`` finds it, which asks the store for the location of each run and model first.
    """
    uri = client.tracking_uri
    return get_artifact_repository(add_databricks_profile_info_to_artifact_uri(artifacts, uri), tracking_uri=uri)


class RunFiles:
    """The files of one run. artifacts: the URI of its artifact location, None where it is not known."""

    def __init__(self, client: MlflowClient, run_id: str, artifacts: str | None) -> None:
        self._client = client
        self._run_id = run_id
        self._known = artifacts
        #: Sizes in bytes by path.
        self._sent: dict[str, int] = {}

    @cached_property
    def _artifacts(self) -> str:
        return self._known or str(self._client.get_run(self._run_id).info.artifact_uri)

    @cached_property
    def _repository(self) -> ArtifactRepository:
        return repository(self._client, self._artifacts)

    def text(self, path: str, text: str) -> None:
        """Upload `text` as the file `path`."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / path.rpartition("/")[2]
            file.write_text(text, encoding="utf-8")
            self.file(path, file)

    def json(self, path: str, values: Mapping[str, Any]) -> None:
        """Upload `values` as the JSON file `path`."""
        self.text(path, json.dumps(values, indent=2, default=str))

    def file(self, path: str, source: Path) -> None:
        """Upload the file `source`, which has the name that `path` ends with."""
        self._repository.log_artifact(str(source), path.rpartition("/")[0] or None)
        self._sent[path] = source.stat().st_size

    def forget(self) -> None:
        """Ask no more for what was uploaded so far, as it is uploaded again."""
        self._sent.clear()

    def check(self) -> None:
        """Look for what was uploaded since this was asked last.

        Raises: OSError where something is not there; what the store raises while it cannot be used.
        """
        sent, self._sent = self._sent, {}
        if sent:
            check(sent, self._artifacts, self._repository, f"run {self._run_id}")


def check(sent: Mapping[str, int], artifacts: str, repository: ArtifactRepository, whose: str) -> None:
    """Look whether all files of `sent`, paths and sizes in bytes, are at the URI `artifacts`, where that is over HTTP.

    A store that does not list what it holds is believed.

    Raises: OSError where a file is missing or has another size; what the store raises while it cannot be used.
    """
    if not artifacts.startswith(_OVER_HTTP):
        return
    for folder in {path.rpartition("/")[0] for path in sent}:
        listed = guard.attempt(repository.list_artifacts, folder or None)
        if listed.error is not None:
            if fault(listed.error) is Fault.REFUSED:
                continue
            raise listed.error
        stored = {item.path: item.file_size for item in listed.value or ()}
        for path, size in sent.items():
            if path.rpartition("/")[0] != folder:
                continue
            there = stored.get(path, -1)
            if there == -1 or (there is not None and size != there):
                raise OSError(f"{path} of {whose} was uploaded, but is not there as a whole")
