"""Which scikit-learn functions are patched, and why there."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from autolog import guard, predictions, registry, runtime, scores
from autolog.flavor import Derived, Flavor
from autolog.patching import Call
from flavors.sklearn import display, estimators, post_training, repeats, skops_format
from flavors.sklearn.steps import Steps

_FITS = ("fit", "fit_transform", "fit_predict")
_PREDICTS = ("predict", "predict_proba", "predict_log_proba", "decision_function", "transform")


class SklearnFlavor(Flavor):
    """scikit-learn estimators, third-party and user-defined ones included.

    Seam: ``fit`` in the class dictionary of every ``BaseEstimator`` subclass. Classes are found by walking the
    subclasses that exist (importing all of scikit-learn would take over a second) and by ``__init_subclass__`` for
    those defined later.
    """

    name: ClassVar[str] = "sklearn"

    def __init__(self) -> None:
        super().__init__()
        self._steps = Steps()

    def patch(self, module: ModuleType) -> None:
        """Patch estimators and, where post-training metrics are wanted, metric functions."""
        from sklearn import base

        self._seen: set[type] = {object, base.BaseEstimator}
        self.follow_subclasses(base.BaseEstimator, self._patch_family)
        self.when_imported("sklearn.metrics", self._patch_metrics)
        self.when_imported("sklearn.model_selection", self._patch_repeats)

    def _patch_family(self, cls: type) -> None:
        # Mixins that are no estimators themselves define fit_transform, fit_predict and many a predict.
        if not _claimed_elsewhere(cls):
            for base in cls.__mro__:
                self._patch_class(base)

    def _patch_class(self, cls: type) -> None:
        if cls in self._seen:
            return
        self._seen.add(cls)
        own = vars(cls)
        for name in _FITS:
            if hasattr(own.get(name), "__get__"):
                self.wrap_training(cls, name, self._fit, opens=estimators.opens_run)
        if hasattr(own.get("partial_fit"), "__get__"):
            self.wrap_training(cls, "partial_fit", self._steps.partial_fit, opens=estimators.opens_run)
        for name in _PREDICTS:
            if name in own:
                self.wrap_call(cls, name, predictions.predict, inside=False)
        if hasattr(own.get("score"), "__get__"):
            self.wrap_call(cls, "score", predictions.score, inside=False)

    def _fit(self, call: Call) -> Generator[None, Any, None]:
        self._steps.fitted_anew(call.instance)
        yield from estimators.fit(call)

    def _patch_repeats(self, module: ModuleType) -> None:
        for name, hook in repeats.HOOKS.items():
            function = getattr(module, name, None)
            cell = post_training.cell_of(function)
            if cell is not None:
                self.wrap_training(cell, name, hook)
            elif function is not None:
                self.wrap_training(module, name, hook, rebind=True, also=(function.__module__,))

    def _patch_metrics(self, module: ModuleType) -> None:
        for name in module.__all__:
            function = getattr(module, name, None)
            if not post_training.is_metric(name, function):
                continue
            cell = post_training.cell_of(function)
            if cell is not None:
                self.wrap_call(cell, name, predictions.metric, inside=False)
            else:
                self.wrap_call(module, name, predictions.metric, inside=False, rebind=True, also=(function.__module__,))
        self.when_imported("sklearn.metrics._scorer", self._patch_scorers)

    def _patch_scorers(self, module: ModuleType) -> None:
        for cls, name, hook in post_training.scorers(module):
            self.wrap_call(cls, name, hook, inside=False)

    def finish(self, status: str, error: BaseException | None) -> None:
        """End the trainings by ``partial_fit`` that are still open."""
        self._steps.finish(status, error)

    def finish_adopted(self, run_id: str) -> None:
        """Record the final model of what ``partial_fit`` trains in the user's own run, which ends now."""
        self._steps.finish_adopted(run_id)

    def finish_model(self, folder: Path, package: Mapping[str, Any]) -> Mapping[str, Any]:
        """Turn a pickled estimator into skops where that is certain; see :mod:`flavors.sklearn.skops_format`."""
        return skops_format.convert(folder, package)

    def derive(self, what: str, blob: Path) -> Derived:
        """Make training metrics and pictures; see :mod:`autolog.scores` and :mod:`flavors.sklearn.display`."""
        return display.derive(blob) if what == "estimator" else scores.derive(what, blob)


def _claimed_elsewhere(cls: type) -> bool:
    """Return whether another flavor that is on records this class, such as XGBoost's its estimators."""
    claimed: set[str] = set()
    for name in registry.entry_points():
        # Where all frameworks are imported already, the others may be patched after this one.
        if name != "sklearn" and name in sys.modules and runtime.wanted(name):
            flavor = guard.attempt(registry.load_flavor, name).value
            claimed.update(flavor.claims if flavor is not None else ())
    return any(base.__module__.partition(".")[0] in claimed for base in cls.__mro__)
