"""What a training came to: its model, the metrics that are the model's, and what was there when it failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autolog import guard
from autolog.models import ModelSnapshot
from autolog.run import Run
from flavors.xgboost import importances, lineage, snapshots
from flavors.xgboost.rounds import Rounds
from flavors.xgboost.snapshots import Frozen, Pack

#: Makes a snapshot of a frozen booster, now or later: as ``Run.model`` takes it.
Make = Callable[[Frozen], ModelSnapshot | Callable[[], ModelSnapshot]]


def say_finished(rounds: Rounds, booster: Any, make: Make, index: int | None) -> tuple[str | None, Frozen | None]:
    """Record the model of a training that ended well, and how early stopping ended it.

    index: of the round whose metrics are the model's, because it predicts with the rounds up to that one; None where
        the training had no such round.

    Returns: the model's key and the booster as it is now; None for both where no models are recorded.
    """
    run = rounds.run
    saved = None
    if run.config.log_models:
        saved = guard.run("take a snapshot of the model", _save, rounds, booster, make, index)
    model, frozen = saved or (None, None)
    stopping = rounds.stopping(booster)
    if stopping:
        run.metrics(stopping, model=model)
    return model, frozen


def _save(rounds: Rounds, booster: Any, make: Make, index: int | None) -> tuple[str, Frozen]:
    run = rounds.run
    frozen = snapshots.freeze(booster)
    last = rounds.last_index(booster)
    step = max(0, rounds.offset + (last if index is None else index))
    take = make(frozen)
    model = run.declare_model(step=step, register=True)
    lineage.remember(booster, model)
    if index is not None and rounds.count:
        rounds.of_model(index, model)
    # In front of the files, so that its numbers go to the store with those of the rounds.
    importances.say(run, frozen, model)
    run.save_model(model, take)
    rounds.save_slices(frozen, last)
    return model, frozen


def save_partial(rounds: Rounds | None, pack: Pack) -> None:
    """Record the model of a training that failed, up to its last complete round."""
    if rounds is None or rounds.model is None or not rounds.run.config.log_models:
        return
    rounds.settle()
    booster, index = rounds.model, rounds.count - 1
    if booster.num_boosted_rounds() != rounds.start + rounds.count:
        # It failed within a round, some of which is in the model; a linear booster cannot do without it.
        cut = guard.attempt(lambda: booster[: rounds.start + rounds.count])
        if cut.error is not None:
            return
        booster = cut.value
    frozen = snapshots.freeze(booster)
    key = rounds.run.model(
        lambda: pack(snapshots.part_of(frozen)),
        step=rounds.offset + index,
        tags={"autolog.partial": f"failed after {index + 1} rounds"},
    )
    rounds.of_model(index, key)
    rounds.save_slices(frozen, index)


def remember_only(run: Run, booster: Any, make: Make) -> tuple[str, Frozen]:
    """Record a model that no recorded rounds can be said to be of."""
    frozen = snapshots.freeze(booster)
    take = make(frozen)
    model = run.declare_model(register=True)
    lineage.remember(booster, model)
    importances.say(run, frozen, model)
    run.save_model(model, take)
    return model, frozen
