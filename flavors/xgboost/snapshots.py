"""Models and checkpoints, laid out as ``mlflow.xgboost.save_model`` lays them out.

A booster is kept as a copy of our own that is taken on the training thread, because the user may go on training it;
everything else is made of the copy on the worker thread.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from autolog import guard, models, signature
from autolog.checkpoints import Schedule, Shelf
from autolog.models import ModelSnapshot
from autolog.run import Run
from autolog.signature import Schema


class Frozen(Protocol):
    """A booster as it was at one time, ours alone; for the worker thread."""

    def booster(self) -> Any:
        """Return it as a ``Booster``."""

    def raw(self, form: str = "ubj") -> Any:
        """Return its bytes, as ``Booster.save_raw`` gives them. form: "ubj" or "json"."""


#: What makes an MLflow model of a booster.
Pack = Callable[[Frozen], ModelSnapshot]


class _Copy:
    """A frozen booster that is a ``Booster`` of its own."""

    def __init__(self, booster: Any) -> None:
        self._booster = booster

    def booster(self) -> Any:
        return self._booster

    def raw(self, form: str = "ubj") -> Any:
        return self._booster.save_raw(form)


class _Bytes:
    """A frozen booster as its UBJSON bytes."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._booster: Any = None

    def booster(self) -> Any:
        if self._booster is None:
            import xgboost

            self._booster = xgboost.Booster(model_file=bytearray(self._raw))
        return self._booster

    def raw(self, form: str = "ubj") -> Any:
        return self._raw if form == "ubj" else self.booster().save_raw(form)


def freeze(booster: Any) -> Frozen:
    """Return a copy of a booster that nobody else can change.

    A slice with all rounds copies the trees in memory, a sixth of the time that writing them takes, and is written on
    the worker thread to the very bytes of the original. It would lose the weights of dart's trees, the names of
    categories, and a linear model; these are written at once.
    """
    copied = guard.attempt(_sliced, booster)
    return _Copy(copied.value) if copied.value is not None else _Bytes(booster.save_raw("ubj"))


def _sliced(booster: Any) -> Any:
    if booster.num_boosted_rounds() == 0 or "c" in (booster.feature_types or ()):
        return None
    if json.loads(booster.save_config())["learner"]["gradient_booster"]["name"] != "gbtree":
        return None
    copy = booster[:]
    copy.set_attr(**booster.attributes())
    return copy


def booster_snapshot(frozen: Frozen, inputs: Schema | None, form: str = "ubj") -> ModelSnapshot:
    """Return the snapshot of a ``Booster``. inputs: schema of what it predicts on, or None."""
    return _snapshot(frozen, "xgboost.core.Booster", signature.signature(inputs, None), {"xgboost"}, form=form)


def estimator_snapshot(
    estimator_class: str,
    frozen: Frozen,
    made: Mapping[str, str] | None,
    example: Mapping[str, Any] | None,
    form: str = "ubj",
) -> ModelSnapshot:
    """Return the snapshot of one of XGBoost's own estimators from its booster, of which MLflow makes it anew.

    estimator_class: with its module, that of a :func:`is_portable` one; made: its signature, or None.
    """
    return _snapshot(frozen, estimator_class, made, {"xgboost", "sklearn"}, example, form=form)


def _snapshot(
    frozen: Frozen,
    model_class: str,
    made: Mapping[str, str] | None,
    modules: set[str],
    example: Mapping[str, Any] | None = None,
    *,
    form: str,
) -> ModelSnapshot:
    import xgboost

    return ModelSnapshot(
        flavor="xgboost",
        flavor_config={
            "xgb_version": xgboost.__version__,
            "data": f"model.{form}",
            "model_class": model_class,
            "model_format": form,
            "code": None,
        },
        files={f"model.{form}": frozen.raw(form)},
        loader_module="mlflow.xgboost",
        pyfunc_config={"data": f"model.{form}"},
        signature=made,
        requirements=lambda: models.requirements_for(modules),
        example=example,
    )


