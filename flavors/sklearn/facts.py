"""What every record of scikit-learn says: whose training, with which parameters, on which data, and the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autolog import guard, models
from autolog.config import Config
from autolog.models import ModelSnapshot
from autolog.patching import Call
from flavors.sklearn.model_selection import is_search
from flavors.sklearn.untouched import kept_random_states


def tags(estimator: Any) -> dict[str, str]:
    """Return the tags by which MLflow's autologging names an estimator."""
    name = type(estimator).__name__
    return {"estimator_name": name, "estimator_class": f"{type(estimator).__module__}.{name}"}


def data(call: Call) -> tuple[Any, Any, Any]:
    """Return what a fit was given: X, y and the sample weights, None for what it was not."""
    # A call that does not fit raises in a moment, the user's own error; what it was given by name is still told.
    arguments = guard.attempt(getattr, call, "arguments").value or call.kwargs
    X = arguments.get("X")
    if X is None:
        # Users' own estimators may name their arguments as they like.
        X = call.args[0] if call.args else next(iter(call.kwargs.values()), None)
    y = arguments.get("y", arguments.get("Y"))
    if y is None and "y" not in arguments and len(call.args) > 1:
        y = call.args[1]
    weight = arguments.get("sample_weight")
    return X, y, weight


def params(estimator: Any) -> Mapping[str, str]:
    """Return the estimator's parameters as text, those inside it included; of a search only its own."""
    if not hasattr(estimator, "get_params"):
        return {}
    # Some estimators (XGBoost's) draw from their random state when asked for it, which would change the training.
    with kept_random_states(estimator):
        values = estimator.get_params(deep=not is_search(estimator))
        return {name: str(value) for name, value in values.items()}  # The text of an estimator asks again.


def snapshot(
    estimator: Any, signature: Mapping[str, str] | None, example: Mapping[str, Any] | None, config: Config
) -> ModelSnapshot:
    """Return the snapshot of an estimator, in the format that `config` asks for.

    Raises: what pickling raises for an estimator that cannot be pickled.
    """
    # Without a wish, or with that for skops, the sender writes skops where it can.
    wish = config.serialization_format
    asked = wish if wish in ("cloudpickle", "pickle") else None
    return models.pickled_estimator(
        estimator,
        signature,
        example,
        serialization_format=asked or "cloudpickle",
        finish=None if asked else "sklearn",
    )
