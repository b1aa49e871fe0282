"""Beside MLflow's own API: what the user's ``mlflow`` is doing, and how its calls and ours meet.

The user's module is looked at through ``sys.modules`` and never imported. Its calls never fail because of ours:
everything of ours that happens inside them is guarded.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from autolog import guard
from autolog.commits import commit_at

if TYPE_CHECKING:
    from autolog.run import Run

#: MLflow's name for the autologging integration of a framework of ours. Plain torch has none: what MLflow calls
#: ``pytorch`` records Lightning only.
MLFLOW_FLAVORS = {"sklearn": "sklearn", "xgboost": "xgboost", "pyspark": "pyspark.ml"}

#: Seconds that a read through MLflow, or the end of the user's own run, waits for what was recorded before it.
READ_TIMEOUT = 10.0

_READS = (
    "get_run",
    "get_metric_history",
    "search_runs",
    "search_logged_models",
    "get_logged_model",
    "list_artifacts",
    "list_logged_model_artifacts",
    "download_artifacts",
    "get_experiment",
    "get_experiment_by_name",
    "search_experiments",
)


def _fluent() -> Any:
    return sys.modules.get("mlflow.tracking.fluent")


def active_run() -> str | None:
    """Return the id of the run that the user has active in this thread, or that MLFLOW_RUN_ID names."""
    fluent = _fluent()
    if fluent is not None and hasattr(fluent, "active_run"):
        run = fluent.active_run()
        if run is not None:
            return str(run.info.run_id)
    return os.environ.get("MLFLOW_RUN_ID") or None


def tracking_uri() -> str | None:
    """Return the tracking URI that the user's MLflow uses; None for MLflow's default."""
    utils = sys.modules.get("mlflow.tracking._tracking_service.utils")
    if utils is not None and hasattr(utils, "is_tracking_uri_set") and utils.is_tracking_uri_set():
        return str(utils.get_tracking_uri())
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def experiment_id() -> str | None:
    """Return the experiment that the user chose with ``mlflow.set_experiment`` or MLFLOW_EXPERIMENT_ID."""
    chosen = getattr(_fluent(), "_active_experiment_id", None)
    return chosen or os.environ.get("MLFLOW_EXPERIMENT_ID") or None


def wants_system_metrics() -> bool:
    """Return whether MLflow is set to record system metrics, by the variable that its own function sets, too."""
    return os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("true", "1")


def samples_system_metrics(run_id: str) -> bool:
    """Return whether MLflow itself records system metrics into the user's run."""
    return run_id in getattr(_fluent(), "run_id_to_system_metrics_monitor", {})


def mlflow_records(flavor: str) -> bool:
    """Return whether MLflow's own autologging is on for the framework of `flavor`."""
    utils = sys.modules.get("mlflow.utils.autologging_utils")
    name = MLFLOW_FLAVORS.get(flavor)
    if utils is None or name is None or name not in utils.AUTOLOGGING_INTEGRATIONS:
        return False
    return not utils.autologging_is_disabled(name)


# -- tags that MLflow sets ------------------------------------------------------------------------------------------


def source_name() -> str:
    """Return what MLflow calls the source: the main script, or the interpreter where there is none."""
    return sys.argv[0] if sys.argv and sys.argv[0] else sys.executable


def context_tags(script: str) -> dict[str, str]:
    """Return MLflow's tags for user and git commit, as of now, in this process. Reads files; for the worker thread.

    script: the absolute path of what makes the run.
    """
    from autolog.forks import held_off  # Here it is there already: with SQLite, for the spool.

    with held_off():
        import getpass

        user = guard.attempt(getpass.getuser)
    tags = {}
    if user.value:
        tags["mlflow.user"] = user.value
    commit = guard.attempt(commit_at, script)
    if commit.value:
        tags["mlflow.source.git.commit"] = commit.value
    return tags


_local = threading.local()


@contextmanager
def own_calls() -> Iterator[None]:
    """Mark what this thread does through MLflow meanwhile as ours: a read then waits for nothing.

    The sender may be waiting for this very thread, which makes a run in the user's own call.
    """
    before = getattr(_local, "own", False)
    _local.own = True
    try:
        yield
    finally:
        _local.own = before


# -- meeting the user's calls -----------------------------------------------------------------------------------------


