"""Spark ML: the user's training, objects, jobs and session are as they would be without us."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import textwrap
import threading
import time

import mlflow
import pytest
from pyspark.ml import Estimator
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

import autolog
from flavors.pyspark import background


@pytest.fixture
def store(spark_store):
    return spark_store


def predictions(model, frame):
    return [row.prediction for row in model.transform(frame).select("prediction").collect()]


# -- harmless ---------------------------------------------------------------------------------------------------------


def test_no_job_on_the_training_thread_and_nothing_persisted(recorder, spark, penguins, lab_pipeline):
    tracker = spark.sparkContext.statusTracker()
    pipeline = lab_pipeline()
    evaluator = MulticlassClassificationEvaluator(labelCol="Species", metricName="accuracy")

    def jobs(group):
        spark.sparkContext.setJobGroup(group, group)
        try:
            model = pipeline.fit(penguins)
            evaluator.evaluate(model.transform(penguins))
        finally:
            spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)
            spark.sparkContext.setLocalProperty("spark.job.description", None)
        return len(tracker.getJobIdsForGroup(group))

    bare = jobs("bare")
    cached = penguins.filter("BodyMass > 0").cache()
    level, attributes = cached.storageLevel, set(vars(penguins))
    recorder.start("pyspark")
    assert jobs("recorded") == bare > 0
    lab_pipeline().fit(cached)
    assert recorder.models()[0].status == "READY"
    # Saving has a group of its own, and no job of ours is in the user's.
    assert len(tracker.getJobIdsForGroup(background.JOB_GROUP)) > 0
    assert len(tracker.getJobIdsForGroup("recorded")) == bare
    assert spark.sparkContext.getLocalProperty("spark.jobGroup.id") is None
    assert cached.storageLevel == level and cached.is_cached
    assert penguins.storageLevel.useMemory is False
    assert set(vars(penguins)) == attributes
    cached.unpersist()


def test_plans_are_the_same(recorder, penguins, lab_pipeline):
    def plan(frame):
        text = frame._jdf.queryExecution().toString()
        # Spark numbers expressions, and names stages and lambdas, anew each time.
        return re.sub(r"#\d+L?|_[0-9a-f]{12}|Lambda[$/\w]*@?\w*|@[0-9a-f]+", "", text)

    def plans():
        frame = penguins.filter("BodyMass > 0")
        before = plan(frame)
        model = lab_pipeline(maxIter=1).fit(frame)
        predicted = model.transform(frame)
        MulticlassClassificationEvaluator(labelCol="Species").evaluate(predicted)
        return before, plan(frame), plan(predicted)

    bare = plans()
    assert bare[0] == bare[1] and "UDF" in bare[2]
    recorder.start("pyspark", log_input_examples=True)
    recorded = plans()
    assert recorder.run().info.status == "FINISHED"
    assert recorded == bare


def test_a_search_runs_no_job_of_ours_in_the_users_group(recorder, spark, vectors):
    tracker = spark.sparkContext.statusTracker()
    lr = LogisticRegression(maxIter=1)
    grid = ParamGridBuilder().addGrid(lr.regParam, [0.1, 0.2]).build()
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")

    def jobs(group):
        spark.sparkContext.setJobGroup(group, group)
        try:
            CrossValidator(
                estimator=lr, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, seed=1, parallelism=2
            ).fit(vectors)
        finally:
            spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)
            spark.sparkContext.setLocalProperty("spark.job.description", None)
        return len(tracker.getJobIdsForGroup(group))

    bare = jobs("bare search")
    recorder.start("pyspark")
    assert jobs("recorded search") == bare > 0
    assert {model.status for model in recorder.models()} == {"READY"}
    assert len(tracker.getJobIdsForGroup("recorded search")) == bare


def test_no_count_job_for_the_dataset_and_no_transform_for_the_signature(recorder, spark, penguins, lab_pipeline):
    """MLflow's own autologging counts the rows, and plans one ``transform`` for each input column."""
    recorder.start("pyspark", log_models=False)
    tracker = spark.sparkContext.statusTracker()
    before = len(tracker.getJobIdsForGroup(background.JOB_GROUP))
    lab_pipeline().fit(penguins)
    run = recorder.run()
    assert len(tracker.getJobIdsForGroup(background.JOB_GROUP)) == before
    # All of this was read without a job.
    assert run.inputs.dataset_inputs[0].dataset.schema
    assert recorder.history(run, "objectiveHistory")
    assert "coefficients.json" in recorder.artifacts(run)


