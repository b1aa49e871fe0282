"""Parameters as they are recorded. Names are XGBoost's own, which are MLflow's."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from autolog import guard

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
    parameters = _parameters(function)
    values = {name: item.default for name, item in parameters.items() if item.default is not item.empty}
    values.update(zip(parameters, args, strict=False))
    values.update(kwargs)
    return values


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    # A bound method is not kept: it would keep its object alive.
    return _known_parameters(function) if inspect.isfunction(function) else inspect.signature(function).parameters


@cache
def _known_parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def put(function: Callable[..., Any], args: tuple[Any, ...], name: str, value: Any) -> tuple[Any, ...] | None:
    """Return `args` with argument `name` replaced, or None where it was not passed by position."""
    position = list(_parameters(function)).index(name)
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


#: Parameters that say how a model was trained, as the booster's configuration names them -> their other names.
_EFFECTIVE: dict[str, tuple[str, ...]] = {
    "objective": (),
    "booster": (),
    "tree_method": (),
    "eta": ("learning_rate",),
    "gamma": ("min_split_loss",),
    "max_depth": (),
    "max_leaves": (),
    "max_bin": (),
    "grow_policy": (),
    "min_child_weight": (),
    "max_delta_step": (),
    "subsample": (),
    "sampling_method": (),
    "colsample_bytree": (),
    "colsample_bylevel": (),
    "colsample_bynode": (),
    "lambda": ("reg_lambda",),
    "alpha": ("reg_alpha",),
    "scale_pos_weight": (),
    "num_parallel_tree": (),
    "multi_strategy": (),
    "device": (),
    "seed": ("random_state",),
    # Of dart and of linear boosters.
    "sample_type": (),
    "normalize_type": (),
    "rate_drop": (),
    "one_drop": (),
    "skip_drop": (),
    "updater": (),
    "feature_selector": (),
    "top_k": (),
}


def in_effect(booster: Any) -> dict[str, str]:
    """Return parameters that a booster trains with, those that nobody gave included, by each of their names.

    The booster must have done a round: before, reading its configuration would settle what is still open.
    """
    found: dict[str, str] = {}
    _collect(json.loads(booster.save_config())["learner"], found)
    for name, others in _EFFECTIVE.items():
        for other in others:
            value = found.get(name, found.get(other))
            if value is not None:
                found[name] = found[other] = value
    known = {name for name, others in _EFFECTIVE.items() for name in (name, *others)}
    return {name: _shortest(value) for name, value in found.items() if name in known}


def defaults(effective: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, str]:
    """Return those effective parameters that were not given, by their first names."""
    return {
        name: effective[name]
        for name, others in _EFFECTIVE.items()
        if name in effective and not any(given.get(each) is not None for each in (name, *others))
    }


def _collect(section: Mapping[str, Any], found: dict[str, str]) -> None:
    for name, value in section.items():
        if isinstance(value, Mapping):
            _collect(value, found)
        elif isinstance(value, str):
            found.setdefault(name, value)


def _shortest(text: str) -> str:
    """Return a number as people write it: the configuration has 0.300000012, which is 0.3 in single precision."""
    import numpy as np

    if "." not in text and "e" not in text:
        return text
    number = guard.attempt(np.float32, text).value
    return text if number is None else np.format_float_positional(number, trim="-")
