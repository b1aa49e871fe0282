"""Trainings by ``xgboost.dask``: recorded by the process that asks for them, from what they return.

The workers train in other processes, or in threads of this one, and say nothing (``training.is_first_rank``).

Under an asynchronous client ``train`` and ``fit`` return a coroutine that has not begun. What is recorded then is the
coroutine function behind them, from the first ``await`` to its end: a training that nobody awaits is none.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any

from autolog import endings, guard, runtime, scope
from autolog.patching import Call
from autolog.records import now
from autolog.run import Run
from autolog.scope import Scope
from flavors.xgboost import importances, lineage, params, snapshots, training
from flavors.xgboost.snapshots import Frozen

#: Arguments that say where to train, not what.
_PLACE = ("client", "coll_cfg", "global_config", "dconfig")

#: What records a training's result once it is there.
Done = Callable[[Any], None]

#: The calls that are returning a coroutine now.
_asynchronous: weakref.WeakSet[Scope] = weakref.WeakSet()


def opens_run(call: Call) -> bool:
    """Return whether this call trains: under an asynchronous client, only the coroutine that it returns does."""
    if not training.is_first_rank(call):
        return False
    # It raises where there is no client, as the user's call will.
    client = guard.attempt(_client, call).value
    if getattr(client, "asynchronous", False) is not True:
        return True
    assert call.scope is not None
    _asynchronous.add(call.scope)
    return False


def _client(call: Call) -> Any:
    if call.instance is not None:
        return call.instance.client
    given = params.bind(call.function, call.args, call.kwargs).get("client")
    if given is not None:
        return given
    import distributed

    return distributed.get_client()


def train(call: Call) -> Generator[None, Any, None]:
    """Record one ``xgboost.dask.train``, which returns the booster and the history of its metrics."""
    done = _begin_train(call.run, call.function, call.instance, call.args, call.kwargs)
    result = yield
    done(result)


def fit(call: Call) -> Generator[None, Any, None]:
    """Record one ``fit`` of a Dask estimator. Its model is the estimator of the same name without Dask."""
    done = _begin_fit(call.run, call.function, call.instance, call.args, call.kwargs)
    result = yield
    done(result)


# -- under an asynchronous client -------------------------------------------------------------------------------------


def train_async(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Wrap the coroutine function behind ``train``; of a synchronous client, it runs in another thread."""
    return _awaited(_begin_train, wrapped, instance, args, kwargs)


def fit_async(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Wrap the coroutine method behind ``fit``."""
    return _awaited(_begin_fit, wrapped, instance, args, kwargs)


def _awaited(begin: Callable[..., Done], wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    here = scope.current()
    if here is None or here not in _asynchronous:
        return wrapped(*args, **kwargs)
    made: Any = _recorded(begin, wrapped, instance, args, kwargs)
    made.__name__, made.__qualname__ = wrapped.__name__, wrapped.__qualname__
    return made


async def _recorded(begin: Callable[..., Done], wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    run = guard.run("open a run", _open)
    if run is None:
        return await wrapped(*args, **kwargs)
    what = f"record xgboost {wrapped.__qualname__}"
    done = guard.run(what, begin, run, wrapped, instance, args, kwargs)
    try:
        result = await wrapped(*args, **kwargs)
    except BaseException as error:
        guard.run("end the run", _end, run, endings.status_of(error), error)
        raise
    if done is not None:
        guard.run(what, done, result)
    guard.run("end the run", _end, run, "FINISHED", None)
    return result


def _open() -> Run | None:
    # A training around it would be recorded; here the task that awaits is outermost.
    if not runtime.recording() or scope.current() is not None or not runtime.may_record("xgboost"):
        return None
    return runtime.open_run("xgboost")


def _end(run: Run, status: str, error: BaseException | None) -> None:
    run.end(status, error)
    runtime.closed(run)


# -- what is said -----------------------------------------------------------------------------------------------------


def _begin_train(run: Run, function: Any, instance: None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Done:
    arguments = params.bind(function, args, kwargs)
    given = {
        **params.of_booster(arguments.get("params")),
        **params.of_call({name: value for name, value in arguments.items() if name not in _PLACE}),
    }
    run.params(given)
    return partial(_trained, run, given)


def _trained(run: Run, given: Mapping[str, Any], result: Any) -> None:
    booster, history = result["booster"], result["history"]
    run.params(params.defaults(params.in_effect(booster), given))
    form = snapshots.format_of(run)
    _say_trained(run, booster, history, lambda frozen: snapshots.booster_snapshot(frozen, None, form))


def _begin_fit(run: Run, function: Any, estimator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Done:
    name = type(estimator).__name__
    run.tags({"estimator_name": name, "estimator_class": f"{type(estimator).__module__}.{name}"})
    values = guard.run("read the estimator's parameters", params.of_estimator, estimator) or {}
    run.params({name: value for name, value in values.items() if value is not None})
    return partial(_fitted, run, estimator, values)


def _fitted(run: Run, estimator: Any, values: Mapping[str, Any], result: Any) -> None:
    booster = estimator.get_booster()
    effective = params.in_effect(booster)
    run.params({name: effective.get(name) for name, value in values.items() if value is None})
    form = snapshots.format_of(run)
    local = f"xgboost.sklearn.{type(estimator).__name__.removeprefix('Dask')}"

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