def test_cached_frame_stays_cached_also_when_the_training_fails(recorder, penguins):
    """MLflow's own autologging un-caches the user's frame, and leaves it cached where ``fit`` fails."""
    recorder.start("pyspark")
    cached, plain = penguins.filter("BodyMass > 1").cache(), penguins.filter("BodyMass > 2")
    levels = cached.storageLevel, plain.storageLevel
    for frame in (cached, plain):
        with pytest.raises(Exception, match="nowhere"):
            LogisticRegression(featuresCol="nowhere").fit(frame)
    assert len(recorder.runs()) == 2
    assert (cached.storageLevel, plain.storageLevel) == levels
    cached.unpersist()


def test_requirements_start_no_second_session(recorder, vectors):
    """MLflow's own autologging infers them in a new process, with a Spark session of its own."""
    import psutil

    recorder.start("pyspark")
    seen = set()
    LogisticRegression(maxIter=1).fit(vectors)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not autolog.flush(0.05):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                # Where Java runs a command, its own copy is there for a moment.
                if child.name() == "java" and psutil.Process(child.ppid()).name() != "java":
                    seen.add(child.pid)
    assert len(seen) <= 1
    assert recorder.models()[0].status == "READY"


def test_coefficients_are_bit_identical_and_objects_untouched(recorder, penguins, lab_pipeline):
    def train():
        pipeline = lab_pipeline(maxIter=7)
        model = pipeline.fit(penguins)
        attributes = [sorted(vars(part)) for part in (pipeline, model, *pipeline.getStages(), *model.stages)]
        last = model.stages[-1]
        return last.coefficientMatrix.toArray().tobytes(), last.interceptVector.toArray().tobytes(), attributes

    bare = train()
    recorder.start("pyspark")
    assert train() == bare
    assert recorder.run().info.status == "FINISHED"


def test_model_stays_usable_after_its_copy_is_gone(store, vectors):
    import gc

    model = LogisticRegression(maxIter=2).fit(vectors)
    before = predictions(model, vectors)
    assert store.run().info.status == "FINISHED"
    gc.collect()
    assert predictions(model, vectors) == before
    assert model.summary.totalIterations >= 1


