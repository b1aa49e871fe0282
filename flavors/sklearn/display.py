"""What an estimator looks like: its diagram, and what it learned of each feature. Made in the sender.

Both need the fitted estimator, and asking it takes longer than many a fit: 7 ms for a diagram, 10 ms for the
importances of a forest. So the training thread hands over the pickle that it writes anyway. The sender opens it where
all of its types are scikit-learn's, numpy's or scipy's own; of others it shows what the training thread noted.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autolog import guard, pickles
from autolog.flavor import Derived
from autolog.models import ModelSnapshot
from flavors.sklearn import skops_format

#: Above this many bytes of a pickle only what the training thread noted is shown.
LARGEST = 64 * 2**20

#: Attributes that hold one number for each feature, in the order in which they are looked for.
_LEARNED = {"feature_importances_": "Feature importances", "coef_": "Coefficients"}


def arrays(estimator: Any, snapshot: ModelSnapshot | None, params: Mapping[str, str], X: Any) -> dict[str, Any]:
    """Return what :func:`derive` works on.

    estimator: fitted; snapshot: its own, or None where there is none; params: its parameters as text.
    X: the training data, for the names of the features.
    """
    import numpy as np
    import sklearn

    noted: dict[str, Any] = {
        "class": f"{type(estimator).__module__}.{type(estimator).__name__}",
        "params": dict(params),
        "version": sklearn.__version__,
        "features": feature_names(X),
    }
    made: dict[str, Any] = {}
    data = snapshot.files["model.pkl"] if snapshot is not None else guard.attempt(pickles.dumps, estimator).value
    if isinstance(data, bytes) and len(data) <= LARGEST:
        made["pickle"] = np.frombuffer(data, dtype=np.uint8)
    # Of types that the sender does not open: what is plainly there, since a property may run anything.
    for name in _LEARNED:
        values = getattr(vars(estimator).get(name), "copy", None) if hasattr(estimator, "__dict__") else None
        if values is not None and getattr(vars(estimator)[name], "dtype", None) is not None:
            made[name] = values()
    made["noted"] = np.array(json.dumps(noted, default=str))
    return made


def feature_names(X: Any) -> list[str] | None:
    """Return the names of the columns of a data frame, None for other data."""
    columns = getattr(X, "columns", None)
    return None if columns is None else [str(name) for name in columns]


def derive(blob: Path) -> Derived:
    """Return ``estimator.html`` and, where the estimator learned numbers for the features, their picture and JSON."""
    import numpy as np

    with np.load(blob, allow_pickle=False) as stored:
        held = dict(stored)
    noted = json.loads(str(held["noted"]))
    estimator = guard.attempt(_open, held, noted).value
    shown = guard.attempt(_diagram, estimator).value if estimator is not None else None
    texts = {"estimator.html": _page(shown if shown is not None else _listing(noted))}
    figures: dict[str, Any] = {}
    learned = guard.attempt(_learned, estimator, held, noted["features"]).value
    if learned is not None:
        title, names, values = learned
        path = title.lower().replace(" ", "_")
        figures[f"{path}.png"] = ("bars", {"title": title, "names": names, "values": values})
        texts[f"{path}.json"] = json.dumps(dict(zip(names, values, strict=True)), indent=1)
    return Derived(texts=texts, figures=figures)


def _open(held: Mapping[str, Any], noted: Mapping[str, Any]) -> Any:
    """Return the estimator, or None where the sender must not or cannot open it.

    Raises: skops_format.Refused for types that are not of the trusted packages.
    """
    import sklearn

    if "pickle" not in held or noted["version"] != sklearn.__version__:
        return None
    return skops_format.load(held["pickle"].tobytes())


def _diagram(estimator: Any) -> str:
    from sklearn.utils import estimator_html_repr

    return str(estimator_html_repr(estimator))


def _listing(noted: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td><pre>{html.escape(value[:1000])}</pre></td></tr>\n"
        for name, value in sorted(noted["params"].items())
    )
    return f"<h3>{html.escape(noted['class'])}</h3>\n<table border='1' cellpadding='4'>\n{rows}</table>"


def _page(body: str) -> str:
    # Without the charset, the triangles that fold a diagram are garbled.
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="UTF-8"/></head>\n<body>\n{body}\n</body>\n</html>\n'
    )


def _learned(
    estimator: Any, held: Mapping[str, Any], given: list[str] | None
) -> tuple[str, list[str], list[float]] | None:
    """Return (title, feature names, values), with the names of the features as the last step gets them."""
    import numpy as np

    names = given
    while estimator is not None and (hasattr(estimator, "steps") or hasattr(estimator, "best_estimator_")):
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
            continue
        if len(estimator.steps) > 1:
            names = guard.attempt(_names_after, estimator[:-1], names).value
        estimator = estimator.steps[-1][1]
    for attribute, title in _LEARNED.items():
        values: Any = getattr(estimator, attribute, None) if estimator is not None else held.get(attribute)
        if hasattr(values, "toarray"):
            values = values.toarray()
        values = None if values is None else np.asarray(values)
        if values is None or values.dtype.kind not in "fiu":
            continue
        if values.ndim == 2 and values.shape[0] == 1:
            values = values[0]
        elif values.ndim == 2:
            # Of several classes or outputs: how much a feature weighs in any of them.
            title, values = f"Mean absolute {title.lower()}", np.abs(values).mean(axis=0)
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            continue
        if names is None or len(names) != len(values):
            names = [f"feature {i}" for i in range(len(values))]
        return title, _distinct(names), [float(value) for value in values]
    return None


def _names_after(steps: Any, given: list[str] | None) -> list[str]:
    import numpy as np

    names = steps.get_feature_names_out(None if given is None else np.asarray(given, dtype=object))
    return [str(name) for name in names]


def _distinct(names: list[str]) -> list[str]:
    """Return the names, numbered where one comes again, as frames may have it."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return made
