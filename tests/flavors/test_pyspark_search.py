"""Spark ML: parameter searches."""

from __future__ import annotations

import csv
import io

import mlflow
import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder, TrainValidationSplit


@pytest.fixture
def store(spark_store):
    return spark_store


def predictions(model, frame):
    return [row.prediction for row in model.transform(frame).select("prediction").collect()]


def inputs_of(logged):
    """(name, type) of the inputs in the logged model's own signature."""
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    return [(spec["name"], spec["type"]) for spec in signature.inputs.to_dict()]


# -- searches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallelism", [1, 3])
def test_cross_validation_is_one_run_with_a_child_per_point(store, vectors, parallelism):
    lr = LogisticRegression(maxIter=2)
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    grid = ParamGridBuilder().addGrid(lr.regParam, [0.0, 5.0]).build()
    search = CrossValidator(
        estimator=Pipeline(stages=[lr]),
        estimatorParamMaps=grid,
        evaluator=evaluator,
        numFolds=2,
        seed=7,
        parallelism=parallelism,
        collectSubModels=True,
    )
    fitted = search.fit(vectors)
    value = evaluator.evaluate(fitted.transform(vectors))
    (parent,) = store.runs(children=False)
    children = sorted(
        (run for run in store.runs() if run.info.run_id != parent.info.run_id),
        key=lambda run: run.data.params["LogisticRegression.regParam"],
    )
    assert [run.data.params["LogisticRegression.regParam"] for run in children] == ["0.0", "5.0"]
    assert [run.data.metrics["avg_accuracy"] for run in children] == fitted.avgMetrics
    assert [run.data.metrics["std_accuracy"] for run in children] == fitted.stdMetrics
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    best = int(np.argmax(fitted.avgMetrics))
    assert parent.data.params["best_LogisticRegression.regParam"] == ["0.0", "5.0"][best]
    assert parent.data.metrics["accuracy_vectors"] == value
    table = list(
        csv.DictReader(io.StringIO(mlflow.artifacts.load_text(f"{parent.info.artifact_uri}/search_results.csv")))
    )
    assert [row["param.LogisticRegression.regParam"] for row in table] == ["0.0", "5.0"]
    assert [float(row["avg_accuracy"]) for row in table] == fitted.avgMetrics
    by_name = {model.name: model for model in store.models()}
    assert sorted(by_name) == ["best_model", "model"]
    for logged in by_name.values():
        assert logged.status == "READY"
        loaded = mlflow.spark.load_model(logged.model_uri)
        assert predictions(loaded, vectors) == predictions(fitted, vectors)
        assert inputs_of(logged) == [("features", "sparkml_vector")]


def test_train_validation_split(store, vectors):
    regression = LinearRegression(maxIter=1)
    grid = ParamGridBuilder().addGrid(regression.regParam, [0.0, 1.0]).build()
    from pyspark.ml.evaluation import RegressionEvaluator

    fitted = TrainValidationSplit(
        estimator=regression, estimatorParamMaps=grid, evaluator=RegressionEvaluator(), seed=3
    ).fit(vectors)
    (parent,) = store.runs(children=False)
    children = [run for run in store.runs() if run.info.run_id != parent.info.run_id]
    assert sorted(run.data.metrics["rmse"] for run in children) == sorted(fitted.validationMetrics)
    best = int(np.argmin(fitted.validationMetrics))
    assert parent.data.params["best_LinearRegression.regParam"] == str([0.0, 1.0][best])


