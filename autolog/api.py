"""Switching things on and off: what a user calls."""

from __future__ import annotations

import atexit
import builtins
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autolog import beside, endings, guard, imports, registry, runtime, scope
from autolog.checkpoints import Checkpoints
from autolog.config import Config, resolve

if TYPE_CHECKING:
    from autolog.run import Run
    from autolog.writer import Writer

_UNSET: Any = object()
_stack = ExitStack()
_watched: set[str] = set()
_exit_registered = False
_silenced = False


def autolog(
    *flavors: str,
    tracking_uri: str | None = _UNSET,
    experiment: str | None = _UNSET,
    log_models: bool = _UNSET,
    log_datasets: bool = _UNSET,
    log_model_signatures: bool = _UNSET,
    log_input_examples: bool = _UNSET,
    log_post_training_metrics: bool = _UNSET,
    log_system_metrics: bool = _UNSET,
    disable: bool = _UNSET,
    exclusive: bool = _UNSET,
    silent: bool = _UNSET,
    extra_tags: Mapping[str, str] | None = _UNSET,
    exclude_flavors: Sequence[str] = _UNSET,
    registered_model_name: str | None = _UNSET,
    serialization_format: str | None = _UNSET,
    max_tuning_runs: int | str | None = _UNSET,
    max_points: int | str | None = _UNSET,
    spool_limit: int = _UNSET,
    importance_types: Sequence[str] | None = _UNSET,
    pos_label: Any = _UNSET,
    disable_for_unsupported_versions: bool = _UNSET,
    checkpoints: Checkpoints = _UNSET,
    sender: str = _UNSET,
    exit_timeout: float = _UNSET,
) -> None:
    """Record training in scikit-learn, PyTorch, XGBoost and Spark ML in MLflow, from here on.

    May stand before or after the imports of the frameworks, and may be called again to change settings. Every
    argument has an environment variable ``AUTOLOG_<NAME>``; an argument wins over its variable. Names shared with
    ``mlflow.autolog`` mean the same.

    flavors: names of the flavors wanted; none means all whose framework is installed.
    tracking_uri: where to record; default is what MLflow in this process uses, else MLflow's own default store.
    experiment: name of the experiment, made when new; default is what MLflow in this process uses.
    log_models, log_datasets, log_model_signatures, log_input_examples, log_post_training_metrics: what to record.
    log_system_metrics: record processor, memory, disk, network and GPU of the machine under MLflow's own names
        ``system/...``, every 10 seconds (MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL), from outside this process. Needs
        ``pip install "mlflow-autolog[system]"``.
    disable: switch everything off, as :func:`disable`.
    exclusive: never record into a run that the user started; open one of our own instead.
    silent: no messages of ours at all.
    extra_tags: tags for every run.
    exclude_flavors: names of flavors not wanted.
    registered_model_name: register each final model under this name.
    serialization_format: how models are written: "skops", "cloudpickle" or "pickle" (scikit-learn), "pickle" or "pt2"
        (PyTorch), "ubj" or "json" (XGBoost). None chooses for each model, as does a flavor that lacks the format.
    max_tuning_runs: child runs for the best candidates of a search over parameters; None or "all" for all of them.
    max_points: how many points of a metric are kept as they are; those beyond become means of several, with minimum,
        maximum and last value (see :mod:`autolog.coalescing`); None or "all" keeps all.
    spool_limit: megabytes that may wait on disk while the store is away, before metrics are coalesced in that way.
    importance_types: feature importances of XGBoost: "weight", "gain", "cover", "total_gain", "total_cover".
    pos_label: the positive class of binary training metrics; None averages over classes, weighted by support.
    disable_for_unsupported_versions: leave frameworks alone whose version is outside the supported range.
    checkpoints: when to snapshot models that train step by step, and what to keep.
    sender: "process" delivers from a child process that outlives this one, "thread" from a thread of this one.
    exit_timeout: seconds to wait for delivery when the process exits; the rest stays on disk for ``autolog sync``.

    Raises:
        TypeError, ValueError: an argument or variable that is unknown, of the wrong kind, or contradicts another.
        LookupError: a flavor asked for by name that no distribution provides.
        ImportError: a flavor asked for by name whose framework is not installed or cannot be used; the message has
            the command that installs it.
    """
    given = {
        name: value
        for name, value in (
            ("tracking_uri", tracking_uri),
            ("experiment", experiment),
            ("log_models", log_models),
            ("log_datasets", log_datasets),
            ("log_model_signatures", log_model_signatures),
            ("log_input_examples", log_input_examples),
            ("log_post_training_metrics", log_post_training_metrics),
            ("log_system_metrics", log_system_metrics),
            ("disable", disable),
            ("exclusive", exclusive),
            ("silent", silent),
            ("extra_tags", extra_tags),
            ("exclude_flavors", exclude_flavors),
            ("registered_model_name", registered_model_name),
            ("serialization_format", serialization_format),
            ("max_tuning_runs", max_tuning_runs),
            ("max_points", max_points),
            ("spool_limit", spool_limit),
            ("importance_types", importance_types),
            ("pos_label", pos_label),
            ("disable_for_unsupported_versions", disable_for_unsupported_versions),
            ("checkpoints", checkpoints),
            ("sender", sender),
            ("exit_timeout", exit_timeout),
        )
        if value is not _UNSET
    }
    if flavors:
        given["flavors"] = flavors
    config = resolve(given)
    if config.disable:
        globals()["disable"]()
        return
    known = registry.entry_points()
    for name in (*config.flavors, *config.exclude_flavors):
        if name not in known:
            raise LookupError(f"no flavor is called {name!r}; installed are {', '.join(sorted(known))}")
    wanted = [name for name in (config.flavors or known) if name not in config.exclude_flavors]
    for name in config.flavors:
        _require(name)
    if runtime.config.sender != config.sender and runtime.writer is not None:
        guard.logger().debug(
            "the sender of this process is already chosen; sender=%r applies to the next", config.sender
        )
    runtime.config = config
    if config.silent or _silenced:
        _silence(config.silent)
    _switch_on(wanted)
    for flavor in registry.loaded():
        if flavor.patched and flavor.name not in wanted:
            flavor.unpatch()
        elif not flavor.patched and flavor.name in wanted and flavor.name in sys.modules:
            _framework_imported(flavor.name, sys.modules[flavor.name])


