"""Settings: where arguments, ``AUTOLOG_*`` variables and defaults meet, validated once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from autolog.checkpoints import Checkpoints

#: What ``serialization_format`` may be: scikit-learn's skops, cloudpickle and pickle; PyTorch's pickle and pt2
#: (torch.export); XGBoost's ubj and json.
FORMATS = ("skops", "cloudpickle", "pickle", "pt2", "ubj", "json")
IMPORTANCES = ("weight", "gain", "cover", "total_gain", "total_cover")

_TRUE, _FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Config:
    """What :func:`autolog.autolog` was asked for. Each field can be given as ``AUTOLOG_<NAME>`` too.

    Raises: ValueError, TypeError for values that are unknown or contradict each other.
    """

    #: Flavors asked for by name; empty means all that are installed.
    flavors: tuple[str, ...] = ()
    exclude_flavors: tuple[str, ...] = ()
    tracking_uri: str | None = None
    experiment: str | None = None
    log_models: bool = True
    log_datasets: bool = True
    log_model_signatures: bool = True
    log_input_examples: bool = False
    log_post_training_metrics: bool = True
    log_system_metrics: bool = False
    disable: bool = False
    exclusive: bool = False
    silent: bool = False
    extra_tags: Mapping[str, str] = field(default_factory=dict)
    registered_model_name: str | None = None
    #: How models are written: None chooses for each model; otherwise a format that its flavor knows.
    serialization_format: str | None = None
    #: Child runs of a search over parameters at most, the best ones; None means all.
    max_tuning_runs: int | None = 5
    #: Points of a metric that are kept as they are; those beyond are coalesced. None for all.
    max_points: int | None = 100_000
    #: Megabytes of records that may wait on disk for a store that is away, before metrics are coalesced.
    spool_limit: int = 64
    #: Kinds of feature importance that XGBoost computes, as of ``Booster.get_score``.
    importance_types: tuple[str, ...] = ("weight",)
    #: The class that binary training metrics of scikit-learn are of; None averages over classes, weighted.
    pos_label: Any = None
    disable_for_unsupported_versions: bool = False
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    sender: str = "process"
    #: Seconds to wait for delivery when the training process exits.
    exit_timeout: float = 10.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type == "bool" and not isinstance(value, bool):
                raise TypeError(f"{item.name} must be True or False, not {value!r}")
            if item.type == "str | None" and value is not None and (not isinstance(value, str) or not value):
                raise TypeError(f"{item.name} must be a non-empty text or None, not {value!r}")
        if self.sender not in ("process", "thread"):
            raise ValueError(f'sender must be "process" or "thread", not {self.sender!r}')
        runs = self.max_tuning_runs
        if runs is not None and (isinstance(runs, bool) or not isinstance(runs, int) or runs < 0):
            raise ValueError(f'max_tuning_runs must be a number, or None or "all" for all, not {runs!r}')
        limit = self.spool_limit
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"spool_limit must be a number of megabytes, at least 1, not {limit!r}")
        points = self.max_points
        if points is not None and (isinstance(points, bool) or not isinstance(points, int) or points < 2):
            raise ValueError(f'max_points must be a number from 2, or None or "all" for all, not {points!r}')
        if self.serialization_format not in (None, *FORMATS):
            raise ValueError(
                f"serialization_format must be None or one of {', '.join(FORMATS)}, not {self.serialization_format!r}"
            )
        unknown = sorted(set(self.importance_types) - set(IMPORTANCES))
        if unknown:
            raise ValueError(f"importance_types knows {', '.join(IMPORTANCES)}, not {', '.join(map(repr, unknown))}")
        if not isinstance(self.checkpoints, Checkpoints):
            raise TypeError(f"checkpoints must be autolog.Checkpoints(...), not {self.checkpoints!r}")
        if not isinstance(self.extra_tags, Mapping):
            raise TypeError(f"extra_tags must be a mapping of names to values, not {self.extra_tags!r}")
        if not isinstance(self.exit_timeout, int | float) or self.exit_timeout < 0:
            raise ValueError(f"exit_timeout must be a number of seconds, not {self.exit_timeout!r}")
        both = sorted(set(self.flavors) & set(self.exclude_flavors))
        if both:
            raise ValueError(f"{', '.join(both)}: asked for and excluded at once")
        if self.log_model_signatures is False and self.log_input_examples:
            raise ValueError("log_input_examples=True needs log_model_signatures=True: MLflow makes one of the other")
        if self.log_models is False and self.registered_model_name:
            raise ValueError(f"registered_model_name={self.registered_model_name!r} needs log_models=True")


def resolve(given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Config:
    """Return the settings: arguments win over ``AUTOLOG_*`` variables, which win over defaults.

    Raises: TypeError for an unknown argument; ValueError naming the variable for one that cannot be read.
    """
    environ = os.environ if environ is None else environ
    known = {item.name: item for item in fields(Config)}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TypeError(f"autolog() does not know {', '.join(unknown)}; it knows {', '.join(sorted(known))}")
    values: dict[str, Any] = {}
    for name, item in known.items():
        text = environ.get(f"AUTOLOG_{name.upper()}")
        if text is not None and text != "" and name not in given:
            values[name] = _read(name, str(item.type), text)
    values.update(given)
    if "sender" not in values and environ.get("DATABRICKS_RUNTIME_VERSION"):
        values["sender"] = "thread"  # A notebook's credentials live in its process only.
    for name in ("flavors", "exclude_flavors", "importance_types"):
        if name in values:
            values[name] = _names(name, values[name])
    for name in ("max_tuning_runs", "max_points"):
        if values.get(name) == "all":
            values[name] = None
    if values.get("importance_types") == ():
        del values["importance_types"]  # None, as MLflow's own argument is, means the default.
    if values.get("extra_tags") is None:
        values.pop("extra_tags", None)
    return Config(**values)


def _names(argument: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{argument} must be a list of names, not {value!r}")
    return tuple(value)


def _read(name: str, kind: str, text: str) -> Any:
    variable = f"AUTOLOG_{name.upper()}"
    if kind == "bool":
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError(f"{variable} must be true or false, not {text!r}")
    if kind == "float":
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{variable} must be a number of seconds, not {text!r}") from None
    if kind.startswith("int"):
        if text == "all" or text.isdigit():
            return None if text == "all" else int(text)
        raise ValueError(f'{variable} must be a whole number or "all", not {text!r}')
    if kind.startswith("tuple"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind.startswith("Mapping"):
        return _pairs(variable, text)
    if kind == "Checkpoints":
        return _checkpoints(variable, text)
    return text


def _pairs(variable: str, text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError(f"{variable} must look like name=value,name=value, not {text!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _checkpoints(variable: str, text: str) -> Checkpoints:
    if "=" not in text:
        return Checkpoints(every=text)
    given: dict[str, Any] = dict(_pairs(variable, text))
    for name in ("keep_last", "keep_best"):
        if name in given:
            given[name] = None if given[name].lower() == "none" else int(given[name])
    if "optimizer" in given:
        given["optimizer"] = _read("checkpoints", "bool", given["optimizer"])
    try:
        return Checkpoints(**given)
    except TypeError as error:
        raise ValueError(f"{variable}: {error}") from None
