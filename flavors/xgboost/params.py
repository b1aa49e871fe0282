"""Parameters as they are recorded. Names are XGBoost's own, which are MLflow's."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

#: Arguments of ``train`` and ``cv`` that are no parameters: data, results, functions. MLflow leaves the same out.
_NO_PARAMS = {
    "params",
    "dtrain",
    "evals",
    "obj",
    "feval",
    "evals_result",
    "xgb_model",
    "callbacks",
    "learning_rates",
    "folds",
    "fpreproc",
}


def bind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by name, defaults included, as XGBoost's own functions read them.

    They take keyword-only arguments by position, too, with a warning; :func:`inspect.signature` alone would not.
    """
    parameters = inspect.signature(function).parameters
    values = {name: item.default for name, item in parameters.items() if item.default is not item.empty}
    values.update(zip(parameters, args, strict=False))
    values.update(kwargs)
    return values


def put(function: Callable[..., Any], args: tuple[Any, ...], name: str, value: Any) -> tuple[Any, ...] | None:
    """Return `args` with argument `name` replaced, or None where it was not passed by position."""
    position = list(inspect.signature(function).parameters).index(name)
    if len(args) <= position:
        return None
    return (*args[:position], value, *args[position + 1 :])


def of_booster(params: Any) -> dict[str, Any]:
    """Return booster parameters, which users pass as a mapping or as pairs.

    Pairs may repeat ``eval_metric``; then its values become a list.
    """
    if isinstance(params, Mapping):
        return {str(name): text(value) for name, value in params.items()}
    found: dict[str, Any] = {}
    for name, value in params or ():
        if name == "eval_metric" and name in found:
            before = found[name]
            found[name] = [*(before if isinstance(before, list) else [before]), text(value)]
        else:
            found[str(name)] = text(value)
    return found


def of_call(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a call of ``train`` or ``cv`` says besides the booster parameters."""
    found = {name: text(value) for name, value in arguments.items() if name not in _NO_PARAMS}
    if arguments.get("obj") is not None:
        found["obj"] = text(arguments["obj"])
    return found


def of_estimator(estimator: Any) -> dict[str, Any]:
    """Return the estimator's parameters and leave its random state as it is.

    ``XGBModel.get_params`` draws a number where ``random_state`` is a generator, which would change the training.
    """
    state = getattr(estimator, "random_state", None)
    if hasattr(state, "randint") or hasattr(state, "integers"):
        double = copy.copy(estimator)
        double.random_state = None
        return {name: text(value) for name, value in {**double.get_params(), "random_state": state}.items()}
    return {name: text(value) for name, value in estimator.get_params().items()}


def text(value: Any) -> Any:
    """Return `value`, with the name in place of a function or a callback, whose text would be its address."""
    if isinstance(value, list | tuple) and any(_has_address(item) for item in value):
        return [text(item) for item in value]
    return _name(value) if _has_address(value) else value


def _has_address(value: Any) -> bool:
    kind: Any = type(value)
    return callable(value) or kind.__repr__ is object.__repr__


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", None) or type(value).__name__)
