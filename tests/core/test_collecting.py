"""What the sender leaves until later, so that a short training has the machine to itself."""

from __future__ import annotations

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
    spool, host = Spool(folder, new=True), Patient()
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
    spool, host = Spool(folder, new=True), Patient()
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
