"""scikit-learn: every estimator's fit is a run; metric functions on its predictions are its metrics."""

from flavors.sklearn.flavor import SklearnFlavor

__all__ = ["SklearnFlavor"]
