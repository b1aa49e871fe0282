"""What a booster consists of: importances of its features, numbers of its trees and leaves."""

from __future__ import annotations

import json
from typing import Any

from autolog.run import Run
from flavors.xgboost.snapshots import Frozen


def say(run: Run, frozen: Frozen, model: str | None) -> None:
    """Record importances and sizes of a booster, as far as the worker thread.

    Files are MLflow's: ``feature_importance_<type>.json`` has all features that were used, ``.png`` the largest.
    """
    run.later("compute feature importances", lambda: _say(run, frozen.booster(), model))


def _say(run: Run, booster: Any, model: str | None) -> None:
    config = json.loads(booster.save_config())["learner"]["gradient_booster"]
    linear = config["name"] == "gblinear"
    for kind in run.config.importance_types:
        if linear and kind != "weight":
            continue  # XGBoost defines coefficients only.
        scores = booster.get_score(importance_type=kind)
        run.text(f"feature_importance_{kind}.json", json.dumps(scores))
        if scores:
            _draw(run, kind, scores, linear)
    if not linear:
        sizes = _sizes(booster)
        if sizes:
            run.metrics(sizes, model=model)


def _draw(run: Run, kind: str, scores: dict[str, Any], linear: bool) -> None:
    # A linear model of several classes has a coefficient for each; the largest stands for the feature.
    values = [max(score, key=abs) if isinstance(score, list) else score for score in scores.values()]
    title = "Coefficients" if linear else f"Feature importance ({kind})"
    run.figure(
        f"feature_importance_{kind}.png",
        "bars",
        {
            "title": title,
            "xlabel": _LABELS[kind] if not linear else "coefficient",
            "names": [*scores],
            "values": values,
        },
    )


#: What the numbers of ``Booster.get_score`` are.
_LABELS = {
    "weight": "splits by the feature",
    "gain": "average gain of a split",
    "cover": "average cover of a split",
    "total_gain": "total gain of all splits",
    "total_cover": "total cover of all splits",
}


def _sizes(booster: Any) -> dict[str, int]:
    """Return how many trees and leaves a tree booster has.

    A tree has a leaf more than it has splits; the weights of all features are the splits of all trees.
    """
    splits = int(sum(booster.get_score(importance_type="weight").values()))
    trees = json.loads(booster.save_config())["learner"]["gradient_booster"]
    trees = trees.get("gbtree", trees)  # Dart has a tree booster inside.
    count = trees.get("gbtree_model_param", {}).get("num_trees")
    return {"tree_count": int(count), "leaf_count": splits + int(count)} if count is not None else {}
