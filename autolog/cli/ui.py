"""``autolog ui``: MLflow's own pages on the store that trainings here record into."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

from autolog.cli.screen import console
from autolog.cli.showing import store_of
from autolog.uris import without_credentials


def ui(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Become MLflow's UI; or say where it is, or what it needs: ``mlflow-skinny`` comes without its pages."""
    from autolog import reading

    out = console(stderr=True)
    uri = store_of(options)
    if reading.is_server(uri):
        print(without_credentials(uri))
        out.print("The store is a server, with its own pages: open this address in a browser.")
        return 0
    if uri.startswith("databricks"):
        out.print("The store is Databricks: open Experiments in the workspace.")
        return 0
    path = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
    if path is not None and not path.exists():
        out.print(f"There is no store at {uri} yet; the first run makes it.", soft_wrap=True)
        return 1
    arguments = ["ui", "--backend-store-uri", uri, "--port", str(options.port)]
    if not has_pages():
        out.print("The installed mlflow-skinny comes without MLflow's pages. Either of these shows them:")
        # Of this very version: another one may refuse the store's tables.
        version = importlib.metadata.version("mlflow-skinny")
        for start in (f"uvx mlflow@{version}", f"pip install mlflow=={version} && mlflow"):
            out.print(f"  {start} {shlex.join(arguments)}", markup=False, soft_wrap=True)
        return 1
    out.print(f"MLflow's UI: [bold]http://127.0.0.1:{options.port}[/]  [dim]Ctrl-C ends it[/]", soft_wrap=True)
    # One person looks: one worker, and no jobs, so that it is there soon.
    command = [sys.executable, "-m", "mlflow", *arguments, "--workers", "1"]
    environ = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(sys.executable, command, environ)
    return subprocess.run(command, env=environ, check=False).returncode


def has_pages() -> bool:
    """Return whether the installed MLflow has its UI's pages and the server that hands them out."""
    found = importlib.util.find_spec("mlflow")
    places = found.submodule_search_locations if found is not None else None
    pages = [Path(place) / "server" / "js" / "build" / "index.html" for place in places or ()]
    return any(page.exists() for page in pages) and importlib.util.find_spec("flask") is not None
