"""Searches over parameters: what was found, a child run for each of the best candidates, the table of all.

Keys are MLflow's (``mlflow.sklearn.utils._create_child_runs_for_parameter_search``): ``best_<parameter>``,
``best_cv_score``, ``cv_results.csv``; child runs have the parameters of the estimator that is tuned with those of the
candidate, and the candidate's summaries from ``cv_results_`` (``mean_test_score``, ``rank_test_score`` ...).
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from autolog import guard, runtime
from autolog.datasets import Dataset
from autolog.run import Run


def is_search(estimator: Any) -> bool:
    """Return whether `estimator` is a search over parameters, such as GridSearchCV."""
    module = sys.modules.get("sklearn.model_selection._search")
    return module is not None and isinstance(estimator, module.BaseSearchCV)


def record_search(
    run: Run,
    search: Any,
    tuned: Mapping[str, str],
    tags: Mapping[str, str],
    *,
    best: str | None = None,
    dataset: Dataset | None = None,
) -> None:
    """Record what a fitted search found, its child runs on the worker thread.

    tuned, tags: parameters and tags of the estimator that was tuned; best: key of the best estimator's model.
    """
    if hasattr(search, "best_params_"):
        run.params({f"best_{name}": value for name, value in search.best_params_.items()})
    if hasattr(search, "best_score_"):
        run.metrics({"best_cv_score": float(search.best_score_)}, model=best, dataset=dataset)
    if not hasattr(search, "cv_results_"):
        return
    # The dict is made anew by each fit; whoever adds to it or sorts it meanwhile changes the user's, not this one.
    results = {name: values.copy() for name, values in search.cv_results_.items()}
    ranking = rank_column(results, getattr(search, "refit", None))
    best_index = getattr(search, "best_index_", None)

    def record() -> None:
        guard.run("write the table of a search", _record_table, run, results, ranking)
        limit = run.config.max_tuning_runs
        for index in best_candidates(results, ranking, limit):
            model = best if index == best_index else None
            _record_candidate(run, results, index, {**tags}, tuned, model, dataset)

    run.later("record the candidates of a search", record)


def rank_column(results: Mapping[str, Any], refit: Any) -> str | None:
    """Return the column of ``cv_results_`` that candidates are ranked by.

    ``rank_test_score``; of several metrics that which `refit` names, else the first, which MLflow always takes.
    """
    wanted = ["rank_test_score", f"rank_test_{refit}", *(name for name in results if name.startswith("rank_test_"))]
    return next((name for name in wanted if name in results), None)


def best_candidates(
    results: Mapping[str, Any], ranking: str | None, limit: int | None, *, sort: bool = False
) -> list[int]:
    """Return the indices of the `limit` best candidates, the best first, ties in their order.

    For None, those of all as they were tried; sort: the best first, then, too.
    """
    indices = list(range(len(results.get("params", ()))))
    if limit is None and not sort:
        return indices
    if ranking is not None:
        indices.sort(key=lambda index: float(results[ranking][index]))
    return indices[:limit]


def _record_candidate(
    run: Run,
    results: Mapping[str, Any],
    index: int,
    tags: Mapping[str, str],
    tuned: Mapping[str, str],
    model: str | None,
    dataset: Dataset | None,
) -> None:
    candidate = {str(name): str(value) for name, value in results["params"][index].items()}
    name = ", ".join(f"{key}={value}" for key, value in candidate.items())
    # When a candidate was tried is not known; MLflow, too, has them all begin with the search.
    child = runtime.open_run(run.flavor, parent=run, name=name if len(name) <= 120 else None, start_time=run.start_time)
    child.tags(tags)
    child.params({**tuned, **candidate})
    if dataset is not None:
        child.dataset(dataset, "train")
    child.metrics(_summaries(results, index), model=model, dataset=dataset)
    child.end()
    runtime.closed(child)


def _summaries(results: Mapping[str, Any], index: int) -> dict[str, float]:
    """Return the numeric columns of a candidate that are neither parameters nor single folds."""
    return {
        name: float(values[index])
        for name, values in results.items()
        if not name.startswith(("param", "split")) and getattr(getattr(values, "dtype", None), "kind", "") in "fiu"
    }


def _record_table(run: Run, results: Mapping[str, Any], ranking: str | None) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(results)
    # Masked cells are parameters that a candidate does not have.
    columns = [values.tolist() if hasattr(values, "tolist") else list(values) for values in results.values()]
    rows.writerows(zip(*columns, strict=True))
    run.text("cv_results.csv", text.getvalue())
    means = "mean_" + ranking.removeprefix("rank_") if ranking else ""
    if means in results:
        order = best_candidates(results, ranking, None, sort=True)
        names = _tell_apart([results["params"][index] for index in order])
        values = [float(results[means][index]) for index in order]
        run.figure("cv_results.png", "bars", {"title": means, "names": names, "values": values, "ranked": True})


def _tell_apart(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each candidate, of the parameters in which they differ."""
    texts = [{key: str(value) for key, value in candidate.items()} for candidate in candidates]
    keys = dict.fromkeys(key for text in texts for key in text)
    differing = [key for key in keys if len({text.get(key) for text in texts}) > 1] or list(keys)
    return [", ".join(f"{key}={text[key]}" for key in differing if key in text) for text in texts]
