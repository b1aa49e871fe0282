"""Damaged spools: what can be read is delivered once, what cannot is said, and no wrong number gets through."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autolog.records import EndRun, OpenRun, Params, Points, now
from autolog.recovery import ASIDE, recover
from autolog.sender import SyncHost, deliver
from autolog.spool import Spool, SpoolError, make_folder, remove


def said(run: str, count: int) -> list:
    """One record a row, so that damage to one is told from damage to all."""
    records: list = []
    for i in range(count):
        records += [Points(run, i, 1000 + i, {"loss": i / 2}), Params(run, {f"p{i}": "v" * 50})]
    return records


def make(count: int = 40, records: list | None = None) -> Path:
    folder = make_folder()
    spool = Spool(folder, new=True)
    for record in records if records is not None else said("r", count):
        spool.append([record])
    # One file, so that it is the one that gets damaged.
    spool._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    spool.close()
    return folder


def read(folder: Path) -> list:
    spool = Spool(folder)
    try:
        return [row.record for row in spool.pending(100_000)]
    finally:
        spool.close()


def test_a_number_that_the_disk_changed_is_missing_not_wrong() -> None:
    folder = make(3)
    with sqlite3.connect(folder / "spool.db") as db:
        db.execute("UPDATE records SET body = replace(body, '0.5', '9.5')")
    spool = Spool(folder)
    values = [row.record.values for row in spool.pending() if isinstance(row.record, Points)]
    assert values == [{"loss": 0.0}, {"loss": 1.0}]
    (problem,) = spool.problems()
    assert problem[1] == "damaged" and "row 3" in problem[2]
    assert spool.backlog() == 5  # The damaged row is gone: it must not be found for ever.
    spool.close()
    remove(folder)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_bytes_are_damaged_only_true_records_come_out(data) -> None:
    folder = make(40)
    try:
        path = folder / "spool.db"
        raw = bytearray(path.read_bytes())
        how = data.draw(st.sampled_from(["cut", "flip", "zero", "noise"]))
        if how == "cut":
            del raw[data.draw(st.integers(0, len(raw) - 1)) :]
        elif how == "flip":
            for at in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=20)):
                raw[at] ^= 1 << data.draw(st.integers(0, 7))
        else:
            start = data.draw(st.integers(0, len(raw) - 1))
            length = min(data.draw(st.sampled_from([1, 100, 4096, 9000])), len(raw) - start)
            noise = random.Random(data.draw(st.integers(0, 9))).randbytes(length)
            raw[start : start + length] = bytes(length) if how == "zero" else noise
        path.write_bytes(raw)
        try:
            found = read(folder)
        except (sqlite3.DatabaseError, SpoolError):
            recover(folder)
            found = read(folder)
        true = {(type(record), repr(record)) for record in said("r", 40)}
        assert all((type(record), repr(record)) in true for record in found)
        assert len(found) == len({repr(record) for record in found})
    finally:
        remove(folder)


def test_one_damaged_page_costs_only_what_was_on_it() -> None:
    folder = make(400)
    path = folder / "spool.db"
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2 // 4096 * 4096
    raw[middle : middle + 4096] = bytes(4096)
    path.write_bytes(raw)
    with pytest.raises(sqlite3.DatabaseError):
        read(folder)
    count = recover(folder)
    assert 700 < count < 800
    assert len(read(folder)) == count
    assert (folder / ASIDE).exists()
    remove(folder)


def test_a_damaged_spool_is_delivered_as_far_as_it_can_be_read_and_said(recorder, caplog) -> None:
    opened = OpenRun("k", now(), recorder.store_uri, recorder.experiment, None, str(Path.cwd()))
    records = [opened, *said("k", 300), EndRun("k", "FINISHED", now())]
    folder = make(records=records)
    path = folder / "spool.db"
    raw = bytearray(path.read_bytes())
    middle = len(raw) * 3 // 4 // 4096 * 4096  # Behind the schema and the run that is opened.
    raw[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(raw)
    assert deliver(folder, SyncHost(), patience=0)
    assert not folder.exists()
    run = recorder.run()
    assert run.info.status == "FINISHED"
    history = recorder.history(run, "loss")
    assert 200 < len(history) < 300 and all(value == step / 2 for step, value in history)
    assert "damaged" in caplog.text


def test_a_recovered_spool_doubles_nothing_that_was_delivered(recorder) -> None:
    opened = OpenRun("twice", now(), recorder.store_uri, recorder.experiment, None, str(Path.cwd()))
    for _ in range(2):  # The second one knows nothing of what the first has sent.
        folder = make(records=[opened, *said("twice", 20), EndRun("twice", "FINISHED", now())])
        recover(folder)
        assert deliver(folder, SyncHost(), patience=0)
    run = recorder.run()
    assert recorder.history(run, "loss") == [(i, i / 2) for i in range(20)]
