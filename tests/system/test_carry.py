"""carry(): functions sent to other processes keep recording, a run for each call, each counted once."""

from __future__ import annotations

import copy
import inspect
import pickle
import textwrap
import typing
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

import autolog
from autolog import beside, uris

PARENT = "mlflow.parentRunId"

HEAD = """
    import os, sys, time
    import autolog
    from sklearn.linear_model import Ridge

    X, y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]

    def train(alpha):
        return Ridge(alpha=alpha).fit(X, y).predict([[3.0]])[0]
"""


def recorded(place, code: str) -> str:
    """Run a script that must not say anything of its own, and return what it printed."""
    out, err = place.run(place.script(code), AUTOLOG_EXIT_TIMEOUT="60")
    assert err == ""
    return out


def family(place, seconds: float = 60.0, children: int | None = None):
    """(parent, children) of the only family in the place's experiment, once all has ended and is delivered."""

    def complete():
        runs = place.runs()
        ended = all(run.info.status not in ("RUNNING", "SCHEDULED") for run in runs)
        below = [run for run in runs if PARENT in run.data.tags]
        return runs and ended and not place.spools() and (children is None or len(below) >= children)

    place.wait_for(complete, seconds)
    runs = place.runs()
    (parent,) = [run for run in runs if PARENT not in run.data.tags]
    below = [run for run in runs if PARENT in run.data.tags]
    assert {run.data.tags[PARENT] for run in below} == {parent.info.run_id}
    return parent, below


def alphas(runs) -> list[str]:
    return sorted(run.data.params["alpha"] for run in runs)


# -- engines ----------------------------------------------------------------------------------------------------------

ENGINES = {
    "loky": """
        from joblib import Parallel, delayed
        results = Parallel(n_jobs=2)(delayed(autolog.carry(train))(alpha) for alpha in (1.0, 2.0, 3.0))
    """,
    "threading": """
        from joblib import Parallel, delayed
        results = Parallel(n_jobs=2, backend="threading")(delayed(autolog.carry(train))(a) for a in (1.0, 2.0, 3.0))
    """,
    "spawn": """
        import multiprocessing
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            results = pool.map(autolog.carry(train), [1.0, 2.0, 3.0])
    """,
    "forkserver": """
        import multiprocessing
        with multiprocessing.get_context("forkserver").Pool(2) as pool:
            results = pool.map(autolog.carry(train), [1.0, 2.0, 3.0])
    """,
    "fork": """
        import multiprocessing
        with multiprocessing.get_context("fork").Pool(2) as pool:
            results = pool.map(autolog.carry(train), [1.0, 2.0, 3.0])
    """,
    "executor": """
        from concurrent.futures import ProcessPoolExecutor
        with ProcessPoolExecutor(2) as pool:
            results = list(pool.map(autolog.carry(train), [1.0, 2.0, 3.0]))
    """,
    "here": """
        results = [autolog.carry(train)(alpha) for alpha in (1.0, 2.0, 3.0)]
    """,
}


def main(body: str, head: str = HEAD) -> str:
    """A script that switches on, runs `body` and prints its `results`."""
    lines = f"autolog.autolog()\n{textwrap.dedent(body)}\nprint([float(result) for result in results])\n"
    return f'{textwrap.dedent(head)}\nif __name__ == "__main__":\n{textwrap.indent(lines, "    ")}'


@pytest.mark.parametrize("engine", ENGINES)
def test_every_call_is_a_child_of_one_run_named_after_the_function(place, engine: str) -> None:
    bare, _ = place.run(
        place.script(main(ENGINES[engine].replace("autolog.carry(train)", "train"))), AUTOLOG_DISABLE="1"
    )
    assert recorded(place, main(ENGINES[engine])) == bare
    parent, children = family(place)
    assert parent.data.tags["mlflow.runName"] == "train"
    assert parent.info.status == "FINISHED"
    assert alphas(children) == ["1.0", "2.0", "3.0"]
    assert {run.info.status for run in children} == {"FINISHED"}
    for run in children:
        assert run.data.params["train.alpha"] == run.data.params["alpha"]
        assert run.data.tags["mlflow.autologging"] == "sklearn"
        assert run.data.tags["mlflow.source.name"].endswith("train.py")
        assert run.data.metrics["training_r2_score"] > 0
    client = MlflowClient(tracking_uri=place.store)
    models = client.search_logged_models([parent.info.experiment_id])
    assert {model.source_run_id for model in models} == {run.info.run_id for run in children}
    assert {model.status for model in models} == {"READY"}