def _silence(silent: bool) -> None:
    import logging

    global _silenced
    _silenced = silent
    guard.logger().setLevel(logging.CRITICAL + 1 if silent else logging.NOTSET)


def _require(name: str) -> None:
    """Raise ImportError, with the command that helps, for a flavor asked for whose framework does not import."""
    if name in sys.modules:
        return
    found = guard.attempt(importlib.util.find_spec, name)
    if found.value is None:
        raise ImportError(
            f"autolog({name!r}) was asked for, but {name} is not installed. "
            f"Install it with: {registry.install_hint(name)}"
        )


def _switch_on(wanted: list[str]) -> None:
    global _exit_registered
    runtime.enabled = True
    if not _exit_registered:
        _exit_registered = True
        atexit.register(_at_exit)
        endings.watch()
    for name in wanted:
        _watch(name, partial(_framework_imported, name))
    _watch("mlflow.tracking.fluent", _mlflow_imported)


def _watch(module: str, found: Callable[[ModuleType], None]) -> None:
    if module not in _watched:
        _watched.add(module)
        _stack.callback(_unwatch, module, found)
        imports.when_imported(module, found)


def _unwatch(module: str, found: Callable[[ModuleType], None]) -> None:
    _watched.discard(module)
    imports.forget(module, found)


def _framework_imported(name: str, module: ModuleType) -> None:
    config = runtime.config
    if not runtime.enabled or name in config.exclude_flavors or (config.flavors and name not in config.flavors):
        return
    endings.watch()  # Again: where the environment switched recording on, the script did not run yet.
    if "threads" not in _watched:
        from autolog.patching import install

        _watched.add("threads")
        _stack.callback(_watched.discard, "threads")
        install(_stack, threading.Thread, "start", scope.start_thread)
        for owner, way in ((sys, "exit"), (builtins, "exit"), (builtins, "quit")):
            if hasattr(owner, way):  # The built-in ones are the module site's.
                install(_stack, owner, way, endings.leave)
        _stack.callback(endings.watch_cells(_finish, _after_cell))
        _stack.callback(endings.watch_threads(_finish_here))
    _patch(name, module)


