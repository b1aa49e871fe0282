"""Which Spark ML functions are patched, and why there."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

from autolog.flavor import Flavor
from flavors.pyspark import background, estimators, multiple, post_training


class PySparkFlavor(Flavor):
    """Spark ML estimators, user-written ones included, also on Spark Connect; ``pyspark.ml.connect`` is not recorded.

    Seams: ``Estimator.fit``, ``Transformer.transform`` and ``Evaluator.evaluate``, each defined once in Spark ML itself
    (subclasses define ``_fit``, ``_transform``, ``_evaluate``), and wherever else a subclass overrides them;
    ``evaluate`` of models, and ``JavaWrapper._call_java``, through which summaries get what is asked of them; the
    default ``fitMultiple`` with its iterator, which fits later and on any thread; ``SparkContext.stop``, which
    ``SparkSession.stop`` calls, as models that are being saved need the context.
    """

    name: ClassVar[str] = "pyspark"

    def patch(self, module: ModuleType) -> None:
        """Patch Spark ML as far as it is imported, and the rest when it is."""
        self._seen: set[tuple[type, str]] = set()
        self.when_imported("pyspark.ml.base", self._patch_base)
        self.when_imported("pyspark.ml.evaluation", self._patch_evaluation)
        self.when_imported("pyspark.ml.wrapper", self._patch_wrapper)
        context = getattr(module, "SparkContext", None)  # A client for Spark Connect only has none.
        if context is not None:
            self.wrap_call(context, "stop", background.stop)
        self.when_imported("pyspark.sql.connect.session", self._patch_connect)
        self.when_imported("pyspark.ml.connect.base", self._patch_ml_connect)

    def unpatch(self) -> None:
        """Undo :meth:`patch`; first wait for models that are being saved, as nobody does afterwards."""
        background.wait(None)
        super().unpatch()

    def _patch_connect(self, module: ModuleType) -> None:
        self.wrap_call(module.SparkSession, "stop", background.stop)

    def _patch_ml_connect(self, module: ModuleType) -> None:
        self.wrap_call(module.Estimator, "fit", estimators.not_recorded)

    def _patch_base(self, module: ModuleType) -> None:
        self._patch_family(module.Estimator, "fit", _fit)
        self._patch_family(module.Transformer, "transform", _transform)
        self._patch_family(module.Model, "evaluate", _evaluate_model)
        self.wrap_call(module.Estimator, "fitMultiple", estimators.fit_multiple)
        self.wrap_call(module._FitMultipleIterator, "__next__", multiple.next_model)

    def _patch_evaluation(self, module: ModuleType) -> None:
        self._patch_family(module.Evaluator, "evaluate", _evaluate)

    def _patch_wrapper(self, module: ModuleType) -> None:
        self.wrap_call(module.JavaWrapper, "_call_java", post_training.call_java)

    def _patch_family(self, base: Any, name: str, wrap: Callable[..., None]) -> None:
        """Patch method `name` of `base`, and of its subclasses that override it."""
        self._patch_class(base, name, wrap)
        self.follow_subclasses(base, partial(self._patch_class, name=name, wrap=wrap))

    def _patch_class(self, cls: type, name: str, wrap: Callable[..., None]) -> None:
        if (cls, name) in self._seen or not hasattr(vars(cls).get(name), "__get__"):
            return
        self._seen.add((cls, name))
        wrap(self, cls, name)


_fit = partial(Flavor.wrap_training, hook=estimators.fit, opens=estimators.opens_run, joins=estimators.joins)
_transform = partial(Flavor.wrap_call, hook=post_training.transform)
_evaluate = partial(Flavor.wrap_call, hook=post_training.evaluate)
_evaluate_model = partial(Flavor.wrap_call, hook=post_training.evaluate_model)