def test_search_inside_a_pipeline_gets_its_child_runs(store, spark):
    """MLflow's own autologging makes them for a search that is fitted itself only."""
    frame = spark.createDataFrame([(float(i % 2), float(i % 5), float(i % 3)) for i in range(40)], ["label", "x", "y"])
    lr = LogisticRegression(maxIter=2)
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    grid = ParamGridBuilder().addGrid(lr.regParam, [0.0, 5.0]).build()
    search = CrossValidator(estimator=lr, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, seed=7)
    model = Pipeline(stages=[VectorAssembler(inputCols=["y", "x"], outputCol="features"), search]).fit(frame)
    fitted = model.stages[-1]
    (parent,) = store.runs(children=False)
    children = [run for run in store.runs() if run.info.run_id != parent.info.run_id]
    scores = {run.data.params["regParam"]: run.data.metrics["avg_accuracy"] for run in children}
    assert scores == dict(zip(["0.0", "5.0"], fitted.avgMetrics, strict=True))
    best = ["0.0", "5.0"][int(np.argmax(fitted.avgMetrics))]
    assert parent.data.params["best_LogisticRegression.regParam"] == best
    assert mlflow.artifacts.load_dict(f"{parent.info.artifact_uri}/best_parameters.json") == {
        "LogisticRegression.regParam": float(best)
    }
    assert "search_results.csv" in store.artifacts(parent)
    # What the best model weighs its features by, under the names of the raw columns.
    weights = mlflow.artifacts.load_dict(f"{parent.info.artifact_uri}/coefficients.json")["coefficients"]
    assert weights == dict(zip(["y", "x"], fitted.bestModel.coefficients.toArray().tolist(), strict=True))
    (logged,) = store.models()
    assert inputs_of(logged) == [("x", "double"), ("y", "double")]
    assert predictions(mlflow.spark.load_model(logged.model_uri), frame) == predictions(model, frame)


def test_all_candidates_are_recorded_and_the_history_is_the_best_models(store, vectors):
    """Twelve of them, though ``max_tuning_runs`` is 5: Spark has no such setting in MLflow."""
    lr = LogisticRegression()
    grid = ParamGridBuilder().addGrid(lr.regParam, [0.0, 0.1, 0.5]).addGrid(lr.maxIter, [1, 2, 3, 4]).build()
    search = TrainValidationSplit(
        estimator=lr, estimatorParamMaps=grid, evaluator=MulticlassClassificationEvaluator(), seed=3, parallelism=2
    )
    fitted = search.fit(vectors)
    (parent,) = store.runs(children=False)
    children = [run for run in store.runs() if run.info.run_id != parent.info.run_id]
    assert len(children) == 12
    assert sorted(run.data.metrics["f1"] for run in children) == sorted(fitted.validationMetrics)
    assert store.history(parent, "objectiveHistory") == list(enumerate(fitted.bestModel.summary.objectiveHistory))
    assert not any("objectiveHistory" in run.data.metrics for run in children)


def test_each_param_map_of_a_search_has_its_own_candidates(store, vectors):
    lr = LogisticRegression(maxIter=1)
    grid = ParamGridBuilder().addGrid(lr.regParam, [0.0, 5.0]).build()
    search = CrossValidator(
        estimator=lr, estimatorParamMaps=grid, evaluator=MulticlassClassificationEvaluator(metricName="accuracy")
    )
    first, second = search.fit(vectors, [{search.numFolds: 2}, {search.numFolds: 3}])
    runs = {run.info.run_id: run for run in store.runs()}
    (top,) = store.runs(children=False)
    middle = [run for run in runs.values() if run.data.tags.get("mlflow.parentRunId") == top.info.run_id]
    assert sorted(run.data.params["numFolds"] for run in middle) == ["2", "3"]
    for run in middle:
        below = [each for each in runs.values() if each.data.tags.get("mlflow.parentRunId") == run.info.run_id]
        model = first if run.data.params["numFolds"] == "2" else second
        assert sorted(each.data.metrics["avg_accuracy"] for each in below) == sorted(model.avgMetrics)


def test_search_that_fails_is_a_failed_run_without_candidates(store, vectors):
    lr = LogisticRegression(maxIter=1)
    grid = ParamGridBuilder().addGrid(lr.elasticNetParam, [0.0, 7.0]).build()
    search = CrossValidator(estimator=lr, estimatorParamMaps=grid, evaluator=MulticlassClassificationEvaluator())
    with pytest.raises(Exception, match="elasticNetParam given invalid value"):
        search.fit(vectors)
    run = store.run()
    assert run.info.status == "FAILED"
    info = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/estimator_info.json")
    assert len(info["CrossValidator"]["tuning_parameter_map_list"]) == 2
