"""What is switched on in this process, and the runs that are open.

There is one of these per process because there is one deque, one spool and one sender per process; runs themselves
are independent of each other. A forked child starts with nothing switched on.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolog import beside, guard, scope
from autolog.config import Config

if TYPE_CHECKING:
    from autolog.run import Run
    from autolog.writer import Writer

config = Config(disable=True)
enabled = False
writer: Writer | None = None

_lock = threading.Lock()
_open: dict[str, tuple[Run, int]] = {}
_adopted: dict[str, Run] = {}
_last: Run | None = None


def recording() -> bool:
    """Return whether a training call made here and now would be recorded."""
    return enabled and not scope.is_muted() and not threading.current_thread().name.startswith("autolog-")


def get_writer() -> Writer:
    """Return the writer of this process, made when first needed."""
    global writer
    if writer is None:
        from autolog.writer import Writer  # Not before something is recorded: sqlite3, subprocess and the like.

        with _lock:
            if writer is None:
                writer = Writer(config.sender)
    return writer


def may_record(flavor: str) -> bool:
    """Return whether a run may be opened here: not in other ranks, and not where MLflow's own autologging records."""
    if scope.rank() > 0:
        return False
    if beside.mlflow_records(flavor):
        guard.say_once(
            f"mlflow-{flavor}",
            "mlflow-autolog: MLflow's own autologging is on for %s, so MLflow records it and mlflow-autolog does not. "
            "To have mlflow-autolog record it: mlflow.%s.autolog(disable=True)",
            flavor,
            beside.MLFLOW_FLAVORS.get(flavor, flavor),
        )
        return False
    return True


def open_run(flavor: str, *, name: str | None = None, parent: Run | None = None) -> Run:
    """Open a run, or take the user's own active MLflow run.

    A second training inside one run of the user's becomes a child run of it, so that neither overwrites the other.
    parent: the run that this one is a child of; then the user's active run is not looked at.
    """
    from autolog.run import Run

    global _last
    by_flavor = parent is not None
    active = None if by_flavor or config.exclusive else beside.active_run()
    opening: dict[str, Any] = {
        "tracking_uri": config.tracking_uri or beside.tracking_uri(),
        "experiment": config.experiment,
        "experiment_id": None if config.experiment else beside.experiment_id(),
        "cwd": str(Path.cwd()),
    }
    if opening["experiment"] is None and opening["experiment_id"] is None:
        opening["experiment"] = os.environ.get("MLFLOW_EXPERIMENT_NAME") or None
    to = get_writer()
    if active is not None:
        opening["tracking_uri"] = beside.tracking_uri()
        first = _adopted.get(active)
        if first is None:
            run = _adopted[active] = Run(to, config, flavor, opening=opening, adopt=active, name=name)
            if config.extra_tags:
                run.tags(config.extra_tags)
            _last = run
            return run
        parent = first
    run = Run(to, config, flavor, opening=opening, parent=parent, name=name)
    main_file = beside.source_name()
    source = {"mlflow.source.name": main_file, "mlflow.source.type": "LOCAL"}
    run.tags({"mlflow.autologging": flavor, **config.extra_tags, **source})
    if not by_flavor:
        run.later("read the git commit", lambda: _context(run, main_file))
        _open[run.key] = (run, threading.get_ident())
        _last = run
    return run


def _context(run: Run, main_file: str) -> None:
    tags = beside.context_tags(main_file)
    if tags:
        run.tags(tags)


def closed(run: Run) -> None:
    """Forget a run that has ended."""
    _open.pop(run.key, None)


def open_runs() -> list[Run]:
    """Return our own runs that are open, oldest first."""
    return [run for run, _ in list(_open.values())]


def open_run_here() -> Run | None:
    """Return the run that the user's own logging calls of this thread belong to."""
    here = scope.current()
    if here is not None and here.run is not None:
        return here.run
    mine = [run for run, thread in list(_open.values()) if thread == threading.get_ident()]
    return mine[-1] if mine else None


def last_run() -> Run | None:
    """Return the run that was opened last."""
    return _last


def user_run_ended(run_id: str) -> Run | None:
    """Forget that the user's run was adopted; return what it was adopted as."""
    return _adopted.pop(run_id, None)


def after_fork_in_child() -> None:
    """Switch everything off in a forked child: its parent records, and locks may have been held by other threads."""
    global enabled, writer, _lock, _last
    enabled = False
    if writer is not None:
        writer.after_fork_in_child()
    writer = None
    _last = None
    _lock = threading.Lock()
    _open.clear()
    _adopted.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork_in_child)
