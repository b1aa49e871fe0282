"""What is said about one ``fit`` of the scikit-learn API."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, NamedTuple

from autolog import datasets, guard, models, predictions, signature
from autolog.models import ModelSnapshot
from autolog.patching import Call, TrainingFailed
from autolog.run import Run
from autolog.scope import Scope
from autolog.signature import Schema
from flavors.xgboost import fitting, outcome, params, scoring, snapshots
from flavors.xgboost.fitting import Fitting
from flavors.xgboost.snapshots import Frozen

#: Parameters that ``fit`` gives ``train`` another value of than the estimator has: the objective for many classes, the
#: trees of a forest, the number drawn as a seed.
_LATE = ("objective", "num_parallel_tree", "random_state")


def belongs_to_run(call: Call, outer: Scope) -> bool:
    """Return whether this nested fit is the training that the outer run is about, or has to be told apart from it."""
    inside = fitting.current.get()
    if inside is not None:
        return call.instance is not inside.estimator
    return id(call.instance) in outer.main


def fit(call: Call) -> Generator[None, Any, None]:
    """Record one training; inside another's run, such as a pipeline's, only its rounds."""
    if fitting.current.get() is not None:
        # A helper that the user's own fit trains: its rounds are not those of the run.
        shield = fitting.current.set(None)
        try:
            yield
        finally:
            fitting.current.reset(shield)
        return
    estimator, run = call.instance, call.run
    own = call.scope is not None and call.scope.owner is estimator
    data = _data(call)
    form = guard.run("make the signature", _form, estimator, data, run) if own and run.config.log_models else None
    made = Fitting(estimator, run, own=own, pack=form.pack if form is not None else _as_booster)
    if own:
        _say_before(call, made, data)
    # The user's data must not live longer than the user has it.
    del data
    token = fitting.current.set(made)
    try:
        yield
        if own:
            made.say_params(made.late)
            _say_finished(call, made, form)
    except TrainingFailed:
        if own:
            made.say_params(made.late)
            guard.run("save the model as far as it was trained", outcome.save_partial, made.rounds, made.pack)
        raise
    finally:
        fitting.current.reset(token)
        if made.rounds is not None:
            made.rounds.close()


class _Data(NamedTuple):
    """What ``fit`` was called with. Users' own classes may name their arguments as they like."""

    X: Any
    y: Any
    eval_set: Any
    weight: Any


def _data(call: Call) -> _Data:
    arguments = params.bind(call.function, call.args, call.kwargs)
    return _Data(
        arguments.get("X", call.args[0] if call.args else None),
        arguments.get("y", call.args[1] if len(call.args) > 1 else None),
        arguments.get("eval_set"),
        arguments.get("sample_weight"),
    )


class _Form(NamedTuple):
    """In what form an estimator's model is kept.

    portable: as of :func:`flavors.xgboost.snapshots.is_portable`.
    """

    estimator_class: str
    portable: bool
    signature: Mapping[str, str] | None
    example: Mapping[str, Any] | None
    form: str

    def pack(self, frozen: Frozen) -> ModelSnapshot:
        """Return the model of a booster: the estimator, or what is left of it where that takes more."""
        if not self.portable:
            return _as_booster(frozen)
        return snapshots.estimator_snapshot(self.estimator_class, frozen, self.signature, self.example, self.form)


def _as_booster(frozen: Frozen) -> ModelSnapshot:
    return snapshots.booster_snapshot(frozen, None)


def _form(estimator: Any, data: _Data, run: Run) -> _Form:
    portable = snapshots.is_portable(estimator)
    made = None
    if run.config.log_model_signatures and not _has_categories(data.X):
        made = signature.signature(signature.schema(data.X), _outputs(estimator, data.y) if portable else None)
    return _Form(
        f"{type(estimator).__module__}.{type(estimator).__qualname__}",
        portable,
        made,
        signature.example(data.X) if made and run.config.log_input_examples else None,
        snapshots.format_of(run),
    )


def _has_categories(X: Any) -> bool:
    """Return whether some columns are categories, for which MLflow has no type: it would refuse them as texts."""
    if not hasattr(X, "columns"):
        return False
    return any(str(dtype).lower().startswith(("category", "categorical", "enum")) for dtype in X.dtypes)


def _outputs(estimator: Any, y: Any) -> Schema | None:
    """Return what ``predict`` gives, without predicting; None for several outputs."""
    if len(getattr(y, "shape", (0,))) != 1 or (isinstance(y, list) and y and isinstance(y[0], list | tuple)):
        return None
    if hasattr(estimator, "predict_proba"):
        return signature.tensor("int32" if estimator.objective == "multi:softmax" else "int64", (0,))
    return signature.tensor("float32", (0,)) if type(estimator).__name__ != "XGBModel" else None


def _say_before(call: Call, made: Fitting, data: _Data) -> None:
    run, estimator = made.run, made.estimator
    name = type(estimator).__name__
    run.tags({"estimator_name": name, "estimator_class": f"{type(estimator).__module__}.{name}"})
    values = guard.run("read the estimator's parameters", params.of_estimator, estimator) or {}
    made.late = {name: value for name, value in values.items() if name in _LATE or value is None}
    made.say_params({name: value for name, value in values.items() if name not in made.late})
    if run.config.log_datasets:
        guard.run("describe the data", _say_datasets, call, made, data)


def _say_datasets(call: Call, made: Fitting, data: _Data) -> None:
    dataset = datasets.describe(data.X, data.y, name=call.name_of(data.X) or "dataset")
    if dataset is not None:
        made.trained_on = dataset
        made.run.dataset(dataset, "train")
    # XGBoost's own names of the evaluation sets, which are in the metrics' names, too.
    for number, (X, y) in enumerate(data.eval_set if isinstance(data.eval_set, list | tuple) else ()):
        dataset = datasets.describe(X, y, name=f"validation_{number}")
        if dataset is not None:
            made.datasets[dataset.name] = dataset
            made.run.dataset(dataset, "eval")


def _say_finished(call: Call, made: Fitting, form: _Form | None) -> None:
    estimator, rounds, run = made.estimator, made.rounds, made.run
    booster = guard.attempt(estimator.get_booster).value
    if booster is None:
        return

    def model(frozen: Frozen) -> ModelSnapshot | Callable[[], ModelSnapshot]:
        if form is not None and form.portable:
            return lambda: form.pack(frozen)
        inputs, example = (form.signature, form.example) if form is not None else (None, None)
        return models.pickled_estimator(estimator, inputs, example, also=("xgboost",))

    key = frozen = None
    if rounds is not None and made.trainings == 1:
        key, frozen = outcome.say_finished(rounds, booster, model, rounds.best_index(booster))
    elif run.config.log_models:
        # Nothing that was recorded can be said to be this model's.
        key, frozen = outcome.remember_only(run, booster, model)
    predictions.remember(estimator, run, key)
    data = _data(call)
    predicted = guard.run("copy the training data", scoring.prepare, estimator, data.X, data.y, data.weight)
    if predicted is None:
        return
    if predicted.rows:
        run.tags({"autolog.training_metrics_rows": predicted.rows})
    if frozen is None:
        frozen = snapshots.freeze(booster)
    run.derive(predicted.kind, partial(predicted.arrays, frozen), model=key, dataset=made.trained_on)
