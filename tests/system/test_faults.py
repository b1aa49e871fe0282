"""Faults between the sender and a real tracking server: training feels nothing, and in the end all is there, once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from places import Place
from proxy import HALF_ANSWER, HALF_REQUEST, RESET, SILENCE, WRONG_ANSWER, Answer, Fault, Late, Proxy, Request
from servers import TrackingServer

STEPS = 1500
#: Seconds that all calls of the training thread may take. A call notes in microseconds; the rest is the machine's, as
#: when other processes take the core just then. Had each waited for a connection to be refused, it would be seconds.
BLOCKED = 0.5
#: Trainings at once.
WORKERS = 4

TRAIN = """
    import sys, time
    import autolog
    autolog.autolog()
    from autolog import runtime
    from autolog.models import ModelSnapshot
    run = runtime.open_run("torch")
    run.params({"a": 1, "b": "two"})
    blocked = 0.0
    for step in range(STEPS):
        before = time.perf_counter()
        run.metrics({"loss": step / 2, "lr": 0.1}, step=step)
        blocked += time.perf_counter() - before
        if step == 100:
            run.text("note.txt", "hello")
            files = {f"part-{i}.bin": bytes([i]) * 400_000 for i in range(3)}
            run.model(lambda: ModelSnapshot("sklearn", {"pickled_model": "part-0.bin"}, files))
        time.sleep(0.001)
    run.end()
    runtime.closed(run)
    print(blocked, flush=True)
    sys.stdin.readline()
""".replace("STEPS", str(STEPS))


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    made = Proxy(server.port)
    yield made
    made.close()


class Sometimes:
    """A fault that every n-th request meets."""

    def __init__(self, fault: Fault, every: int) -> None:
        self._fault, self._every, self._count = fault, every, 0

    def __call__(self, request: Request) -> Fault:
        self._count += 1
        return self._fault if self._count % self._every == 0 else None


def always(fault: Fault) -> Callable[[Request], Fault]:
    return lambda request: fault


def uploads(fault: Fault) -> Callable[[Request], Fault]:
    return lambda request: fault if request.method == "PUT" else None


def posts(fault: Fault) -> Callable[[Request], Fault]:
    return lambda request: fault if request.method != "GET" else None


def check_all_of_it(place, server, folder: Path) -> None:
    """Assert that the store has what TRAIN said, each thing once."""
    client = MlflowClient(tracking_uri=server.uri)
    place.wait_for(lambda: not place.spools(), 60)
    (run,) = place.runs(server.uri)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "b": "two"}
    for key, value in (("loss", lambda step: step / 2), ("lr", lambda step: 0.1)):
        assert place.history(run, key, server.uri) == [(step, value(step)) for step in range(STEPS)]
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.status == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    files = {item.path: item.file_size for item in client.list_logged_model_artifacts(model.model_id)}
    assert set(files) >= {"MLmodel", "part-0.bin", "part-1.bin", "part-2.bin"}
    assert [files[f"part-{i}.bin"] for i in range(3)] == [400_000] * 3
    assert [item.path for item in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    note = client.download_artifacts(run.info.run_id, "note.txt", str(folder))
    assert Path(note).read_text() == "hello"


FAULTS: dict[str, Callable[[Request], Fault]] = {
    "reset": always(RESET),
    "blackhole": always(SILENCE),
    "latency": always(Late(10.0)),
    "500": always(Answer(500)),
    "503 for uploads": uploads(Answer(503, body=b"<html>no</html>")),
    "uploads cut in the middle": uploads(HALF_REQUEST),
    "wrong bytes in answers": always(WRONG_ANSWER),
    "answers cut in the middle": posts(HALF_ANSWER),
    "a captive portal": always(Answer(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")),
    "uploads taken by somebody else": uploads(Answer(200, {"Content-Type": "text/html"}, b"<html>Thanks</html>")),
    "flapping": Sometimes(RESET, 3),
}


@dataclass
class Met:
    """A training that met a fault, when it is over."""

    place: Place
    proxy: Proxy
    blocked: float
    err: str


def meet(name: str, folder: Path, server: TrackingServer) -> Met:
    """Train while the fault lasts, and end 1.5 seconds later, when it is over."""
    folder.mkdir()
    place, proxy = Place(folder, server.uri), Proxy(server.port)
    if name == "refused":
        proxy.refuse()
    else:
        proxy.fault = FAULTS[name]
    environ = {"AUTOLOG_TRACKING_URI": proxy.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "AUTOLOG_EXIT_TIMEOUT": "40"}
    process = place.start(place.script(TRAIN), stdin=True, **environ)
    try:
        blocked = float(process.stdout.readline())
        time.sleep(1.5)
        proxy.heal()
        _, err = process.communicate("\n", timeout=90)
        assert process.returncode == 0, err
        return Met(place, proxy, blocked, err)
    finally:
        place.close()
        proxy.close()


@pytest.fixture(scope="module")
def met(server, tmp_path_factory) -> Iterator[dict[str, Future[Met]]]:
    """Each fault, met by a training of its own; several at once, as they mostly wait."""
    folder = tmp_path_factory.mktemp("faults")
    with ThreadPoolExecutor(WORKERS) as pool:
        names = [*FAULTS, "refused"]
        yield {name: pool.submit(meet, name, folder / name.replace(" ", "-"), server) for name in names}


@pytest.mark.parametrize("name", [*FAULTS, "refused"])
def test_a_fault_that_passes_costs_nothing(name: str, met, server, tmp_path) -> None:
    done = met[name].result(120)
    check_all_of_it(done.place, server, tmp_path)
    assert done.blocked < BLOCKED
    assert done.proxy.met, "the sender never came by"
    assert len([line for line in done.err.splitlines() if "mlflow-autolog" in line]) <= 2, done.err
