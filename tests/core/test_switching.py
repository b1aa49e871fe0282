"""Switching on and off, and calling back when modules are imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from sklearn.linear_model import LinearRegression

import autolog
from autolog import guard, imports
from autolog.checkpoints import Checkpoints, Schedule, Shelf

X, Y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]


def python(code: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, **kwargs
    )


def test_excluded_flavor_is_not_patched(recorder) -> None:
    recorder.start(exclude_flavors=["sklearn"])
    LinearRegression().fit(X, Y)
    assert recorder.runs() == []
    recorder.start()
    LinearRegression().fit(X, Y)
    recorder.run()


def test_only_the_flavors_asked_for(recorder) -> None:
    pytest.importorskip("torch")
    recorder.start("torch")
    LinearRegression().fit(X, Y)
    assert recorder.runs() == []
    assert autolog.status()["flavors"]["sklearn"]["patched"] is False
    recorder.start("sklearn")
    LinearRegression().fit(X, Y)
    recorder.run()
    assert autolog.status()["flavors"]["sklearn"]["patched"] is True


def test_disable_by_argument_and_again_on(recorder) -> None:
    recorder.start()
    autolog.autolog(disable=True)
    LinearRegression().fit(X, Y)
    assert recorder.runs() == []
    recorder.start()
    LinearRegression().fit(X, Y)
    recorder.run()


def test_pause_is_of_this_thread_only(recorder) -> None:
    recorder.start()
    with autolog.paused():
        LinearRegression().fit(X, Y)
        other = threading.Thread(target=lambda: LinearRegression(positive=True).fit(X, Y))
        other.start()
        other.join()
    assert recorder.run().data.params["positive"] == "True"


def test_silent_says_nothing(recorder, caplog) -> None:
    recorder.start(silent=True)
    guard.report("do a thing", ValueError("x"))
    assert caplog.records == []
    recorder.start()
    guard.reset()
    guard.report("do a thing", ValueError("x"))
    assert "could not do a thing" in caplog.text
    guard.report("do a thing", ValueError("again"))
    assert len(caplog.records) == 1, "once, not per step"
    guard.reset()


def test_import_order_does_not_matter() -> None:
    pytest.importorskip("xgboost")
    code = """
        {before}
        import autolog
        autolog.autolog(tracking_uri="sqlite:///nowhere.db")
        {after}
        from sklearn.linear_model import Ridge
        from autolog.patching import Wrapper
        import sklearn.metrics
        # The function is the same object; what it calls is patched.
        print(isinstance(vars(Ridge)["fit"], Wrapper), accuracy_score is sklearn.metrics.accuracy_score,
              isinstance(train, Wrapper))
        import runpy
    """
    bound = "from sklearn.metrics import accuracy_score; from xgboost import train"
    for before, after in ((bound, "pass"), ("pass", bound)):
        done = python(code.format(before=before, after=after))
        assert done.stdout.split() == ["True", "True", "True"]


def test_failed_import_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "sometimes.py").write_text("import os\nif os.environ.pop('FAIL', None): raise RuntimeError('first')\n")
    code = """
        import os, sys
        sys.path.insert(0, '.')
        os.environ['FAIL'] = '1'
        from autolog import imports
        seen = []
        imports.when_imported('sometimes', lambda module: seen.append(module.__name__))
        try: import sometimes
        except RuntimeError as error: print(error, seen)
        import sometimes
        print(seen, type(sometimes.__loader__).__name__, 'exec_module' in vars(sometimes.__loader__))
    """
    done = python(code, cwd=tmp_path)
    assert done.stdout.splitlines() == ["first []", "['sometimes'] SourceFileLoader False"]


def test_callback_that_fails_does_not_break_the_import(tmp_path: Path) -> None:
    (tmp_path / "quiet.py").write_text("x = 1\n")

    def fails(module):
        raise RuntimeError("ours")

    sys.path.insert(0, str(tmp_path))
    try:
        imports.when_imported("quiet", fails)
        import quiet

        assert quiet.x == 1
    finally:
        sys.path.remove(str(tmp_path))
        imports.forget("quiet", fails)
        sys.modules.pop("quiet", None)
    assert [str(error) for _, error in guard.swallowed] == ["ours"]
    guard.swallowed.clear()


def test_shelf_keeps_the_last_and_the_best() -> None:
    shelf = Shelf(Checkpoints(keep_last=2, keep_best=1, mode="min"))
    dropped = [shelf.add(f"m{i}", score) for i, score in enumerate([3.0, 1.0, 2.0, 4.0, float("nan"), None])]
    assert dropped == [(), (), ("m0",), (), ("m2",), ("m3",)]
    assert {key for key, _ in shelf._kept} == {"m1", "m4", "m5"}
    assert Shelf(Checkpoints(keep_last=None)).add("a", None) == ()


def test_schedule_by_steps_and_epochs() -> None:
    schedule = Schedule(Checkpoints(every="10 steps"))
    due = []
    for step in range(1, 31):
        if schedule.due_at_step(step):
            due.append(step)
            schedule.taken(step, 0.0)
    assert due == [10, 20, 30]
    assert not schedule.due_at_epoch()
    epochs = Schedule(Checkpoints(every="2 epochs"))
    assert [epochs.due_at_epoch() for _ in range(4)] == [False, True, False, True]
    assert not Schedule(Checkpoints(every="end")).due_at_step(10**9)


def test_auto_schedule_stays_below_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    from autolog import checkpoints

    clock = 1000.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock)
    schedule = Schedule(Checkpoints(every="auto"))
    assert not schedule.due_at_step(1)
    clock += 61
    assert schedule.due_at_step(2)
    schedule.taken(2, 5.0)  # Five seconds: the next one has to wait until they are 1 % of the time.
    clock += 200
    assert not schedule.due_at_step(3)
    clock += 300
    assert schedule.due_at_step(4)
