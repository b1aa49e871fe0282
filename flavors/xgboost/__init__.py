"""XGBoost: every training is a run; every boosting round is a step of its metrics."""

from flavors.xgboost.flavor import XGBoostFlavor

__all__ = ["XGBoostFlavor"]
