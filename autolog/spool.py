"""Records and model files on disk: written by the training process, emptied by whichever sender holds the lease.

One folder per training process::

    <root>/<key>/spool.db     SQLite, WAL: meta, records, those set aside, ids, claims, problems
    <root>/<key>/blobs/       files that records name; complete before the record exists
    <root>/<key>/owner.lock   held while the training process lives
    <root>/<key>/sender.lock  held by the one sender that delivers

Torn writes, crash recovery and locking are SQLite's: a :class:`Lease` is an open exclusive transaction on a file of
its own, which the operating system ends with the process that holds it. What a disk gives back wrongly is found by a
checksum (CRC-32) of each row: a wrong number is worse than a missing one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import stat
import sys
import tempfile
import uuid
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autolog.forks import Database
from autolog.records import Record, decode, encode

FORMAT = 2

#: Rows that one statement inserts at most: SQLite before 3.32 takes 999 values.
_ROWS = 200
#: A file that says: the training process left this spool, damaged, for another.
MOVED = "moved"
#: What the name of a folder ends with that is being deleted.
_DELIVERED = ".delivered"
#: Says in the meta table that the spool stands in for another one.
IN_DOUBT = "in_doubt"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
    crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS aside (
    seq INTEGER PRIMARY KEY, run TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS ids (key TEXT PRIMARY KEY, remote TEXT, claimant TEXT NOT NULL, detail TEXT);
CREATE TABLE IF NOT EXISTS problems (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, message TEXT NOT NULL UNIQUE);
"""


class SpoolError(Exception):
    """A spool folder that must not or cannot be read: foreign owner, open permissions, unknown format."""


class Row(NamedTuple):
    """A stored record with the sequence number of its row, which consecutive points share."""

    seq: int
    record: Record


class Id(NamedTuple):
    """What is known of a key's counterpart in the tracking store. `remote` is None while its claimant creates it."""

    remote: str | None
    claimant: str
    detail: dict[str, str]


def root() -> Path:
    """Return the folder that holds all spools of this user: AUTOLOG_SPOOL_DIR or the platform's state folder."""
    named = os.environ.get("AUTOLOG_SPOOL_DIR")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return Path(base or Path.home() / "AppData" / "Local") / "mlflow-autolog" / "spool"
    base = os.environ.get("XDG_STATE_HOME")
    return Path(base or Path.home() / ".local" / "state") / "mlflow-autolog" / "spool"


def make_folder() -> Path:
    """Create a spool folder, readable by this user only, and return it.

    Falls back to the temporary folder where the state folder cannot be written (a read-only home).
    """
    for parent in (root(), Path(tempfile.gettempdir()) / f"mlflow-autolog-{_user_id()}"):
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_private(parent)
            folder = parent / uuid.uuid4().hex
            folder.mkdir(mode=0o700)
            (folder / "blobs").mkdir(mode=0o700)
        except OSError:
            continue
        return folder
    raise SpoolError(
        f"no folder for the spool: neither {root()} nor {tempfile.gettempdir()} can be written; "
        "set AUTOLOG_SPOOL_DIR to one that can"
    )


def check_private(folder: Path) -> None:
    """Refuse a folder that another user owns or can write to: what lies in it is loaded by the sender.

    Raises: SpoolError.
    """
    if sys.platform == "win32":
        return  # The profile folder is private by its access list.
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise SpoolError(f"{folder} is not a folder")
    if info.st_uid != os.getuid():
        raise SpoolError(f"{folder} belongs to another user (uid {info.st_uid})")
    if info.st_mode & 0o022:
        raise SpoolError(f"{folder} can be written by other users; run: chmod 700 {folder}")


def _user_id() -> int:
    return os.getuid() if sys.platform != "win32" else 0


