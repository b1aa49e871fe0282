"""MLflow's tracking server over HTTP, on PostgreSQL, as processes of the test's own; torn down with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ADMIN, PASSWORD = "admin", "a password of 20 char"
#: The packages of MLflow's server that ``mlflow-skinny`` leaves out; all are in the extra "test".
_SERVER = ("flask", "flask_cors", "graphene", "flask_wtf", "psycopg2")


def free_port() -> int:
    """Return a TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def missing() -> str | None:
    """Return what the servers lack on this machine, or None."""
    packages = [name for name in _SERVER if find_spec(name) is None]
    if packages:
        return f"not installed: {', '.join(packages)}; run: pip install -e '.[test]'"
    if _binaries() is None:
        return "PostgreSQL is not installed; run: apt-get install postgresql"
    if os.geteuid() == 0 and (shutil.which("setpriv") is None or _user() is None):
        return "PostgreSQL does not run as root, and there is neither setpriv nor a user 'postgres' or 'nobody'"
    return None


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


def _user() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def stop(process: subprocess.Popen) -> None:
    """End a process that was started in a session of its own, with its children. It has nothing to put in order."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait(10)


class Postgres:
    """A PostgreSQL server with an empty cluster, on a socket in a folder of its own. No TCP port."""

    def __init__(self) -> None:
        # A socket's path has at most 107 characters: not below pytest's folders.
        self.folder = Path(tempfile.mkdtemp(prefix="autolog-pg-"))
        self._as: Sequence[str] = ()
        user = _user() if os.geteuid() == 0 else None
        if user is not None:
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as = ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
        binaries = _binaries()
        assert binaries is not None
        data = self.folder / "data"
        self._run(binaries / "initdb", "-D", data, "-A", "trust", "-U", "mlflow", "-E", "UTF8", "--no-sync")
        options = ("-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}", "-c", "fsync=off")
        self._log = (self.folder / "log").open("wb")
        self._process = subprocess.Popen(
            [*self._as, str(binaries / "postgres"), "-D", str(data), *options],
            cwd=self.folder,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        import psycopg2

        deadline = time.monotonic() + 30
        while True:
            try:
                self._connect().close()
                return
            except psycopg2.OperationalError:
                assert self._process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
                time.sleep(0.05)

    def _connect(self) -> Any:
        import psycopg2

        return psycopg2.connect(host=str(self.folder), user="mlflow", dbname="postgres")

    def _run(self, *command: object) -> None:
        done = subprocess.run(
            [*self._as, *map(str, command)], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

    def database(self, name: str) -> str:
        """Create a database and return its SQLAlchemy URI."""
        connection = self._connect()
        connection.autocommit = True
        connection.cursor().execute(f'CREATE DATABASE "{name}"')
        connection.close()
        return f"postgresql+psycopg2://mlflow@/{name}?host={self.folder}"

    def close(self) -> None:
        stop(self._process)
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class TrackingServer:
    """``mlflow server`` with proxied artifacts, in a process of its own."""

    def __init__(self, folder: Path, backend: str, *, auth: bool = False) -> None:
        self.folder = folder
        self.artifacts = folder / "artifacts"
        self.artifacts.mkdir(parents=True)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOLOG_", "MLFLOW_"))}
        environ.pop("PYTEST_CURRENT_TEST", None)  # Puts MLflow's stores into a mode for its own tests.
        environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--serve-artifacts"]
        command += ["--artifacts-destination", str(self.artifacts), "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1"]
        if auth:
            config = folder / "auth.ini"
            config.write_text(
                "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
                f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = {ADMIN}\nadmin_password = {PASSWORD}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
                "grant_default_workspace_access = false\n"
            )
            environ |= {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test"}
            command += ["--app-name", "basic-auth"]
        self._log = (folder / "server.log").open("wb")
        self._process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log()[-3000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def close(self) -> None:
        stop(self._process)
        self._log.close()
