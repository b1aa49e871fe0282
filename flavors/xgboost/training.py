"""What is said about one ``xgboost.train`` or ``xgboost.cv``."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any

from autolog import guard
from autolog.datasets import Dataset
from autolog.models import ModelSnapshot
from autolog.patching import Call, TrainingFailed
from autolog.run import Run
from autolog.scope import Scope
from flavors.xgboost import fitting, matrices, outcome, params, snapshots
from flavors.xgboost.fitting import Fitting
from flavors.xgboost.rounds import Rounds, stops_early
from flavors.xgboost.snapshots import Checkpointer


def is_first_rank(call: Call) -> bool:
    """Return whether this is the process that records a training: the first worker of a distributed one."""
    from xgboost import collective

    return int(collective.get_rank()) == 0


def joins_fit(call: Call, outer: Scope) -> bool:
    """Return whether this is the training of a recorded estimator's ``fit``."""
    fit = fitting.current.get()
    return fit is not None and not fit.training


def train(call: Call) -> Generator[None, Any, None]:
    """Record one ``xgboost.train``: by itself, or what the ``fit`` around it does not see."""
    fit = fitting.current.get()
    if fit is None:
        yield from _native(call)
    else:
        yield from _of_fit(call, fit)


def _native(call: Call) -> Generator[None, Any, None]:
    run = call.run
    arguments = params.bind(call.function, call.args, call.kwargs)
    run.params({**params.of_booster(arguments.get("params")), **params.of_call(arguments)})
    inputs = None
    if run.config.log_model_signatures:
        inputs = guard.run("make the signature", matrices.schema, arguments.get("dtrain"))

    def pack(raw: Any) -> ModelSnapshot:
        return snapshots.booster_snapshot(raw, inputs)

    rounds = _record(
        call,
        run,
        arguments,
        guard.run("describe the data", _say_datasets, call, run, arguments),
        snapshots.checkpointer(run, pack, arguments.get("params"), continues=arguments.get("xgb_model") is not None),
    )
    try:
        booster = yield
        outcome.say_finished(rounds, booster, pack, rounds.last_step(booster))
    except TrainingFailed:
        guard.run("save the model as far as it was trained", outcome.save_partial, rounds, pack)
        raise
    finally:
        rounds.close()


def _of_fit(call: Call, fit: Fitting) -> Generator[None, Any, None]:
    fit.trainings += 1
    fit.training = True
    try:
        if fit.trainings > 1:
            # A user's own fit may train twice. The rounds of the first are recorded, but they are not the model's.
            yield
            return
        arguments = params.bind(call.function, call.args, call.kwargs)
        checkpointer = None
        if fit.own:
            fit.say_params({**params.of_booster(arguments.get("params")), **params.of_call(arguments)})
            continues = arguments.get("xgb_model") is not None
            checkpointer = snapshots.checkpointer(fit.run, fit.pack, arguments.get("params"), continues=continues)
        fit.rounds = _record(call, fit.run, arguments, fit.datasets, checkpointer)
        booster = yield
        if not fit.own:
            stopping = fit.rounds.stopping(booster)
            if stopping:
                fit.run.metrics(stopping)
    finally:
        fit.training = False


def cv(call: Call) -> Generator[None, Any, None]:
    """Record one ``xgboost.cv``: the mean and standard deviation of each metric over the folds, per round.

    Names are those of the columns that it returns: ``test-rmse-mean``. There is no model.
    """
    run = call.run
    arguments = params.bind(call.function, call.args, call.kwargs)
    run.params({**params.of_booster(arguments.get("params")), **params.of_call(arguments)})
    guard.run("describe the data", _say_datasets, call, run, arguments)
    rounds = _record(call, run, arguments, None, None)
    try:
        yield
        if rounds.model is not None:
            stopping = rounds.stopping(rounds.model)
            if stopping:
                run.metrics(stopping)
    finally:
        rounds.close()


def _record(
    call: Call,
    run: Run,
    arguments: Mapping[str, Any],
    datasets: Mapping[str, Dataset] | None,
    checkpointer: Checkpointer | None,
) -> Rounds:
    """Put the callback into the call, in a list of our own."""
    given = arguments.get("callbacks") or ()
    callbacks = list(given) if isinstance(given, Iterable) else []
    stops = stops_early(arguments.get("early_stopping_rounds"), callbacks)
    rounds = Rounds(run, datasets=datasets, stops=stops, checkpointer=checkpointer)
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
    dataset = matrices.describe(dtrain, call.name_of(dtrain) or "dataset")
    if dataset is not None:
        run.dataset(dataset, "train")
    # Anything else can be read once only, which is for XGBoost.
    for matrix, name in evals if isinstance(evals, list | tuple) else ():
        dataset = matrices.describe(matrix, str(name))
        if dataset is not None:
            found[name] = dataset
            run.dataset(dataset, "eval")
    return found