class Lease:
    """The exclusive hold on one file, for as long as this process lives or until :meth:`release`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: Database | None = None

    def acquire(self) -> bool:
        """Take the lease; return False where another process has it, or its folder is gone."""
        return self._take(new=True)

    def _take(self, *, new: bool) -> bool:
        try:
            connection = Database(self._path, new=new, timeout=0)
        except sqlite3.OperationalError:
            return False
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            connection.close()
            return False
        self._connection = connection
        return True

    def release(self) -> None:
        """Give the lease back; harmless when it is not held."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @staticmethod
    def is_free(path: Path) -> bool:
        """Return whether nobody holds the lease on `path`. Makes no file, as its folder may be about to be deleted."""
        lease = Lease(path)
        if not lease._take(new=False):
            return not path.exists()
        lease.release()
        return True


class Spool:
    """An open spool. Each thread opens its own; SQLite arbitrates."""

    def __init__(self, folder: Path, *, new: bool = False) -> None:
        """Open the spool in `folder`; new: which is made. Any other may be delivered, and deleted, at any time.

        Raises: SpoolError where there is none, the folder is not this user's own, or it was written by an unknown
            version; sqlite3.DatabaseError where the file is damaged.
        """
        self.folder = folder
        self.blobs = folder / "blobs"
        self._path = folder / "spool.db"
        if not new and not self._path.exists():
            raise SpoolError(f"there is no spool in {folder}")
        check_private(folder)
        self._db = Database(self._path, new=new, timeout=30)
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
        except UnicodeDecodeError as error:
            # What is damaged is quoted in SQLite's own complaint.
            raise sqlite3.DatabaseError(f"{folder} is damaged") from error
        # NORMAL survives the death of any process; only a power cut can lose the last commits, and a training that
        # loses power has nothing to compare them with.
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.script(_SCHEMA)
        self._path.chmod(0o600)
        #: Whether the store may hold what is not known here: in place of one that was damaged or deleted, or where
        #: the last commits may be lost, so that claims say nothing.
        self.in_doubt = self.meta(IN_DOUBT) is not None
        version = self.meta("format")
        if version is None:
            self.set_meta("format", str(FORMAT))
        elif version != str(FORMAT):
            self.close()
            raise SpoolError(f"{folder} was written by another version (spool format {version}, here {FORMAT})")

    def close(self) -> None:
        """Close the database; the files stay."""
        self._db.close()

    def exists(self) -> bool:
        """Return whether the database is still where it was opened: an open one that was deleted takes writes, too."""
        return self._path.exists()

    # -- meta ---------------------------------------------------------------------------------------------------

    def meta(self, key: str) -> str | None:
        """Return one value of the meta table."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).first
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Store one value in the meta table."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    # -- records ------------------------------------------------------------------------------------------------

    def append(self, records: Iterable[Record]) -> int:
        """Store records in one transaction and return the sequence number of the last one, 0 where there is none."""
        rows = [(run, kind, body, checksum(run, kind, body)) for run, kind, body in encode(records)]
        # Each call of SQLite lets go of the interpreter and waits for it again, which costs a busy training more than
        # the call itself. So the rows are one statement, a transaction by itself, unless there are many.
        if len(rows) <= _ROWS:
            return self._insert(rows) if rows else 0
        with self._db.transaction():
            return [self._insert(rows[start : start + _ROWS]) for start in range(0, len(rows), _ROWS)][-1]

    def _insert(self, rows: Sequence[tuple[str, str, str, int]]) -> int:
        places = ", ".join(["(?, ?, ?, ?)"] * len(rows))
        values = [value for row in rows for value in row]
        done = self._db.execute(f"INSERT INTO records (run, kind, body, crc) VALUES {places}", values)
        assert done.last is not None
        return done.last

    def pending(self, limit: int = 1000, *, after: int = 0) -> list[Row]:
        """Return stored records, oldest first: `limit`, and the rest of those that share a row with the last one.

        after: only those with a sequence number above it.
        Rows that the disk has damaged are deleted, and said as a problem.
        """
        found: list[Row] = []
        damaged: list[int] = []
        query = "SELECT seq, run, kind, body, crc FROM records WHERE seq > ? ORDER BY seq LIMIT ?"
        # One pass: in a damaged table the next page may be one that was read before.
        with self._db.reading(query, (after, limit)) as rows:
            for seq, run, kind, body, crc in rows:
                if len(found) >= limit:
                    break
                if checksum(run, kind, body) == crc:
                    found += [Row(seq, record) for record in decode(run, kind, body)]
                else:
                    damaged.append(seq)
        for seq in damaged:
            self._db.execute("DELETE FROM records WHERE seq = ?", (seq,))
            self.problem("damaged", f"row {seq} of {self.folder} was damaged on the disk and is not recorded")
        return found

    def ending(self) -> set[str]:
        """Return the keys of the runs whose end waits."""
        return {str(run) for (run,) in self._db.execute("SELECT run FROM records WHERE kind = 'EndRun'").rows}

    def size(self) -> int:
        """Return how many bytes the records on disk take."""
        pages, free, size = (
            int(self._db.execute(f"PRAGMA {name}").rows[0][0]) for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def backlog(self) -> int:
        """Return how many rows of records wait."""
        return int(self._db.execute("SELECT count(*) FROM records").rows[0][0])

    def first_pending(self) -> int | None:
        """Return the sequence number of the oldest record that waits."""
        value = self._db.execute("SELECT min(seq) FROM records").rows[0][0]
        return None if value is None else int(value)

    def delivered(self, through: int) -> None:
        """Forget all records up to and including sequence number `through`."""
        self._db.execute("DELETE FROM records WHERE seq <= ?", (through,))

    def forget(self, seq: int) -> None:
        """Forget the records of one sequence number."""
        self._db.execute("DELETE FROM records WHERE seq = ?", (seq,))

    def set_aside(self, seqs: Iterable[int]) -> list[Row]:
        """Keep the records of some sequence numbers out of :meth:`pending`; return them."""
        numbers = [(seq,) for seq in seqs]
        with self._db.transaction():
            self._db.each("INSERT OR REPLACE INTO aside SELECT * FROM records WHERE seq = ?", numbers)
            self._db.each("DELETE FROM records WHERE seq = ?", numbers)
        wanted = {seq for (seq,) in numbers}
        return [row for row in self.aside() if row.seq in wanted]

    def aside(self) -> list[Row]:
        """Return the records that are set aside, oldest first."""
        rows = self._db.execute("SELECT seq, run, kind, body FROM aside ORDER BY seq").rows
        return [Row(seq, record) for seq, run, kind, body in rows for record in decode(run, kind, body)]

    def anything_aside(self) -> bool:
        """Return whether any records are set aside."""
        return bool(self._db.execute("SELECT 1 FROM aside LIMIT 1").rows)

    def take_back(self) -> list[int]:
        """Have :meth:`pending` return what was set aside, in its old order; return the sequence numbers."""
        with self._db.transaction():
            moved = [int(seq) for (seq,) in self._db.execute("SELECT seq FROM aside").rows]
            self._db.execute("INSERT OR IGNORE INTO records SELECT * FROM aside")
            self._db.execute("DELETE FROM aside")
        return moved

    def restore(self, seq: int, run: str, kind: str, body: str, crc: int) -> None:
        """Store a row again that was read from a damaged database, under its own number."""
        self._db.execute("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?)", (seq, run, kind, body, crc))

    # -- ids ----------------------------------------------------------------------------------------------------

    def claim(self, key: str, claimant: str) -> bool:
        """Claim the right to create `key`'s counterpart in the store; False where somebody did before.

        The claim is on disk before the store is asked, so that a crash in between is seen and looked up.
        """
        done = self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, NULL, ?, '{}')", (key, claimant))
        return done.changed == 1

    def bind(self, key: str, remote: str, claimant: str, detail: dict[str, str] | None = None) -> None:
        """Store the id that the tracking store gave to `key`."""
        self._db.execute(
            "INSERT OR REPLACE INTO ids VALUES (?, ?, ?, ?)", (key, remote, claimant, json.dumps(detail or {}))
        )

    def restore_id(self, key: str, remote: str | None, claimant: str, detail: str | None) -> None:
        """Store an id again that was read from a damaged database."""
        self._db.execute("INSERT OR IGNORE INTO ids VALUES (?, ?, ?, ?)", (key, remote, claimant, detail))

    def unclaim(self, key: str) -> None:
        """Take an unfulfilled claim back."""
        self._db.execute("DELETE FROM ids WHERE key = ? AND remote IS NULL", (key,))

    def lookup(self, key: str) -> Id | None:
        """Return what is known of `key`'s counterpart in the store."""
        row = self._db.execute("SELECT remote, claimant, detail FROM ids WHERE key = ?", (key,)).first
        return None if row is None else Id(row[0], row[1], json.loads(row[2] or "{}"))

    def keys(self, prefix: str) -> dict[str, Id]:
        """Return all known ids whose key starts with `prefix`."""
        found = self._db.execute(
            "SELECT key, remote, claimant, detail FROM ids WHERE substr(key, 1, ?) = ?", (len(prefix), prefix)
        )
        return {row[0]: Id(row[1], row[2], json.loads(row[3] or "{}")) for row in found.rows}

    # -- problems -----------------------------------------------------------------------------------------------

    def problem(self, kind: str, message: str) -> None:
        """Keep a problem of the delivery for the training process or ``autolog status`` to say, once each."""
        self._db.execute("INSERT OR IGNORE INTO problems (kind, message) VALUES (?, ?)", (kind, message))

    def problems(self, after: int = 0) -> list[tuple[int, str, str]]:
        """Return the (seq, kind, message) of problems with a number above `after`."""
        found = self._db.execute("SELECT seq, kind, message FROM problems WHERE seq > ? ORDER BY seq", (after,))
        return [(int(seq), str(kind), str(message)) for seq, kind, message in found.rows]

    def clear_problems(self, kind: str) -> None:
        """Forget problems of one kind, as when the server answers again."""
        self._db.execute("DELETE FROM problems WHERE kind = ?", (kind,))


