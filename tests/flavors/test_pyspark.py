"""Spark ML: what opens a run, and what it says of estimator and data."""

from __future__ import annotations

import gc
import json
import threading

import mlflow
import pytest
from pyspark.errors import IllegalArgumentException
from pyspark.ml import Estimator, Model, Pipeline
from pyspark.ml.classification import FMClassifier, LogisticRegression, OneVsRest
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import IDF, PCA, CountVectorizer, RFormula, StringIndexer, VectorAssembler, Word2Vec
from pyspark.ml.param import Param, Params
from pyspark.ml.param.shared import HasFeaturesCol, HasInputCol, HasLabelCol, HasOutputCol, HasPredictionCol
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable

import autolog
from autolog import guard
from flavors.pyspark import frames

NUMBERS = ["CulmenLength", "CulmenDepth", "FlipperLength", "BodyMass"]


@pytest.fixture
def store(spark_store):
    return spark_store


# -- one run, its params and its dataset ------------------------------------------------------------------------------


def test_lab_pipeline_is_one_run_with_all_stages_params(store, penguins, lab_pipeline):
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


def test_dataset_is_mlflows_but_for_the_row_count(store, penguins, penguins_csv, lab_pipeline):
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


def test_pipelines_of_featurizers_alone_open_no_run(store, penguins):
    """As with scikit-learn; what is fitted on the columns that they make is the training."""
    index = StringIndexer(inputCol="Island", outputCol="i")
    assemble = VectorAssembler(inputCols=["i", "BodyMass"], outputCol="features")
    features = Pipeline(stages=[Pipeline(stages=[index]), assemble])
    prepared = features.fit(penguins).transform(penguins)
    assert store.runs() == []
    LogisticRegression(labelCol="Species", maxIter=1).fit(prepared)
    assert store.run().data.tags["estimator_name"] == "LogisticRegression"


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


# -- fitMultiple ------------------------------------------------------------------------------------------------------


def test_fit_multiple_is_one_run_with_a_child_per_model(store, vectors):
    lr = LogisticRegression(maxIter=1)
    models = lr.fitMultiple(vectors, [{lr.regParam: value} for value in (0.1, 0.2, 0.3)])
    taken = {}

    def take():
        for index, model in models:
            taken[index] = model

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (parent,) = store.runs(children=False)
    children = [run for run in store.runs() if run.info.run_id != parent.info.run_id]
    assert sorted(run.data.params["regParam"] for run in children) == ["0.1", "0.2", "0.3"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert parent.data.params["maxIter"] == "1"
    assert [each.dataset.name for each in parent.inputs.dataset_inputs] == ["vectors"]
    assert {model.source_run_id for model in store.models()} == {run.info.run_id for run in children}
    for run in children:
        assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["vectors"]
        index = [0.1, 0.2, 0.3].index(float(run.data.params["regParam"]))
        assert store.history(run, "objectiveHistory") == list(enumerate(taken[index].summary.objectiveHistory))


def test_fit_multiple_that_nobody_finishes(store, vectors):
    lr = LogisticRegression(maxIter=1)

    def take_two():
        models = lr.fitMultiple(vectors, [{lr.regParam: 0.1}, {lr.elasticNetParam: 7.0}, {}])
        index, _ = next(models)
        try:
            next(models)
        except IllegalArgumentException:
            return index

    index = take_two()
    gc.collect()  # The exception's frames held the iterator, too.
    children = [run for run in store.runs() if "mlflow.parentRunId" in run.data.tags]
    runs = {run.data.params["elasticNetParam"]: run.info.status for run in children}
    assert (index, runs) == (0, {"0.0": "FINISHED", "7.0": "FAILED"})
    (parent,) = store.runs(children=False)
    assert parent.info.status == "FINISHED"


def test_fit_multiple_of_a_featurizer_opens_no_run(store, penguins):
    indexer = StringIndexer(inputCol="Island", outputCol="i")
    assert len(list(indexer.fitMultiple(penguins, [{}, {}]))) == 2
    assert store.runs() == []


# -- pipelines of anything --------------------------------------------------------------------------------------------


def test_no_allow_list_of_stages(store, spark):
    """Stages whose models MLflow's own autologging does not log."""
    rows = [(["a", "b", "a"], float(i % 2), float(i)) for i in range(12)]
    frame = spark.createDataFrame(rows, ["words", "label", "x"])
    stages = [
        Word2Vec(inputCol="words", outputCol="w", vectorSize=2, minCount=0, seed=1),
        CountVectorizer(inputCol="words", outputCol="c"),
        IDF(inputCol="c", outputCol="i"),
        VectorAssembler(inputCols=["w", "i", "x"], outputCol="all"),
        PCA(k=2, inputCol="all", outputCol="features"),
        FMClassifier(maxIter=2),
    ]
    model = Pipeline(stages=stages).fit(frame)
    run = store.run()
    assert run.data.params["Word2Vec.vectorSize"] == "2"
    (logged,) = store.models()
    assert logged.status == "READY"
    loaded = mlflow.spark.load_model(logged.model_uri)
    assert [row.prediction for row in loaded.transform(frame).collect()] == [
        row.prediction for row in model.transform(frame).collect()
    ]


# -- where the data came from -----------------------------------------------------------------------------------------


def source_of(run):
    (found,) = run.inputs.dataset_inputs
    return found.dataset.source_type, json.loads(found.dataset.source)


def test_dataset_of_a_table(store, spark, penguins, lab_pipeline):
    penguins.write.mode("overwrite").saveAsTable("penguins_of_the_lab")
    table = spark.table("penguins_of_the_lab").filter("BodyMass > 0")
    lab_pipeline().fit(table)
    assert source_of(store.run()) == ("spark", {"table_name": "spark_catalog.default.penguins_of_the_lab"})
    spark.sql("DROP TABLE penguins_of_the_lab")


def test_dataset_of_several_files(store, spark, tmp_path):
    paths = [str(tmp_path / name) for name in ("one", "two")]
    for path in paths:
        spark.range(10).selectExpr("cast(id % 2 as double) label", "cast(id as double) x").write.parquet(path)
    frame = spark.read.parquet(*paths)
    Pipeline(stages=[VectorAssembler(inputCols=["x"], outputCol="features"), LogisticRegression(maxIter=1)]).fit(frame)
    assert source_of(store.run()) == ("spark", {"path": ",".join(f"file:{path}" for path in paths)})


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("s3a://AKIA123:se/cr+et@bucket/data/x.csv", "s3a://bucket/data/x.csv"),
        ("s3://token@bucket/x", "s3://bucket/x"),
        ("https://user:pw@host:8443/x.csv?sig=abc&se=2030", "https://host:8443/x.csv"),
        ("abfss://container@account.dfs.core.windows.net/x", "abfss://container@account.dfs.core.windows.net/x"),
        ("hdfs://namenode:8020/user/a@b/x", "hdfs://namenode:8020/user/a@b/x"),
        ("file:/tmp/what?/x#1.csv", "file:/tmp/what?/x#1.csv"),
        ("dbfs:/mnt/x", "dbfs:/mnt/x"),
    ],
)
def test_credentials_are_stripped_from_sources(url, public):
    assert frames.public_url(url) == public
