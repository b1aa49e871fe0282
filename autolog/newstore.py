"""A new sqlite tracking store, made whole or not at all.

MLflow makes one in dozens of migrations, in place and without a lock. Two processes that do so at once, such as two
trainings started together in a new folder, leave a file that no MLflow can open again. Here it is made under another
name and appears complete; a store that somebody else is making is waited for.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

#: Seconds without any change after which an unfinished store is no longer being made.
STILL = 5.0


def make_ready(uri: str, create: Callable[[str], None]) -> None:
    """Create the store of the tracking URI `uri` where that is a sqlite file that does not exist yet.

    create: makes a complete store at the sqlite URI that it is given, and lets go of the file.

    Raises: what `create` raises; OSError.
    """
    path = _file(uri)
    if path is None or not path.parent.is_dir():
        return
    while not path.exists():
        if _is_being_made(path):
            time.sleep(0.05)
        else:
            _create(uri, path, create)
    while not _is_complete(path) and _changes(path):
        time.sleep(0.05)


def _file(uri: str) -> Path | None:
    if not uri.startswith("sqlite:///"):
        return None
    from sqlalchemy import make_url

    # As SQLAlchemy reads it, which has its own mind about escapes.
    name = make_url(uri).database
    return None if not name or name.startswith((":memory:", "file:")) else Path(name)


def _is_being_made(path: Path) -> bool:
    # Two drafts at once would only be work done twice.
    return any(_changes(draft) for draft in path.parent.glob(f".{glob.escape(path.name)}.new-*"))


def _create(uri: str, path: Path, create: Callable[[str], None]) -> None:
    from sqlalchemy import make_url

    draft = path.with_name(f".{path.name}.new-{os.getpid()}-{threading.get_ident()}")
    draft.touch()
    try:
        create(make_url(uri).set(database=draft.as_posix()).render_as_string(hide_password=False))
        _appear(draft, path)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)


def _appear(draft: Path, path: Path) -> None:
    """Give `draft` its name, unless that is taken: then another process was faster."""
    with contextlib.suppress(FileExistsError):
        try:
            os.link(draft, path)
        except FileExistsError:
            raise
        except OSError:  # A file system without hard links.
            if not path.exists():
                draft.rename(path)


def _is_complete(path: Path) -> bool:
    # The last thing that MLflow puts into a new store is the experiment "Default".
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=1.0)) as store:
            return store.execute("SELECT 1 FROM experiments LIMIT 1").fetchone() is not None
    except sqlite3.Error:
        return False


def _changes(path: Path) -> bool:
    """Return whether the store is being written to. One that nobody works on is left to MLflow to judge."""
    for name in (path.name, f"{path.name}-journal", f"{path.name}-wal"):
        with contextlib.suppress(OSError):
            if abs(time.time() - path.with_name(name).stat().st_mtime) < STILL:
                return True
    return False
