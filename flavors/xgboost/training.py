"""What is said about one ``xgboost.train`` or ``xgboost.cv``."""

from __future__ import annotations

import dataclasses
import sys
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

from autolog import guard, predictions, runtime
from autolog.datasets import Dataset
from autolog.models import ModelSnapshot
from autolog.patching import Call, TrainingFailed
from autolog.run import Run
from autolog.scope import Scope
from flavors.xgboost import fitting, folds, lineage, matrices, outcome, params, snapshots
from flavors.xgboost.fitting import Fitting
from flavors.xgboost.rounds import Rounds, stops_early
from flavors.xgboost.snapshots import Checkpointer, Frozen

#: Packages that train on behalf of others, in processes that are not the user's own.
_WORKERS = ("xgboost.dask", "xgboost.spark")


def may_open() -> bool:
    """Return whether a loop of the user's that begins here is recorded."""
    return runtime.may_record("xgboost") and _records_here()


def is_first_rank(call: Call) -> bool:
    """Return whether this is the process that records a training: the first worker of a distributed one.

    What Dask's and Spark's workers train is recorded where the user called it.
    """
    return _records_here()


def _records_here() -> bool:
    from xgboost import collective

    if int(collective.get_rank()) != 0:
        return False
    caller = next(_callers(), None)
    return caller is None or not str(caller.f_globals.get("__name__", "")).startswith(_WORKERS)


