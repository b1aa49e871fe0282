"""Which XGBoost functions are patched, and why there."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import ClassVar

from autolog import predictions
from autolog.flavor import Flavor
from flavors.xgboost import estimators, training


class XGBoostFlavor(Flavor):
    """``xgboost.train``, ``xgboost.cv`` and the scikit-learn API.

    Seams: the native training callback for everything that happens per round; around it ``train`` and ``cv`` for what
    goes in and comes out; around that the ``fit`` of each estimator class, which knows the estimator. `fit` calls
    ``train`` by a name of its own module, so that the one wrapper is put under every name in the package.

    Left alone are the Dask estimators: what they train, they train in other processes.
    """

    name: ClassVar[str] = "xgboost"
    claims: ClassVar[tuple[str, ...]] = ("xgboost",)

    def patch(self, module: ModuleType) -> None:
        """Patch the training functions and the estimators' ``fit``."""
        home = sys.modules["xgboost.training"]
        names = tuple(name for name in list(sys.modules) if name.partition(".")[0] == "xgboost")
        self.wrap_training(
            home,
            "train",
            training.train,
            opens=training.is_first_rank,
            joins=training.joins_fit,
            rebind=True,
            also=names,
        )
        self.wrap_training(home, "cv", training.cv, opens=training.is_first_rank, rebind=True, also=names)
        base = getattr(module, "XGBModel", None)
        if base is None:
            return
        self._seen: set[type] = set()
        self._patch_class(base)
        # The user's own subclasses, too: what their fit does after ``super().fit()`` is part of the model.
        self.follow_subclasses(base, self._patch_class)

    def _patch_class(self, cls: type) -> None:
        if cls in self._seen or cls.__module__.startswith("xgboost.dask"):
            return
        self._seen.add(cls)
        # A class that inherits its fit is served by the one that defines it.
        if hasattr(vars(cls).get("fit"), "__get__"):
            self.wrap_training(
                cls, "fit", estimators.fit, opens=training.is_first_rank, joins=estimators.belongs_to_run
            )
        for name in ("predict", "predict_proba"):
            if name in vars(cls):
                self.wrap_call(cls, name, predictions.predict)
