"""The whole way in one command: four frameworks recorded, ranked, the best Spark model registered, served and asked.

Each script of this folder runs in a process of its own and records itself by its one line. Everything after that is
plain MLflow: this file does not import autolog.

    python examples/demo.py [--folder .demo]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent
EXPERIMENT = "penguins"
REGISTERED = "Penguin Predictor"
PENGUIN = {"Island": "Biscoe", "CulmenLength": 48.7, "CulmenDepth": 14.1, "FlipperLength": 210, "BodyMass": 4450}
SPECIES = ("Adelie", "Gentoo", "Chinstrap")

#: Seconds to wait for records that are still on their way when a script ends, and for the scoring server.
RECORDED_TIMEOUT, SERVER_TIMEOUT = 60.0, 180.0


class DemoFailed(Exception):
    """A step failed; the message says which and why."""


@dataclass(frozen=True)
class Training:
    """One script, and under which name its framework's users find the accuracy on the test data.

    flavor: the value of its runs' tag ``mlflow.autologging``; runs: how many it makes.
    metric: key of the metric on the logged model.
    """

    framework: str
    script: str
    flavor: str
    runs: int
    metric: str


TRAININGS = (
    # sklearn.metrics.accuracy_score(y_test, predictions), predictions = model.predict(X_test)
    Training("scikit-learn", "sklearn_penguins.py", "sklearn", 1, "accuracy_score_X_test"),
    Training("XGBoost", "xgboost_penguins.py", "xgboost", 1, "accuracy_score_X_test"),
    # the script's own mlflow.log_metric("accuracy", ...), the last of which is about the final model
    Training("PyTorch", "torch_penguins.py", "torch", 1, "accuracy"),
    # MulticlassClassificationEvaluator(metricName="accuracy") of model.transform(test_data)
    Training("Spark ML", "spark_penguins.py", "pyspark", 2, "accuracy_test_data"),
)


@dataclass(frozen=True)
class Ranked:
    """One logged model of this demo with its accuracy on the test data."""

    training: Training
    run_name: str
    accuracy: float
    model: Any


# -- training -------------------------------------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of the scripts: whatever tracking store the caller uses stays out of the demo."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AUTOLOG_"))}
    programs = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    return {
        **kept,
        "PATH": programs,
        "AUTOLOG_EXPERIMENT": EXPERIMENT,
        "AUTOLOG_SPOOL_DIR": str(folder / "spool"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Spark's driver listens here: a host name that resolves to nothing would stop it.
        "SPARK_LOCAL_IP": kept.get("SPARK_LOCAL_IP", "127.0.0.1"),
    }


def java_problem() -> str | None:
    """Return why Spark cannot run here, with the command that helps, or None where Java 17 or later is found."""
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    found = "there is none"
    if java:
        with contextlib.suppress(OSError):
            said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False)
            version = re.search(r'version "(?:1\.)?(\d+)', said.stderr)
            if version and int(version[1]) >= 17:
                return None
            if version:
                found = f"{java} is version {version[1]}"
    install = "brew install openjdk@17" if sys.platform == "darwin" else "sudo apt-get install openjdk-17-jre-headless"
    return f"left out, Spark needs Java 17 or later and {found}. Install it with: {install}"


def train(training: Training, folder: Path) -> None:
    """Run one script in `folder`, and show what it prints and what mlflow-autolog has to say."""
    log = folder / f"{training.flavor}.log"
    begun = time.monotonic()
    with log.open("w") as stderr:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / training.script)],
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
        )
    say(f"  {training.framework:<13} python examples/{training.script:<20} {time.monotonic() - begun:5.1f} s")
    for line in done.stdout.splitlines():
        say(f"                  {line}")
    for line in log.read_text(errors="replace").splitlines():
        if "mlflow-autolog" in line:
            say(f"                  {line}")
    if done.returncode != 0:
        raise DemoFailed(f"{training.script} ended with exit code {done.returncode}; {tail(log)}")


# -- reading it back, plain MLflow from here on ---------------------------------------------------------------------


def wait_until_recorded(client: Any, training: Training, started: int) -> list[Any]:
    """Return the runs of one script, once they are in the store and ended; they must have succeeded."""
    deadline = time.monotonic() + RECORDED_TIMEOUT
    wanted = f"tags.`mlflow.autologging` = '{training.flavor}' AND attributes.start_time >= {started}"
    while True:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        runs = client.search_runs([experiment.experiment_id], wanted) if experiment else []
        states = [run.info.status for run in runs]
        if (len(runs) >= training.runs and "RUNNING" not in states) or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if states != ["FINISHED"] * training.runs:
        raise DemoFailed(f"{training.framework}: {training.runs} finished runs expected, recorded are {states}")
    return list(runs)


def rank(training: Training, runs: list[Any]) -> list[Ranked]:
    """Return the logged models of one script that are right more often than not, best first."""
    import mlflow

    by_id = {run.info.run_id: run for run in runs}
    metric = f"metrics.`{training.metric}`"
    better = f"{metric} > 0.5"
    models = mlflow.search_logged_models(
        [runs[0].info.experiment_id],
        filter_string=f"{better} AND source_run_id IN ({', '.join(repr(run_id) for run_id in by_id)})",
        order_by=[{"field_name": metric, "ascending": False}],
        output_format="list",
    )
    if not models:
        raise DemoFailed(f"{training.framework}: no logged model of its runs where {better}")
    ranked = []
    for model in models:
        run = by_id[model.source_run_id]
        measured = {found.key: found.value for found in model.metrics}
        ranked.append(Ranked(training, run.info.run_name, measured[training.metric], model))
    return ranked


def register(client: Any, model: Any) -> str:
    """Register `model` as the champion and return the version's number."""
    import mlflow

    # MLflow reports its progress on stderr; a failure is an exception.
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        version = mlflow.register_model(model.model_uri, REGISTERED)
    client.set_registered_model_alias(REGISTERED, "champion", version.version)
    return str(version.version)


