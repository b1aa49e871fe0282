"""A model as the training process hands it over: native bytes, and what it takes to load them.

Nothing here imports mlflow or loads a model. The sender turns a :class:`ModelSnapshot` into an MLmodel folder
(``mlmodel.py``) that plain MLflow loads and serves.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autolog import pickles
from autolog.registry import DISTRIBUTIONS

Content = bytes | Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class ModelSnapshot:
    """Everything of a model that must be taken while it cannot change under us.

    flavor: name of the MLflow flavor that loads it natively (``mlflow.<flavor>.load_model``).
    flavor_config: that flavor's section of the MLmodel file.
    files: path below the model folder -> bytes, or a function that writes the path (on the worker thread).
    loader_module, pyfunc_config: the ``python_function`` section; None where the model cannot predict.
    signature: as of :mod:`autolog.signature`, or None.
    requirements: a function that returns exact pip requirements (on the worker thread).
    example: as of :func:`autolog.signature.example`, or None.
    finish: name of the autologging flavor whose ``finish_model`` completes the files in the sender, or None.
    """

    flavor: str
    flavor_config: Mapping[str, Any]
    files: Mapping[str, Content]
    loader_module: str | None = None
    pyfunc_config: Mapping[str, Any] = field(default_factory=dict)
    signature: Mapping[str, str] | None = None
    requirements: Callable[[], list[str]] = list
    example: Mapping[str, Any] | None = None
    finish: str | None = None

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the files below `folder` and return the package description that the sender composes from.

        Raises: what a file's own function raises; OSError for a full disk.
        """
        folder.mkdir(mode=0o700, parents=True)
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content)
        return {
            "flavor": self.flavor,
            "flavor_config": dict(self.flavor_config),
            "loader_module": self.loader_module,
            "pyfunc_config": dict(self.pyfunc_config),
            "signature": dict(self.signature) if self.signature else None,
            "requirements": self.requirements(),
            "example": dict(self.example) if self.example else None,
            "python": platform.python_version(),
            "finish": self.finish,
        }


def pickled_estimator(
    estimator: Any,
    signature: Mapping[str, str] | None,
    example: Mapping[str, Any] | None,
    *,
    also: Iterable[str] = (),
    serialization_format: str = "cloudpickle",
    finish: str | None = None,
) -> ModelSnapshot:
    """Return the snapshot of a scikit-learn estimator, as ``mlflow.sklearn.save_model`` with cloudpickle lays it out.

    also: modules whose distributions it needs besides those that its pickle names.
    serialization_format: "cloudpickle" or "pickle", what MLflow loads it with.
    finish: see :class:`ModelSnapshot`.

    Raises: what pickling raises for an estimator that cannot be pickled.
    """
    data = pickles.dumps(estimator)
    predicts = hasattr(estimator, "predict")
    return ModelSnapshot(
        flavor="sklearn",
        flavor_config={
            "pickled_model": "model.pkl",
            "sklearn_version": sys.modules["sklearn"].__version__,
            "serialization_format": serialization_format,
            "code": None,
        },
        files={"model.pkl": data},
        loader_module="mlflow.sklearn" if predicts else None,
        pyfunc_config={"model_path": "model.pkl", "predict_fn": "predict"} if predicts else {},
        signature=signature,
        requirements=lambda: requirements_for({"sklearn", "cloudpickle", *also, *pickled_modules(data)}),
        example=example,
        finish=finish,
    )


def pickled_modules(data: bytes) -> set[str]:
    """Return the top-level modules that a pickle refers to; nothing is imported."""
    return {module.partition(".")[0] for module, _ in pickles.names(data)}


_found: dict[str, str | None] = {}


def requirements_for(modules: Iterable[str]) -> list[str]:
    """Return ``name==version`` for each module that an installed distribution provides, sorted.

    Versions are those of the running process, which is the one that trained the model.
    """
    pinned = {_requirement(module) for module in modules if module not in sys.stdlib_module_names}
    return sorted((pin for pin in pinned if pin), key=str.lower)


def _requirement(module: str) -> str | None:
    if module not in _found:
        _found[module] = _look_up(module)
    return _found[module]


def _look_up(module: str) -> str | None:
    for name in (DISTRIBUTIONS.get(module, module), module.replace("_", "-")):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return f"{distribution.metadata['Name']}=={_public(distribution.version)}"
    # Names differ: the map of all installed distributions is slow to make, so it is the last resort.
    for name in importlib.metadata.packages_distributions().get(module, ()):
        return f"{name}=={_public(importlib.metadata.version(name))}"
    return None


def _public(version: str) -> str:
    # A local part (torch 2.13.0+cpu) names a build that package indexes do not offer.
    return version.partition("+")[0]
