"""Beside the user's own MLflow calls and other trainings, on the embedded store and on a tracking server."""

from __future__ import annotations

import subprocess
import time

from mlflow import MlflowClient
from mlflow.entities import ViewType
from proxy import SILENCE, Proxy

PROCESSES, BY_HAND, STEPS = 8, 20, 20

#: Each of them records steps of ours, and logs by hand into a run of its own all the while.
CROWD = f"""
    import sys, time
    import mlflow
    import autolog
    mlflow.set_tracking_uri(sys.argv[1])
    mlflow.set_experiment(sys.argv[2])
    autolog.autolog(tracking_uri=sys.argv[1], experiment=sys.argv[2], exclusive=True, exit_timeout=60)
    from autolog import runtime
    print("ready", flush=True)
    sys.stdin.readline()
    run = runtime.open_run("torch")
    slowest = 0.0
    with mlflow.start_run(run_name="by hand"):
        for step in range({BY_HAND}):
            for i in range({STEPS}):
                run.metrics({{"loss": 1.0 * step, "lr": 0.5}}, step={STEPS} * step + i)
            before = time.perf_counter()
            mlflow.log_metric("mine", step, step=step)
            slowest = max(slowest, time.perf_counter() - before)
    run.end()
    runtime.closed(run)
    print(slowest)
"""


def everything_in(store: str) -> list[tuple[str, ...]]:
    """All runs of all experiments, those deleted, too, for people to look at."""
    client = MlflowClient(tracking_uri=store)
    every = client.search_experiments(view_type=ViewType.ALL)
    found = client.search_runs([each.experiment_id for each in every], run_view_type=ViewType.ALL)
    return [
        (run.info.run_name, run.info.experiment_id, run.info.lifecycle_stage, run.info.status, str(run.data.tags))
        for run in found
    ]


def test_eight_trainings_on_one_sqlite_store_and_nobody_finds_it_locked(place) -> None:
    # Of MLflow's own calls several processes at once make a new store unsafely, and where they make a new experiment,
    # set_experiment (3.17) leaves those that were too late in the default one, without a word.
    MlflowClient(tracking_uri=place.store).create_experiment(place.experiment)
    script = place.script(CROWD)
    crowd: list[subprocess.Popen] = [
        place.start(script, place.store, place.experiment, stdin=True) for _ in range(PROCESSES)
    ]
    for process in crowd:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in crowd:
        process.stdin.write("\n")
        process.stdin.flush()
    slowest = []
    for process in crowd:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert "locked" not in err
        slowest.append(float(out))
    place.wait_for(lambda: not place.spools(), 60)
    runs = place.runs()
    by_hand = [run for run in runs if run.info.run_name == "by hand"]
    ours = [run for run in runs if run.info.run_name != "by hand"]
    assert (len(by_hand), len(ours)) == (PROCESSES, PROCESSES), everything_in(place.store)
    for run in by_hand:
        assert place.history(run, "mine") == [(step, float(step)) for step in range(BY_HAND)]
    for run in ours:
        assert place.history(run, "loss") == [(step, float(step // STEPS)) for step in range(STEPS * BY_HAND)]
        assert run.info.status == "FINISHED"
    # A call of the user's waits for others' commits, not for SQLite's patience to end.
    assert max(slowest) < 15


def test_a_server_that_is_silent_at_exit_costs_the_exit_timeout(place, server) -> None:
    proxy = Proxy(server.port)
    proxy.fault = lambda request: SILENCE
    code = """
        import sys, time
        import autolog
        autolog.autolog()
        from autolog import runtime
        run = runtime.open_run("torch")
        run.metrics({"loss": 0.5}, step=0)
        run.end()
        runtime.closed(run)
        print(time.time(), flush=True)
    """
    out, err = place.run(place.script(code), AUTOLOG_TRACKING_URI=proxy.uri, AUTOLOG_EXIT_TIMEOUT="3")
    assert time.time() - float(out) < 3 + 2.5
    said = [line for line in err.splitlines() if "autolog sync" in line]
    assert len(said) == 1 == len(err.splitlines()), err
    proxy.heal()
    place.wait_for(lambda: not place.spools(), 60)
    (run,) = place.runs(server.uri)
    assert place.history(run, "loss", server.uri) == [(0, 0.5)]
    proxy.close()


def test_the_user_ends_the_run_logs_by_hand_and_calls_mlflow_autolog(place, server) -> None:
    code = """
        import mlflow
        mlflow.sklearn.autolog(log_models=False, silent=True)
        import autolog
        autolog.autolog()
        from autolog import runtime
        from sklearn.linear_model import Ridge
        mlflow.set_experiment(runtime.config.experiment)
        X, y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]
        with mlflow.start_run(run_name="mine"):
            mlflow.log_metric("by_hand", 1.0)
            Ridge(alpha=2.0).fit(X, y)
            mine = runtime.open_run("torch")
            mine.metrics({"loss": 0.5}, step=0)
            mlflow.end_run("KILLED")
            mine.metrics({"loss": 0.25}, step=1)
        mine.end()
        runtime.closed(mine)
    """
    _, err = place.run(place.script(code), AUTOLOG_TRACKING_URI=server.uri, MLFLOW_TRACKING_URI=server.uri)
    assert "Traceback" not in err
    place.wait_for(lambda: not place.spools(), 30)
    (run,) = [run for run in place.runs(server.uri) if run.info.run_name == "mine"]
    assert run.info.status == "KILLED"  # As the user said; we never end a run of the user's.
    assert place.history(run, "by_hand", server.uri) == [(0, 1.0)]
    assert place.history(run, "loss", server.uri)[0] == (0, 0.5)
    assert run.data.params["alpha"] == "2.0"
    client = MlflowClient(tracking_uri=server.uri)
    score = client.get_metric_history(run.info.run_id, "training_r2_score")
    assert len(score) == 1  # One of the two recorders, not both.
    assert err.count("MLflow's own autologging is on") == 1
