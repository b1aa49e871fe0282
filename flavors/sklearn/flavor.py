"""Which scikit-learn functions are patched, and why there."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from autolog import patching, predictions, registry
from autolog.flavor import Flavor
from flavors.sklearn import estimators, model_selection, post_training, scores

_FITS = ("fit", "fit_transform", "fit_predict")
_PREDICTS = ("predict", "predict_proba", "predict_log_proba", "decision_function")


class SklearnFlavor(Flavor):
    """scikit-learn estimators, third-party and user-defined ones included.

    Seam: ``fit`` in the class dictionary of every ``BaseEstimator`` subclass. Classes are found by walking the
    subclasses that exist (importing all of scikit-learn would take over a second) and by ``__init_subclass__`` for
    those defined later.
    """

    name: ClassVar[str] = "sklearn"

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
                self.wrap_training(cls, name, estimators.fit, opens=estimators.opens_run)
        for name in _PREDICTS:
            if name in own:
                self.wrap_call(cls, name, predictions.predict)

    def _patch_repeats(self, module: ModuleType) -> None:
        for name in model_selection.REPEATS:
            self.wrap_training(
                module,
                name,
                model_selection.repeat,
                opens=model_selection.opens_run,
                rebind=True,
                also=("sklearn.model_selection._validation",),
            )

    def _patch_metrics(self, module: ModuleType) -> None:
        replaced: dict[int, tuple[Any, Any]] = {}
        for name in module.__all__:
            function = getattr(module, name, None)
            if not post_training.is_metric(name, function):
                continue
            homes = [module]
            defined_in = sys.modules.get(function.__module__)
            if defined_in is not None and vars(defined_in).get(name) is function:
                homes.append(defined_in)
            for home in homes:
                # Both names must lead to one wrapper, or it could not be pickled by reference.
                if home is module:
                    self.wrap_call(module, name, predictions.metric)
                else:
                    made = vars(module)[name]
                    setattr(home, name, made)
                    self.on_unpatch(setattr, home, name, function)
            replaced[id(function)] = (function, vars(module)[name])
        with ExitStack() as stack:
            patching.rebind(stack, replaced)
            self.on_unpatch(stack.pop_all().close)

    def derive(self, what: str, blob: Path) -> dict[str, float]:
        """Compute training metrics; see :mod:`flavors.sklearn.scores`."""
        return scores.derive(what, blob)


def _claimed_elsewhere(cls: type) -> bool:
    """Return whether another flavor that is on records this class, such as XGBoost's its estimators."""
    claimed = {
        package
        for flavor in registry.loaded()
        if flavor.patched and flavor.name != "sklearn"
        for package in flavor.claims
    }
    return any(base.__module__.partition(".")[0] in claimed for base in cls.__mro__)