def _patch(name: str, module: ModuleType) -> None:
    config = runtime.config
    problem = registry.version_problem(name)
    if problem is not None and config.disable_for_unsupported_versions:
        guard.logger().debug("%s: not recorded, as disable_for_unsupported_versions asks", problem)
        return
    if problem is not None:
        guard.say_once(f"version-{name}", "mlflow-autolog: %s; it is recorded all the same.", problem)
    loaded = guard.attempt(registry.load_flavor, name)
    if loaded.value is None:
        if name in config.flavors and loaded.error is not None:
            raise loaded.error
        guard.logger().debug("flavor %s cannot be used", name, exc_info=loaded.error)
        return
    flavor = loaded.value
    if not flavor.patched:
        flavor.patched = True
        patched = guard.attempt(flavor.patch, module)
        if patched.error is not None:
            flavor.unpatch()
            raise patched.error


_meeting = beside.Meeting(
    drain=lambda timeout: flush(timeout),
    open_here=runtime.open_run_here,
    last=runtime.last_run,
    remote=lambda run, timeout: remote_id(run, timeout),
    run_of=runtime.run_of,
    user_run_ends=lambda run_id: _user_run_ends(run_id),
)


def _mlflow_imported(fluent: ModuleType) -> None:
    if runtime.enabled:
        guard.run("meet the user's mlflow", _meeting.patch, fluent, _stack)


def _user_run_ends(run_id: str) -> None:
    for flavor in registry.loaded():
        flavor.finish_adopted(run_id)
    adopted = runtime.user_run_ended(run_id)
    if adopted is not None:
        adopted.end()


def disable() -> None:
    """Stop recording and take all patches back. Runs that are open between calls are ended; nothing said is lost."""
    runtime.enabled = False
    _finish("FINISHED", None)
    for flavor in registry.loaded():
        if flavor.patched:
            guard.run(f"unpatch {flavor.name}", flavor.unpatch)
    _stack.close()


@contextmanager
def paused() -> Iterator[None]:
    """Record nothing that this thread calls inside the ``with`` block. May be nested."""
    with scope.muted():
        yield


def flush(timeout: float = 30.0) -> bool:
    """Wait until everything recorded so far is in the tracking store.

    timeout: seconds. Returns False where it ran out; nothing is lost then, delivery goes on.
    """
    writer = runtime.writer
    if writer is None or threading.current_thread().name.startswith("autolog-"):
        return True
    done = writer.flush(timeout)
    _say_problems()
    return done


def _problems() -> list[tuple[str, str]]:
    """Return what the sender says that it could not do, as (kind, message), kind "store" or "refused"."""
    writer = runtime.writer
    if writer is None or writer.folder is None or not (writer.folder / "spool.db").exists():
        return []
    from autolog.spool import Spool

    spool = Spool(writer.folder)
    try:
        return [(kind, message) for _, kind, message in spool.problems()]
    finally:
        spool.close()


def _say_problems() -> None:
    """Repeat, once each, what the sender could not do."""
    for kind, message in _problems():
        guard.say_problem(kind, message)


def remote_id(run: Run, timeout: float) -> str | None:
    """Return the id that the tracking store gave to `run`, waiting up to `timeout` seconds for it."""
    if run.remote is None:
        run.remote = run.adopted or _find_remote(run, timeout)
    return run.remote


def _find_remote(run: Run, timeout: float) -> str | None:
    deadline = time.monotonic() + timeout
    writer = runtime.get_writer()
    key = f"run:{run.key}"
    writer.kick()
    writer.spooled_folder(timeout)
    if writer.folder is None:
        return None
    from autolog.spool import Spool

    spool = Spool(writer.folder)
    try:
        if "mlflow.tracking.client" in sys.modules and run.parent is None:
            # The user's own MLflow call asks: do what it would have done, rather than wait for the sender.
            from autolog.opening import open_for_owner

            with beside.own_calls():
                created = open_for_owner(spool, run.opened)
            if created is not None:
                return created
        while True:
            known = spool.lookup(key)
            if known is not None and known.remote is not None:
                return known.remote
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)
    finally:
        spool.close()


@dataclass(frozen=True, slots=True)
class LastRun:
    """The run that this process recorded last."""

    _run: Run

    @property
    def run_id(self) -> str:
        """Its id in the tracking store, waiting for it up to 30 seconds.

        Raises: TimeoutError where the store has not made it by then.
        """
        found = remote_id(self._run, 30.0)
        if found is None:
            raise TimeoutError("the tracking store has not made the run yet; see autolog.status()")
        return found

    @property
    def flavor(self) -> str:
        """The framework that it records."""
        return self._run.flavor

    def __repr__(self) -> str:
        """Return its framework, and its id where that was asked for; the store is not asked here."""
        return f"LastRun(flavor={self.flavor!r}, run_id={self._run.remote or self._run.adopted!r})"


