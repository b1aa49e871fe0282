"""The examples on real data, each in a process of its own, and the demo that runs them: one demo for all tests."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import psutil
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LAB_DATA = ROOT.parent / "shared" / "data" / "penguins.csv"
SCRIPTS = ("sklearn_penguins.py", "xgboost_penguins.py", "torch_penguins.py", "spark_penguins.py")
PENGUIN = {"Island": "Biscoe", "CulmenLength": 48.7, "CulmenDepth": 14.1, "FlipperLength": 210.0, "BodyMass": 4450.0}


def imported(name: str) -> ModuleType:
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


demo = imported("demo")
penguins = imported("penguins")
has_java = demo.java_problem() is None
needs_java = pytest.mark.skipif(not has_java, reason="Spark needs Java 17 or later")


# -- the scripts, unrun -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("script", SCRIPTS)
def test_one_line_is_all_that_is_ours(script):
    ours = [
        ast.unparse(node)
        for node in ast.walk(ast.parse((EXAMPLES / script).read_text()))
        if isinstance(node, ast.stmt)
        and not hasattr(node, "body")
        and ("autolog" in (text := ast.unparse(node)) or "flavors" in text)
    ]
    assert ours == ["import autolog", "autolog.autolog()"]


def test_the_demo_reads_back_through_plain_mlflow():
    roots = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse((EXAMPLES / "demo.py").read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "mlflow" in roots
    assert not roots & {"autolog", "flavors", "penguins"}


def test_the_data_are_the_344_penguins():
    data = penguins.load()
    assert list(data.columns) == ["Island", "CulmenLength", "CulmenDepth", "FlipperLength", "BodyMass", "Species"]
    assert data["Species"].value_counts().to_dict() == {0: 152, 1: 124, 2: 68}
    assert data.isna().any(axis=1).sum() == 2
    assert data.iloc[0].to_list() == ["Torgersen", 39.1, 18.7, 181.0, 3750.0, 0]


@pytest.mark.skipif(not LAB_DATA.exists(), reason="the lab's own file is not here")
def test_the_data_are_those_of_the_lab(tmp_path):
    ours = pd.read_csv(penguins.write_csv(tmp_path / "penguins.csv"))
    pd.testing.assert_frame_equal(ours, pd.read_csv(LAB_DATA))


# -- the demo, run once -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """One run of the whole demo: exit code, output, folder, and a plain client of its store."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("demo folder")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "demo.py"), "--folder", str(folder)],
        capture_output=True,
        text=True,
        timeout=400,
    )
    return SimpleNamespace(
        returncode=done.returncode,
        stdout=done.stdout,
        stderr=done.stderr,
        folder=folder,
        uri=f"sqlite:///{folder / 'mlflow.db'}",
        client=MlflowClient(f"sqlite:///{folder / 'mlflow.db'}"),
    )


def runs_of(shown, flavor):
    experiment = shown.client.get_experiment_by_name("penguins")
    return shown.client.search_runs(
        [experiment.experiment_id],
        f"tags.`mlflow.autologging` = '{flavor}'",
        order_by=["attributes.start_time ASC"],
    )


def models_of(shown, run):
    return [shown.client.get_logged_model(output.model_id) for output in run.outputs.model_outputs]


def printed(shown, script) -> list[float]:
    """The accuracies that a script printed, in order."""
    lines = iter(shown.stdout.splitlines())
    next(line for line in lines if script in line)
    found = []
    for line in lines:
        if not line.startswith("                  "):
            break
        name, _, value = line.strip().partition(": ")
        if name == "accuracy":
            found.append(float(value))
    return found


def only(items):
    (item,) = items
    return item


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flavor", "metric"),
    [("sklearn", "accuracy_score_X_test"), ("xgboost", "accuracy_score_X_test"), ("torch", "accuracy")],
)
def test_a_script_is_recorded_whole(shown, flavor, metric):
    run = only(runs_of(shown, flavor))
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.source.name"] == str(EXAMPLES / f"{flavor}_penguins.py")
    accuracy = only(printed(shown, f"{flavor}_penguins.py"))
    assert round(run.data.metrics[metric], 4) == accuracy
    model = only(models_of(shown, run))
    assert (model.name, model.status) == ("model", "READY")
    if flavor != "torch":  # What a user's own call logs is the run's.
        assert round({found.key: found.value for found in model.metrics}[metric], 4) == accuracy