def format_of(run: Run) -> str:
    """Return the format that models are written in: "json" where that is asked for, else "ubj"."""
    return "json" if run.config.serialization_format == "json" else "ubj"


def is_portable(estimator: Any) -> bool:
    """Return whether MLflow's xgboost flavor can make this estimator anew: its class without arguments, and a booster.

    What else there is would be lost: the attributes of a user's own class, and a value that stands for missing ones,
    without which predictions differ.
    """
    missing = estimator.missing
    return type(estimator).__module__ == "xgboost.sklearn" and isinstance(missing, float) and math.isnan(missing)


def part_of(frozen: Frozen, rounds: int | None = None) -> Frozen:
    """Return a booster's first `rounds` rounds (None for all), to predict with every one of them.

    Without what early stopping noted: an estimator would predict with the rounds up to the best one so far only.
    """
    if rounds is not None:
        part = frozen.booster()[:rounds]
    else:
        import xgboost

        part = xgboost.Booster(model_file=bytearray(frozen.raw()))
    part.set_attr(best_iteration=None, best_score=None)
    return _Copy(part)


class Checkpointer:
    """Takes the checkpoints of one training.

    pack: makes the model of the bytes.
    slices: whether a checkpoint is a slice of the final booster. Then those asked for by rounds cost training nothing;
        what is taken meanwhile, about once a minute, is there for the case that the process dies.
    """

    def __init__(self, run: Run, pack: Pack, *, slices: bool) -> None:
        policy = run.config.checkpoints
        self._run = run
        self._pack = pack
        self._policy = policy
        # A round is an epoch, too: each goes over all of the data.
        self._slices = slices and policy.interval[1] in ("step", "epoch")
        if policy.interval[1] == "epoch":
            policy = dataclasses.replace(policy, every=f"{int(policy.interval[0])} steps")
        self._schedule = Schedule(dataclasses.replace(policy, every="auto") if self._slices else policy)
        self._shelf = Shelf(policy)
        self._taken: list[str] = []

    @property
    def by_rounds(self) -> bool:
        """Whether one falls due after a number of rounds while it trains, rather than after a time."""
        return self._schedule.policy.interval[1] == "step"

    def due(self, rounds: int) -> bool:
        """Return whether a checkpoint is to be taken after `rounds` rounds."""
        return self._schedule.due_at_step(rounds)

    def take(self, model: Any, step: int, rounds: int, values: Mapping[str, float]) -> str:
        """Take a checkpoint of the booster while it trains; return its key.

        step: of the last round; rounds: how many this training has done.
        values: the metrics of this round, by which the best ones are kept.
        """
        begun = time.monotonic()
        frozen = freeze(model)
        key = self._run.model(lambda: self._pack(part_of(frozen)), name=f"checkpoint-{step}", step=step)
        self._taken.append(key)
        self._run.drop_models(self._shelf.add(key, values.get(self._policy.monitor)))
        self._schedule.taken(rounds, time.monotonic() - begun)
        return key

    def finish(
        self, frozen: Frozen, start: int, offset: int, last: int, score: Callable[[int], float | None]
    ) -> list[tuple[int, str]]:
        """Take the checkpoints that are slices of the final booster; return (index of the last round, key) of each.

        start: rounds it had before this training; offset: the step of this training's first round; last: index of its
        last round, which is no checkpoint but the model itself; score: index -> what the best ones are kept by.
        """
        if not self._slices:
            return []
        every = int(self._policy.interval[0])
        rounds = range(every - 1, last, every)
        shelf = Shelf(self._policy)
        kept = {str(index): index for index in rounds}
        for index in rounds:
            for dropped in shelf.add(str(index), score(index)):
                del kept[dropped]
        made = []
        for index in kept.values():
            step = offset + index
            take = self._slice(frozen, start + index + 1)
            made.append((index, self._run.model(take, name=f"checkpoint-{step}", step=step)))
        self._run.drop_models(tuple(self._taken))
        return made

    def _slice(self, frozen: Frozen, rounds: int) -> Callable[[], ModelSnapshot]:
        return lambda: self._pack(part_of(frozen, rounds))


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