def last_run() -> LastRun | None:
    """Return the run that was opened last in this process, or None."""
    run = runtime.last_run()
    return None if run is None else LastRun(run)


def status() -> dict[str, Any]:
    """Return what is switched on, what waits to be delivered, and what went wrong.

    Keys: enabled, config, flavors (name -> whether it is patched, its supported range and any version problem),
    writer (spool folder, sender), backlog (records on disk that wait), errors (swallowed errors, oldest first).
    """
    writer = runtime.writer
    backlog = 0
    if writer is not None and writer.folder is not None and (writer.folder / "spool.db").exists():
        from autolog.spool import Spool

        spool = Spool(writer.folder)
        try:
            backlog = spool.backlog()
        finally:
            spool.close()
    patched = {flavor.name for flavor in registry.loaded() if flavor.patched}
    return {
        "enabled": runtime.enabled,
        "config": runtime.config,
        "flavors": {
            name: {
                "patched": name in patched,
                "supported": " ".join(registry.supported(name)),
                "problem": registry.version_problem(name),
            }
            for name in sorted(registry.entry_points())
        },
        "writer": writer.snapshot() if writer is not None else None,
        "backlog": backlog,
        "problems": [message for _, message in _problems()],
        "errors": [f"could not {what}: {type(error).__name__}: {error}" for what, error in guard.swallowed],
    }


def _finish(status: str, error: BaseException | None) -> None:
    """End the runs that stay open between calls."""
    for flavor in registry.loaded():
        guard.run(f"finish {flavor.name}", flavor.finish, status, error)


def _after_cell() -> None:
    """Show below a notebook's cell what was trained in it."""
    if runtime.writer is not None and runtime.writer.ledger is not None:
        from autolog import summary

        summary.after_cell(runtime.writer, runtime.config)


def _finish_here(status: str, error: BaseException | None) -> None:
    """End the runs of this thread that stay open between calls."""
    for flavor in registry.loaded():
        guard.run(f"finish {flavor.name}", flavor.finish_here, status, error)


def _end_open(status: str, error: BaseException | None) -> None:
    """End every run of ours that is open."""
    _finish(status, error)
    for run in runtime.open_runs():
        guard.run("end the run", run.end, status, error)
        runtime.closed(run)


def _at_exit() -> None:
    """End what is open with the status that the process ends with, and deliver."""
    runtime.enabled = False
    state, error = endings.state()
    if state == endings.AS_EXIT_CODE:
        state = "FINISHED"
        if runtime.writer is not None:
            guard.attempt(runtime.writer.leave_to_exit_code, runtime.config.exit_timeout)
    _end_open(state, error)
    if runtime.writer is not None:
        _deliver_at_exit(runtime.writer)
    endings.keep_exit_code(error)


def _deliver_at_exit(writer: Writer) -> None:
    progress = None
    if writer.ledger is not None:
        from autolog import summary

        progress = summary.Progress(runtime.config)
    done = guard.attempt(writer.flush, runtime.config.exit_timeout, progress)
    if progress is not None:
        progress.close()
    lost = writer.dropped + writer.unwritten
    if lost:
        guard.logger().warning(
            "mlflow-autolog: %d records could not be written to the disk (%s) and are lost. Training was not affected; "
            "free some space, or set AUTOLOG_SPOOL_DIR to a folder that has it",
            lost,
            writer.folder,
        )
    if done.value:
        guard.attempt(_say_problems)
    else:
        # A training that ended well has, whatever becomes of a model that is still being saved.
        writer.end_runs()
    if not done.value and not lost:
        waiting = [message for kind, message in guard.attempt(_problems).value or [] if kind == "store"]
        reason = f"delivery takes longer than {runtime.config.exit_timeout:g} s"
        if waiting:
            reason = waiting[-1] if guard.first_time(waiting[-1]) else "the store still does not take it"
        guard.logger().warning(
            "mlflow-autolog: %s. Nothing is lost: what is not delivered yet is kept in %s and delivered in the "
            "background while this machine runs; to deliver it by hand: autolog sync",
            reason,
            writer.folder,
        )
    if progress is not None:
        guard.run("say what it recorded", summary.at_exit, writer, runtime.config)
    guard.attempt(writer.close)


__all__ = ["Checkpoints", "Config", "LastRun", "autolog", "disable", "flush", "last_run", "paused", "status"]
