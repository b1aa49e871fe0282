"""Which way a metric is better, told by its name, as people name metrics."""

from __future__ import annotations

import re
from typing import Literal

Direction = Literal["min", "max"]

# A part of the name between separators; what is joined to a word, as in "mlogloss", is listed.
_LESS = re.compile(
    r"(?:^|_)(?:\w*loss|m?error|err|\w*mae|\w*mse|\w*rmsle|mape|m?logloss|\w*deviance|perplexity|ppl|wer|cer|"
    r"gamma_nloglik|\w*nloglik)(?:_|$)"
)
_MORE = re.compile(
    r"(?:^|_)(?:acc|accuracy|\w*score|f1|f\d|\w*auc|aucpr|ap|map|ndcg|precision|recall|r2|iou|dice|bleu|rouge|"
    r"silhouette|jaccard|mcc|kappa|areaunder\w+|\w*likelihood)(?:_|$)"
)


def direction(name: str) -> Direction | None:
    """Return whether less or more of the metric `name` is better, None where the name does not say.

    "validation_0-rmse", "val_loss" and "mean_squared_error" are better when less; "training_accuracy_score", "auc" and
    "f1" when more. A score that is named after an error, as scikit-learn's "neg_mean_squared_error", is better when
    more. How a score spreads over folds, its rank among others and how long it took to compute say nothing by size.
    """
    text = re.sub(r"[^a-z0-9]+", "_", name.lower())
    if re.search(r"^std_|^rank_test_|_time$", text):
        return None
    if re.search(r"(?:^|_)neg_", text):
        return "max"
    if _LESS.search(text):
        return "min"
    if _MORE.search(text):
        return "max"
    return None


def better(name: str, value: float, than: float) -> bool:
    """Return whether `value` of the metric `name` is better than `than`; False where its name does not say."""
    way = direction(name)
    return value < than if way == "min" else value > than if way == "max" else False


def held_out(name: str) -> bool:
    """Return whether the metric `name` is of data that the model was not trained on, as far as its name says."""
    return any(word in name.lower() for word in ("val", "test", "eval", "cv")) and "train" not in name.lower()