@pytest.mark.slow
def test_the_sklearn_model_predicts_through_plain_mlflow(shown):
    import mlflow

    model = only(models_of(shown, only(runs_of(shown, "sklearn"))))
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(shown.uri)
    try:
        assert mlflow.pyfunc.load_model(model.model_uri).predict(pd.DataFrame([PENGUIN])).tolist() == [1]
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.slow
@needs_java
def test_the_spark_lab_is_recorded_as_two_runs(shown):
    runs = runs_of(shown, "pyspark")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    assert [
        (run.data.params["LogisticRegression.maxIter"], run.data.params["LogisticRegression.regParam"]) for run in runs
    ] == [("5", "0.5"), ("10", "0.2")]
    accuracies = printed(shown, "spark_penguins.py")
    for run, accuracy in zip(runs, accuracies, strict=True):
        model = only(models_of(shown, run))
        assert model.status == "READY"
        on_model = {found.key: found.value for found in model.metrics}
        for name in ("accuracy", "weightedRecall", "weightedPrecision"):
            assert run.data.metrics[f"{name}_test_data"] == on_model[f"{name}_test_data"]
        assert round(run.data.metrics["accuracy_test_data"], 4) == accuracy


@pytest.mark.slow
def test_the_demo_ranks_registers_serves_and_says_so(shown):
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "mlflow-autolog could not" not in shown.stdout
    served = "pyspark" if has_java else "sklearn"
    best = max(
        (model for run in runs_of(shown, served) for model in models_of(shown, run)),
        key=lambda model: max(found.value for found in model.metrics if found.key.startswith("accuracy")),
    )
    champion = shown.client.get_model_version_by_alias("Penguin Predictor", "champion")
    assert (int(champion.version), champion.source) == (1, best.model_uri)
    answer = next(line for line in shown.stdout.splitlines() if '"predictions"' in line)
    assert json.loads(answer[answer.index("{") : answer.index("}") + 1]) == {"predictions": [1]}
    table = [line for line in shown.stdout.splitlines() if "models:/m-" in line]
    accuracies = [float(cell) for line in table for cell in line.split() if cell.startswith(("0.", "1."))]
    assert len(accuracies) == (5 if has_java else 3)
    assert accuracies == sorted(accuracies, reverse=True)
    assert f"mlflow ui --backend-store-uri {shown.uri.replace(' ', '%20')}" in shown.stdout


@pytest.mark.slow
def test_the_demo_leaves_no_process_behind(shown):
    deadline = time.monotonic() + 15
    while left := [
        p.info for p in psutil.process_iter(["pid", "cwd", "cmdline"]) if p.info["cwd"] == str(shown.folder)
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


# -- what can go wrong ------------------------------------------------------------------------------------------------
def fake_java(folder: Path, version: str) -> None:
    (folder / "bin").mkdir()
    java = folder / "bin" / "java"
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2020-01-01' >&2\n")
    java.chmod(0o755)


@pytest.mark.parametrize(
    ("version", "problem"), [("17.0.15", None), ("21", None), ("11.0.2", "version 11"), ("1.8.0_392", "version 8")]
)
def test_java_17_is_asked_for(tmp_path, monkeypatch, version, problem):
    fake_java(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    said = demo.java_problem()
    if problem is None:
        assert said is None
    else:
        assert problem in said
        assert "openjdk" in said


def test_without_java_the_command_that_installs_it_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = demo.java_problem()
    assert "there is none. Install it with: " in said
    assert "\n" not in said


def test_a_script_that_fails_fails_the_demo(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("print('begun'); raise ValueError('no penguins')")
    monkeypatch.setattr(demo, "EXAMPLES", tmp_path)
    with pytest.raises(demo.DemoFailed, match=r"(?s)broken\.py ended with exit code 1.*ValueError: no penguins"):
        demo.train(demo.Training("Broken", "broken.py", "broken", 1, "accuracy"), tmp_path)


def test_a_server_that_cannot_start_fails_the_demo(tmp_path):
    started = time.monotonic()
    with pytest.raises(demo.DemoFailed, match="the scoring server ended with exit code"):
        with demo.serving(str(tmp_path / "no model"), tmp_path):
            pass
    assert time.monotonic() - started < 60


def test_a_script_that_records_nothing_fails_the_demo(tmp_path, monkeypatch, store_uri):
    from mlflow import MlflowClient

    monkeypatch.setattr(demo, "RECORDED_TIMEOUT", 0.5)
    with pytest.raises(demo.DemoFailed, match=r"scikit-learn: 1 finished runs expected, recorded are \[\]"):
        demo.wait_until_recorded(MlflowClient(store_uri), demo.TRAININGS[0], started=0)
