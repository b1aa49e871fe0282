"""Whole processes: a folder with its own spool, scripts that run in it, and what they recorded read back."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from places import Place
from servers import Postgres, TrackingServer, missing

# A shell lets what runs in the background ignore Ctrl-C, and nohup SIGHUP; processes that tests start would inherit it.
for ignored, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, handler)


@pytest.fixture
def place(tmp_path: Path, store_uri: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    made = Place(tmp_path, store_uri)
    yield made
    if request.node.stash.get(_FAILED, False):
        request.node.add_report_section("teardown", "what is left of its spools", made.left())
    made.close()


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_FAILED] = report.failed
    return report


class Servers:
    """PostgreSQL and the tracking servers of the session, each started when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._postgres: Postgres | None = None
        self._started: dict[str, TrackingServer] = {}

    @property
    def postgres(self) -> Postgres:
        if self._postgres is None:
            self._postgres = Postgres()
        return self._postgres

    def start(self, name: str, *, auth: bool = False) -> TrackingServer:
        """Start a server without waiting for it."""
        if name not in self._started:
            self._started[name] = TrackingServer(self._folder / name, self.postgres.database(name), auth=auth)
        return self._started[name]

    def get(self, name: str, *, auth: bool = False) -> TrackingServer:
        server = self.start(name, auth=auth)
        server.wait()
        return server

    def close(self) -> None:
        for server in self._started.values():
            server.close()
        if self._postgres is not None:
            self._postgres.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    lacks = missing()
    if lacks is not None:
        pytest.skip(f"no tracking server on PostgreSQL: {lacks}")
    made = Servers(tmp_path_factory.mktemp("servers"))
    # Both at once: most of the time that a server needs to start is spent waiting for something.
    made.start("plain")
    made.start("auth", auth=True)
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(servers: Servers) -> TrackingServer:
    """The tracking server that takes everybody."""
    return servers.get("plain")


@pytest.fixture(scope="session")
def auth_server(servers: Servers) -> TrackingServer:
    """The tracking server with basic-auth, where nobody may do anything but the administrator."""
    return servers.get("auth", auth=True)
