"""Trainings by ``xgboost.dask``: recorded by the process that asks for them, from what they return.

The workers train in other processes, or in threads of this one, and say nothing (``training.is_first_rank``).
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping
from typing import Any

from autolog import guard
from autolog.patching import Call
from autolog.records import now
from autolog.run import Run
from flavors.xgboost import importances, lineage, params, snapshots
from flavors.xgboost.snapshots import Frozen


def train(call: Call) -> Generator[None, Any, None]:
    """Record one ``xgboost.dask.train``, which returns the booster and the history of its metrics.

    Under an asynchronous client the call returns before the training begins; then its parameters are all there is.
    """
    run = call.run
    arguments = params.bind(call.function, call.args, call.kwargs)
    given = {
        **params.of_booster(arguments.get("params")),
        **params.of_call({name: value for name, value in arguments.items() if name not in ("client", "coll_cfg")}),
    }
    run.params(given)
    result = yield
    if inspect.isawaitable(result) or not isinstance(result, Mapping):
        run.tags({"autolog.incomplete": "trained by an asynchronous Dask client"})
        return
    booster, history = result["booster"], result["history"]
    run.params(params.defaults(params.in_effect(booster), given))
    form = snapshots.format_of(run)
    _say_trained(run, booster, history, lambda frozen: snapshots.booster_snapshot(frozen, None, form))


def fit(call: Call) -> Generator[None, Any, None]:
    """Record one ``fit`` of a Dask estimator. Its model is the estimator of the same name without Dask."""
    run, estimator = call.run, call.instance
    name = type(estimator).__name__
    run.tags({"estimator_name": name, "estimator_class": f"{type(estimator).__module__}.{name}"})
    values = guard.run("read the estimator's parameters", params.of_estimator, estimator) or {}
    said = {name: value for name, value in values.items() if value is not None}
    run.params(said)
    result = yield
    if result is not estimator:  # Which is awaitable itself, so that this is the way to tell.
        run.params({name: value for name, value in values.items() if value is None})
        run.tags({"autolog.incomplete": "trained by an asynchronous Dask client"})
        return
    booster = estimator.get_booster()
    effective = params.in_effect(booster)
    run.params({name: effective.get(name) for name in values if name not in said})
    form = snapshots.format_of(run)
    local = f"xgboost.sklearn.{name.removeprefix('Dask')}"

    def pack(frozen: Frozen) -> Any:
        return snapshots.estimator_snapshot(local, frozen, None, None, form)

    # It raises where there was nothing to evaluate on.
    history = guard.attempt(estimator.evals_result).value or {}
    _say_trained(run, booster, history, pack)


def _say_trained(run: Run, booster: Any, history: Mapping[str, Mapping[str, Any]], pack: snapshots.Pack) -> None:
    columns = {f"{data}-{metric}": list(v) for data, metrics in history.items() for metric, v in metrics.items()}
    rounds = max(map(len, columns.values()), default=0)
    # When which round was, only the workers know. A point that is said twice is one if its time is the same.
    time = now()
    for step in range(rounds):
        values = {name: column[step] for name, column in columns.items() if step < len(column)}
        run.metrics(values, step=step, time=time)
    best = booster.attr("best_iteration")
    stopping = {}
    if best is not None:
        stopping = {
            "best_iteration": int(best),
            "best_score": float(booster.attr("best_score")),
            "stopped_iteration": rounds - 1,
        }
    key = None
    if run.config.log_models:
        frozen = snapshots.freeze(booster)
        key = run.model(lambda: pack(frozen), step=max(0, rounds - 1), register=True)
        lineage.remember(booster, key)
        importances.say(run, frozen, key)
        final = {name: column[-1] for name, column in columns.items() if len(column) == rounds}
        if final:
            run.metrics(final, step=rounds - 1, time=time, model=key)
    if stopping:
        run.metrics(stopping, model=key)
