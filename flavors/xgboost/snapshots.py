"""Models and checkpoints, laid out as ``mlflow.xgboost.save_model`` lays them out.

A booster is snapshotted as its UBJSON bytes (``Booster.save_raw("ubj")``), taken on the training thread because the
user may go on training it; everything else is made of the bytes on the worker thread.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from autolog import models, signature
from autolog.checkpoints import Schedule, Shelf
from autolog.models import ModelSnapshot
from autolog.run import Run
from autolog.signature import Schema

#: What makes an MLflow model of a booster's bytes.
Pack = Callable[[Any], ModelSnapshot]


def booster_snapshot(raw: Any, inputs: Schema | None) -> ModelSnapshot:
    """Return the snapshot of a ``Booster``.

    raw: UBJSON bytes; inputs: schema of what it predicts on, or None.
    """
    return _snapshot(raw, "xgboost.core.Booster", signature.signature(inputs, None), {"xgboost"})


def estimator_snapshot(
    estimator_class: str, raw: Any, made: Mapping[str, str] | None, example: Mapping[str, Any] | None
) -> ModelSnapshot:
    """Return the snapshot of one of XGBoost's own estimators from its booster's bytes, of which MLflow makes it anew.

    estimator_class: with its module, that of a :func:`is_portable` one; made: its signature, or None.
    """
    return _snapshot(raw, estimator_class, made, {"xgboost", "sklearn"}, example)


def _snapshot(
    raw: Any,
    model_class: str,
    made: Mapping[str, str] | None,
    modules: set[str],
    example: Mapping[str, Any] | None = None,
) -> ModelSnapshot:
    import xgboost

    return ModelSnapshot(
        flavor="xgboost",
        flavor_config={
            "xgb_version": xgboost.__version__,
            "data": "model.ubj",
            "model_class": model_class,
            "model_format": "ubj",
            "code": None,
        },
        files={"model.ubj": raw},
        loader_module="mlflow.xgboost",
        pyfunc_config={"data": "model.ubj"},
        signature=made,
        requirements=lambda: models.requirements_for(modules),
        example=example,
    )


def is_portable(estimator: Any) -> bool:
    """Return whether MLflow's xgboost flavor can make this estimator anew: its class without arguments, and a booster.

    What else there is would be lost: the attributes of a user's own class, and a value that stands for missing ones,
    without which predictions differ.
    """
    missing = estimator.missing
    return type(estimator).__module__ == "xgboost.sklearn" and isinstance(missing, float) and math.isnan(missing)


def part_of(raw: Any, rounds: int | None = None) -> Any:
    """Return the UBJSON bytes of a booster's first `rounds` rounds (of all), to predict with every one of them.

    Without what early stopping noted: an estimator would predict with the rounds up to the best one so far only.
    """
    import xgboost

    booster = xgboost.Booster(model_file=bytearray(raw))
    if rounds is not None:
        booster = booster[:rounds]
    booster.set_attr(best_iteration=None, best_score=None)
    return booster.save_raw("ubj")


def importance(raw: Any) -> str:
    """Return how often each feature splits, as JSON, which MLflow keeps as ``feature_importance_weight.json``."""
    import xgboost

    return json.dumps(xgboost.Booster(model_file=bytearray(raw)).get_score(importance_type="weight"))


class Checkpointer:
    """Takes the checkpoints of one training.

    pack: makes the model of the bytes.
    slices: whether a checkpoint is a slice of the final booster. Then those asked for by rounds cost training nothing;
        what is taken meanwhile, about once a minute, is there for the case that the process dies.
    """

    #: A checkpoint's name; the model that training returns is called "model".
    NAME = "checkpoint"

    def __init__(self, run: Run, pack: Pack, *, slices: bool) -> None:
        policy = run.config.checkpoints
        self._run = run
        self._pack = pack
        self._policy = policy
        self._slices = slices and policy.interval[1] == "step"
        self._schedule = Schedule(dataclasses.replace(policy, every="auto") if self._slices else policy)
        self._shelf = Shelf(policy)
        self._taken: list[str] = []

    def due(self, rounds: int) -> bool:
        """Return whether a checkpoint is to be taken after `rounds` rounds."""
        return self._schedule.due_at_step(rounds)

    def take(self, model: Any, step: int, values: Mapping[str, float]) -> str:
        """Take a checkpoint of the booster while it trains; return its key.

        values: the metrics of this round, by which the best ones are kept.
        """
        begun = time.monotonic()
        raw = model.save_raw("ubj")
        key = self._run.model(lambda: self._pack(part_of(raw)), name=self.NAME, step=step)
        self._taken.append(key)
        self._run.drop_models(self._shelf.add(key, values.get(self._policy.monitor)))
        self._schedule.taken(step + 1, time.monotonic() - begun)
        return key

    def finish(self, raw: Any, start: int, last: int, score: Callable[[int], float | None]) -> list[tuple[int, str]]:
        """Take the checkpoints that are slices of the final booster; return (step, key) of each.

        raw: its UBJSON bytes; start: rounds it had before this training; last: step of its last round, which is no
        checkpoint but the model itself; score: step -> what the best ones are kept by.
        """
        if not self._slices:
            return []
        steps = range(int(self._policy.interval[0]) - 1, last, int(self._policy.interval[0]))
        shelf = Shelf(self._policy)
        kept = {str(step): step for step in steps}
        for step in steps:
            for dropped in shelf.add(str(step), score(step)):
                del kept[dropped]
        made = [
            (step, self._run.model(self._slice(raw, start + step + 1), name=self.NAME, step=step))
            for step in kept.values()
        ]
        self._run.drop_models(tuple(self._taken))
        return made

    def _slice(self, raw: Any, rounds: int) -> Callable[[], ModelSnapshot]:
        return lambda: self._pack(part_of(raw, rounds))


def checkpointer(run: Run, pack: Pack, params: Any, *, continues: bool) -> Checkpointer | None:
    """Return what takes the checkpoints of a training, or None where no models are recorded.

    params: booster parameters, as a mapping or as pairs; continues: whether it goes on from an earlier model.
    """
    if not run.config.log_models or run.config.checkpoints.interval[1] == "end":
        return None
    values = dict(params or {})
    # The first k rounds of these are the model as it was after k rounds. Dart goes on changing the weights of earlier
    # rounds, an update their trees, a linear booster has no rounds to take; an earlier model may be any of these.
    slices = (
        not continues and values.get("booster") in (None, "gbtree") and values.get("process_type") in (None, "default")
    )
    return Checkpointer(run, pack, slices=slices)
