"""What the sender leaves until later, so that a short training has the machine to itself."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

from autolog.records import DatasetInput, EndRun, OpenRun, Params, Points, Record, Tags, now
from autolog.sender import LINGER, ThreadHost, deliver
from autolog.spool import Lease, Spool, make_folder


class Patient(ThreadHost):
    """A host under which a second lasts until somebody waits for the delivery."""

    def __init__(self) -> None:
        self.hurry = threading.Event()
        self.closed = threading.Event()
        self.asked: list[float] = []
        self.lingers = threading.Event()
        super().__init__(threading.Event(), self.hurry, self.closed)

    def linger(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.lingers.set()
        super().linger(60)


def test_a_run_is_not_opened_in_the_store_while_a_short_training_is_under_way(recorder) -> None:
    folder = make_folder()
    lease = Lease(folder / "owner.lock")
    assert lease.acquire()
    spool, host = Spool(folder), Patient()
    begun: list[Record] = [
        OpenRun("short", now(), recorder.store_uri, recorder.experiment, None, str(Path.cwd())),
        Tags("short", {"t": "1"}),
        Params("short", {"p": "2"}),
        DatasetInput("short", "X", "1234", "code", "{}", None, None, "train"),
        Points("short", 0, now(), {"loss": 0.5}),
    ]
    spool.append(begun)
    sender = threading.Thread(target=deliver, args=(folder, host))
    sender.start()
    try:
        assert host.lingers.wait(30)
        assert 0 < host.asked[0] <= LINGER
        assert recorder.client.get_experiment_by_name(recorder.experiment) is None
        spool.append([EndRun("short", "FINISHED", now())])
    finally:
        lease.release()
        host.closed.set()
        host.hurry.set()
        sender.join(60)
    spool.close()
    assert not folder.exists()
    run = recorder.run()
    assert run.info.status == "FINISHED" and run.data.params == {"p": "2"} and run.data.tags["t"] == "1"
    assert recorder.history(run, "loss") == [(0, 0.5)]
    assert [each.dataset.digest for each in run.inputs.dataset_inputs] == ["1234"]


def test_the_end_of_a_run_is_sent_at_once(recorder) -> None:
    """Records that somebody may look for are sent with all before them, although nobody waits."""
    folder = make_folder()
    lease = Lease(folder / "owner.lock")
    assert lease.acquire()
    spool, host = Spool(folder), Patient()
    opened = OpenRun("ended", now(), recorder.store_uri, recorder.experiment, None, str(Path.cwd()))
    spool.append([opened, EndRun("ended", "FINISHED", now())])
    sender = threading.Thread(target=deliver, args=(folder, host))
    sender.start()
    try:
        for _ in range(600):
            if spool.first_pending() is None:
                break
            threading.Event().wait(0.05)
        assert spool.first_pending() is None and host.asked == []
    finally:
        lease.release()
        host.closed.set()
        host.hurry.set()
        sender.join(60)
    spool.close()
    assert recorder.run().info.status == "FINISHED"


def test_a_sender_of_its_own_begins_to_collect_garbage_with_what_it_has_sent_first() -> None:
    script = """if True:
        import gc
        from autolog.sender import ProcessHost
        gc.disable()
        host = ProcessHost()
        kept = []
        kept.append(kept)
        host.sent()
        assert gc.isenabled() and gc.get_freeze_count() > 1000
        assert not any(each is kept for each in gc.get_objects())
        later = [host]
        host.sent()
        assert any(each is later for each in gc.get_objects())
    """
    done = subprocess.run([sys.executable, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_sender_in_the_training_process_leaves_the_collection_of_garbage_alone(recorder) -> None:
    folder = make_folder()
    spool, host = Spool(folder), Patient()
    spool.append(
        [OpenRun("r", now(), recorder.store_uri, recorder.experiment, None, "/"), EndRun("r", "FINISHED", now())]
    )
    host.closed.set()
    frozen = gc.get_freeze_count()
    gc.disable()
    try:
        assert deliver(folder, host)
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc.get_freeze_count() == frozen
    spool.close()
    assert recorder.run().info.status == "FINISHED"