def test_concurrent_fits_are_separate_runs(store, vectors):
    models = {}

    def train(regParam):
        models[regParam] = LogisticRegression(maxIter=2, regParam=regParam).fit(vectors)

    threads = [threading.Thread(target=train, args=(value,)) for value in (0.1, 0.2, 0.3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runs = store.runs()
    assert sorted(run.data.params["regParam"] for run in runs) == ["0.1", "0.2", "0.3"]
    for run in runs:
        model = models[float(run.data.params["regParam"])]
        assert store.history(run, "objectiveHistory") == list(enumerate(model.summary.objectiveHistory))
    assert {model.source_run_id for model in store.models()} == {run.info.run_id for run in runs}


def test_users_own_run_is_used(recorder, vectors):
    mlflow.set_tracking_uri(recorder.store_uri)
    mlflow.set_experiment(recorder.experiment)
    recorder.start("pyspark", experiment=None)
    with mlflow.start_run() as active:
        mlflow.log_param("mine", 1)
        model = LogisticRegression(maxIter=1).fit(vectors)
        value = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(model.transform(vectors))
    run = recorder.run()
    assert run.info.run_id == active.info.run_id
    assert (run.data.params["mine"], run.data.params["maxIter"]) == ("1", "1")
    assert run.data.metrics["accuracy_vectors"] == value


def test_search_in_the_users_own_run(recorder, vectors):
    mlflow.set_tracking_uri(recorder.store_uri)
    mlflow.set_experiment(recorder.experiment)
    recorder.start("pyspark", experiment=None)
    lr = LogisticRegression(maxIter=1)
    grid = ParamGridBuilder().addGrid(lr.regParam, [0.1, 0.2]).build()
    with mlflow.start_run() as active:
        CrossValidator(
            estimator=lr, estimatorParamMaps=grid, evaluator=MulticlassClassificationEvaluator(), numFolds=2
        ).fit(vectors)
        # Its children are not what was trained last, and nothing the user logs goes into one of them.
        assert autolog.last_run().run_id == active.info.run_id
    mlflow.end_run()
    (parent,) = recorder.runs(children=False)
    assert parent.info.run_id == active.info.run_id
    assert {run.info.status for run in recorder.runs()} == {"FINISHED"}
    assert len(recorder.runs()) == 3


class Own(Estimator):
    """A user's estimator that overrides ``fit`` itself."""

    def fit(self, dataset, params=None):
        return super().fit(dataset, params)

    def _fit(self, dataset):
        return None


def test_user_classes_pickle_by_value_without_us(store):
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        data = cloudpickle.dumps(Own)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert b"autolog" not in data and b"wrapt" not in data
    assert type(vars(Own)["fit"]).__name__ == "Wrapper"


def test_everything_is_put_back():
    import pyspark
    from pyspark.ml import base, evaluation

    def state():
        return [
            vars(owner).get(name)
            for owner in (base.Estimator, base.Transformer, evaluation.Evaluator, Own, pyspark.SparkContext)
            for name in ("fit", "transform", "evaluate", "stop", "__init_subclass__")
        ]

    before = state()
    autolog.autolog("pyspark", tracking_uri="sqlite:///unused.db")
    assert state() != before
    autolog.disable()
    assert all(now is then for now, then in zip(state(), before, strict=True))


# -- stopping Spark ---------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, time
import autolog
autolog.autolog(tracking_uri={uri!r}, experiment={experiment!r})
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession

spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
         .config("spark.driver.host", "127.0.0.1").getOrCreate())
spark.sparkContext.setLogLevel("OFF")
train = spark.createDataFrame([(float(i % 2), Vectors.dense([float(i)])) for i in range(20)], ["label", "features"])
model = LogisticRegression(maxIter=2).fit(train)
spark.stop()
print("stopped")
"""


def run_script(recorder, tmp_path, **environment):
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(SCRIPT.format(uri=recorder.store_uri, experiment=recorder.experiment)))
    environment = {
        **os.environ,
        "AUTOLOG_SPOOL_DIR": str(tmp_path / "spool"),
        "AUTOLOG_EXIT_TIMEOUT": "120",  # A busy machine is no failure.
        **environment,
    }
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "stopped\n"
    return done, time.monotonic() - begun


@pytest.mark.slow
def test_stop_waits_for_models(recorder, tmp_path):
    run_script(recorder, tmp_path)
    (logged,) = recorder.models()
    assert logged.status == "READY"
    assert recorder.run().info.status == "FINISHED"
    assert "objectiveHistory" in recorder.run().data.metrics


@pytest.mark.slow
def test_stop_gives_up_after_its_timeout(recorder, tmp_path):
    done, _ = run_script(recorder, tmp_path, AUTOLOG_SPARK_STOP_TIMEOUT="0")
    (logged,) = recorder.models()
    assert logged.status == "FAILED"
    assert recorder.run().info.status == "FINISHED"
    lines = [line for line in done.stderr.splitlines() if re.search("could not save the model", line)]
    assert len(lines) == 1 and "AUTOLOG_SPARK_STOP_TIMEOUT" in lines[0]
