"""Spark ML: logged models load, predict and are served; their signatures."""

from __future__ import annotations

import json

import mlflow
import pyspark
import pytest
from mlflow.models import infer_signature
from mlflow.pyfunc import scoring_server
from pyspark.ml import Pipeline, PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression, OneVsRest, RandomForestClassifier
from pyspark.ml.feature import (
    IndexToString,
    RFormula,
    SQLTransformer,
    StringIndexer,
    VectorAssembler,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql.functions import col

import autolog
from flavors.pyspark import schemas

NUMBERS = ["CulmenLength", "CulmenDepth", "FlipperLength", "BodyMass"]


@pytest.fixture
def store(spark_store):
    return spark_store


def predictions(model, frame):
    return [row.prediction for row in model.transform(frame).select("prediction").collect()]


def inputs_of(logged):
    """(name, type) of the inputs in the logged model's own signature."""
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    return [(spec["name"], spec["type"]) for spec in signature.inputs.to_dict()]


# -- models -----------------------------------------------------------------------------------------------------------


def test_model_loads_in_plain_mlflow_with_the_same_predictions(store, penguins, lab_pipeline):
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


def test_signature_has_the_raw_columns_without_the_label(store, penguins, lab_pipeline):
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


def test_integers_are_served_where_floats_are_expected(store, penguins, lab_pipeline):
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


class Passing(Transformer, DefaultParamsReadable, DefaultParamsWritable):
    """A user's stage that does not say which columns it reads."""

    def _transform(self, dataset):
        return dataset.withColumn("double", dataset["BodyMass"] * 2)


def test_stages_that_may_read_anything_take_all_but_the_label(store, penguins):
    assembler = VectorAssembler(inputCols=["double"], outputCol="f")
    last = LogisticRegression(featuresCol="f", labelCol="Species", maxIter=1)
    Pipeline(stages=[Passing(), assembler, last]).fit(penguins)
    (logged,) = store.models()
    assert [name for name, _ in inputs_of(logged)] == ["Island", *NUMBERS]


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("Species ~ Island + BodyMass", ["Island", "BodyMass"]),
        ("Species ~ Island:BodyMass - 1", ["Island", "BodyMass"]),
        ("Species ~ .", ["Island", *NUMBERS]),
        ("Species ~ . - Island", NUMBERS),
        ("Species ~ Island + CulmenDepth - Island", ["CulmenDepth"]),
        ("Species ~ (Island + BodyMass)^2", ["Island", "BodyMass"]),
    ],
)
def test_formula_is_followed(store, penguins, formula, expected):
    formula = RFormula(formula=formula, featuresCol="f", labelCol="l")
    model = Pipeline(stages=[formula, LogisticRegression(featuresCol="f", labelCol="l", maxIter=1)]).fit(penguins)
    (logged,) = store.models()
    assert [name for name, _ in inputs_of(logged)] == expected
    served = mlflow.pyfunc.load_model(logged.model_uri)
    assert served.predict(penguins.select(expected).toPandas()) == predictions(model, penguins)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT *, BodyMass * 2 AS double FROM __THIS__", ["BodyMass"]),
        ("SELECT t.*, upper(Island) u, `BodyMass` * 2 AS double FROM __THIS__ t", ["Island", "BodyMass"]),
        ("SELECT BodyMass / FlipperLength double, Species FROM __THIS__", ["FlipperLength", "BodyMass", "Species"]),
    ],
)
def test_sql_is_followed(store, penguins, statement, expected):
    sql = SQLTransformer(statement=statement)
    assembler = VectorAssembler(inputCols=["double"], outputCol="f")
    last = LogisticRegression(featuresCol="f", labelCol="Species", maxIter=1)
    model = Pipeline(stages=[sql, assembler, last]).fit(penguins)
    (logged,) = store.models()
    assert [name for name, _ in inputs_of(logged)] == expected
    served = mlflow.pyfunc.load_model(logged.model_uri)
    assert served.predict(penguins.select(expected).toPandas()) == predictions(model, penguins)


