"""Tracking URIs: what MLflow makes of one, told without importing MLflow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from autolog import guard


def working_folder() -> str:
    """Return the working folder of this process; the user's home where it was deleted meanwhile."""
    found = guard.attempt(Path.cwd)
    return str(found.value or Path.home())


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


def is_file_store(uri: str) -> bool:
    """Return whether an absolute tracking URI is that of a folder of files, MLflow's first store."""
    return uri.startswith("file:")


def without_credentials(uri: str) -> str:
    """Return `uri` without user name and password."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def with_credentials(uri: str, own: Iterable[str | None]) -> str:
    """Return the first of `own` that is `uri` but for credentials, else `uri`."""
    return next((each for each in own if each is not None and without_credentials(each) == uri), uri)
