"""Which recorded model a booster is, for trainings that continue it."""

from __future__ import annotations

import os
import weakref
from typing import Any

_models: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


def remember(booster: Any, model: str) -> None:
    """Remember that a booster is the recorded model with the key `model`, until it is trained further."""
    _models[booster] = model


def forget(booster: Any) -> None:
    """Forget what a booster was: it is changing."""
    _models.pop(booster, None)


def tags(source: Any) -> dict[str, str]:
    """Return tags that name the model that a training continues.

    source: the argument ``xgb_model``: a booster, a path or bytes.

    ``autolog.parent_model`` is the value that the parent has as its tag ``autolog.model``; a file is named by its path.
    """
    if isinstance(source, str | os.PathLike):
        return {"autolog.parent_model": os.fspath(source)}
    key = _models.get(source) if type(source).__weakrefoffset__ and type(source).__hash__ is not None else None
    return {"autolog.parent_model": key} if key is not None else {}