def test_stages_fitted_before_are_followed(store, penguins):
    indexer = StringIndexer(inputCol="Island", outputCol="i").fit(penguins)
    before = Pipeline(stages=[indexer, VectorAssembler(inputCols=["i", "BodyMass"], outputCol="f")]).fit(penguins)
    Pipeline(stages=[before, LogisticRegression(featuresCol="f", labelCol="Species", maxIter=1)]).fit(penguins)
    logged = store.models()[-1]
    assert inputs_of(logged) == [("Island", "string"), ("BodyMass", "float")]


def test_columns_only_training_reads_are_no_inputs(store, penguins):
    frame = penguins.withColumn("weight", col("BodyMass") / 1000).withColumn("shift", col("BodyMass") * 0.0)
    # Spark 3's assembler takes a column by its exact name only.
    name = "CulmenLength" if pyspark.__version__.startswith("3.") else "culmenlength"
    assembler = VectorAssembler(inputCols=[name], outputCol="f")
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
    assert schemas.specs(fields) == _infer_schema(frame).to_dict()
    odd = spark.sql("SELECT 1.5BD a, INTERVAL 1 DAY b, map('x', 1) c, map(1, 'x') d, null e, array(INTERVAL 1 DAY) f")
    fields = json.loads(odd._jdf.schema().json())["fields"]
    assert schemas.specs(fields) == [
        {"type": "double", "name": "a", "required": True},
        {"type": "map", "values": {"type": "integer"}, "name": "c", "required": True},
    ]
    mlflow.types.Schema.from_json(json.dumps(schemas.specs(fields)))


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


#: Those whose summary has an ``objectiveHistory``; some lose it when they are copied.
HISTORIES = (
    "LogisticRegression",
    "LinearSVC",
    "FMClassifier",
    "MultilayerPerceptronClassifier",
    "LinearRegression",
)


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
    if name in HISTORIES:
        summary = model.summary() if callable(model.summary) else model.summary
        history = list(summary.objectiveHistory)
        assert len(history) > 1 or name == "LinearRegression"
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


def test_input_example(recorder, penguins, lab_pipeline):
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


# -- types that MLflow's own autologging gives up on ------------------------------------------------------------------


def fit_on_odd_types(spark, *names):
    """A pipeline that reads decimals, timestamps, arrays and structs, those of them that are named."""
    read = {
        "d": "cast(d as double)",
        "t": "cast(day(t) as double)",
        "a": "a[0]",
        "s": "s.x + length(s.n.y)",
    }
    frame = spark.sql(
        "SELECT cast(id as decimal(9, 2)) d, "
        "timestamp'2024-01-01 00:00:00' + make_interval(0, 0, 0, cast(id as int)) t, "
        "array(cast(id as double), 1D) a, named_struct('x', cast(id as double), 'n', named_struct('y', 'z')) s, "
        "cast(id % 2 as double) label FROM range(20)"
    )
    made = ", ".join(f"{read[name]} AS {name}1" for name in names)
    stages = [
        SQLTransformer(statement=f"SELECT *, {made} FROM __THIS__"),
        VectorAssembler(inputCols=[f"{name}1" for name in names], outputCol="features"),
        LogisticRegression(maxIter=3),
    ]
    return frame, Pipeline(stages=stages).fit(frame)


def test_signature_of_decimals_timestamps_and_arrays(store, spark):
    frame, model = fit_on_odd_types(spark, "d", "t", "a")
    (logged,) = store.models()
    assert inputs_of(logged) == [("d", "double"), ("t", "datetime"), ("a", "array")]
    assert predictions(mlflow.spark.load_model(logged.model_uri), frame) == predictions(model, frame)
    rows = frame.select("d", "t", "a").toPandas()
    rows["d"] = rows["d"].astype(float)
    rows["a"] = rows["a"].map(list)
    assert mlflow.pyfunc.load_model(logged.model_uri).predict(rows) == predictions(model, frame)


