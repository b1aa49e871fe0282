"""Which Spark ML functions are patched, and why there."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, ClassVar

from autolog.flavor import Flavor
from flavors.pyspark import background, estimators, post_training


class PySparkFlavor(Flavor):
    """Spark ML estimators, user-written ones included; ``pyspark.ml.connect`` is not.

    Seams: ``Estimator.fit``, ``Transformer.transform`` and ``Evaluator.evaluate``, each defined once in Spark ML itself
    (subclasses define ``_fit``, ``_transform``, ``_evaluate``), and wherever else a subclass overrides them. Besides,
    ``SparkContext.stop``, which ``SparkSession.stop`` calls: models that are being saved need the context.
    """

    name: ClassVar[str] = "pyspark"

    def patch(self, module: ModuleType) -> None:
        """Patch Spark ML as far as it is imported, and the rest when it is."""
        self._seen: set[tuple[type, str]] = set()
        self.when_imported("pyspark.ml.base", self._patch_base)
        self.when_imported("pyspark.ml.evaluation", self._patch_evaluation)
        context = getattr(module, "SparkContext", None)  # A client for Spark Connect only has none.
        if context is not None:
            self.wrap_call(context, "stop", background.stop)

    def unpatch(self) -> None:
        """Undo :meth:`patch`; first wait for models that are being saved, as nobody does afterwards."""
        background.wait(None)
        super().unpatch()

    def _patch_base(self, module: ModuleType) -> None:
        self._patch_family(module.Estimator, "fit")
        self._patch_family(module.Transformer, "transform")

    def _patch_evaluation(self, module: ModuleType) -> None:
        self._patch_family(module.Evaluator, "evaluate")

    def _patch_family(self, base: Any, name: str) -> None:
        """Patch method `name` of `base`, and of its subclasses that override it."""
        self._patch_class(base, name)
        self.follow_subclasses(base, partial(self._patch_class, name=name))

    def _patch_class(self, cls: type, name: str) -> None:
        if (cls, name) in self._seen or not hasattr(vars(cls).get(name), "__get__"):
            return
        self._seen.add((cls, name))
        _WRAP[name](self, cls, name)


_WRAP = {
    "fit": partial(Flavor.wrap_training, hook=estimators.fit, opens=estimators.opens_run),
    "transform": partial(Flavor.wrap_call, hook=post_training.transform),
    "evaluate": partial(Flavor.wrap_call, hook=post_training.evaluate),
}
