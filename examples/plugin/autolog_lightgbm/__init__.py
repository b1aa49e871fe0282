"""LightGBM for mlflow-autolog: parameters, scores per round, importances and the booster of ``lightgbm.train``.

The names of metrics and pictures, and the layout of the model, are those of ``mlflow.lightgbm.autolog``.
"""

from __future__ import annotations

from collections.abc import Generator
from types import ModuleType
from typing import Any, ClassVar

from autolog import datasets, guard, models, predictions, signature
from autolog.flavor import Flavor
from autolog.models import ModelSnapshot
from autolog.patching import Call
from autolog.run import Run
from autolog.scope import Scope


class LightGBMFlavor(Flavor):
    """``lightgbm.train``, by itself and inside the ``fit`` of LightGBM's estimators.

    Where the scikit-learn flavor records an estimator's ``fit``, what happens per round goes into that run.
    """

    name: ClassVar[str] = "lightgbm"

    def patch(self, module: ModuleType) -> None:
        """Patch ``train`` under every name that it has in the package, and the booster's ``predict``."""
        self.wrap_training(
            module.engine, "train", train, joins=is_fit_of, rebind=True, also=("lightgbm", "lightgbm.sklearn")
        )
        # Metrics that the user computes on its predictions belong to the run.
        self.wrap_call(module.Booster, "predict", predictions.predict)


def is_fit_of(call: Call, outer: Scope) -> bool:
    """Return whether this is the training of the estimator that the outer run is about, not one of a search's."""
    return type(outer.owner).__module__ == "lightgbm.sklearn"


def train(call: Call) -> Generator[None, Any, None]:
    """Record one ``lightgbm.train``; inside an estimator's fit, only what that cannot see."""
    run, arguments = call.run, call.arguments
    data = arguments["train_set"]
    by_itself = call.scope is not None and call.scope.flavor == "lightgbm"
    inputs = None
    if by_itself:
        options = ("num_boost_round", "keep_training_booster")
        run.params({**arguments["params"], **{name: arguments[name] for name in options}})
        # LightGBM lets go of the raw data when it has made its bins.
        inputs = guard.run("make the signature", signature.schema, data.data)
        guard.run("describe the data", describe, run, data, call.name_of(data) or "dataset")
    # A list of our own, and by name: the user's is the user's.
    callbacks = [*(arguments["callbacks"] or ()), Rounds(run)]
    call.args, call.kwargs = (), {**arguments, "callbacks": callbacks}
    booster = yield
    if booster.best_iteration > 0:
        run.metrics({"best_iteration": booster.best_iteration, "stopped_iteration": booster.current_iteration()})
    if by_itself:
        key = None
        if run.config.log_models:
            step = max(0, booster.current_iteration() - 1)
            key = run.model(snapshot(booster, inputs), step=step, register=True)
        predictions.remember(booster, run, key)
    for kind in ("split", "gain"):
        values = booster.feature_importance(kind).tolist()
        shown = {"title": f"Feature importance ({kind})", "xlabel": kind, "names": booster.feature_name()}
        run.figure(f"feature_importance_{kind}.png", "bars", {**shown, "values": values})


class Rounds:
    """LightGBM's own callback: records the scores of each boosting round as ``<data>-<metric>``."""

    before_iteration = False
    order = 15  # Before early stopping, which ends the round by an exception.

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, env: Any) -> None:
        guard.run("record a boosting round", self._record, env)

    def _record(self, env: Any) -> None:
        scores = {f"{data}-{metric}": value for data, metric, value, *_ in env.evaluation_result_list or ()}
        if scores:
            self._run.metrics(scores, step=env.iteration)


def describe(run: Run, data: Any, name: str) -> None:
    """Record the training data: shape, schema and a digest of the content."""
    if run.config.log_datasets and (made := datasets.describe(data.data, data.label, name=name)) is not None:
        run.dataset(made, "train")


def snapshot(booster: Any, inputs: Any) -> ModelSnapshot:
    """Return the booster as ``mlflow.lightgbm.save_model`` lays it out; its text now, since it may be trained on."""
    import lightgbm

    text = booster.model_to_string().encode()
    return ModelSnapshot(
        flavor="lightgbm",
        flavor_config={
            "lgb_version": lightgbm.__version__,
            "data": "model.lgb",
            "model_class": "lightgbm.basic.Booster",
            "code": None,
        },
        files={"model.lgb": text},
        loader_module="mlflow.lightgbm",
        pyfunc_config={"data": "model.lgb"},
        signature=signature.signature(inputs, None),
        requirements=lambda: models.requirements_for({"lightgbm"}),
    )
