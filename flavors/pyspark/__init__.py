"""Spark ML: every outermost ``fit`` is a run; what evaluators say of its predictions are its metrics."""

from flavors.pyspark.flavor import PySparkFlavor

__all__ = ["PySparkFlavor"]
