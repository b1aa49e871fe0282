"""The command line: what each command prints, does and exits with."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric

from autolog.cli import main
from autolog.cli.screen import sparkline
from autolog.ranking import better, direction


@pytest.fixture
def command(place, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process, in the place's folder; return its exit status, output and errors."""
    monkeypatch.chdir(place.folder)

    def run(*words: str, **environ: str) -> tuple[int, str, str]:
        capsys.readouterr()  # What was said before it, such as by MLflow when it made the store.
        # The width of the terminal that the tests run in is not the command's.
        mine = {name: value for name, value in place.environ.items() if name != "COLUMNS"}
        with patch.dict(os.environ, {**mine, **environ}, clear=True):
            with pytest.raises(SystemExit) as left:
                main(words)
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def recorded(place) -> tuple[str, str]:
    """Two runs, the second with two checkpoints, as ids."""
    client = MlflowClient(tracking_uri=place.store)
    experiment = client.create_experiment(place.experiment)
    ids = []
    for number, (name, rate) in enumerate([("first try", "0.1"), ("second try", "0.3")]):
        run = client.create_run(experiment, start_time=1_700_000_000_000 + number, run_name=name)
        run_id = run.info.run_id
        ids.append(run_id)
        client.log_param(run_id, "learning_rate", rate)
        client.log_param(run_id, "layers", "3")
        losses = [0.9, 0.4, 0.2 - 0.1 * number, 0.5]
        client.log_batch(run_id, [Metric("val_loss", loss, 0, step) for step, loss in enumerate(losses)])
        client.log_metric(run_id, "epochs", 4)
        if number:
            for step in (2, 3):
                model = client.create_logged_model(experiment, name=f"checkpoint-{step}", source_run_id=run_id)
                client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
                client.log_metric(run_id, "val_loss", losses[step], step=step, timestamp=0, model_id=model.model_id)
                client.finalize_logged_model(model.model_id, "READY")
        client.set_terminated(run_id, end_time=1_700_000_012_345)
    return ids[0], ids[1]


