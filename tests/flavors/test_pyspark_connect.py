"""Spark ML on Spark Connect: client and server in one script, as ``SparkSession.builder.remote`` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import mlflow
import pytest

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
print(json.dumps({{
    "accuracy": accuracy,
    "history": last.summary.objectiveHistory,
    "coefficients": last.coefficients.toArray().tolist(),
    "intercept": last.intercept,
}}))
last.setPredictionCol("changed")
spark.stop()
"""


@pytest.mark.slow
def test_connect_session_is_recorded_as_any_other(recorder, tmp_path, spark):
    mlflow.set_tracking_uri(recorder.store_uri)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(uri=recorder.store_uri, experiment=recorder.experiment))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={
            **os.environ,
            "SPARK_TESTING": "1",  # A free port, as other tests have a server, too.
            "AUTOLOG_SPOOL_DIR": str(tmp_path / "spool"),
            "AUTOLOG_EXIT_TIMEOUT": "120",
            "AUTOLOG_SPARK_STOP_TIMEOUT": "120",
            "PYSPARK_PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        timeout=400,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "mlflow-autolog" in line]
    said = json.loads(done.stdout.splitlines()[-1])
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.params["LogisticRegression.maxIter"] == "3"
    assert run.data.metrics["accuracy_train"] == said["accuracy"]
    assert recorder.history(run, "objectiveHistory") == list(enumerate(said["history"]))
    (found,) = run.inputs.dataset_inputs
    assert found.dataset.name == "train"
    assert [each["name"] for each in json.loads(found.dataset.schema)["mlflow_colspec"]] == ["label", "x", "kind"]
    assert mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/coefficients.json") == {
        "intercept": said["intercept"],
        "coefficients": dict(zip(["x", "kind"], said["coefficients"], strict=True)),
    }
    (logged,) = recorder.models()
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
