"""Spark ML on Spark Connect: client and server in one script, as ``SparkSession.builder.remote`` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid

import mlflow
import pytest
from mlflow import MlflowClient

pytest.importorskip("grpc")

SCRIPT = """
import json
import autolog
autolog.autolog(tracking_uri={uri!r}, experiment={experiment!r})
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.sql import SparkSession

spark = SparkSession.builder.remote("local[1]").getOrCreate()
rows = [(float(i % 2), float(i), "abc"[i % 3]) for i in range(24)]
train = spark.createDataFrame(rows, ["label", "x", "kind"])
stages = [
    StringIndexer(inputCol="kind", outputCol="kindIdx"),
    VectorAssembler(inputCols=["x", "kindIdx"], outputCol="features"),
    LogisticRegression(maxIter=3),
]
model = Pipeline(stages=stages).fit(train)
prediction = model.transform(train)
accuracy = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(prediction)
last = model.stages[-1]


def by_key(key, rows):
    import pandas as pd
    from sklearn.linear_model import Ridge

    return pd.DataFrame({{"k": [key[0]], "coef": [float(Ridge().fit(rows[["x"]], rows["y"]).coef_[0])]}})


rows = [(k, float(i), n * i) for k, n in (("a", 1.0), ("b", 2.0), ("c", 3.0)) for i in range(3)]
groups = spark.createDataFrame(rows, "k string, x double, y double").groupBy("k")
done = groups.applyInPandas(autolog.carry(by_key), "k string, coef double").collect()
print(json.dumps({{
    "groups": {{row.k: row.coef for row in done}},
    "accuracy": accuracy,
    "history": last.summary.objectiveHistory,
    "coefficients": last.coefficients.toArray().tolist(),
    "intercept": last.intercept,
}}))
last.setPredictionCol("changed")
spark.stop()
"""


class Session:
    """What one session has said and recorded."""

    def __init__(self, client: MlflowClient, experiment: str, said: dict) -> None:
        self.client = client
        self.said = said
        self.experiment_id = client.get_experiment_by_name(experiment).experiment_id

    def runs(self, filter_string: str) -> list:
        return self.client.search_runs([self.experiment_id], filter_string)


@pytest.fixture(scope="module")
def connect(store_uri, tmp_path_factory):
    """The one session of all tests here: nearly all of its time goes into the start of its server."""
    folder = tmp_path_factory.mktemp("connect")
    experiment = f"connect-{uuid.uuid4().hex[:12]}"
    script = folder / "train.py"
    script.write_text(SCRIPT.format(uri=store_uri, experiment=experiment))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={
            **os.environ,
            "SPARK_TESTING": "1",  # A free port, as other tests have a server, too.
            "AUTOLOG_SPOOL_DIR": str(folder / "spool"),
            "AUTOLOG_EXIT_TIMEOUT": "120",
            "AUTOLOG_SPARK_STOP_TIMEOUT": "120",
            "PYSPARK_PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        timeout=600,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "mlflow-autolog" in line]
    # The workers' own senders go on after the script has ended.
    deadline = time.monotonic() + 120
    while spools := list(folder.glob("spool/*/spool.db")):
        assert time.monotonic() < deadline, spools
        time.sleep(0.05)
    mlflow.set_tracking_uri(store_uri)
    return Session(MlflowClient(store_uri), experiment, json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_carried_groups_are_recorded(connect):
    groups = {key: round(value, 3) for key, value in connect.said["groups"].items()}
    assert groups == {"a": 0.667, "b": 1.333, "c": 2.0}
    named = connect.runs("tags.`mlflow.runName` = 'by_key'")
    (parent,) = [run for run in named if "mlflow.parentRunId" not in run.data.tags]
    calls = connect.runs(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(run.data.params["by_key.key.0"] for run in calls) == ["a", "b", "c"]
    assert [run.data.params["alpha"] for run in calls] == ["1.0"] * 3
    assert {run.info.status for run in (parent, *calls)} == {"FINISHED"}
    assert {run.data.tags["mlflow.autologging"] for run in calls} == {"sklearn"}


@pytest.mark.slow
def test_connect_session_is_recorded_as_any_other(connect, spark):
    said = connect.said
    (run,) = connect.runs("tags.`mlflow.autologging` = 'pyspark'")
    assert run.info.status == "FINISHED"
    assert run.data.params["LogisticRegression.maxIter"] == "3"
    assert run.data.metrics["accuracy_train"] == said["accuracy"]
    history = connect.client.get_metric_history(run.info.run_id, "objectiveHistory")
    assert sorted((point.step, point.value) for point in history) == list(enumerate(said["history"]))
    (found,) = run.inputs.dataset_inputs
    assert found.dataset.name == "train"
    assert [each["name"] for each in json.loads(found.dataset.schema)["mlflow_colspec"]] == ["label", "x", "kind"]
    assert mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/coefficients.json") == {
        "intercept": said["intercept"],
        "coefficients": dict(zip(["x", "kind"], said["coefficients"], strict=True)),
    }
    found = connect.client.search_logged_models([connect.experiment_id])
    (logged,) = [model for model in found if model.source_run_id == run.info.run_id]
    assert logged.status == "READY"
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    assert [each["name"] for each in signature.inputs.to_dict()] == ["x", "kind"]
    assert signature.outputs.to_dict() == [{"type": "double", "required": True}]
    # What the server wrote is what Spark itself writes: it loads in a session that is not of Spark Connect.
    frame = spark.createDataFrame([(1.0, "a"), (2.0, "b")], ["x", "kind"])
    loaded = mlflow.spark.load_model(logged.model_uri)
    assert loaded.stages[-1].getPredictionCol() == "prediction"
    expected = [row.prediction for row in loaded.transform(frame).collect()]
    assert mlflow.pyfunc.load_model(logged.model_uri).predict(frame.toPandas()) == expected