# -- what the function stays ------------------------------------------------------------------------------------------


def train(alpha: float, *, scale: float = 1.0) -> float:
    """Fit a ridge."""
    from sklearn.linear_model import Ridge

    return float(Ridge(alpha=alpha).fit([[0.0], [1.0], [2.0]], [0.0, scale, 2.0 * scale]).coef_[0])


@autolog.carry
def decorated(alpha: float) -> float:
    return train(alpha)


def steps(alphas):
    for alpha in alphas:
        yield train(alpha)


def test_a_carried_function_shows_what_the_function_shows() -> None:
    carried = autolog.carry(train)
    assert inspect.signature(carried) == inspect.signature(train)
    assert inspect.getfullargspec(carried) == inspect.getfullargspec(train)
    assert typing.get_type_hints(carried) == typing.get_type_hints(train)
    assert (carried.__name__, carried.__qualname__, carried.__doc__) == ("train", "train", "Fit a ridge.")
    assert carried.__module__ == __name__
    assert autolog.carry(carried) is carried
    assert copy.deepcopy(carried) is carried
    with pytest.raises(TypeError, match="takes a function"):
        autolog.carry(3)
    assert not hasattr(train, "__wrapped__")


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_off_it_is_the_function_alone(dumps) -> None:
    assert pickle.loads(dumps(autolog.carry(train))) is train
    assert b"autolog.carry" not in dumps(autolog.carry(train))
    assert autolog.carry(train)(1.0) == train(1.0)
    assert pickle.loads(dumps(decorated))(1.0) == train(1.0)


def test_paused_it_is_the_function_alone(recorder) -> None:
    recorder.start("sklearn")
    carried = autolog.carry(train)
    with autolog.paused():
        assert pickle.loads(pickle.dumps(carried)) is train
        carried(1.0)
    assert recorder.runs() == []


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("function", [autolog.carry(train), decorated], ids=["function", "decorated"])
def test_pickled_and_called_at_home_it_is_one_run_below_another(recorder, dumps, function) -> None:
    recorder.start("sklearn")
    assert pickle.loads(dumps(function))(2.0) == 0.5
    parent, child = family_of(recorder.runs())
    assert parent.data.tags["mlflow.runName"] == child.data.tags["mlflow.runName"] == function.__name__
    assert child.data.params["alpha"] == child.data.params[f"{function.__name__}.alpha"] == "2.0"


def family_of(runs):
    """The runs, the parent of all others first."""
    (parent,) = [run for run in runs if PARENT not in run.data.tags]
    children = [run for run in runs if PARENT in run.data.tags]
    assert {run.data.tags[PARENT] for run in children} == {parent.info.run_id}
    return parent, *children


