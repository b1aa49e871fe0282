"""The thread that does what takes longer than the training thread may wait."""

from __future__ import annotations

import threading
import time

from autolog import runtime, writer
from autolog.records import Points
from autolog.spool import Spool


def test_numbers_do_not_wait_for_models(recorder) -> None:
    """Neither behind a queue of them nor for the one that is being written; a run's end waits for both."""
    recorder.start()
    first, second = runtime.open_run("sklearn"), runtime.open_run("sklearn")
    begun, go_on, read, done = threading.Event(), threading.Event(), threading.Event(), []

    def write() -> None:
        begun.set()
        assert go_on.wait(30)
        done.append("model 1")

    first.later("write a model", write)
    assert begun.wait(30)
    first.later("write a model", lambda: done.append("model 2"))
    second.later("read numbers", lambda: done.append("number 1"), quick=True)
    second.later("write a model", lambda: done.append("model 3"))
    second.later("read numbers", lambda: second.metrics({"n": 2.0}, step=0), quick=True)
    second.later("read numbers", lambda: (done.append("number 2"), read.set()), quick=True)
    second.end()
    assert read.wait(30)
    assert done == ["number 1", "number 2"]
    go_on.set()
    first.end()
    assert [run.info.status for run in recorder.runs()] == ["FINISHED"] * 2
    assert done == ["number 1", "number 2", "model 1", "model 2", "model 3"]
    # Not in the order of their starts: both may have begun within the same millisecond.
    assert sorted(run.data.metrics.get("n", 0.0) for run in recorder.runs()) == [0.0, 2.0]


def test_a_model_waits_for_the_numbers_of_its_run(recorder) -> None:
    """What is read quickly is there when a model of the same run is written, and when the run ends."""
    recorder.start()
    run = runtime.open_run("sklearn")
    go_on, done = threading.Event(), []

    def read() -> None:
        assert go_on.wait(30)
        done.append("number")
        run.metrics({"n": 2.0}, step=0)

    run.later("read numbers", read, quick=True)
    run.later("write a model", lambda: done.append("model"))
    run.end()
    time.sleep(0.2)
    assert not done
    go_on.set()
    found = recorder.run()
    assert done == ["number", "model"]
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"n": 2.0})


def test_numbers_read_after_the_end_are_on_disk_at_once(recorder, monkeypatch) -> None:
    """They wait neither for the models of the run nor for the next transaction."""
    monkeypatch.setattr(writer, "INTERVAL", 60.0)
    recorder.start()
    run = runtime.open_run("pyspark")
    go_on, read = threading.Event(), threading.Event()

    def see() -> None:
        assert go_on.wait(30)
        run.metrics({"n": 2.0}, step=0)

    run.later("read numbers", see, quick=True)
    run.later("write a model", lambda: read.wait(30))
    run.end()
    go_on.set()
    runtime.writer.spooled_folder(10)
    spool, until = Spool(runtime.writer.folder), time.monotonic() + 10
    while not any(isinstance(row.record, Points) for row in spool.pending()):
        assert time.monotonic() < until
        time.sleep(0.01)
    spool.close()
    read.set()
    assert recorder.run().data.metrics == {"n": 2.0}