# -- serving --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(model_uri: str, folder: Path) -> Iterator[str]:
    """Run MLflow's scoring server on a free port; give its address, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "serve.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model_uri, "--env-manager", "local"]
    with log.open("w") as output:
        # MLflow starts the server itself as a child, and that Spark: a group of their own ends as one.
        server = subprocess.Popen(
            [*command, "-h", "127.0.0.1", "-p", str(port)],
            cwd=folder,
            env=environment(folder),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_served(address, server, log)
        yield address
    finally:
        stop(server)


def wait_until_served(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for the server's answer to a ping."""
    deadline = time.monotonic() + SERVER_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise DemoFailed(f"the scoring server ended with exit code {server.returncode}; {tail(log)}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/ping", timeout=5):
            return
        time.sleep(0.2)
    raise DemoFailed(f"the scoring server did not answer within {SERVER_TIMEOUT:g} s; {tail(log)}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and what it started, by its own process group."""
    for signum, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(patience)
            return


def ask(address: str, penguin: dict[str, object]) -> str:
    """Post one penguin to the server and return its answer, a JSON text."""
    request = urllib.request.Request(
        f"{address}/invocations",
        data=json.dumps({"dataframe_records": [penguin]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        raise DemoFailed(f"the scoring server answered {error.code}: {error.read().decode()[:2000]}") from None


# -- what people read -----------------------------------------------------------------------------------------------


def say(text: str = "") -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def tail(log: Path, lines: int = 15) -> str:
    """Return the end of a log for a message."""
    last = log.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join([f"the end of {log}:", *(f"    {line}" for line in last)])


def show(ranked: list[Ranked]) -> None:
    """Print the models as a table: with rich where it is installed, else as plain text."""
    header = ("Run", "Framework", "Accuracy", "Model URI")
    rows = [(e.run_name, e.training.framework, f"{e.accuracy:.4f}", e.model.model_uri) for e in ranked]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        for row in (header, tuple("-" * width for width in widths), *rows):
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    console = Console()
    # A pipe has no width of its own, and a model URI must be copied whole.
    (console if console.is_terminal else Console(width=120)).print(table)


def explain_ui(uri: str) -> None:
    """Say how to look at the runs: mlflow-skinny, which mlflow-autolog depends on, has no UI."""
    import mlflow

    say("To look at it in the MLflow UI, which mlflow-skinny leaves out:")
    say("  " + shlex.join([sys.executable, "-m", "pip", "install", f"mlflow=={mlflow.__version__}"]))
    say("  " + shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]))


def main() -> None:
    """Run the demo.

    Raises: DemoFailed.
    """
    parser = argparse.ArgumentParser(description="Penguins in four frameworks, recorded, ranked, registered, served.")
    parser.add_argument("--folder", type=Path, default=EXAMPLES.parent / ".demo", help="where it records; kept")
    folder: Path = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)  # MLflow's default store is mlflow.db and mlruns in the working folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.time_ns() // 1_000_000

    say("Training, one line added to each script:")
    trainings = list(TRAININGS)
    for training in TRAININGS:
        problem = java_problem() if training.flavor == "pyspark" else None
        if problem:
            say(f"  {training.framework:<13} {problem}")
            trainings.remove(training)
        else:
            train(training, folder)
    say()

    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "AUTOLOG_"))]:
        del os.environ[name]
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    client = mlflow.MlflowClient()
    recorded = {training: wait_until_recorded(client, training, started) for training in trainings}
    ranked = [entry for training, runs in recorded.items() for entry in rank(training, runs)]
    ranked.sort(key=lambda entry: entry.accuracy, reverse=True)

    # Where Spark was left out: scikit-learn's pipeline takes the same columns.
    servable = "pyspark" if any(entry.training.flavor == "pyspark" for entry in ranked) else "sklearn"
    best = next(entry for entry in ranked if entry.training.flavor == servable)
    version = register(client, best.model)
    uri = f"models:/{REGISTERED}@champion"
    say(f'Registered the best {best.training.framework} model as "{REGISTERED}", version {version}, alias champion')
    with serving(uri, folder) as address:
        say(f'Served it: mlflow models serve -m "{uri}" at {address}')
        say(f"  POST /invocations {json.dumps({'dataframe_records': [PENGUIN]})}")
        answer = ask(address, PENGUIN)
    say(f"  {answer.strip()}, which is {SPECIES[int(json.loads(answer)['predictions'][0])]}")
    say()
    show(ranked)
    explain_ui(mlflow.get_tracking_uri())


if __name__ == "__main__":
    try:
        main()
    except DemoFailed as failure:
        sys.exit(f"The demo failed: {failure}")