def test_help_teaches(command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    for example in ("autolog run train.py", "autolog show", "autolog compare latest", "autolog ui", "autolog doctor"):
        assert example in out
    code, out, _ = command("run", "--help")
    assert "torchrun" in out
    assert "--max-tuning-runs" in out
    assert "None or all" in re.sub(r'[\s"]+', " ", out)  # Helps are those of the Python function.


# -- run --------------------------------------------------------------------------------------------------------------

TRAINING = """
    import os, sys
    from sklearn.linear_model import Ridge
    Ridge(alpha=float(sys.argv[1])).fit([[0.0], [1.0]], [0.0, 1.0])
    print("trained")
    sys.exit(int(sys.argv[2]))
"""


def test_run_of_a_command_that_starts_python_records_what_that_trains(place) -> None:
    script = place.script(TRAINING)
    launcher = place.folder / "launch"
    launcher.write_text(f'#!/bin/sh\necho started\n{sys.executable} "$@"\nexit $?\n')
    launcher.chmod(0o755)
    options = ["--extra-tags", "by=launch", "--exit-timeout", "60"]  # A new store may take a while.
    out, err = place.run("-m", "autolog", "run", *options, launcher, script, "2.5", "3", code=3)
    assert (out, err) == ("started\ntrained\n", "")
    (run,) = place.runs()
    assert (run.data.params["alpha"], run.data.tags["by"], run.info.status) == ("2.5", "launch", "FINISHED")


def test_run_of_torchrun_records_the_first_rank_once(place) -> None:
    script = place.script(
        """
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        for step in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 2)).mean().backward()
            optimizer.step()
        dist.destroy_process_group()
        """
    )
    torchrun = Path(sys.executable).with_name("torchrun")
    place.run("-m", "autolog", "run", torchrun, "--standalone", "--nproc-per-node", "2", script, OMP_NUM_THREADS="1")
    (run,) = place.runs()
    assert (run.data.params["lr"], run.info.status) == ("0.25", "FINISHED")


def test_run_of_accelerate_launch_records_its_training(place) -> None:
    script = place.script(
        """
        import torch, accelerate
        accelerator = accelerate.Accelerator(cpu=True)
        model = torch.nn.Linear(2, 1)
        model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.25))
        for step in range(3):
            optimizer.zero_grad()
            loss = (model(torch.ones(4, 2)) * 0).mean() + step
            accelerator.backward(loss)
            optimizer.step()
        """
    )
    accelerate = Path(sys.executable).with_name("accelerate")
    options = [
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    home = {"HF_HOME": str(place.folder), "OMP_NUM_THREADS": "1"}
    place.run("-m", "autolog", "run", accelerate, "launch", *options, script, **home)
    (run,) = place.runs()
    assert (run.data.params["lr"], run.info.status) == ("0.25", "FINISHED")
    assert place.history(run, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java")
def test_run_of_spark_submit_records_its_training(place) -> None:
    script = place.script(
        """
        from pyspark.sql import SparkSession
        from pyspark.ml.feature import VectorAssembler
        from pyspark.ml.regression import LinearRegression
        spark = SparkSession.builder.getOrCreate()
        data = spark.createDataFrame([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)], ["x", "label"])
        features = VectorAssembler(inputCols=["x"], outputCol="features").transform(data)
        LinearRegression(maxIter=7).fit(features)
        spark.stop()
        """
    )
    submit = Path(sys.executable).with_name("spark-submit")
    conf = ["--master", "local[1]", "--conf", "spark.ui.enabled=false", "--conf", "spark.sql.shuffle.partitions=1"]
    place.run("-m", "autolog", "run", submit, *conf, script, PYSPARK_PYTHON=sys.executable)
    (run,) = place.runs()
    assert (run.data.params["maxIter"], run.info.status) == ("7", "FINISHED")


def test_run_of_a_command_leaves_workers_and_the_users_sitecustomize_as_they_are(place) -> None:
    mine = place.folder / "mine"
    mine.mkdir()
    (mine / "sitecustomize.py").write_text("import builtins; builtins.customized = 'yes'\n")
    script = place.script(
        """
        import multiprocessing, subprocess, sys
        def on():
            import autolog
            return autolog.status()["enabled"], customized
        if __name__ == "__main__":
            print(on())
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(on))
            print(subprocess.run([sys.executable, "-c", "import autolog; print(autolog.status()['enabled'])"],
                                 capture_output=True, text=True).stdout.strip())
        """
    )
    out, err = place.run("-m", "autolog", "run", sys.executable, script, PYTHONPATH=str(mine))
    assert err == ""
    assert out.splitlines() == ["(True, 'yes')", "(False, 'yes')", "True"]


def test_run_passes_signals_to_the_command(place) -> None:
    process = place.start("-m", "autolog", "run", "sh", "-c", "echo $$; exec sleep 60")
    assert int(process.stdout.readline()) == process.pid
    process.terminate()
    assert process.wait(20) == -15


def test_run_of_what_does_not_exist_is_bad_usage(command) -> None:
    code, _, err = command("run", "no-such-command")
    assert code == 2
    assert "there is neither a script nor a command called 'no-such-command'" in err


# -- show and compare -------------------------------------------------------------------------------------------------


def test_show_a_run_in_full(command, recorded) -> None:
    code, out, err = command("show")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["second", "try", "FINISHED"]
    assert recorded[1] in lines[1]
    assert "12.3 s" in lines[1]
    assert "\x1b" not in out
    by_name = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
    assert by_name["learning_rate"] == ["0.3"]
    assert by_name["val_loss"] == ["█▄▁▅", "0.5", "0.1", "2"]
    assert by_name["epochs"] == ["4"]
    assert by_name["2"][:2] == ["checkpoint-2", "0.1"]
    assert by_name["3"][:2] == ["checkpoint-3", "0.5"]
    assert re.fullmatch(r"models:/m-[0-9a-f]{32}", by_name["3"][2])


def test_a_run_is_found_by_id_prefix_name_and_latest(command, recorded) -> None:
    first, second = recorded
    for name, found in ((first, first), (first[:10], first), ("first try", first), ("latest", second)):
        _, out, _ = command("show", name)
        assert found in out, name
    code, out, err = command("show", "third try")
    assert (code, out) == (1, "")
    assert "no run in experiment" in err
    code, _, err = command("show", "")
    assert (code, "2 runs in experiment" in err) == (1, True)


@pytest.mark.parametrize("width", [80, 120])
def test_lines_fit_the_width(command, recorded, width: int) -> None:
    for words in (["show"], ["compare", "first try", "second try"]):
        _, out, _ = command(*words, COLUMNS=str(width))
        assert max(map(len, (line.rstrip() for line in out.splitlines()))) <= width, out


def test_compare_says_what_differs_and_which_is_better(command, recorded) -> None:
    code, out, _ = command("compare", "first try", "latest")
    assert code == 0
    assert "1 differ, 1 are the same" in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith("  ")}
    assert rows["learning_rate"] == ["0.1", "0.3"]
    assert "layers" not in rows
    assert [word for word in rows["val_loss"] if "▁" not in word] == ["0.2", "0.1", "-0.1"]
    assert rows["epochs"] == ["4", "4", "same"]


def test_the_latest_is_the_search_with_its_candidates(place, command) -> None:
    place.run(
        place.script(
            """
            import autolog
            autolog.autolog()
            from sklearn.linear_model import Ridge
            from sklearn.model_selection import GridSearchCV
            GridSearchCV(Ridge(), {"alpha": [0.1, 10.0]}, cv=2).fit([[x] for x in range(8)], [3 * x for x in range(8)])
            """
        )
    )
    search, *children = sorted(place.runs(), key=lambda run: "mlflow.parentRunId" in run.data.tags)
    code, out, _ = command("show", COLUMNS="100")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[0] == search.info.run_name
    rows = [line.split() for line in lines[lines.index("Child runs 2") + 1 :]]
    assert rows[0] == ["name", "mean_test_score", "id"]
    for child in children:
        score = f"{child.data.metrics['mean_test_score']:.6g}"
        assert [child.info.run_name, score, child.info.run_id[:8]] in rows


def test_models_are_told_apart_by_a_metric_that_all_have(command, place, recorded) -> None:
    client = MlflowClient(tracking_uri=place.store)
    _, second = recorded
    (model,) = client.search_logged_models([client.get_run(second).info.experiment_id], "name = 'checkpoint-3'")
    client.log_metric(second, "accuracy", 0.75, step=3, timestamp=0, model_id=model.model_id)
    _, out, _ = command("show", COLUMNS="80")
    head = out.splitlines()[out.splitlines().index("Models 2") + 1]
    assert head.split()[:3] == ["step", "name", "val_loss"]


def test_a_store_that_does_not_exist_is_not_made_by_asking(command, place) -> None:
    code, _, err = command("show", "--tracking-uri", f"sqlite:///{place.folder}/none.db")
    assert code == 1
    assert "the first run makes it" in err
    assert not (place.folder / "none.db").exists()


def on_a_terminal(place, *words: object, code: int = 0, **environ: str) -> str:
    """Return what a command writes to a terminal of 100 columns."""
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=place.folder,
        env={**place.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environ},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    said = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux says so when the last writer has gone.
            break
        if not chunk:
            break
        said += chunk
    os.close(master)
    assert process.wait(60) == code, said
    return said.decode()


def test_colour_is_for_terminals_that_want_it(place, recorded) -> None:
    assert "\x1b[32mFINISHED" in on_a_terminal(place, "-m", "autolog", "show")
    assert "\x1b" not in on_a_terminal(place, "-m", "autolog", "show", NO_COLOR="1")


def test_sync_shows_its_progress_on_a_terminal_only(place) -> None:
    script = place.script(
        """
        import autolog
        autolog.autolog(exit_timeout=0)
        from sklearn.linear_model import Ridge
        Ridge().fit([[0.0], [1.0]], [0.0, 1.0])
        autolog.flush(3)
        print(autolog.status()["writer"]["sender_pid"])
        """
    )
    out, _ = place.run(script, AUTOLOG_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_TIMEOUT="1")
    (spool,) = place.spools()
    from autolog.spool import Lease

    # The training's own sender keeps trying for a minute; ended, as a reboot ends it.
    os.kill(int(out), signal.SIGKILL)
    place.wait_for(lambda: Lease.is_free(spool.parent / "sender.lock"))
    out, _ = place.run("-m", "autolog", "sync", "--patience", "0", code=1)
    assert "waiting" in out
    assert "delivering" not in out
    said = on_a_terminal(place, "-m", "autolog", "sync", "--patience", "0", code=1)
    assert re.search(r"delivering .*0 of \d+ records", said)


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8, encoding="utf-8") == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2, encoding="utf-8") == "▁█"
    assert sparkline([1, 1], 8, encoding="utf-8") == "▄▄"
    assert sparkline([0, float("nan"), float("inf"), 1], 8, encoding="utf-8") == "▁  █"
    assert sparkline([float("nan")], 8, encoding="utf-8") == " "
    assert sparkline([0, 1], 8, encoding="cp1252") == "_@"


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("val_loss", "min"),
        ("validation_0-rmse", "min"),
        ("train-mlogloss", "min"),
        ("training_mean_squared_error", "min"),
        ("eval-error", "min"),
        ("best_cv_score", "max"),
        ("training_accuracy_score", "max"),
        ("validation_0-auc", "max"),
        ("test/f1", "max"),
        ("training_r2_score", "max"),
        ("areaUnderROC", "max"),
        ("learning_rate", None),
        ("epoch", None),
        ("grad_norm", None),
        ("mean_test_neg_mean_squared_error", "max"),
        ("system/gpu_0_memory_usage_megabytes", None),
        ("mean_test_score", "max"),
        ("std_test_score", None),
        ("rank_test_score", None),
        ("mean_score_time", None),
    ],
)
def test_direction(name: str, way: str | None) -> None:
    assert direction(name) == way
    assert better(name, 1.0, 2.0) == (way == "min")
    assert better(name, 2.0, 1.0) == (way == "max")


