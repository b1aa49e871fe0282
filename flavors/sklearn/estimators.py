"""What is said about one outermost ``fit``."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from autolog import datasets, guard, predictions, signature
from autolog.models import ModelSnapshot
from autolog.patching import Call
from autolog.run import Run
from flavors.sklearn import curves, display, facts, iterations, model_selection, passes, post_training, warm
from flavors.sklearn.model_selection import is_search
from flavors.sklearn.passes import Predicted


def opens_run(call: Call) -> bool:
    """Return whether fitting this estimator alone is a training: transformers are not."""
    from sklearn.base import is_classifier, is_regressor

    estimator = call.instance
    if estimator is None or isinstance(estimator, type):
        return False
    if is_search(estimator):  # Without refit, it does not predict.
        return True
    if hasattr(estimator, "predict") or hasattr(estimator, "fit_predict"):
        return True
    # Some, such as stacking, cannot say before they are fitted whether they predict; their kind says it.
    if is_classifier(estimator) or is_regressor(estimator):
        return True
    return not hasattr(estimator, "transform") and (
        hasattr(estimator, "score_samples") or hasattr(estimator, "kneighbors")
    )


def fit(call: Call) -> Generator[None, Any, None]:
    """Record one training: parameters, dataset, signature, model, training metrics."""
    estimator = call.instance
    step = warm.begin(call)
    run = call.run
    X, y, weight = facts.data(call)
    run.tags(facts.tags(estimator))
    if call.scope is not None:
        _mark_main(call.scope.main, estimator)
    params = guard.run("read the estimator's parameters", facts.params, estimator)
    if params:
        warm.record_params(call, params, step)
    dataset = None
    if run.config.log_datasets:
        name = call.name_of(X) or "dataset"
        dataset = guard.run("describe the training data", datasets.describe, X, y, name=name)
        if dataset is not None:
            run.dataset(dataset, "train")

    def take(fitted: Any) -> ModelSnapshot:
        return _snapshot(fitted, X, None, run.config)

    watched = guard.run("follow the iterations of a fit", iterations.watch, run, estimator, X, take)
    started = time.perf_counter()
    try:
        result = yield
    finally:
        if watched is not None:
            watched.close()
    seconds = time.perf_counter() - started

    predicted = guard.run(
        "predict on the training data",
        passes.predict,
        estimator,
        X,
        y,
        weight,
        seconds,
        pos_label=run.config.pos_label,
    )
    model = snapshot = None
    if run.config.log_models:
        snapshot = guard.run("take a snapshot of the model", _snapshot, estimator, X, predicted, run.config)
        if snapshot is not None:
            model = run.model(snapshot, register=True, step=step)
    predictions.remember(estimator, run, model)
    best = _record_search(run, estimator, X, predicted, dataset) if is_search(estimator) else None
    post_training.follow_fit(call, X, result, dataset)
    curves.record(run, estimator, X, y, step, seconds=seconds, model=best or model, dataset=dataset)
    warm.end(call, model)
    if predicted is not None and predicted.arrays:
        if predicted.sampled:
            run.tags({"autolog.training_metrics_rows": predicted.sampled})
        run.derive(predicted.kind, predicted.arrays, step=step, model=model, dataset=dataset)
    shown = guard.run("note what the estimator looks like", display.arrays, estimator, snapshot, params or {}, X)
    if shown is not None:
        run.derive("estimator", shown)


def _record_search(
    run: Run, search: Any, X: Any, predicted: Predicted | None, dataset: datasets.Dataset | None
) -> str | None:
    """Record what a search found, its best estimator as a model of its own; return that one's key."""
    tuned = search.estimator
    best, key = getattr(search, "best_estimator_", None), None
    if best is not None:
        if run.config.log_models:
            snapshot = guard.run("take a snapshot of the model", _snapshot, best, X, predicted, run.config)
            key = run.model(snapshot, name="best_estimator") if snapshot is not None else None
        predictions.remember(best, run, key)
    params = guard.run("read the estimator's parameters", facts.params, tuned) or {}
    model_selection.record_search(run, search, params, facts.tags(tuned), best=key, dataset=dataset)
    return key


def _mark_main(main: set[int], estimator: Any) -> None:
    """Mark the estimators whose own fit is what this run is about: a pipeline's last step, in any depth."""
    while hasattr(estimator, "steps") and estimator.steps:
        estimator = estimator.steps[-1][1]
        main.add(id(estimator))


def _snapshot(estimator: Any, X: Any, predicted: Predicted | None, config: Any) -> ModelSnapshot:
    made = None
    if config.log_model_signatures:
        outputs = signature.schema(predicted.output) if predicted is not None else None
        made = signature.signature(signature.schema(X), outputs)
    example = signature.example(X) if config.log_input_examples else None
    return facts.snapshot(estimator, made, example, config)
