"""What is switched on in this process, and the runs that are open.

There is one of these per process because there is one deque, one spool and one sender per process; runs themselves
are independent of each other. A forked child starts with nothing switched on.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolog import beside, endings, guard, scope
from autolog.config import Config
from autolog.uris import working_folder

if TYPE_CHECKING:
    from autolog.run import Run
    from autolog.writer import Writer

config = Config(disable=True)
enabled = False
#: Whether recording was on in the process that this one was forked from.
enabled_before_fork = False
writer: Writer | None = None

_lock = threading.Lock()
_open: dict[str, tuple[Run, int]] = {}
_adopted: dict[str, Run] = {}
_last: Run | None = None


def recording() -> bool:
    """Return whether a training call made here and now would be recorded."""
    return enabled and not scope.is_muted() and not threading.current_thread().name.startswith("autolog-")


def wanted(flavor: str) -> bool:
    """Return whether the settings ask for a flavor."""
    named = not config.flavors or flavor in config.flavors
    return enabled and named and flavor not in config.exclude_flavors


def get_writer() -> Writer:
    """Return the writer of this process, made when first needed."""
    global writer
    if writer is None:
        from autolog.writer import Writer  # Not before something is recorded: sqlite3, subprocess and the like.

        with _lock:
            if writer is None:
                made = Writer(config.sender, room=config.spool_limit * 1_000_000)
                if not config.silent and endings.watched():
                    from autolog.summary import Ledger  # Not where nobody will be told.

                    made.ledger = Ledger()
                writer = made
    return writer


def spark_task() -> Any:
    """Return the context of the Spark task that this process is at, None where it is at none."""
    module = sys.modules.get("pyspark.taskcontext")
    return None if module is None else module.TaskContext.get()


def is_other_rank() -> bool:
    """Return whether another process of the same distributed training records.

    Not in a Spark task: its worker process may still have the rank that an earlier task put into the environment.
    """
    return scope.rank() > 0 and spark_task() is None


def may_record(flavor: str) -> bool:
    """Return whether a run may be opened here: not in other ranks, and not where MLflow's own autologging records."""
    if is_other_rank():
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


def opening() -> dict[str, Any]:
    """Return where a run that is opened now is to be recorded, as :class:`autolog.records.OpenRun` has it."""
    place: dict[str, Any] = {
        "tracking_uri": config.tracking_uri or beside.tracking_uri(),
        "experiment": config.experiment,
        "experiment_id": None if config.experiment else beside.experiment_id(),
        "cwd": working_folder(),
        "system_metrics": config.log_system_metrics or beside.wants_system_metrics(),
    }
    if place["experiment"] is None and place["experiment_id"] is None:
        place["experiment"] = os.environ.get("MLFLOW_EXPERIMENT_NAME") or None
    return place


def open_parent(name: str) -> Run:
    """Open the run that holds the calls of a carried function; no training is recorded in it itself."""
    from autolog.run import Run

    global _last
    run = Run(get_writer(), config, "carry", opening=opening(), name=name)
    main_file = beside.source_name()
    run.tags({**config.extra_tags, **source()})
    run.later("read the git commit", lambda: _context(run, main_file))
    _open[run.key] = (run, 0)  # No thread's: what the user logs by hand is not about it.
    _last = run
    return run


def source() -> dict[str, str]:
    """Return the tags by which MLflow shows what made a run."""
    return {"mlflow.source.name": beside.source_name(), "mlflow.source.type": "LOCAL"}


def _hosted(host: scope.Host, flavor: str) -> Run | None:
    """Return the run of the carried call for the first training in it, None for another, which is a child of it."""
    global _last
    if not host.is_first():
        return None
    host.run.flavor = flavor
    host.run.tags({"mlflow.autologging": flavor})
    _last = host.run
    return host.run


def open_run(flavor: str, *, name: str | None = None, parent: Run | None = None, start_time: int | None = None) -> Run:
    """Open a run, or take the user's own active MLflow run.

    A second training inside one run of the user's becomes a child run of it, so that neither overwrites the other.
    parent: the run that this one is a child of, in the same store; then the user's active run is not looked at.
    start_time: milliseconds since the epoch, of a run that began before now.
    """
    from autolog.run import Run

    global _last
    by_flavor = parent is not None
    active = None if by_flavor or config.exclusive else beside.active_run()
    host = scope.host()
    if host is not None and parent is None and active in (None, host.around):
        hosted = _hosted(host, flavor)
        if hosted is not None:
            return hosted
        parent, active = host.run, None
    place = opening()
    if parent is not None:
        place["tracking_uri"] = parent.opened.tracking_uri
    if by_flavor:
        place["system_metrics"] = False  # A part of the parent's training, on the same machine.
    to = get_writer()
    if active is not None:
        place["tracking_uri"] = beside.tracking_uri()
        if beside.samples_system_metrics(active):
            place["system_metrics"] = False
        first = _adopted.get(active)
        if first is None:
            run = _adopted[active] = Run(to, config, flavor, opening=place, adopt=active, name=name)
            if config.extra_tags:
                run.tags(config.extra_tags)
            _last = run
            return run
        parent = first
    run = Run(to, config, flavor, opening=place, parent=parent, name=name, start_time=start_time)
    run.host = host.run.key if host is not None and parent is host.run else None
    main_file = beside.source_name()
    run.tags({"mlflow.autologging": flavor, **config.extra_tags, **source()})
    if not by_flavor:
        run.later("read the git commit", lambda: _context(run, main_file))
        _open[run.key] = (run, threading.get_ident())
        _last = run
    return run


def _context(run: Run, main_file: str) -> None:
    tags = beside.context_tags(str(Path(run.opened.cwd, main_file)))
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
    host = scope.host()
    if host is not None:
        return host.run
    mine = [run for run, thread in list(_open.values()) if thread == threading.get_ident()]
    return mine[-1] if mine else None


def run_of(run_id: str) -> Run | None:
    """Return the open run, or the one that the user's run was adopted as, that has this id in the store.

    An own run is found once somebody in this process has asked for its id: nobody else here can name it.
    """
    return _adopted.get(run_id) or next((run for run, _ in list(_open.values()) if run.remote == run_id), None)


def last_run() -> Run | None:
    """Return the run that was opened last."""
    return _last


def user_run_ended(run_id: str) -> Run | None:
    """Forget that the user's run was adopted; return what it was adopted as."""
    return _adopted.pop(run_id, None)


def after_fork_in_child() -> None:
    """Switch everything off in a forked child: its parent records, and locks may have been held by other threads."""
    global enabled, enabled_before_fork, writer, _lock, _last
    enabled_before_fork = enabled
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