# -- ui ---------------------------------------------------------------------------------------------------------------


def test_ui_says_how_where_mlflow_has_no_pages(command, place) -> None:
    from autolog.cli.ui import has_pages

    if has_pages():
        pytest.skip("full mlflow is installed")
    code, out, err = command("ui", "--port", "5077")
    assert (code, out) == (1, "")
    # Another version than that which made the store may refuse its tables.
    assert f"uvx mlflow@{mlflow.__version__} ui --backend-store-uri {place.store} --port 5077" in err


def test_ui_of_a_server_is_its_address_without_credentials(command) -> None:
    code, out, _ = command("ui", "--tracking-uri", "https://me:secret@example.org/mlflow")
    assert (code, out) == (0, "https://example.org/mlflow\n")


# -- what is said at the end of a training ----------------------------------------------------------------------------

FITS = """
    import autolog, sys
    autolog.autolog(exit_timeout=60)
    from sklearn.linear_model import Ridge
    for alpha in range(int(sys.argv[1])):
        Ridge(alpha=alpha).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
    assert "mlflow" not in sys.modules
"""


def test_one_run_is_said_in_a_block(place, recorded) -> None:
    said = on_a_terminal(place, place.script(FITS), "1", NO_COLOR="1")
    run = place.runs()[-1]
    (model,) = MlflowClient(tracking_uri=place.store).search_logged_models([run.info.experiment_id], "name = 'model'")
    lines = said.rpartition("\x1b[2K")[2].splitlines()  # The line of progress is taken away before.
    assert lines[0] == f"mlflow-autolog recorded {run.info.run_name}  {place.experiment}"
    points = sum(len(place.history(run, name)) for name in run.data.metrics)
    pictures = "" if not re.search("picture", lines[1]) else ", 1 picture"
    assert lines[1].startswith(f"  {len(run.data.params)} params, {points} points, 1 model{pictures}; best ")
    assert lines[2:] == [f"  models:/{model.model_id}", f"  look: autolog show {run.info.run_id[:8]}  |  autolog ui"]


