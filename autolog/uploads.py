"""Files that go into a tracking store, and whether they arrived.

An upload over HTTP is acknowledged by a status and nothing else, and what stands before a server, such as the login
page of a network, says yes in its place. So the store is asked for what it lists before the only copy is given up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from autolog import guard
from autolog.faults import Fault, fault

#: Artifact locations that are reached through a tracking server, and through whatever stands before it.
_OVER_HTTP = ("mlflow-artifacts:", "http:", "https:")


class RunFiles:
    """The files of one run. artifacts: the URI of its artifact location."""

    def __init__(self, client: MlflowClient, run_id: str, artifacts: str) -> None:
        self._client = client
        self._run_id = run_id
        self._artifacts = artifacts
        #: Sizes in bytes by path, None where MLflow chose how to write it.
        self._sent: dict[str, int | None] = {}

    def text(self, path: str, text: str) -> None:
        """Upload `text` as the file `path`."""
        self._client.log_text(self._run_id, text, path)
        self._sent[path] = len(text.replace("\n", os.linesep).encode())

    def json(self, path: str, values: Mapping[str, Any]) -> None:
        """Upload `values` as the JSON file `path`."""
        self._client.log_dict(self._run_id, dict(values), path)
        self._sent[path] = None

    def file(self, path: str, source: Path) -> None:
        """Upload the file `source`, which has the name that `path` ends with."""
        self._client.log_artifact(self._run_id, str(source), path.rpartition("/")[0] or None)
        self._sent[path] = source.stat().st_size

    def forget(self) -> None:
        """Ask no more for what was uploaded so far, as it is uploaded again."""
        self._sent.clear()

    def check(self) -> None:
        """Look for what was uploaded since this was asked last.

        Raises: OSError where something is not there; what the store raises while it cannot be used.
        """
        sent, self._sent = self._sent, {}
        check(sent, self._artifacts, partial(self._client.list_artifacts, self._run_id), f"run {self._run_id}")


def check(
    sent: Mapping[str, int | None], artifacts: str, listing: Callable[[str | None], Iterable[Any]], whose: str
) -> None:
    """Look whether all files of `sent`, paths and sizes in bytes, are at the URI `artifacts`, where that is over HTTP.

    listing: returns MLflow's ``FileInfo`` of what is in a folder, None for the topmost. A store that does not list what
    it holds is believed.

    Raises: OSError where a file is missing or has another size; what the store raises while it cannot be used.
    """
    if not artifacts.startswith(_OVER_HTTP):
        return
    for folder in {path.rpartition("/")[0] for path in sent}:
        listed = guard.attempt(listing, folder or None)
        if listed.error is not None:
            if fault(listed.error) is Fault.REFUSED:
                continue
            raise listed.error
        stored = {item.path: item.file_size for item in listed.value or ()}
        for path, size in sent.items():
            if path.rpartition("/")[0] != folder:
                continue
            there = stored.get(path, -1)
            if there == -1 or (size is not None and there is not None and size != there):
                raise OSError(f"{path} of {whose} was uploaded, but is not there as a whole")