def _callers() -> Iterator[FrameType]:
    """Yield the frames that led to this call, but for those of this package and of the patches, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] not in ("autolog", "flavors", "wrapt") and name not in (
            "xgboost.core",
            "xgboost.training",
        ):
            yield frame
        frame = frame.f_back


def joins_fit(call: Call, outer: Scope) -> bool:
    """Return whether this is the training of a recorded ``fit``: of an XGBoost estimator's, or of the user's own."""
    fit = fitting.current.get()
    if fit is not None:
        return not fit.training
    return outer.flavor != "xgboost" and outer.owner is not None and _is_of_main(outer)


def _is_of_main(outer: Scope) -> bool:
    """Return whether the estimator that trains here is the one that the outer run is about, not a search's candidate.

    It is the nearest one up the stack: what has a method running that has it as its first argument.
    """
    for frame in _callers():
        code = frame.f_code
        if code.co_argcount and code.co_name.startswith(("fit", "partial_fit", "_fit")):
            return id(frame.f_locals.get(code.co_varnames[0])) in outer.main
    return False


def train(call: Call) -> Generator[None, Any, None]:
    """Record one ``xgboost.train``: by itself, or what the ``fit`` around it does not see."""
    fit = fitting.current.get()
    if fit is not None:
        yield from _of_fit(call, fit)
    elif call.scope is not None and call.scope.flavor != "xgboost":
        yield from _of_other_fit(call)
    else:
        yield from _native(call)


def _native(call: Call) -> Generator[None, Any, None]:
    run = call.run
    arguments = params.bind(call.function, call.args, call.kwargs)
    given = {**params.of_booster(arguments.get("params")), **params.of_call(arguments)}
    run.params(given)
    if arguments.get("xgb_model") is not None:
        _say_parent(run, arguments["xgb_model"])
    inputs = None
    if run.config.log_model_signatures:
        inputs = guard.run("make the signature", matrices.schema, arguments.get("dtrain"))
    form = snapshots.format_of(run)

    def pack(frozen: Frozen) -> ModelSnapshot:
        return snapshots.booster_snapshot(frozen, inputs, form)

    rounds = _record(
        call,
        run,
        arguments,
        guard.run("describe the data", _say_datasets, call, run, arguments),
        snapshots.checkpointer(run, pack, arguments.get("params"), continues=arguments.get("xgb_model") is not None),
        first=lambda booster: run.params(params.defaults(params.in_effect(booster), given)),
    )
    try:
        booster = yield
        rounds.settle()
        key, _ = outcome.say_finished(rounds, booster, lambda frozen: lambda: pack(frozen), rounds.last_index(booster))
        predictions.remember(booster, run, key)
    except TrainingFailed:
        guard.run("save the model as far as it was trained", outcome.save_partial, rounds, pack)
        raise
    finally:
        rounds.close()


def _say_parent(run: Run, source: Any) -> None:
    tags = guard.run("see what model is continued", lineage.tags, source)
    if tags:
        run.tags(tags)


def _of_fit(call: Call, fit: Fitting) -> Generator[None, Any, None]:
    fit.trainings += 1
    fit.training = True
    try:
        if fit.trainings > 1:
            # A user's own fit may train twice. The rounds of the first are recorded, but they are not the model's.
            yield
            return
        arguments = params.bind(call.function, call.args, call.kwargs)
        checkpointer = first = None
        if fit.own:
            given = {**params.of_booster(arguments.get("params")), **params.of_call(arguments)}
            # An estimator hands on what it leaves open, too.
            fit.say_params({name: value for name, value in given.items() if value is not None or name not in fit.late})
            continues = arguments.get("xgb_model") is not None
            if continues:
                _say_parent(fit.run, arguments["xgb_model"])
            checkpointer = snapshots.checkpointer(fit.run, fit.pack, arguments.get("params"), continues=continues)
            first = fit.say_effective
        fit.rounds = _record(call, fit.run, arguments, fit.datasets, checkpointer, first=first)
        booster = yield
        fit.rounds.settle()
        if not fit.own:
            stopping = fit.rounds.stopping(booster)
            if stopping:
                fit.run.metrics(stopping)
    finally:
        fit.training = False


#: Runs of other flavors that have the rounds of a training already: a second one's would fall on the same steps.
_folded: weakref.WeakSet[Scope] = weakref.WeakSet()


def _of_other_fit(call: Call) -> Generator[None, Any, None]:
    """Record the rounds of a training inside the ``fit`` of an estimator that is not XGBoost's, in the run of that.

    The model is the estimator, which the outer fit records; parameters are told apart from the estimator's own.
    """
    assert call.scope is not None
    if call.scope in _folded:
        yield
        return
    _folded.add(call.scope)
    run = call.run
    arguments = params.bind(call.function, call.args, call.kwargs)
    given = {**params.of_booster(arguments.get("params")), **params.of_call(arguments)}
    run.params({f"xgboost.{name}": value for name, value in given.items()})
    rounds = _record(call, run, arguments, None, None)
    try:
        booster = yield
        rounds.settle()
        stopping = rounds.stopping(booster)
        if stopping:
            run.metrics(stopping)
    finally:
        rounds.close()


def cv(call: Call) -> Generator[None, Any, None]:
    """Record one ``xgboost.cv``: the mean and standard deviation of each metric over the folds, per round.

    Names are those of the columns that it returns: ``test-rmse-mean``; each fold's own is ``test-rmse-fold-0``. There
    is no model.
    """
    run = call.run
    arguments = params.bind(call.function, call.args, call.kwargs)
    given = {**params.of_booster(arguments.get("params")), **params.of_call(arguments)}
    run.params(given)
    guard.run("describe the data", _say_datasets, call, run, arguments)

    def first(packed: Any) -> None:
        run.params(params.defaults(params.in_effect(packed.cvfolds[0].bst), given))

    scored = folds.Folds()
    rounds = _record(call, run, arguments, None, None, first=first, more=scored.take)
    token = folds.current.set(scored)
    try:
        yield
        if rounds.model is not None:
            stopping = rounds.stopping(rounds.model)
            if stopping:
                run.metrics(stopping)
    finally:
        folds.current.reset(token)
        rounds.close()


def _record(
    call: Call,
    run: Run,
    arguments: Mapping[str, Any],
    datasets: Mapping[str, Dataset] | None,
    checkpointer: Checkpointer | None,
    *,
    first: Callable[[Any], object] | None = None,
    more: Callable[[], Mapping[str, float]] | None = None,
) -> Rounds:
    """Put the callback into the call, in a list of our own."""
    given = arguments.get("callbacks") or ()
    callbacks = list(given) if isinstance(given, Iterable) else []
    rounds = Rounds(
        run,
        datasets=datasets,
        stops=stops_early(arguments.get("early_stopping_rounds"), callbacks),
        checkpointer=checkpointer,
        first=first,
        more=more,
        continues=arguments.get("xgb_model") is not None,
        in_place=params.of_booster(arguments.get("params")).get("process_type") == "update",
    )
    if isinstance(given, Iterable):  # Else the user's mistake stays the user's.
        callbacks.insert(0, rounds.callback())
        args = params.put(call.function, call.args, "callbacks", callbacks)
        if args is None:
            call.kwargs["callbacks"] = callbacks
        else:
            call.args = args
    return rounds


def _say_datasets(call: Call, run: Run, arguments: Mapping[str, Any]) -> dict[str, Dataset]:
    found: dict[str, Dataset] = {}
    if not run.config.log_datasets:
        return found
    dtrain, evals = arguments.get("dtrain"), arguments.get("evals")
    trained = matrices.describe(dtrain, call.name_of(dtrain) or "dataset")
    if trained is not None:
        run.dataset(trained, "train")
    # Anything else can be read once only, which is for XGBoost.
    for matrix, name in evals if isinstance(evals, list | tuple) else ():
        if matrix is dtrain and trained is not None:
            dataset: Dataset | None = dataclasses.replace(trained, name=str(name))
        else:
            dataset = matrices.describe(matrix, str(name))
        if dataset is not None:
            found[name] = dataset
            run.dataset(dataset, "eval")
    return found