def test_many_runs_are_said_in_one_line(place, recorded) -> None:
    said = on_a_terminal(place, place.script(FITS), "12", NO_COLOR="1")
    assert said.rpartition("\x1b[2K")[2].splitlines() == ["mlflow-autolog recorded 12 runs  look: autolog ui"]


def test_nothing_is_said_to_whoever_does_not_watch(place, recorded) -> None:
    assert place.run(place.script(FITS), "1") == ("", "")
    assert on_a_terminal(place, place.script(FITS), "1", AUTOLOG_SILENT="true") == ""
    assert on_a_terminal(place, place.script(FITS), "0") == ""


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_finds_nothing_where_all_is_set_up_and_leaves_nothing(command, place, recorded) -> None:
    code, out, _ = command("doctor")
    assert code == 0, out
    assert out.endswith("Everything is set up.\n")
    assert "fix" not in out
    for name in ("sklearn", "torch", "spool", "store", "write and read back", "artifact", "delete"):
        assert re.search(rf"^ok    {name}  ", out, re.MULTILINE), name
    assert [run.info.run_name for run in place.runs()] == ["first try", "second try"]


TROUBLES = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")


def findings(out: str, folder: Path | None = None) -> dict[str, tuple[str, str]]:
    """What is to be fixed: name -> (problem, fix). The page on troubles shows it so; folder: its /home/ada."""
    found = re.findall(r"^fix   ([\w ]+): (.+)\n +(.+)$", out, re.MULTILINE)
    assert out.rstrip().endswith("to fix."), out
    for shown in re.findall(r"^fix   .+\n +.+$", out, re.MULTILINE):
        shown = re.sub(r"Errno \d+", "Errno 111", shown)  # Linux's number.
        assert (shown.replace(str(folder), "/home/ada") if folder else shown) in TROUBLES
    return {name: (problem, fix) for name, problem, fix in found}


