"""What goes into the spool comes out, whatever the text, number or order."""

from __future__ import annotations

import math
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autolog import sender
from autolog.records import DatasetInput, EndRun, Params, Points, decode, encode
from autolog.spool import Lease, Spool, SpoolError, make_folder, spools

text = st.text(st.characters(exclude_categories=["Cs"]))
records = st.one_of(
    st.builds(Params, text, st.dictionaries(text, text)),
    st.builds(
        Points,
        text,
        st.integers(-(2**62), 2**62),
        st.integers(0, 2**53),
        st.dictionaries(text, st.floats()),
        st.none() | text,
        st.none() | st.tuples(text, text),
    ),
    st.builds(DatasetInput, text, text, text, text, text, st.none() | text, st.none() | text, text),
    st.builds(EndRun, text, st.sampled_from(["FINISHED", "FAILED", "KILLED"]), st.integers(0, 2**53)),
)


def same(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(records)
def test_a_record_survives_its_encoding(record) -> None:
    (row,) = encode([record])
    (back,) = decode(*row)
    assert same(back, record)


@given(st.lists(records, max_size=40))
def test_records_keep_their_order_in_shared_rows(said) -> None:
    rows = list(encode(said))
    read = [record for row in rows for record in decode(*row)]
    assert len(read) == len(said)
    assert all(map(same, read, said))


def test_consecutive_points_share_rows_of_bounded_length() -> None:
    rows = list(encode(Points("r", step, 0, {"a": 1.0}) for step in range(1200)))
    assert [len(decode(*row)) for row in rows] == [500, 500, 200]


@pytest.fixture
def spool(tmp_path: Path):
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    opened = Spool(folder, new=True)
    yield opened
    opened.close()


@settings(max_examples=30, deadline=None)
@given(st.lists(records, max_size=30), st.data())
def test_records_come_out_once_and_in_order(tmp_path_factory, said, data) -> None:
    folder = tmp_path_factory.mktemp("spool")
    folder.chmod(0o700)
    opened = Spool(folder, new=True)
    cut = data.draw(st.integers(0, len(said)))
    opened.append(said[:cut])
    opened.append(said[cut:])
    read: list = []
    while rows := opened.pending(7):
        read += [row.record for row in rows]
        opened.delivered(rows[-1].seq)
        opened.close()
        opened = Spool(folder)  # A sender that starts anew goes on where the last one stopped.
    opened.close()
    assert len(read) == len(said)
    assert all(map(same, read, said))


def test_what_a_number_is_does_not_matter(spool: Spool) -> None:
    import numpy as np

    spool.append([Points("r", 1, 2, {"a": np.float32(0.5), "b": np.int64(3), "c": np.array(2.0)})])
    (row,) = spool.pending()
    assert row.record.values == {"a": 0.5, "b": 3.0, "c": 2.0}


def test_a_claim_is_had_once(spool: Spool) -> None:
    assert spool.claim("run:a", "sender-1")
    assert not spool.claim("run:a", "owner-2")
    spool.bind("run:a", "remote", "sender-1", {"state": "open"})
    assert spool.lookup("run:a") == ("remote", "sender-1", {"state": "open"})
    spool.unclaim("run:a")
    assert spool.lookup("run:a") is not None, "a fulfilled claim stays"


def test_a_lease_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    code = (
        "import sys, pathlib; from autolog.spool import Lease; lease = Lease(pathlib.Path(sys.argv[1]));"
        "print(lease.acquire(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"True"
        assert not Lease(path).acquire()
        assert not Lease.is_free(path)
        holder.kill()
        holder.wait()
        assert Lease.is_free(path)


def test_nothing_is_made_where_a_spool_was_delivered_and_deleted(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    with pytest.raises(SpoolError, match="no spool"):
        Spool(tmp_path / "s")
    assert Lease.is_free(tmp_path / "s" / "owner.lock")
    assert list((tmp_path / "s").iterdir()) == []
    with pytest.raises(SpoolError, match="no spool"):
        Spool(tmp_path / "gone")
    assert Lease.is_free(tmp_path / "gone" / "owner.lock")
    assert not Lease(tmp_path / "gone" / "sender.lock").acquire()
    assert not (tmp_path / "gone").exists()


@pytest.fixture
def dead(tmp_path: Path) -> Path:
    """The spool of a training that is over; all of it is delivered."""
    folder = tmp_path / "s"
    (folder / "blobs").mkdir(parents=True)
    folder.chmod(0o700)
    Spool(folder, new=True).close()
    return folder


def test_who_syncs_while_a_spool_is_deleted_leaves_nothing_behind(dead: Path, monkeypatch) -> None:
    """As a sender does that is done with its own, while another one is with its."""
    met = []
    real = shutil.rmtree

    def rmtree(folder: Path, **more: bool) -> None:
        met.append(sender.sync(dead.parent))
        with pytest.raises(SpoolError, match="no spool"):
            Spool(dead)  # Who has found it before opens it now.
        real(folder, **more)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr(sender, "sweep", lambda parent: None)
    assert sender.deliver(dead, sender.SyncHost())
    monkeypatch.undo()
    assert met[0] == [] and list(dead.parent.iterdir()) == []


def test_who_syncs_while_a_spool_is_delivered_leaves_it_to_its_sender(dead: Path, monkeypatch) -> None:
    lease = Lease(dead / "sender.lock")
    assert lease.acquire()
    assert sender.sync(dead.parent) == [(dead, False, [])]
    real = sender.deliver

    def deliver(folder: Path, host: sender.Host, *, patience: float) -> bool:
        done = real(folder, host, patience=patience)
        lease.release()
        assert real(folder, sender.SyncHost())  # It finishes only then.
        return done

    monkeypatch.setattr(sender, "deliver", deliver)
    assert sender.sync(dead.parent) == []
    assert list(dead.parent.iterdir()) == []


def test_what_a_death_left_of_a_delivered_spool_is_swept_up(dead: Path) -> None:
    dead.rename(dead.with_name("s.delivered"))
    assert spools(dead.parent) == []
    assert sender.sync(dead.parent) == []
    assert list(dead.parent.iterdir()) == []


def test_spools_are_private() -> None:
    folder = make_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    opened = Spool(folder, new=True)
    assert stat.S_IMODE((folder / "spool.db").stat().st_mode) == 0o600
    opened.close()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_a_spool_that_others_can_write_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(SpoolError, match="chmod 700"):
        Spool(folder, new=True)


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="needs root to give a folder away")
def test_a_spool_of_another_user_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(SpoolError, match="another user"):
        Spool(folder, new=True)


def test_a_spool_of_an_unknown_version_is_left_alone(spool: Spool) -> None:
    spool.set_meta("format", "99")
    with pytest.raises(SpoolError, match="another version"):
        Spool(spool.folder)
