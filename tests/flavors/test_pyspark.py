"""Spark ML, recorded and read back."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.models import infer_signature
from mlflow.pyfunc import scoring_server
from palmerpenguins import load_penguins
from pyspark.ml import Estimator, Model, Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, OneVsRest, RandomForestClassifier
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import Evaluator, MulticlassClassificationEvaluator
from pyspark.ml.feature import (
    IndexToString,
    MinMaxScaler,
    RFormula,
    SQLTransformer,
    StringIndexer,
    VectorAssembler,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.param import Param, Params
from pyspark.ml.param.shared import HasFeaturesCol, HasInputCol, HasLabelCol, HasOutputCol, HasPredictionCol
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder, TrainValidationSplit
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import SparkSession
from pyspark.sql.functions import col

import autolog
from autolog import guard
from flavors.pyspark import background, columns

NUMBERS = ["CulmenLength", "CulmenDepth", "FlipperLength", "BodyMass"]


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spark")
    session = (
        SparkSession.builder.master("local[2]")
        .appName("test_pyspark")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.warehouse.dir", str(folder / "warehouse"))
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def penguins_csv(tmp_path_factory):
    """The file of the Azure Databricks lab, rebuilt from the palmerpenguins package."""
    raw = load_penguins()
    species = {"Adelie": 0, "Gentoo": 1, "Chinstrap": 2}
    frame = pd.DataFrame(
        {
            "Island": raw["island"],
            "CulmenLength": raw["bill_length_mm"],
            "CulmenDepth": raw["bill_depth_mm"],
            "FlipperLength": raw["flipper_length_mm"],
            "BodyMass": raw["body_mass_g"],
            "Species": raw["species"].map(species),
        }
    )
    path = tmp_path_factory.mktemp("data") / "penguins.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def penguins(spark, penguins_csv):
    data = spark.read.format("csv").option("header", "true").load(str(penguins_csv))
    return data.dropna().select(
        col("Island").astype("string"), *(col(name).astype("float") for name in NUMBERS), col("Species").astype("int")
    )


@pytest.fixture(scope="session")
def vectors(spark):
    rows = [(float(i % 2), Vectors.dense([float(i), float(-i % 3)])) for i in range(40)]
    return spark.createDataFrame(rows, ["label", "features"])


def lab_pipeline(**settings):
    settings = {"maxIter": 5, "regParam": 0.5, **settings}
    indexer = StringIndexer(inputCol="Island", outputCol="IslandIdx")
    numbers = VectorAssembler(inputCols=NUMBERS, outputCol="numericFeatures")
    scaler = MinMaxScaler(inputCol=numbers.getOutputCol(), outputCol="normalizedFeatures")
    together = VectorAssembler(inputCols=["IslandIdx", "normalizedFeatures"], outputCol="Features")
    algo = LogisticRegression(labelCol="Species", featuresCol="Features", **settings)
    return Pipeline(stages=[indexer, numbers, scaler, together, algo])


def inputs_of(logged):
    """(name, type) of the inputs in the logged model's own signature."""
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    return [(spec["name"], spec["type"]) for spec in signature.inputs.to_dict()]


@pytest.fixture
def store(recorder):
    """The recorder, switched on, with MLflow reading from its store."""
    mlflow.set_tracking_uri(recorder.store_uri)
    recorder.start("pyspark")
    return recorder


# -- one run, its params and its dataset ------------------------------------------------------------------------------


def test_lab_pipeline_is_one_run_with_all_stages_params(store, penguins):
    train = penguins.filter("BodyMass > 0")
    model = lab_pipeline().fit(train)
    run = store.run()
    assert run.info.status == "FINISHED"
    params = run.data.params
    assert params["stages"] == (
        "['StringIndexer', 'VectorAssembler_1', 'MinMaxScaler', 'VectorAssembler_2', 'LogisticRegression']"
    )
    assert params["LogisticRegression.maxIter"] == "5"
    assert params["LogisticRegression.regParam"] == "0.5"
    assert params["LogisticRegression.family"] == "auto"
    assert params["VectorAssembler_1.inputCols"] == str(NUMBERS)
    assert params["VectorAssembler_2.inputCols"] == "['IslandIdx', 'normalizedFeatures']"
    assert params["MinMaxScaler.max"] == "1.0"
    assert params["StringIndexer.handleInvalid"] == "error"
    assert run.data.tags["estimator_name"] == "Pipeline"
    assert run.data.tags["estimator_class"] == "pyspark.ml.pipeline.Pipeline"
    info = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/estimator_info.json")
    assert info == {
        "hierarchy": {
            "name": "Pipeline",
            "stages": [
                {"name": name}
                for name in (
                    "StringIndexer",
                    "VectorAssembler_1",
                    "MinMaxScaler",
                    "VectorAssembler_2",
                    "LogisticRegression",
                )
            ],
        }
    }
    history = store.history(run, "objectiveHistory")
    assert history == list(enumerate(model.stages[-1].summary.objectiveHistory))
    assert run.data.metrics["totalIterations"] == model.stages[-1].summary.totalIterations