def test_no_password_is_pickled(recorder, monkeypatch) -> None:
    recorder.start("sklearn", tracking_uri="http://me:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # So that no run need be opened.
    monkeypatch.setattr(beside, "tracking_uri", lambda: "http://me:hunter2@127.0.0.1:9")
    pickled = pickle.dumps(autolog.carry(train))
    assert b"hunter2" not in pickled
    assert b"http://127.0.0.1:9" in pickled
    assert pickle.loads(pickled)._ticket.config.tracking_uri == "http://127.0.0.1:9"
    assert uris.with_credentials("http://127.0.0.1:9", [None, "http://a:b@else:9", "http://me:x@127.0.0.1:9"]) == (
        "http://me:x@127.0.0.1:9"
    )


# -- what a call records ----------------------------------------------------------------------------------------------


def test_a_second_training_in_a_call_is_a_child_of_its_run(recorder) -> None:
    recorder.start("sklearn")

    def twice() -> float:
        return train(1.0) + train(2.0)

    assert autolog.carry(twice)() == pytest.approx(2 / 3 + 0.5)
    runs = recorder.runs()
    assert sorted(run.data.params.get("alpha", "") for run in runs) == ["", "1.0", "2.0"]
    outer, call, second = sorted(runs, key=lambda run: run.data.params.get("alpha", ""))
    assert (call.data.tags[PARENT], second.data.tags[PARENT]) == (outer.info.run_id, call.info.run_id)
    assert {run.info.status for run in (outer, call, second)} == {"FINISHED"}


def test_a_search_in_a_call_is_recorded_in_its_run(recorder) -> None:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    recorder.start("sklearn", max_tuning_runs=0)

    def search() -> float:
        X, y = [[float(i)] for i in range(6)], [float(i) for i in range(6)]
        return GridSearchCV(Ridge(), {"alpha": [0.5, 1.0]}, cv=2).fit(X, y).best_params_["alpha"]

    assert autolog.carry(search)() == 0.5
    _, call = family_of(recorder.runs())
    assert call.data.params["best_alpha"] == "0.5"


def test_an_error_passes_as_it_is_and_fails_the_call(recorder) -> None:
    recorder.start("sklearn")
    error = ValueError("the user erred")

    def fails() -> None:
        train(1.0)
        raise error

    with pytest.raises(ValueError, match="the user erred") as caught:
        autolog.carry(fails)()
    assert caught.value is error
    assert error.__context__ is None
    parent, call = family_of(recorder.runs())
    assert (parent.info.status, call.info.status) == ("FINISHED", "FAILED")
    assert call.data.params["alpha"] == "1.0"
    assert "traceback.txt" in recorder.artifacts(call)


def test_other_ranks_record_no_calls(recorder, monkeypatch) -> None:
    recorder.start("sklearn")
    monkeypatch.setenv("RANK", "1")
    carried = autolog.carry(train)
    assert carried(1.0) == pickle.loads(pickle.dumps(carried))(1.0) == train(1.0)
    monkeypatch.delenv("RANK")
    assert recorder.runs() == []


def test_a_generator_is_under_way_only_while_it_runs(recorder) -> None:
    recorder.start("sklearn")
    going = autolog.carry(steps)([1.0, 2.0])
    assert next(going) == pytest.approx(2 / 3)
    train(7.0)  # Not the generator's.
    assert list(going) == [0.5]
    runs = recorder.runs()
    (alone,) = [run for run in runs if run.data.params.get("alpha") == "7.0"]
    assert PARENT not in alone.data.tags
    (call,) = [run for run in runs if run.data.params.get("alpha") == "1.0"]
    (second,) = [run for run in runs if run.data.params.get("alpha") == "2.0"]
    assert second.data.tags[PARENT] == call.info.run_id
    assert call.info.status == "FINISHED"


def test_calls_belong_to_the_users_active_run(recorder) -> None:
    import mlflow

    mlflow.set_tracking_uri(recorder.store_uri)
    experiment_id = recorder.client.create_experiment(recorder.experiment)
    recorder.start("sklearn", experiment="another")
    with mlflow.start_run(experiment_id=experiment_id) as mine, ThreadPoolExecutor(2) as pool:
        carried = autolog.carry(train)
        carried(1.0)
        assert list(pool.map(carried, [2.0, 3.0])) == [0.5, pytest.approx(0.4)]
    parent, *children = family_of(recorder.runs())
    assert parent.info.run_id == mine.info.run_id
    assert parent.data.params == {}
    assert alphas(children) == ["1.0", "2.0", "3.0"]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}


