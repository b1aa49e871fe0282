"""Metrics of the machine: MLflow's own names, from outside the training process, for as long as a run is open."""

from __future__ import annotations

import pytest

TRAINING = """
    import autolog, sys, time
    autolog.autolog(log_system_metrics={wanted})
    import torch
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    def train(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            time.sleep(0.02)
"""
#: Milliseconds from the end of a run until the sender knows of it.
LATE = 1000
FAST = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.3", "AUTOLOG_EXIT_TIMEOUT": "60"}


def ours(run) -> set[str]:
    return {name for name in run.data.metrics if name.startswith("system/")}


def mlflows(place) -> set[str]:
    """The names that MLflow records on this machine."""
    place.script(
        """
        import mlflow, sys, time
        mlflow.set_tracking_uri(sys.argv[1])
        mlflow.set_experiment(sys.argv[2])
        with mlflow.start_run(log_system_metrics=True):
            time.sleep(1.5)
        """,
        "mlflows.py",
    )
    place.run("mlflows.py", place.store, "of-mlflow", **FAST)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=place.store)
    (run,) = client.search_runs([client.get_experiment_by_name("of-mlflow").experiment_id])
    return ours(run)


def test_names_are_mlflows_and_steps_count_up(place) -> None:
    code = "\n    print(*(name for name in ('psutil', 'mlflow') if name in sys.modules))"
    script = place.script(TRAINING.format(wanted=True) + "    train(2.5)" + code)
    out, err = place.run(script, **FAST)
    assert (out, err) == ("\n", "")  # Nothing of it was loaded here.
    (run,) = place.runs()
    assert ours(run) == mlflows(place)
    assert "system/cpu_utilization_percentage" in ours(run)
    for name in ours(run):
        steps = [step for step, _ in place.history(run, name)]
        assert steps == list(range(len(steps)))
        assert 2 <= len(steps) <= 9, name
    load = [value for _, value in place.history(run, "system/cpu_utilization_percentage")]
    assert load[0] > 0.0  # A training was going on.
    times = _times(place, run, "system/disk_usage_megabytes")
    assert all(run.info.start_time < time <= run.info.end_time + LATE for time in times)


def _times(place, run, name: str) -> list[int]:
    from mlflow import MlflowClient

    return [
        point.timestamp for point in MlflowClient(tracking_uri=place.store).get_metric_history(run.info.run_id, name)
    ]


def test_none_unless_asked_for(place) -> None:
    place.run(place.script(TRAINING.format(wanted=False) + "    train(1)"), **FAST)
    (run,) = place.runs()
    assert ours(run) == set()


def test_mlflows_own_switch_asks_for_them_too(place) -> None:
    script = place.script(TRAINING.format(wanted=False) + "    train(2)")
    place.run(script, MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING="true", MLFLOW_SYSTEM_METRICS_NODE_ID="node_1", **FAST)
    (run,) = place.runs()
    assert "system/node_1/network_receive_megabytes" in ours(run)


@pytest.mark.parametrize("mlflow_samples", [True, False])
def test_the_users_own_run_gets_them_once(mlflow_samples: bool, place) -> None:
    lines = f"""
    import mlflow, os
    mlflow.set_tracking_uri(os.environ["AUTOLOG_TRACKING_URI"])
    mlflow.set_experiment(os.environ["AUTOLOG_EXPERIMENT"])
    with mlflow.start_run(log_system_metrics={mlflow_samples}):
        train(2.5)
    time.sleep(1)
    """
    place.run(place.script(TRAINING.format(wanted=True) + lines), **FAST)
    (run,) = place.runs()
    history = place.history(run, "system/disk_available_megabytes")
    assert [step for step, _ in history] == list(range(len(history)))
    assert history
    assert all(time <= run.info.end_time + LATE for time in _times(place, run, "system/disk_available_megabytes"))