@pytest.mark.parametrize("kind", ["pipeline", "search", "one vs rest", "plain"])
def test_params_and_hierarchy_are_mlflows(store, vectors, kind):
    """What MLflow's own functions say of the same estimator."""
    from mlflow.pyspark import ml as theirs

    lr = LogisticRegression(maxIter=1)
    if kind == "pipeline":
        inner = Pipeline(stages=[VectorAssembler(inputCols=["features"], outputCol="again")])
        estimator = Pipeline(stages=[inner, VectorAssembler(inputCols=["again"], outputCol="thrice"), lr])
    elif kind == "search":
        grid = ParamGridBuilder().addGrid(lr.regParam, [0.1, 0.2]).build()
        tuned = Pipeline(stages=[lr])
        estimator = CrossValidator(
            estimator=tuned, estimatorParamMaps=grid, evaluator=MulticlassClassificationEvaluator(), numFolds=2
        )
    elif kind == "one vs rest":
        estimator = OneVsRest(classifier=lr)
    else:
        estimator = lr
    estimator.fit(vectors)
    run = next(run for run in store.runs(children=False))
    metadata = theirs._gen_estimator_metadata(estimator)
    expected = theirs._get_instance_param_map(estimator, metadata.uid_to_indexed_name_map)
    recorded = {name: value for name, value in run.data.params.items() if not name.startswith("best_")}
    assert recorded == {name: str(value) for name, value in expected.items()}
    if theirs._should_log_hierarchy(estimator):
        info = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/estimator_info.json")
        assert info["hierarchy"] == metadata.hierarchy
        if kind == "search":
            assert info["CrossValidator"]["tuning_parameter_map_list"] == [
                {"LogisticRegression.regParam": 0.1},
                {"LogisticRegression.regParam": 0.2},
            ]
            assert info["CrossValidator"]["tuned_estimator_parameter_map"]["LogisticRegression.maxIter"] == 1
    else:
        assert "estimator_info.json" not in store.artifacts(run)


def test_dataset_is_mlflows_but_for_the_row_count(store, penguins, penguins_csv):
    train = penguins.filter("BodyMass > 0")
    lab_pipeline().fit(train)
    (found,) = store.run().inputs.dataset_inputs
    theirs = mlflow.data.from_spark(train, path=str(penguins_csv))
    dataset = found.dataset
    assert (dataset.name, dataset.digest) == ("train", theirs.digest)
    assert json.loads(dataset.schema) == {"mlflow_colspec": theirs.schema.to_dict()}
    assert (dataset.source_type, json.loads(dataset.source)) == ("spark", {"path": f"file:{penguins_csv}"})
    assert dataset.profile is None or dataset.profile == ""
    assert {tag.key: tag.value for tag in found.tags} == {"mlflow.data.context": "train"}


def test_dataset_of_rows_has_the_script_as_source(store, vectors):
    LogisticRegression(maxIter=1).fit(vectors)
    (found,) = store.run().inputs.dataset_inputs
    assert found.dataset.source_type == "code"
    assert json.loads(found.dataset.schema)["mlflow_colspec"] == [
        {"type": "double", "name": "label", "required": True},
        {"type": "sparkml_vector", "name": "features", "required": True},
    ]


def test_keyword_dataset_and_param_map(store, vectors):
    lr = LogisticRegression(maxIter=1)
    lr.fit(dataset=vectors, params={lr.maxIter: 3, lr.regParam: 0.25})
    run = store.run()
    assert run.info.status == "FINISHED"
    assert (run.data.params["maxIter"], run.data.params["regParam"]) == ("3", "0.25")
    assert lr.getMaxIter() == 1
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["vectors"]
    assert [model.status for model in store.models()] == ["READY"]