def checksum(run: object, kind: object, body: object) -> int:
    """Return the CRC-32 of a row of records."""
    return zlib.crc32(f"{run}\0{kind}\0{body}".encode(errors="surrogatepass"))


def remove(folder: Path) -> None:
    """Delete a spool whose records are all delivered: in an instant for others, who may be about to look into it."""
    gone = folder.with_name(folder.name + _DELIVERED)
    try:
        folder.rename(gone)
    except OSError:  # Not everywhere while a file in it is open.
        gone = folder
    shutil.rmtree(gone, ignore_errors=True)


def sweep(parent: Path | None = None) -> None:
    """Delete what is left below `parent` of spools that somebody died while deleting."""
    for folder in (folder for each in _parents(parent) for folder in each.glob(f"*{_DELIVERED}")):
        shutil.rmtree(folder, ignore_errors=True)


def spools(parent: Path | None = None) -> list[Path]:
    """Return the folders of all spools below `parent`, oldest first."""
    found: dict[Path, float] = {}
    for folder in (path.parent for each in _parents(parent) for path in each.glob("*/spool.db")):
        with contextlib.suppress(FileNotFoundError):  # Delivered meanwhile.
            if not folder.name.endswith(_DELIVERED):
                found[folder] = folder.stat().st_mtime
    return sorted(found, key=found.__getitem__)


def _parents(parent: Path | None) -> list[Path]:
    parents = [parent] if parent else [root(), Path(tempfile.gettempdir()) / f"mlflow-autolog-{_user_id()}"]
    return [each for each in parents if each.is_dir()]


def describe(folder: Path) -> dict[str, Any]:
    """Return what ``autolog status`` shows of a spool: backlog, whether its owner lives, problems."""
    spool = Spool(folder)
    try:
        return {
            "folder": str(folder),
            "backlog": spool.backlog(),
            "aside": len({row.seq for row in spool.aside()}),
            "owner_alive": not Lease.is_free(folder / "owner.lock"),
            "problems": [message for _, _, message in spool.problems()],
        }
    finally:
        spool.close()