def test_signature_of_nested_structs(store, spark):
    frame, model = fit_on_odd_types(spark, "s", "d")
    (logged,) = store.models()
    (spec,) = [each for each in mlflow.models.get_model_info(logged.model_uri).signature.inputs if each.name == "s"]
    assert spec.to_dict() == {
        "name": "s",
        "type": "object",
        "required": True,
        "properties": {
            "x": {"type": "double", "required": True},
            "n": {"type": "object", "required": True, "properties": {"y": {"type": "string", "required": True}}},
        },
    }
    assert predictions(mlflow.spark.load_model(logged.model_uri), frame) == predictions(model, frame)


def test_vectors_are_served_as_lists(store, vectors):
    model = LogisticRegression(maxIter=2).fit(vectors)
    (logged,) = store.models()
    served = mlflow.pyfunc.load_model(logged.model_uri)
    body = json.dumps({"dataframe_records": [{"features": [39.0, 0.0]}, {"features": [0.5, -1.0]}]})
    answer = scoring_server.invocations(body, "application/json", served, served.metadata.get_input_schema())
    assert answer.status == 200, answer.response
    frame = vectors.sparkSession.createDataFrame(
        [(Vectors.dense([39.0, 0.0]),), (Vectors.dense([0.5, -1.0]),)], ["features"]
    )
    assert json.loads(answer.response) == {"predictions": predictions(model, frame)}


def test_a_frame_without_signature_does_not_switch_signatures_off_for_later_fits(store, spark, vectors):
    odd = spark.sql("SELECT id, INTERVAL 1 DAY i, cast(id % 2 as double) label FROM range(8)")
    sql = SQLTransformer(statement="SELECT *, cast(id as double) + extract(day from i) x FROM __THIS__")
    assembler = VectorAssembler(inputCols=["x"], outputCol="features")
    Pipeline(stages=[sql, assembler, LogisticRegression(maxIter=1)]).fit(odd)
    LogisticRegression(maxIter=1).fit(vectors)
    without, with_one = store.models()
    assert without.status == "READY" and mlflow.models.get_model_info(without.model_uri).signature is None
    assert inputs_of(with_one) == [("features", "sparkml_vector")]


# -- registry ---------------------------------------------------------------------------------------------------------


def test_registered_model_takes_an_alias_and_is_served_by_it(recorder, penguins, lab_pipeline):
    mlflow.set_tracking_uri(recorder.store_uri)
    name = f"penguins-{recorder.experiment}"
    recorder.start("pyspark", registered_model_name=name)
    model = lab_pipeline().fit(penguins)
    (logged,) = recorder.models()
    (version,) = recorder.client.search_model_versions(f"name = '{name}'")
    recorder.client.set_registered_model_alias(name, "champion", version.version)
    assert version.run_id == recorder.run().info.run_id
    by_alias = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    expected = predictions(model, penguins)
    assert by_alias.predict(penguins.drop("Species").toPandas()) == expected
    assert predictions(mlflow.spark.load_model(f"models:/{name}@champion"), penguins) == expected
    assert logged.params["LogisticRegression.maxIter"] == "5"
    assert {metric.key for metric in logged.metrics} == {"objectiveHistory", "totalIterations"}


def test_scoring_server_answers_over_http(store, penguins, lab_pipeline):
    from fastapi.testclient import TestClient

    model = lab_pipeline().fit(penguins)
    (logged,) = store.models()
    client = TestClient(scoring_server.init(mlflow.pyfunc.load_model(logged.model_uri)))
    records = [
        {"Island": "Biscoe", "CulmenLength": 49, "CulmenDepth": 14, "FlipperLength": 222, "BodyMass": 5700},
        {"Island": "Dream", "CulmenLength": 39.5, "CulmenDepth": 18, "FlipperLength": 181, "BodyMass": 3750},
    ]
    answer = client.post("/invocations", json={"dataframe_records": records})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "predictions": predictions(
            model,
            penguins.sparkSession.createDataFrame(
                [
                    {name: value if name == "Island" else float(value) for name, value in record.items()}
                    for record in records
                ]
            ),
        )
    }
    assert client.post("/invocations", json={"dataframe_records": [{"Island": "Biscoe"}]}).status_code == 400
