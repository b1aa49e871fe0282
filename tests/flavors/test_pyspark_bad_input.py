"""Spark ML: what goes wrong in the user's training is Spark's own error, and the rest is recorded."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import mlflow
import pytest
from pyspark.errors.exceptions.captured import AnalysisException, IllegalArgumentException
from pyspark.ml import Pipeline, Transformer
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.ml.recommendation import ALS
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable

import autolog
from autolog import guard


@pytest.fixture
def store(spark_store):
    return spark_store


def raised_by(train):
    with pytest.raises(Exception) as caught:
        train()
    return type(caught.value), str(caught.value)


def assert_sparks_own(train):
    """The error is the one that comes without us, but for the names that Spark makes up anew each time."""
    ours = raised_by(train)
    with autolog.paused():
        assert raised_by(train) == ours
    return ours


def test_missing_column(store, vectors):
    kind, _ = assert_sparks_own(lambda: LogisticRegression(featuresCol="nowhere").fit(vectors))
    assert kind is IllegalArgumentException
    run = store.run()
    assert run.info.status == "FAILED"
    assert run.data.params["featuresCol"] == "nowhere"
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["vectors"]
    assert "nowhere" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/traceback.txt")


def test_empty_frame(store, vectors):
    empty = vectors.filter("label > 7")
    assert_sparks_own(lambda: LogisticRegression(maxIter=1).fit(empty))
    assert store.run().info.status == "FAILED"


def test_string_label(store, vectors):
    text = vectors.selectExpr("cast(label as string) label", "features")
    assert_sparks_own(lambda: LogisticRegression(maxIter=1).fit(text))
    run = store.run()
    assert run.info.status == "FAILED"
    assert run.data.params["maxIter"] == "1"


def test_no_frame_at_all(store):
    kind, _ = assert_sparks_own(lambda: LogisticRegression(maxIter=1).fit(None))
    assert kind is AttributeError
    assert store.run().info.status == "FAILED"


def test_pandas_frame(store):
    import pandas as pd

    assert_sparks_own(lambda: LogisticRegression(maxIter=1).fit(pd.DataFrame({"label": [0.0], "features": [1.0]})))
    assert store.run().info.status == "FAILED"


def test_unwritable_checkpoint_folder(store, spark):
    frame = spark.createDataFrame([(i % 3, i % 4, float(i)) for i in range(12)], ["user", "item", "rating"])
    before = spark.sparkContext._jsc.sc().getCheckpointDir()
    assert not before.isDefined()

    def train():
        spark.sparkContext.setCheckpointDir("file:///proc/no/such/folder")
        ALS(maxIter=1).fit(frame)

    with pytest.raises(Exception, match="/proc/no/such/folder") as caught:
        train()
    assert "flavors" not in str(caught.value)
    model = ALS(maxIter=1, rank=2, checkpointInterval=-1).fit(frame)
    run = store.run()
    assert (run.info.status, run.data.params["rank"]) == ("FINISHED", "2")
    (logged,) = store.models()
    assert logged.status == "READY"
    assert model.rank == 2


def test_folder_for_models_that_cannot_be_written(store, vectors, monkeypatch, caplog):
    monkeypatch.setenv("AUTOLOG_SPARK_TMPDIR", "file:///proc/no/such/folder")
    model = LogisticRegression(maxIter=2).fit(vectors)
    run = store.run()
    assert run.info.status == "FINISHED"
    assert store.history(run, "objectiveHistory") == list(enumerate(model.summary.objectiveHistory))
    assert "coefficients.json" in store.artifacts(run)
    (logged,) = store.models()
    assert logged.status == "FAILED"
    (line,) = [each.getMessage() for each in caplog.records if each.name == "autolog"]
    assert line.startswith("mlflow-autolog could not save the model (SparkFailed: ") and "\n" not in line
    assert [what for what, _ in guard.swallowed] == ["save the model"]
    guard.reset()


class Raising(Transformer, DefaultParamsReadable, DefaultParamsWritable):
    """A user's stage with an error in it."""

    error = RuntimeError("inside a stage")

    def _transform(self, dataset):
        raise self.error


