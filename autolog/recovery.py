"""A spool whose database is damaged: what can still be read becomes a new one, the rest is said and kept aside."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from autolog import guard
from autolog.spool import IN_DOUBT, Spool, checksum

#: The damaged database, kept beside the new one until all of that is delivered.
ASIDE = "spool.db.damaged"
#: Row numbers that are tried one by one past a page that cannot be read; a page holds far fewer.
_TRIES = 20_000


def recover(folder: Path) -> int:
    """Make a new database of what can be read of ``folder/spool.db``; return how many rows of records that is.

    Everything that is recovered may have been delivered before, and what the old database knew of that may be lost:
    the new one says so (:data:`~autolog.spool.IN_DOUBT`), and the delivery looks everything up in the store before it
    sends it.

    Raises: OSError, sqlite3.Error where not even a new database can be written.
    """
    for suffix in ("", "-wal", "-shm"):
        path = folder / f"spool.db{suffix}"
        if path.exists():
            path.replace(folder / f"{ASIDE}{suffix}")
    old = sqlite3.connect(folder / ASIDE, isolation_level=None)
    old.text_factory = lambda raw: raw.decode(errors="replace")
    spool = Spool(folder, new=True)
    count = 0
    try:
        for seq, run, kind, body, crc in _rows(old, "records", "run, kind, body, crc"):
            if checksum(run, kind, body) == crc:
                spool.restore(seq, run, kind, body, crc)
                count += 1
                spool.set_meta("attempted", str(seq))
        for seq, run, kind, body, crc in _rows(old, "aside", "run, kind, body, crc"):
            if checksum(run, kind, body) == crc:
                spool.restore(seq, run, kind, body, crc)
                count += 1
        for _, key, remote, claimant, detail in _rows(old, "ids", "key, remote, claimant, detail"):
            spool.restore_id(key, remote, claimant, detail)
        for _, key, value in _rows(old, "meta", "key, value"):
            if key in ("pid", "cwd", "argv"):
                spool.set_meta(key, str(value))
        spool.set_meta(IN_DOUBT, "recovered")
        spool.problem(
            "damaged",
            f"the spool {folder} was damaged on the disk; {count} of its rows could be read and are delivered, "
            "what was in the others is lost",
        )
    finally:
        spool.close()
        old.close()
    return count


def _rows(db: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """Yield (row number, *columns) of every row that can be read."""
    query = f"SELECT rowid, {columns} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT 1"
    number, failed = 0, 0
    while failed < _TRIES:
        read = guard.attempt(lambda after: db.execute(query, (after,)).fetchone(), number)
        if isinstance(read.error, sqlite3.OperationalError) or "not a database" in str(read.error):
            return  # Not a page but the table of contents is damaged: nothing can be found.
        if read.error is not None:
            failed += 1
            number += 1
        elif read.value is None:
            return
        else:
            failed, number = 0, read.value[0]
            yield read.value
