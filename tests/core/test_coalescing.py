"""Long histories: exact up to the budget, means with extremes beyond it, nothing sampled."""

from __future__ import annotations

import json
import math

import pytest

import autolog
from autolog import runtime
from autolog.coalescing import Coalescer
from autolog.records import Points, Tags


def feed(coalescer: Coalescer, values: dict[str, list[float]], first: int = 0) -> list[Points]:
    found = []
    for i in range(len(next(iter(values.values())))):
        found += coalescer.feed(Points("r", first + i, 1000 + i, {name: column[i] for name, column in values.items()}))
    return found


def coalescer(budget: int | None) -> Coalescer:
    made = Coalescer()
    made.budgets["r"] = budget
    return made


def test_up_to_the_budget_points_pass_as_the_same_objects() -> None:
    made = coalescer(4)
    points = [Points("r", i, 1000 + i, {"loss": float(i)}) for i in range(4)]
    assert [made.feed(point) for point in points] == [[point] for point in points]
    assert made.feed(points[0])[0] is not points[0]


def test_beyond_it_each_value_is_in_one_mean_and_extremes_are_kept() -> None:
    made = coalescer(4)
    values = [float(i * i % 17) for i in range(60)]
    found = [point for point in feed(made, {"loss": values}) if isinstance(point, Points)] + made.forget("r")
    assert [(p.step, p.values) for p in found[:4]] == [(i, {"loss": values[i]}) for i in range(4)]
    sizes = []
    ends = [point.step for point in found[5:]] + [60]
    for point, end in zip(found[4:], ends, strict=True):
        window = values[point.step : end]
        sizes.append(len(window))
        assert point.time == 1000 + point.step
        assert point.values["loss"] == pytest.approx(sum(window) / len(window))
        if len(set(window)) > 1:
            assert (point.values["loss.min"], point.values["loss.max"], point.values["loss.last"]) == (
                min(window),
                max(window),
                window[-1],
            )
    assert found[4].step == 4
    # Twice as long after each two points, which is half the budget of four; the last one is what is left.
    assert sizes == [2, 2, 4, 4, 8, 8, 16, 12]


def test_rare_metrics_of_a_long_run_stay_exact() -> None:
    made = coalescer(10)
    found = []
    for i in range(100):
        values = {"loss": float(i)} | ({"val_loss": float(i)} if i % 20 == 0 else {})
        found += made.feed(Points("r", i, i, values))
    kept = [(p.step, p.values["val_loss"]) for p in found if isinstance(p, Points) and "val_loss" in p.values]
    assert kept == [(i, float(i)) for i in range(0, 100, 20)]


def test_constant_metrics_take_one_point_and_nan_is_never_hidden() -> None:
    made = coalescer(2)
    nan = math.nan
    found = feed(made, {"lr": [0.1] * 4, "loss": [1.0, 1.0, nan, 3.0]})
    lr, loss = [p.values for p in found if isinstance(p, Points)][2:]
    assert lr == {"lr": 0.1}
    assert math.isnan(loss["loss"])


def test_points_that_are_linked_are_always_exact() -> None:
    made = coalescer(2)
    linked = Points("r", 7, 7, {"loss": 1.0}, "model")
    feed(made, {"loss": [0.0] * 9})
    assert made.feed(linked) == [linked]


def test_history_in_the_store(recorder) -> None:
    recorder.start(max_points=50)
    run = runtime.open_run("torch")
    for step in range(400):
        run.metrics({"loss": float(step % 7)}, step=step, time=1_700_000_000_000 + step)
    run.end()
    runtime.closed(run)
    stored = recorder.run()
    history = recorder.history(stored, "loss")
    assert history[:50] == [(step, float(step % 7)) for step in range(50)]
    assert 60 <= len(history) < 200
    assert 390 <= history[-1][0] <= 399
    assert {value for _, value in recorder.history(stored, "loss.max")} <= {float(i) for i in range(1, 7)}
    assert stored.data.metrics["loss.last"] == float(399 % 7)
    assert json.loads(stored.data.tags["autolog.coalesced"]) == {"max_points": 50, "metrics": ["loss"]}


def test_flush_makes_open_windows_readable(recorder) -> None:
    recorder.start(max_points=2)
    run = runtime.open_run("torch")
    for step in range(3):
        run.metrics({"loss": float(step)}, step=step)
    assert autolog.flush(60)
    assert recorder.history(recorder.run(), "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    run.end()
    runtime.closed(run)


def test_windows_are_closed_after_a_second(recorder) -> None:
    import time

    recorder.start(max_points=2)
    run = runtime.open_run("torch")
    for step in range(3):
        run.metrics({"loss": float(step)}, step=step)
    deadline = time.monotonic() + 20
    client = recorder.client
    found = 0
    while found < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
        runs = client.search_runs([recorder.experiment_id]) if recorder.experiment_id else []
        found = len(client.get_metric_history(runs[0].info.run_id, "loss")) if runs else 0
    assert found == 3  # Nobody has flushed.
    run.end()
    runtime.closed(run)


@pytest.mark.parametrize("wrong", [1, True, 2.5, "many"])
def test_budget_that_means_nothing(wrong) -> None:
    with pytest.raises((ValueError, TypeError), match="max_points"):
        autolog.autolog(max_points=wrong)


def test_tag_names_what_is_coalesced() -> None:
    made = coalescer(2)
    tags = [record for record in feed(made, {"b": [1.0] * 3, "a": [1.0] * 3}) if isinstance(record, Tags)]
    assert json.loads(tags[-1].values["autolog.coalesced"])["metrics"] == ["a", "b"]
