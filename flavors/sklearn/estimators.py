"""What is said about one outermost ``fit``."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from autolog import datasets, guard, models, predictions, signature
from autolog.models import ModelSnapshot
from autolog.patching import Call
from flavors.sklearn.model_selection import is_search, record_search

#: Above this many rows, training metrics are computed on an evenly spaced sample, and a tag says so.
SAMPLE_ROWS = 50_000


def opens_run(call: Call) -> bool:
    """Return whether fitting this estimator alone is a training: transformers are not."""
    from sklearn.base import is_classifier, is_regressor

    estimator = call.instance
    if estimator is None or isinstance(estimator, type):
        return False
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
    estimator, run = call.instance, call.run
    X, y, weight = _data(call)
    run.tags(
        {
            "estimator_name": type(estimator).__name__,
            "estimator_class": f"{type(estimator).__module__}.{type(estimator).__name__}",
        }
    )
    if call.scope is not None:
        _mark_main(call.scope.main, estimator)
    params = guard.run("read the estimator's parameters", _params, estimator)
    if params:
        run.params(params)
    dataset = None
    if run.config.log_datasets:
        name = call.name_of(X) or "dataset"
        dataset = guard.run("describe the training data", datasets.describe, X, y, name=name)
        if dataset is not None:
            run.dataset(dataset, "train")

    yield

    if is_search(estimator):
        record_search(run, estimator)
    predicted = guard.run("predict on the training data", _predict_training_data, estimator, X, y, weight)
    model = None
    if run.config.log_models:
        snapshot = guard.run("take a snapshot of the model", _snapshot, estimator, X, predicted, run.config)
        if snapshot is not None:
            model = run.model(snapshot, register=True)
    predictions.remember(estimator, run, model)
    if predicted is not None and predicted.arrays is not None:
        if predicted.sampled:
            run.tags({"autolog.training_metrics_rows": predicted.sampled})
        run.derive(predicted.kind, predicted.arrays, model=model, dataset=dataset)


def _data(call: Call) -> tuple[Any, Any, Any]:
    arguments = call.arguments
    X = arguments.get("X")
    if X is None:
        # Users' own estimators may name their arguments as they like.
        X = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
    y = arguments.get("y", arguments.get("Y"))
    if y is None and "y" not in arguments and len(call.args) > 1:
        y = call.args[1]
    weight = arguments.get("sample_weight")
    return X, y, weight


def _mark_main(main: set[int], estimator: Any) -> None:
    """Mark the estimators whose own fit is what this run is about: a pipeline's last step, in any depth."""
    while hasattr(estimator, "steps") and estimator.steps:
        estimator = estimator.steps[-1][1]
        main.add(id(estimator))


def _params(estimator: Any) -> Mapping[str, str]:
    if not hasattr(estimator, "get_params"):
        return {}
    # Some estimators (XGBoost's) draw from their random state when asked for it, which would change the training.
    before = [(holder, copy.deepcopy(holder.state)) for holder in _bit_generators(estimator, 0)]
    try:
        values = estimator.get_params(deep=not is_search(estimator))
        return {name: str(value) for name, value in values.items()}  # The text of an estimator asks again.
    finally:
        for holder, state in before:
            holder.state = state


def _bit_generators(value: Any, depth: int) -> Iterator[Any]:
    """Yield the numpy bit generators that an estimator and those inside it hold as parameters."""
    generator = getattr(value, "_bit_generator", None) or getattr(value, "bit_generator", None)
    if generator is not None and hasattr(generator, "state"):
        yield generator
    elif depth < 5:
        inside = value if isinstance(value, list | tuple) else vars(value).values() if hasattr(value, "fit") else ()
        for each in inside:
            if isinstance(each, list | tuple) or not isinstance(each, str | int | float | type(None)):
                yield from _bit_generators(each, depth + 1)


class Predicted:
    """What the estimator says about its training data, ready for :mod:`flavors.sklearn.scores`."""

    __slots__ = ("arrays", "kind", "output", "sampled")

    def __init__(self, kind: str, arrays: Mapping[str, Any] | None, output: Any, sampled: int) -> None:
        self.kind = kind
        self.arrays = arrays
        self.output = output
        self.sampled = sampled


def _predict_training_data(estimator: Any, X: Any, y: Any, weight: Any) -> Predicted | None:
    """Predict on the training data: two passes for classifiers, one for others; None without ``predict``."""
    import numpy as np
    from sklearn.base import is_classifier, is_regressor

    if X is None or not hasattr(estimator, "predict"):
        return None
    X, y, weight, sampled = _sample(X, y, weight)
    output = estimator.predict(X)
    if y is None or not (is_classifier(estimator) or is_regressor(estimator)):
        return Predicted("", None, output, sampled)
    arrays = {"y_true": np.array(y), "y_pred": np.asarray(output)}
    if weight is not None:
        arrays["sample_weight"] = np.array(weight)
    kind = "regressor"
    if is_classifier(estimator):
        kind = "classifier"
        if hasattr(estimator, "predict_proba"):
            proba = estimator.predict_proba(X)
            if not isinstance(proba, list):  # Several outputs have a list of arrays, which MLflow leaves out, too.
                arrays["y_proba"] = np.asarray(proba)
                arrays["classes"] = np.asarray(estimator.classes_)
    # Object arrays would need a pickle on their way to the sender.
    arrays = {name: values.astype(str) if values.dtype == object else values for name, values in arrays.items()}
    return Predicted(kind, arrays, output, sampled)


def _sample(X: Any, y: Any, weight: Any) -> tuple[Any, Any, Any, int]:
    rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if rows <= SAMPLE_ROWS:
        return X, y, weight, 0
    import numpy as np
    from sklearn.utils import _safe_indexing

    index = np.linspace(0, rows - 1, SAMPLE_ROWS).astype(int)
    y, weight = (None if part is None else _safe_indexing(part, index) for part in (y, weight))
    return _safe_indexing(X, index), y, weight, SAMPLE_ROWS


def _snapshot(estimator: Any, X: Any, predicted: Predicted | None, config: Any) -> ModelSnapshot:
    made = None
    if config.log_model_signatures:
        outputs = signature.schema(predicted.output) if predicted is not None else None
        made = signature.signature(signature.schema(X), outputs)
    example = signature.example(X) if config.log_input_examples else None
    return models.pickled_estimator(estimator, made, example)