def test_list_of_param_maps_is_one_run_with_a_child_each(store, vectors):
    lr = LogisticRegression(maxIter=1)
    first, second = lr.fit(vectors, [{lr.regParam: 0.1}, {lr.regParam: 0.2}])
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    value = evaluator.evaluate(second.transform(vectors))
    (parent,) = store.runs(children=False)
    children = {run.data.params["regParam"]: run for run in store.runs() if run.info.run_id != parent.info.run_id}
    assert sorted(children) == ["0.1", "0.2"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert "accuracy_vectors" not in children["0.1"].data.metrics
    assert children["0.2"].data.metrics["accuracy_vectors"] == value
    assert {model.source_run_id for model in store.models()} == {run.info.run_id for run in children.values()}
    assert first.uid == second.uid


# -- what opens a run, and what does not ------------------------------------------------------------------------------


def test_featurizers_alone_open_no_run(store, penguins):
    StringIndexer(inputCol="Island", outputCol="i").fit(penguins).transform(penguins)
    RFormula(formula="Species ~ BodyMass").fit(penguins)
    Center(inputCol="BodyMass", outputCol="centered").fit(penguins)
    assert store.runs() == []


def test_clusterings_open_a_run(store, vectors):
    model = KMeans(k=2, seed=1).fit(vectors)
    run = store.run()
    assert run.data.metrics["trainingCost"] == model.summary.trainingCost
    assert run.data.metrics["numIter"] == model.summary.numIter
    (logged,) = store.models()
    assert mlflow.models.get_model_info(logged.model_uri).signature.outputs.to_dict() == [
        {"type": "integer", "required": True}
    ]


class Center(Estimator, HasInputCol, HasOutputCol):
    """A user's featurizer."""

    def __init__(self, inputCol, outputCol):
        super().__init__()
        self._set(inputCol=inputCol, outputCol=outputCol)

    def _fit(self, dataset):
        return None


class Constant(Estimator, HasFeaturesCol, HasLabelCol, HasPredictionCol, DefaultParamsReadable, DefaultParamsWritable):
    """A user's estimator that overrides ``fit`` itself."""

    value = Param(Params._dummy(), "value", "what it predicts")

    def __init__(self, value=0.0):
        super().__init__()
        self._set(value=value)

    def fit(self, dataset, params=None):
        if self.getOrDefault("value") is None:
            raise ERROR
        return super().fit(dataset, params)

    def _fit(self, dataset):
        return self._copyValues(ConstantModel())


ERROR = ValueError("no value")


class ConstantModel(Model, HasFeaturesCol, HasPredictionCol):
    """Its model, which cannot be saved."""

    value = Param(Params._dummy(), "value", "what it predicts")

    def _transform(self, dataset):
        from pyspark.sql.functions import lit

        return dataset.withColumn(self.getPredictionCol(), lit(self.getOrDefault("value")))


def test_user_estimator_whose_model_has_no_writer(store, vectors):
    model = Constant(1.0).fit(vectors)
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    value = evaluator.evaluate(model.transform(vectors))
    run = store.run()
    assert run.info.status == "FINISHED"
    assert run.data.params["value"] == "1.0"
    assert run.data.metrics["accuracy_vectors"] == value == 0.5
    (logged,) = store.models()
    assert logged.status == "FAILED"
    assert [what for what, _ in guard.swallowed] == ["save the model"]
    assert "not MLWritable" in str(guard.swallowed[0][1])
    guard.reset()


def test_class_defined_while_on_is_recorded(store, vectors):
    class Later(Constant):
        def fit(self, dataset, params=None):
            return super().fit(dataset, params)

    Later(0.0).fit(vectors)
    assert store.run().data.tags["estimator_name"] == "Later"
    guard.reset()


def test_users_exception_is_the_same_object(store, vectors):
    with pytest.raises(ValueError) as caught:
        Constant(None).fit(vectors)
    assert caught.value is ERROR
    run = store.run()
    assert run.info.status == "FAILED"
    assert "no value" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/traceback.txt")
    assert store.models() == []


def test_sparks_exception_is_the_bare_one(store, penguins):
    from pyspark.errors import IllegalArgumentException

    def message():
        with pytest.raises(IllegalArgumentException) as caught:
            LogisticRegression(featuresCol="nowhere").fit(penguins)
        assert caught.value.__context__ is None or "flavors" not in str(caught.value.__context__)
        return str(caught.value)

    ours = message()
    with autolog.paused():
        assert message() == ours
    assert store.run().info.status == "FAILED"


def test_wrong_call_fails_as_without_us(store):
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'dataset'"):
        LogisticRegression().fit()
    assert store.run().info.status == "FAILED"


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


# -- models -----------------------------------------------------------------------------------------------------------


def predictions(model, frame):
    return [row.prediction for row in model.transform(frame).select("prediction").collect()]


def test_model_loads_in_plain_mlflow_with_the_same_predictions(store, penguins):
    train, test = penguins.randomSplit([0.7, 0.3], seed=1)
    model = lab_pipeline().fit(train)
    (logged,) = store.models()
    assert (logged.status, logged.name) == ("READY", "model")
    assert logged.params["LogisticRegression.maxIter"] == "5"
    autolog.disable()
    loaded = mlflow.spark.load_model(logged.model_uri)
    assert type(loaded) is PipelineModel
    assert predictions(loaded, test) == predictions(model, test)
    assert loaded.stages[-1].coefficientMatrix == model.stages[-1].coefficientMatrix
    assert [stage.uid for stage in loaded.stages] == [stage.uid for stage in model.stages]
    served = mlflow.pyfunc.load_model(logged.model_uri)
    assert served.predict(test.drop("Species").toPandas()) == predictions(model, test)
    info = mlflow.models.get_model_info(logged.model_uri)
    assert info.flavors["spark"] == {
        "pyspark_version": pytest.importorskip("pyspark").__version__,
        "model_data": "sparkml",
        "code": None,
        "model_class": "pyspark.ml.pipeline.PipelineModel",
    }
    requirements = mlflow.artifacts.load_text(f"{logged.artifact_location}/requirements.txt").splitlines()
    assert requirements == [f"mlflow=={mlflow.__version__}", f"pyspark=={info.flavors['spark']['pyspark_version']}"]


def test_signature_has_the_raw_columns_without_the_label(store, penguins):
    with_more = penguins.withColumn("unused", col("BodyMass") * 2)
    lab_pipeline().fit(with_more)
    (logged,) = store.models()
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    assert signature.inputs.to_dict() == [
        {"type": "string", "name": "Island", "required": True},
        *({"type": "float", "name": name, "required": True} for name in NUMBERS),
    ]
    assert signature.outputs.to_dict() == [{"type": "double", "required": True}]
    # The same types that MLflow infers from the frame itself.
    theirs = infer_signature(penguins.drop("Species"))
    assert signature.inputs == theirs.inputs


def test_integers_are_served_where_floats_are_expected(store, penguins):
    model = lab_pipeline().fit(penguins)
    (logged,) = store.models()
    served = mlflow.pyfunc.load_model(logged.model_uri)
    record = {"Island": "Biscoe", "CulmenLength": 49, "CulmenDepth": 14.2, "FlipperLength": 222, "BodyMass": 5700}
    body = json.dumps({"dataframe_records": [record]})
    answer = scoring_server.invocations(body, "application/json", served, served.metadata.get_input_schema())
    assert answer.status == 200, answer.response
    frame = penguins.sparkSession.createDataFrame([record])
    assert json.loads(answer.response) == {"predictions": predictions(model, frame)}


def test_label_indexer_is_no_input(store, spark):
    rows = [("a", 0.1, "yes"), ("b", 0.9, "no"), ("a", 0.2, "yes"), ("b", 0.8, "no")]
    frame = spark.createDataFrame(rows, ["kind", "amount", "answer"])
    labels = StringIndexer(inputCol="answer", outputCol="label").fit(frame)
    model = Pipeline(
        stages=[
            StringIndexer(inputCols=["answer", "kind"], outputCols=["label", "kindIdx"]),
            VectorAssembler(inputCols=["kindIdx", "amount"], outputCol="features"),
            LogisticRegression(maxIter=3),
            IndexToString(inputCol="prediction", outputCol="said", labels=labels.labels),
        ]
    ).fit(frame)
    (logged,) = store.models()
    assert inputs_of(logged) == [("kind", "string"), ("amount", "double")]
    served = mlflow.pyfunc.load_model(logged.model_uri)
    assert served.predict(frame.drop("answer").toPandas()) == predictions(model, frame)


def test_stages_that_may_read_anything_take_all_but_the_label(store, penguins):
    formula = RFormula(formula="Species ~ Island + BodyMass", featuresCol="f", labelCol="l")
    Pipeline(stages=[formula, LogisticRegression(featuresCol="f", labelCol="l", maxIter=1)]).fit(penguins)
    sql = SQLTransformer(statement="SELECT *, BodyMass * 2 AS double FROM __THIS__")
    assembler = VectorAssembler(inputCols=["double"], outputCol="f")
    Pipeline(stages=[sql, assembler, LogisticRegression(featuresCol="f", labelCol="Species", maxIter=1)]).fit(penguins)
    for logged in store.models():
        assert [name for name, _ in inputs_of(logged)] == ["Island", *NUMBERS]


def test_columns_only_training_reads_are_no_inputs(store, penguins):
    frame = penguins.withColumn("weight", col("BodyMass") / 1000).withColumn("shift", col("BodyMass") * 0.0)
    assembler = VectorAssembler(inputCols=["culmenlength"], outputCol="f")
    regression = GeneralizedLinearRegression(
        featuresCol="f", labelCol="BodyMass", weightCol="weight", offsetCol="shift", maxIter=2
    )
    Pipeline(stages=[assembler, regression]).fit(frame)
    (logged,) = store.models()
    assert inputs_of(logged) == [("CulmenLength", "float"), ("shift", "double")]


def test_types_are_mlflows(spark):
    from mlflow.types.utils import _infer_schema

    frame = spark.sql(
        "SELECT cast(1 as tinyint) a, cast(1 as smallint) b, 1 c, 1L d, cast(1 as float) e, 1D f, true g, 'x' h, "
        "cast('x' as binary) i, current_date() j, current_timestamp() k, array(1, 2) l, array(array('x')) m, "
        "named_struct('p', 1, 'q', array(1D)) n"
    )
    fields = json.loads(frame._jdf.schema().json())["fields"]
    assert columns.specs(fields) == _infer_schema(frame).to_dict()
    odd = spark.sql("SELECT 1.5BD a, INTERVAL 1 DAY b, map('x', 1) c, map(1, 'x') d, null e, array(INTERVAL 1 DAY) f")
    fields = json.loads(odd._jdf.schema().json())["fields"]
    assert columns.specs(fields) == [
        {"type": "double", "name": "a", "required": True},
        {"type": "map", "values": {"type": "integer"}, "name": "c", "required": True},
    ]
    mlflow.types.Schema.from_json(json.dumps(columns.specs(fields)))


ESTIMATORS = {
    "LogisticRegression": "classification",
    "LinearSVC": "classification",
    "DecisionTreeClassifier": "classification",
    "RandomForestClassifier": "classification",
    "GBTClassifier": "classification",
    "NaiveBayes": "classification",
    "FMClassifier": "classification",
    "OneVsRest": "classification",
    "MultilayerPerceptronClassifier": "classification",
    "LinearRegression": "regression",
    "GeneralizedLinearRegression": "regression",
    "DecisionTreeRegressor": "regression",
    "RandomForestRegressor": "regression",
    "GBTRegressor": "regression",
    "FMRegressor": "regression",
    "AFTSurvivalRegression": "regression",
    "IsotonicRegression": "regression",
    "KMeans": "clustering",
    "BisectingKMeans": "clustering",
    "GaussianMixture": "clustering",
    "LDA": "clustering",
    "ALS": "recommendation",
    "FPGrowth": "fpm",
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_is_recorded_with_its_signature(store, spark, name):
    """Inputs, the output's type, and a model that loads; no history that Spark did not compute."""
    import importlib

    kind = getattr(importlib.import_module(f"pyspark.ml.{ESTIMATORS[name]}"), name)
    rows = [(float(i % 2), Vectors.dense([1.0 + i % 5, 2.0 + i % 2]), 1.0, i % 3, i % 4, ["a", "b"]) for i in range(24)]
    frame = spark.createDataFrame(rows, ["label", "features", "censor", "user", "item", "items"])
    inputs = [("features", "sparkml_vector")]
    settings = {}
    if "maxIter" in dir(kind) and name != "OneVsRest":
        settings["maxIter"] = 2
    if name == "OneVsRest":
        settings["classifier"] = LogisticRegression(maxIter=1)
    elif name == "MultilayerPerceptronClassifier":
        settings["layers"] = [2, 2]
    elif name == "AFTSurvivalRegression":
        frame = frame.withColumn("label", col("label") + 1)
    elif name == "ALS":
        settings["ratingCol"] = "label"
        inputs = [("user", "long"), ("item", "long")]
    elif name == "FPGrowth":
        inputs = [("items", "array")]
    model = kind(**settings).fit(frame)
    run = store.run()
    assert run.data.tags["estimator_name"] == name
    (logged,) = store.models()
    assert logged.status == "READY"
    assert inputs_of(logged) == inputs
    info = mlflow.models.get_model_info(logged.model_uri)
    assert type(mlflow.spark.load_model(logged.model_uri).stages[0]) is type(model)
    predicted = model.transform(frame)
    if "prediction" in predicted.columns:
        assert info.signature.outputs.to_dict() == [
            {name: value for name, value in spec.items() if name != "name"}
            for spec in infer_signature(predicted.select("prediction")).inputs.to_dict()
        ]
    else:
        assert info.signature.outputs is None and "python_function" not in info.flavors
    if getattr(model, "hasSummary", False) and hasattr(model.summary, "objectiveHistory"):
        history = list(model.summary.objectiveHistory)
        assert store.history(run, "objectiveHistory") == ([] if history == [0.0] else list(enumerate(history)))


def test_later_changes_of_the_model_are_not_saved(store, vectors):
    model = LogisticRegression(maxIter=2).fit(vectors)
    before = predictions(model, vectors)
    model.setPredictionCol("other").setThresholds([0.0, 1.0])
    (logged,) = store.models()
    loaded = mlflow.spark.load_model(logged.model_uri)
    assert loaded.stages[0].getPredictionCol() == "prediction"
    assert predictions(loaded, vectors) == before
    assert model.getThresholds() == [0.0, 1.0]


def test_trees_and_one_vs_rest_load_again(store, vectors):
    forest = RandomForestClassifier(numTrees=3, seed=1).fit(vectors)
    rest = OneVsRest(classifier=LogisticRegression(maxIter=1)).fit(vectors)
    for logged, model in zip(store.models(), (forest, rest), strict=True):
        loaded = mlflow.spark.load_model(logged.model_uri)
        assert predictions(loaded, vectors) == predictions(model, vectors)
    for run in store.runs():
        # Forests iterate over nothing, though their summary has an objective of [0.0].
        assert "objectiveHistory" not in run.data.metrics


def test_saved_through_the_clusters_file_system(store, vectors, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOLOG_SPARK_TMPDIR", str(tmp_path / "dfs"))
    model = LogisticRegression(maxIter=1).fit(vectors)
    (logged,) = store.models()
    assert logged.status == "READY"
    assert predictions(mlflow.spark.load_model(logged.model_uri), vectors) == predictions(model, vectors)
    assert list((tmp_path / "dfs").iterdir()) == []


def test_input_example(recorder, penguins):
    mlflow.set_tracking_uri(recorder.store_uri)
    recorder.start("pyspark", log_input_examples=True)
    model = lab_pipeline().fit(penguins)
    (logged,) = recorder.models()
    served = mlflow.pyfunc.load_model(logged.model_uri)
    example = served.input_example
    assert list(example.columns) == ["Island", *NUMBERS]
    assert served.predict(example) == predictions(model, penguins)[:5]


def test_no_model_when_not_wanted(recorder, vectors):
    recorder.start("pyspark", log_models=False, log_datasets=False)
    model = LogisticRegression(maxIter=2).fit(vectors)
    run = recorder.run()
    assert recorder.models() == []
    assert run.inputs.dataset_inputs == []
    assert recorder.history(run, "objectiveHistory") == list(enumerate(model.summary.objectiveHistory))


# -- evaluators -------------------------------------------------------------------------------------------------------


def test_evaluators_say_metrics_of_the_model_on_the_data(store, penguins):
    train, test = penguins.randomSplit([0.7, 0.3], seed=1)
    model = lab_pipeline().fit(train)
    prediction = model.transform(test)
    said = {}
    for name in ("accuracy", "weightedRecall"):
        evaluator = MulticlassClassificationEvaluator(labelCol="Species", metricName=name)
        said[f"{name}_test"] = evaluator.evaluate(prediction)
    evaluator = MulticlassClassificationEvaluator(labelCol="Species", metricName="accuracy")
    said["accuracy-2_train"] = evaluator.evaluate(model.transform(train))
    said["f1_test"] = evaluator.evaluate(prediction, {evaluator.metricName: "f1"})
    run = store.run()
    metrics = {name: value for name, value in run.data.metrics.items() if name in said}
    assert metrics == said
    assert "accuracy" not in run.data.metrics
    digests = {each.dataset.name: each.dataset.digest for each in run.inputs.dataset_inputs}
    assert digests == {
        "train": mlflow.data.from_spark(train, path="x").digest,
        "test": mlflow.data.from_spark(test, path="x").digest,
    }
    (logged,) = store.models()
    linked = {metric.key: (metric.value, metric.dataset_name, metric.dataset_digest) for metric in logged.metrics}
    assert linked["accuracy_test"] == (said["accuracy_test"], "test", digests["test"])
    assert linked["accuracy-2_train"] == (said["accuracy-2_train"], "train", digests["train"])
    info = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/metric_info.json")
    assert sorted(info) == sorted(said)
    assert info["f1_test"]["params"]["metricName"] == "f1"
    assert info["f1_test"]["evaluator_class"] == "pyspark.ml.evaluation.MulticlassClassificationEvaluator"


def test_each_model_gets_its_own_metrics(store, vectors):
    one = LogisticRegression(maxIter=1, regParam=9.0).fit(vectors)
    two = LogisticRegression(maxIter=9).fit(vectors)
    on_two, on_one = two.transform(vectors), one.transform(vectors)
    evaluator = MulticlassClassificationEvaluator(metricName="logLoss")
    said = [evaluator.evaluate(on_one), evaluator.evaluate(on_two)]
    derived = on_one.limit(3)
    evaluator.evaluate(derived)
    assert said[0] != said[1]
    assert [run.data.metrics["logLoss_vectors"] for run in store.runs()] == said
    assert not any("logLoss-2_vectors" in run.data.metrics for run in store.runs())


def test_another_frame_of_the_same_name_is_told_apart(store, vectors):
    model = LogisticRegression(maxIter=1).fit(vectors)
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    part = vectors.filter("label = 0")
    first = evaluator.evaluate(model.transform(part))
    kept, part = part, vectors.filter("label = 1")
    second = evaluator.evaluate(model.transform(part))
    inline = evaluator.evaluate(model.transform(kept.limit(5)))
    metrics = store.run().data.metrics
    assert metrics["accuracy_part"] == first
    assert metrics["accuracy-2_part-2"] == second
    assert metrics["accuracy-3_unknown_dataset"] == inline


class Share(Evaluator):
    """A user's evaluator."""

    def _evaluate(self, dataset):
        return dataset.filter("prediction = label").count() / dataset.count()


def test_user_evaluator(store, vectors):
    model = LogisticRegression(maxIter=3).fit(vectors)
    value = Share().evaluate(model.transform(vectors))
    assert store.run().data.metrics["Share_vectors"] == value


# -- harmless ---------------------------------------------------------------------------------------------------------


def test_no_job_on_the_training_thread_and_nothing_persisted(recorder, spark, penguins):
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


def test_coefficients_are_bit_identical_and_objects_untouched(recorder, penguins):
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


def test_user_classes_pickle_by_value_without_us(store):
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        data = cloudpickle.dumps(Constant)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert b"autolog" not in data and b"wrapt" not in data
    assert type(vars(Constant)["fit"]).__name__ == "Wrapper"


def test_everything_is_put_back():
    import pyspark
    from pyspark.ml import base, evaluation

    def state():
        return [
            vars(owner).get(name)
            for owner in (base.Estimator, base.Transformer, evaluation.Evaluator, Constant, pyspark.SparkContext)
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
        "AUTOLOG_EXIT_TIMEOUT": "60",
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
