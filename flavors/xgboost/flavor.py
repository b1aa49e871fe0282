"""Which XGBoost functions are patched, and why there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from autolog import patching, predictions, scores
from autolog.flavor import Derived, Flavor
from flavors.xgboost import distributed, estimators, folds, predicted, training
from flavors.xgboost.loops import Loops


class XGBoostFlavor(Flavor):
    """``xgboost.train``, ``xgboost.cv`` and the scikit-learn API.

    Seams: the native training callback for everything that happens per round; around it ``train`` and ``cv`` for what
    goes in and comes out; around that the ``fit`` of each estimator class, which knows the estimator. `fit` calls
    ``train`` by a name of its own module, so that the one wrapper is put under every name in the package.

    What Dask's workers train, in other processes or in threads of this one, is recorded where it was asked for.
    """

    name: ClassVar[str] = "xgboost"
    claims: ClassVar[tuple[str, ...]] = ("xgboost",)

    def __init__(self) -> None:
        super().__init__()
        self._loops = Loops(training.may_open)

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
        patching.install(self._stack, home.CVPack, "eval", folds.evaluate)
        self.on_unpatch(self._loops.patch(module.Booster))
        self.wrap_call(module.Booster, "predict", predicted.predict)
        self.wrap_call(module.Booster, "inplace_predict", predicted.predict)
        self.wrap_call(module.Booster, "load_model", predicted.load_model)
        self.when_imported("xgboost.dask", self._patch_dask)
        base = getattr(module, "XGBModel", None)
        if base is None:
            return
        self._seen: set[type] = set()
        self._patch_class(base)
        # The user's own subclasses, too: what their fit does after ``super().fit()`` is part of the model.
        self.follow_subclasses(base, self._patch_class)

    def _patch_dask(self, module: ModuleType) -> None:
        self.wrap_training(module, "train", distributed.train, opens=distributed.opens_run, rebind=True)
        patching.install(self._stack, module, "_train_async", distributed.train_async)
        for name in ("DaskXGBClassifier", "DaskXGBRegressor", "DaskXGBRanker"):
            # The forests inherit from these.
            cls = getattr(module, name)
            self.wrap_training(cls, "fit", distributed.fit, opens=distributed.opens_run)
            patching.install(self._stack, cls, "_fit_async", distributed.fit_async)

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

    def finish(self, status: str, error: BaseException | None) -> None:
        """End the loops over ``Booster.update`` that are open."""
        self._loops.finish(status, error)

    def finish_adopted(self, run_id: str) -> None:
        """End the loops over ``Booster.update`` in the user's own run, which ends now."""
        self._loops.finish_adopted(run_id)

    def derive(self, what: str, blob: Path) -> Derived:
        """Make training metrics and pictures; see :mod:`autolog.scores`."""
        return scores.derive(what, blob)