def test_exception_inside_a_stage_loses_nothing_said(store, penguins):
    stages = [
        StringIndexer(inputCol="Island", outputCol="i"),
        Raising(),
        VectorAssembler(inputCols=["i"], outputCol="f"),
    ]
    pipeline = Pipeline(stages=[*stages, LogisticRegression(featuresCol="f", labelCol="Species")])
    with pytest.raises(RuntimeError) as caught:
        pipeline.fit(penguins)
    assert caught.value is Raising.error and caught.value.__context__ is None
    run = store.run()
    assert run.info.status == "FAILED"
    assert run.data.params["StringIndexer.inputCol"] == "Island"
    assert "estimator_info.json" in store.artifacts(run)
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["penguins"]
    assert "inside a stage" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/traceback.txt")


def test_evaluator_that_fails_leaves_the_others(store, vectors):
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator

    model = LogisticRegression(maxIter=1).fit(vectors)
    prediction = model.transform(vectors)
    with pytest.raises((IllegalArgumentException, AnalysisException)):
        MulticlassClassificationEvaluator(labelCol="nowhere").evaluate(prediction)
    value = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(prediction)
    assert store.run().data.metrics["accuracy_vectors"] == value


# -- what happens to the session --------------------------------------------------------------------------------------

SCRIPT = """
import os, signal, subprocess, sys, time
import autolog
autolog.autolog(tracking_uri={uri!r}, experiment={experiment!r})
from pyspark.ml import Transformer, Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
         .config("spark.driver.host", "127.0.0.1").getOrCreate())
spark.sparkContext.setLogLevel("OFF")
train = spark.createDataFrame([(float(i % 2), Vectors.dense([float(i)])) for i in range(20)], ["label", "features"])

class Stage(Transformer):
    def _transform(self, dataset):
        autolog.flush(60)
        {act}
        return dataset

def kill_the_jvm():
    os.kill(spark.sparkContext._gateway.proc.pid, signal.SIGKILL)
    spark.sparkContext._gateway.proc.wait()

estimator = LogisticRegression(maxIter=2)
try:
    {train}
except Exception as error:
    print(type(error).__name__)
"""


def run_script(recorder, tmp_path, train, act="pass"):
    script = tmp_path / "train.py"
    text = SCRIPT.format(uri=recorder.store_uri, experiment=recorder.experiment, train=train, act=act)
    script.write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "AUTOLOG_SPOOL_DIR": str(tmp_path / "spool"), "AUTOLOG_EXIT_TIMEOUT": "120"},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), [line for line in done.stderr.splitlines() if "mlflow-autolog" in line]


@pytest.mark.slow
def test_dying_jvm_loses_nothing_said(recorder, tmp_path):
    train = "Pipeline(stages=[Stage(), estimator]).fit(train)"
    said, lines = run_script(recorder, tmp_path, train, "kill_the_jvm()")
    assert said == ["ConnectionRefusedError"] or said == ["Py4JNetworkError"], said
    run = recorder.run()
    assert run.info.status == "FAILED"
    assert run.data.params["LogisticRegression.maxIter"] == "2"
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["train"]
    assert recorder.models() == []
    assert lines == []


@pytest.mark.slow
def test_jvm_that_dies_after_the_training_costs_the_model_and_one_line(recorder, tmp_path):
    said, lines = run_script(recorder, tmp_path, "estimator.fit(train); kill_the_jvm()")
    assert said == []
    run = recorder.run()
    assert (run.info.status, run.data.params["maxIter"]) == ("FINISHED", "2")
    (logged,) = recorder.models()
    assert logged.status == "FAILED"
    assert len(lines) == 1 and "save the model" in lines[0] and "Spark is gone" in lines[0], lines


@pytest.mark.slow
def test_stopped_session_is_sparks_own_error(recorder, tmp_path):
    said, lines = run_script(recorder, tmp_path, "spark.stop(); estimator.fit(train)")
    assert len(said) == 1 and said[0] not in ("SparkStopped", "SparkFailed")
    run = recorder.run()
    assert (run.info.status, run.data.params["maxIter"]) == ("FAILED", "2")
    assert len(lines) <= 1, lines