class Meeting:
    """The wrappers around the user's MLflow: reads see what was recorded, logging goes into our open run."""

    def __init__(
        self,
        *,
        drain: Callable[[float], bool],
        open_here: Callable[[], Run | None],
        last: Callable[[], Run | None],
        remote: Callable[[Run, float], str | None],
        run_of: Callable[[str], Run | None],
        user_run_ends: Callable[[str], None],
    ) -> None:
        self._drain = drain
        self._open_here = open_here
        self._last = last
        self._remote = remote
        self._run_of = run_of
        self._user_run_ends = user_run_ends

    def patch(self, fluent: Any, stack: ExitStack) -> None:
        """Wrap the module ``mlflow.tracking.fluent`` and the client below it, undone by `stack`."""
        from autolog.patching import install

        for name, wrapper in (
            ("_get_or_start_run", self._get_or_start_run),
            ("end_run", self._end_run),
            ("last_active_run", self._last_active_run),
            ("log_metric", self._log_metric),
            ("log_metrics", self._log_metrics),
        ):
            install(stack, fluent, name, wrapper, also=("mlflow", "mlflow.tracking"))
        client = sys.modules.get("mlflow.tracking._tracking_service.client")
        if client is not None:
            for name in _READS:
                if hasattr(client.TrackingServiceClient, name):
                    install(stack, client.TrackingServiceClient, name, self._read)
            install(stack, client.TrackingServiceClient, "log_metric", self._client_log_metric)
            install(stack, client.TrackingServiceClient, "log_batch", self._client_log_batch)

    def _ours(self) -> bool:
        return getattr(_local, "own", False) or threading.current_thread().name.startswith("autolog-")

    def _read(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        if not self._ours():
            guard.run("wait for what it recorded", self._drain, READ_TIMEOUT)
        return wrapped(*args, **kwargs)

    def _get_or_start_run(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        if not self._ours():
            found = guard.run("hand its run to the user's logging call", self._our_active_run)
            if found is not None:
                return found
        return wrapped(*args, **kwargs)

    def _our_active_run(self) -> Any:
        fluent = _fluent()
        if fluent.active_run() is not None:
            return None
        run = self._open_here()
        if run is None:
            return None
        if run.opened.tracking_uri not in (None, tracking_uri()):
            return None  # The user's calls go to another store than our records.
        run_id = self._remote(run, READ_TIMEOUT)
        if run_id is None:
            return None
        client = sys.modules["mlflow.tracking._tracking_service.client"].TrackingServiceClient
        stored = client(_uri_of_fluent()).store.get_run(run_id)
        # With its outputs, by which MLflow links the user's metrics to the model of the same step.
        return fluent.ActiveRun(stored)

    # What the user logs under a name of ours is theirs: two sources in one curve would be a wrong one. The calls of
    # the module are met before they look for the run, which takes until it is in the store, and its first values, too.

    def _log_metric(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        if not self._ours():
            guard.run("leave a metric to the user", self._claim_here, args[:1] or (kwargs.get("key"),), kwargs)
        return wrapped(*args, **kwargs)

    def _log_metrics(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        if not self._ours():
            guard.run("leave metrics to the user", self._claim_here, args[0] if args else kwargs.get("metrics"), kwargs)
        return wrapped(*args, **kwargs)

    def _client_log_metric(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        if not self._ours():
            guard.run("leave a metric to the user", self._claim, *_named(args, kwargs, "run_id", "key"), one=True)
        return wrapped(*args, **kwargs)

    def _client_log_batch(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        if not self._ours():
            guard.run("leave metrics to the user", self._claim, *_named(args, kwargs, "run_id", "metrics"))
        return wrapped(*args, **kwargs)

    def _claim_here(self, names: Any, kwargs: Mapping[str, Any]) -> None:
        run_id = kwargs.get("run_id") or active_run()
        run = self._run_of(run_id) if run_id else self._open_here()
        if run is not None:
            run.claim([name for name in names if isinstance(name, str)])

    def _claim(self, run_id: Any, named: Any, *, one: bool = False) -> None:
        run = self._run_of(run_id)
        if run is not None and isinstance(named, Sequence):  # What can be read once is left to MLflow.
            run.claim([str(named)] if one else [metric.key for metric in named])

    def _end_run(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        active = None if self._ours() else guard.run("see which run ends", active_run)
        if active is not None:
            guard.run("finish what belongs to the run that ends", self._user_run_ends, active)
            guard.run("wait for what it recorded", self._drain, READ_TIMEOUT)
        return wrapped(*args, **kwargs)

    def _last_active_run(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        theirs = wrapped(*args, **kwargs)
        run = None if self._ours() else guard.run("look up its last run", self._last)
        if run is None or _fluent().active_run() is not None:
            return theirs
        if theirs is not None and theirs.info.start_time > run.start_time:
            return theirs
        run_id = guard.run("look up its last run", self._remote, run, READ_TIMEOUT)
        return theirs if run_id is None else _fluent().get_run(run_id)


def _named(args: Sequence[Any], kwargs: Mapping[str, Any], *names: str) -> list[Any]:
    """Return the arguments `names`, the first ones of a call."""
    return [args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(names)]


def _uri_of_fluent() -> str:
    return str(sys.modules["mlflow.tracking._tracking_service.utils"].get_tracking_uri())