def test_torch_in_a_call_ends_with_it(recorder) -> None:
    import torch

    recorder.start("torch")

    def descend(rate: float) -> float:
        model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # A cycle, which keeps the optimizer alive.
        for _ in range(2):
            loss = torch.nn.functional.mse_loss(model(torch.ones(4, 1)), torch.ones(4, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return loss.item()

    carried = autolog.carry(descend)
    assert (carried(0.25), carried(0.5)) == (0.0, 1.0)
    _, first, second = family_of(recorder.runs())
    assert {first.info.status, second.info.status} == {"FINISHED"}
    assert recorder.history(first, "loss") == [(0, 1.0), (1, 0.0)]
    assert recorder.history(second, "loss") == [(0, 1.0), (1, 1.0)]


# -- copies of one call -----------------------------------------------------------------------------------------------

COPIES = """
    import os, subprocess, sys, time
    from pathlib import Path
    import autolog, cloudpickle
    from sklearn.linear_model import Ridge

    def train(alpha):
        attempt = os.environ["ATTEMPT"]
        coef = Ridge(alpha=alpha).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]).coef_[0]
        Path(f"trained-{attempt}").touch()
        while attempt == os.environ["SLOWER"] and not Path("ended").exists():
            time.sleep(0.01)
        Ridge(alpha=2.0).fit([[0.0], [1.0]], [0.0, 1.0])
        return coef

    def task(attempt):
        from pyspark import TaskContext
        context = TaskContext._getOrCreate()
        context._stageId, context._partitionId, context._taskAttemptId = 3, 1, attempt
        cloudpickle.loads(Path("function").read_bytes())(1.0)

    def start(attempt):
        return subprocess.Popen([sys.executable, __file__, attempt], env={**os.environ, "ATTEMPT": attempt})

    if __name__ == "__main__":
        if len(sys.argv) > 1:
            task(int(sys.argv[1]))
            sys.exit()
        autolog.autolog()
        Path("function").write_bytes(cloudpickle.dumps(autolog.carry(train)))
        slower = os.environ["SLOWER"]
        slow = start(slower)
        while not Path(f"trained-{slower}").exists():
            assert slow.poll() is None
            time.sleep(0.01)
        assert start({"7": "8", "8": "7"}[slower]).wait() == 0
        if os.environ["KILL"]:
            slow.kill()
        Path("ended").touch()
        slow.wait()
"""


@pytest.mark.parametrize("kill", [False, True], ids=["both end", "the slower is killed"])
@pytest.mark.parametrize("slower", [7, 8])
def test_of_two_copies_of_a_task_that_run_at_once_one_stands(place, slower: int, kill: bool) -> None:
    """As Spark speculates: the same partition of the same stage, in two processes. One host alone never does, so that
    the task contexts are set by hand here; trainings, processes and their ends are real."""
    out, err = place.run(place.script(COPIES), SLOWER=str(slower), KILL="yes" if kill else "")
    assert (out, err) == ("", "")
    # Both ended: the later attempt. One was killed: the other.
    stands = 15 - slower if kill else 8
    place.wait_for(lambda: not place.spools(), 60)
    parent, call, second = place.runs()
    assert {run.info.status for run in (parent, call, second)} == {"FINISHED"}
    assert (call.data.tags[PARENT], second.data.tags[PARENT]) == (parent.info.run_id, call.info.run_id)
    assert (call.data.params["alpha"], second.data.params["alpha"]) == ("1.0", "2.0")
    assert call.data.tags["autolog.attempt"] == str(stands + 1)
    client = MlflowClient(tracking_uri=place.store)
    trash = client.search_runs([parent.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert {run.data.tags["autolog.superseded_by"] for run in trash} == {call.info.run_id}
    (gone,) = [run for run in trash if "autolog.attempt" in run.data.tags]
    assert gone.data.tags["autolog.attempt"] == str(15 - stands + 1)
    assert call.data.tags["autolog.retried"] == gone.info.run_id
    assert [run.data.tags[PARENT] for run in trash if run is not gone] == ([] if kill else [gone.info.run_id])
    models = client.search_logged_models([parent.info.experiment_id])
    assert sorted(model.source_run_id for model in models) == sorted([call.info.run_id, second.info.run_id])
    assert {model.status.value for model in models} == {"READY"}
