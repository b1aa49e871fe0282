"""What a training came to: its model, the metrics that are the model's, and what was there when it failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autolog import guard
from autolog.models import ModelSnapshot
from autolog.run import Run
from flavors.xgboost import snapshots
from flavors.xgboost.rounds import Rounds
from flavors.xgboost.snapshots import Pack


def say_finished(rounds: Rounds, booster: Any, make: Callable[[Any], ModelSnapshot], step: int | None) -> str | None:
    """Record the model of a training that ended well, and how early stopping ended it; return the model's key.

    make: makes the model of the booster's UBJSON bytes.
    step: the round whose metrics are the model's, because it predicts with the rounds up to that one; None where the
        training had no such round.
    """
    run, model = rounds.run, None
    if run.config.log_models:
        model = guard.run("take a snapshot of the model", _save, rounds, booster, make, step)
    stopping = rounds.stopping(booster)
    if stopping:
        run.metrics(stopping, model=model)
    return model


def _save(rounds: Rounds, booster: Any, make: Callable[[Any], ModelSnapshot], step: int | None) -> str:
    run = rounds.run
    raw = booster.save_raw("ubj")
    model = run.model(make(raw), step=rounds.last_step(booster) if step is None else step, register=True)
    if step is not None:
        rounds.of_model(step, model)
    rounds.save_slices(raw, rounds.last_step(booster))
    say_importance(run, raw)
    return model


def say_importance(run: Run, raw: Any) -> None:
    """Record feature importances, as far as the worker thread."""
    run.later(
        "compute feature importances",
        lambda: run.text("feature_importance_weight.json", snapshots.importance(raw)),
    )


def save_partial(rounds: Rounds | None, pack: Pack) -> None:
    """Record the model of a training that failed, up to its last complete round."""
    if rounds is None or rounds.model is None or not rounds.run.config.log_models:
        return
    booster, step = rounds.model, rounds.count - 1
    if booster.num_boosted_rounds() != rounds.start + rounds.count:
        # It failed within a round, some of which is in the model; a linear booster cannot do without it.
        cut = guard.attempt(lambda: booster[: rounds.start + rounds.count])
        if cut.error is not None:
            return
        booster = cut.value
    raw = booster.save_raw("ubj")
    key = rounds.run.model(
        lambda: pack(snapshots.part_of(raw)), step=step, tags={"autolog.partial": f"failed after {step + 1} rounds"}
    )
    rounds.of_model(step, key)
    rounds.save_slices(raw, step)