def test_doctor_of_a_store_that_is_away(command) -> None:
    code, out, err = command("doctor", "--tracking-uri", "http://127.0.0.1:9")
    assert (code, err) == (1, "")
    problem = findings(out)["store"][0]
    assert problem.startswith("the store cannot be reached (")
    assert "refused" in problem
    assert "MLFLOW_TRACKING_URI" in findings(out)["store"][1]


def test_doctor_of_wrong_credentials(command, auth_server) -> None:
    environ = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "not-this-one"}
    code, out, _ = command("doctor", "--tracking-uri", auth_server.uri, **environ)
    assert code == 1
    problem, fix = findings(out)["store"]
    assert problem == "the store refuses the credentials (HTTP status 401)"
    assert "MLFLOW_TRACKING_PASSWORD" in fix
    assert "not-this-one" not in out


def test_doctor_of_a_spool_that_others_can_write(command, place, recorded) -> None:
    folder = place.folder / "spool"
    folder.mkdir()
    folder.chmod(0o777)
    code, out, _ = command("doctor")
    assert (code, findings(out, place.folder)["spool"][1]) == (1, f"chmod 700 {folder}")
    folder.chmod(0o700)
    assert command("doctor")[0] == 0


def test_doctor_of_spark_without_java(command, place, recorded) -> None:
    empty = place.folder / "empty"
    empty.mkdir()
    code, out, _ = command("doctor", JAVA_HOME=str(empty))
    problem, fix = findings(out, place.folder)["java"]
    assert (code, problem) == (1, f"Spark needs it, and there is none in JAVA_HOME ({empty})")
    assert "openjdk-17" in fix
    java = empty / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    java.chmod(0o755)
    _, out, _ = command("doctor", JAVA_HOME=str(empty))
    assert re.search(r"^fix   java: .+ is version 8; Spark [\w.]+ needs 17, 21$", out, re.MULTILINE)


def test_doctor_of_a_framework_that_is_too_old_and_a_broken_package(place, recorded) -> None:
    shadow = place.folder / "shadow"
    old = shadow / "xgboost-1.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: xgboost\nVersion: 1.0\n")
    (shadow / "matplotlib.py").write_text("raise ImportError('libfreetype.so.6 is missing')\n")
    out, _ = place.run("-m", "autolog", "doctor", code=1, PYTHONPATH=str(shadow))
    found = findings(out)
    assert found["xgboost"][0].startswith("xgboost 1.0 is outside the supported range")
    assert found["xgboost"][1].startswith('pip install "xgboost')
    assert "libfreetype.so.6 is missing" in found["matplotlib"][0]


def test_doctor_of_a_store_that_cannot_be_made_and_of_a_wrong_setting(command, place) -> None:
    code, out, _ = command("doctor", "--tracking-uri", f"sqlite:///{place.folder}/no/such/mlflow.db")
    assert (code, findings(out, place.folder)["store"][1]) == (1, f"mkdir -p {place.folder}/no/such")
    code, out, _ = command("doctor", AUTOLOG_MAX_POINTS="many")
    assert code == 1
    assert "AUTOLOG_MAX_POINTS must be" in findings(out)["settings"][0]
