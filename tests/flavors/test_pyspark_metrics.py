"""Spark ML: what evaluators, training summaries and the models themselves say."""

from __future__ import annotations

import mlflow
import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import (
    DecisionTreeClassifier,
    LinearSVC,
    LogisticRegression,
    OneVsRest,
    RandomForestClassifier,
)
from pyspark.ml.evaluation import Evaluator, MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import (
    Bucketizer,
    CountVectorizer,
    HashingTF,
    OneHotEncoder,
    StandardScaler,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
    VectorSlicer,
)
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression

import autolog


@pytest.fixture
def store(spark_store):
    return spark_store


# -- evaluators -------------------------------------------------------------------------------------------------------


def test_evaluators_say_metrics_of_the_model_on_the_data(store, penguins, lab_pipeline):
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


EVALUATORS = {
    "BinaryClassificationEvaluator": {"metricName": "areaUnderPR"},
    "ClusteringEvaluator": {},
    "MulticlassClassificationEvaluator": {"metricName": "hammingLoss"},
    "MultilabelClassificationEvaluator": {"metricName": "microF1Measure", "predictionCol": "said", "labelCol": "true"},
    "RankingEvaluator": {"metricName": "ndcgAtK", "k": 1, "predictionCol": "said", "labelCol": "true"},
    "RegressionEvaluator": {"metricName": "mae"},
}


def test_every_evaluator_says_its_metric(store, vectors):
    from pyspark.ml import evaluation
    from pyspark.ml.feature import SQLTransformer

    lists = SQLTransformer(statement="SELECT *, array(prediction) said, array(label) true FROM __THIS__")
    prediction = Pipeline(stages=[LogisticRegression(maxIter=2), lists]).fit(vectors).transform(vectors)
    assert sorted(EVALUATORS) == sorted(kind.__name__ for kind in evaluation.JavaEvaluator.__subclasses__())
    said = {}
    for name, settings in EVALUATORS.items():
        value = getattr(evaluation, name)(**settings).evaluate(prediction)
        said[f"{settings.get('metricName', 'silhouette')}_vectors"] = value
    metrics = store.run().data.metrics
    assert {name: metrics[name] for name in said} == said
    (logged,) = store.models()
    assert {metric.key: metric.value for metric in logged.metrics if metric.key in said} == said


def test_evaluated_long_after_the_run_ended(store, vectors):
    model = LogisticRegression(maxIter=2).fit(vectors)
    assert store.run().info.status == "FINISHED"
    prediction = model.transform(vectors)
    assert autolog.flush(30)
    value = MulticlassClassificationEvaluator(metricName="accuracy").evaluate(prediction)
    run = store.run()
    assert (run.info.status, run.data.metrics["accuracy_vectors"]) == ("FINISHED", value)
    (logged,) = store.models()
    assert {metric.key: metric.value for metric in logged.metrics}["accuracy_vectors"] == value


# -- what training and model say of themselves, for free --------------------------------------------------------------


def test_training_summary_is_recorded_as_far_as_it_is_free(store, vectors):
    """MLflow's own autologging never looks at it; most of what it has would take a job."""
    model = LogisticRegression(maxIter=3).fit(vectors)
    run = store.run()
    assert store.history(run, "objectiveHistory") == list(enumerate(model.summary.objectiveHistory))
    assert set(run.data.metrics) == {"objectiveHistory", "totalIterations"}
    (found,) = run.inputs.dataset_inputs
    (logged,) = store.models()
    points = {(metric.key, metric.step): metric for metric in logged.metrics}
    last = len(model.summary.objectiveHistory) - 1
    assert points["objectiveHistory", last].dataset_digest == found.dataset.digest


def test_numbers_that_the_user_reads_from_a_summary_are_metrics(store, penguins, lab_pipeline):
    """What Spark computes when it is asked for, by the user: of the training data, or of what a model evaluated."""
    train, test = penguins.randomSplit([0.7, 0.3], seed=1)
    model = lab_pipeline().fit(train)
    last = model.stages[-1]
    said = {"accuracy_train": last.summary.accuracy, "weightedRecall_train": last.summary.weightedRecall}
    assert last.summary.accuracy == said["accuracy_train"]  # Read again: no other metric.
    prepared = Pipeline(stages=model.stages[:-1]).fit(test).transform(test)
    evaluated = last.evaluate(prepared)
    said["accuracy-2_prepared"] = evaluated.accuracy
    said["weightedFMeasure_prepared"] = evaluated.weightedFMeasure()
    said["weightedFMeasure-2_prepared"] = evaluated.weightedFMeasure(0.5)
    evaluator = MulticlassClassificationEvaluator(labelCol="Species", metricName="accuracy")
    said["accuracy-3_test"] = evaluator.evaluate(model.transform(test))
    assert said["accuracy-3_test"] == said["accuracy-2_prepared"]
    run = store.run()
    own = {"objectiveHistory", "totalIterations"}
    assert {name: value for name, value in run.data.metrics.items() if name not in own} == said
    contexts = {each.dataset.name: each.tags[0].value for each in run.inputs.dataset_inputs}
    assert contexts == {"train": "train", "prepared": "eval", "test": "eval"}
    (logged,) = store.models()
    linked = {metric.key: (metric.value, metric.dataset_name) for metric in logged.metrics if metric.key not in own}
    assert linked == {name: (value, name.rpartition("_")[2]) for name, value in said.items()}
    info = artifact(run, "metric_info.json")
    assert sorted(info) == sorted(said)
    assert info["weightedFMeasure-2_prepared"]["arguments"] == [0.5]


def test_numbers_of_a_regressions_summary(store, spark):
    from pyspark.ml.linalg import Vectors

    rows = [(2.0 * i + i % 3, Vectors.dense([float(i), float(i % 5)])) for i in range(1, 40)]
    frame = spark.createDataFrame(rows, ["label", "features"])
    model = LinearRegression(maxIter=3).fit(frame)
    said = {"r2_frame": model.summary.r2, "rootMeanSquaredError_frame": model.summary.rootMeanSquaredError}
    part = frame.limit(20)
    said["r2-2_part"] = model.evaluate(part).r2
    assert model.summary.numInstances == 39
    model.summary.predictions.count()
    metrics = store.run().data.metrics
    assert {name: value for name, value in metrics.items() if name in said} == said
    assert set(metrics) == set(said)  # By the normal equation: no iterations.


def test_sizes_of_trees_are_recorded(store, vectors):
    tree = DecisionTreeClassifier(maxDepth=3).fit(vectors)
    forest = RandomForestClassifier(numTrees=3, seed=1).fit(vectors)
    linear = GeneralizedLinearRegression(maxIter=2).fit(vectors)
    of_tree, of_forest, of_linear = store.runs()
    assert of_tree.data.metrics == {"depth": tree.depth, "numNodes": tree.numNodes}
    assert of_forest.data.metrics == {"numTrees": 3, "totalNumNodes": forest.totalNumNodes}
    assert of_linear.data.metrics == {"numIterations": linear.summary.numIterations}


def artifact(run, name):
    return mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{name}")


def test_coefficients_bear_the_names_of_raw_columns(store, penguins, lab_pipeline):
    model = lab_pipeline().fit(penguins)
    run = store.run()
    names = ["Island", "CulmenLength", "CulmenDepth", "FlipperLength", "BodyMass"]
    last = model.stages[-1]
    expected = {
        str(index): {"intercept": intercept, "coefficients": dict(zip(names, row, strict=True))}
        for index, (row, intercept) in enumerate(
            zip(last.coefficientMatrix.toArray().tolist(), last.interceptVector.toArray().tolist(), strict=True)
        )
    }
    assert artifact(run, "coefficients.json") == {"classes": expected}
    assert "coefficients.png" in store.artifacts(run)


def test_importances_bear_the_names_of_categories_and_of_what_selectors_left(store, spark):
    rows = [
        ("abc"[i % 3], "yes" if i % 2 else "no", float(i), float(i % 7), float(i % 2), [f"t{i % 4}"]) for i in range(60)
    ]
    frame = spark.createDataFrame(rows, ["kind", "answer", "x", "y", "z", "words"])
    stages = [
        StringIndexer(inputCol="answer", outputCol="label", stringOrderType="alphabetAsc"),
        StringIndexer(inputCol="kind", outputCol="kindIdx", stringOrderType="alphabetAsc"),
        OneHotEncoder(inputCol="kindIdx", outputCol="kindVec", dropLast=False),
        Bucketizer(inputCol="y", outputCol="yBin", splits=[0.0, 3.0, 7.0]),
        VectorAssembler(inputCols=["x", "z"], outputCol="numbers"),
        StandardScaler(inputCol="numbers", outputCol="scaled"),
        VectorSlicer(inputCol="scaled", outputCol="sliced", indices=[1]),
        CountVectorizer(inputCol="words", outputCol="counts"),
        VectorAssembler(inputCols=["kindVec", "yBin", "sliced", "counts"], outputCol="features"),
        RandomForestClassifier(numTrees=5, seed=2),
    ]
    model = Pipeline(stages=stages).fit(frame)
    found = artifact(store.run(), "feature_importances.json")
    terms = [f"words_{term}" for term in model.stages[7].vocabulary]
    names = ["kind_a", "kind_b", "kind_c", "y", "z", *terms]
    vector = model.stages[-1].featureImportances
    assert found == {names[i]: value for i, value in zip(vector.indices.tolist(), vector.values.tolist(), strict=True)}
    assert "z" in found


def test_classes_bear_their_labels(store, spark):
    rows = [("abc"[i % 3], float(i % 3), float(i % 5)) for i in range(30)]
    frame = spark.createDataFrame(rows, ["kind", "x", "y"])
    stages = [
        StringIndexer(inputCol="kind", outputCol="label", stringOrderType="alphabetAsc"),
        VectorAssembler(inputCols=["x", "y"], outputCol="features"),
        OneVsRest(classifier=LinearSVC(maxIter=2)),
    ]
    model = Pipeline(stages=stages).fit(frame)
    classes = artifact(store.run(), "coefficients.json")["classes"]
    assert list(classes) == ["a", "b", "c"]
    for weights, fitted in zip(classes.values(), model.stages[-1].models, strict=True):
        assert weights == {
            "intercept": fitted.intercept,
            "coefficients": dict(zip(["x", "y"], fitted.coefficients.toArray().tolist(), strict=True)),
        }


def test_unnamed_features_are_numbered(store, vectors):
    model = LinearRegression(maxIter=1).fit(vectors)
    assert artifact(store.run(), "coefficients.json") == {
        "intercept": model.intercept,
        "coefficients": {"features_0": model.coefficients[0], "features_1": model.coefficients[1]},
    }


def test_hashed_text_tells_the_greatest_weights_only(store, spark):
    frame = spark.createDataFrame([(f"w{i} w{i * 7}", float(i % 2)) for i in range(20)], ["text", "label"])
    stages = [Tokenizer(inputCol="text", outputCol="t"), HashingTF(inputCol="t", outputCol="features")]
    model = Pipeline(stages=[*stages, LogisticRegression(maxIter=2)]).fit(frame)
    found = artifact(store.run(), "coefficients.json")["coefficients"]
    values = model.stages[-1].coefficients.toArray()
    assert len(found) == 5000
    assert {name: value for name, value in found.items() if value} == {
        f"features_{i}": values[i] for i in np.flatnonzero(values)
    }


# -- XGBoost on Spark -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "metric", "settings"),
    [
        ("SparkXGBClassifier", "logloss", {}),
        ("SparkXGBRegressor", "rmse", {}),
        ("SparkXGBRanker", "ndcg@3", {"qid_col": "group", "eval_metric": "ndcg@3"}),
    ],
    ids=["classifier", "regressor", "ranker"],
)
def test_xgboost_on_spark(recorder, spark, kind, metric, settings):
    """One run, by this flavor, whatever else is switched on; XGBoost's rounds and importances by column."""
    pytest.importorskip("pyarrow")
    mlflow.set_tracking_uri(recorder.store_uri)
    recorder.start(importance_types=["weight", "gain"])
    from xgboost import spark as boosting

    rows = [(float(i % 2), float(i % 5), float(i % 2 + i % 3), i // 40, i % 4 == 3) for i in range(80)]
    frame = spark.createDataFrame(rows, ["label", "x", "y", "group", "held_out"])
    boosted = getattr(boosting, kind)(
        features_col=["x", "y"],
        n_estimators=4,
        max_depth=2,
        num_workers=1,
        validation_indicator_col="held_out",
        **settings,
    )
    model = boosted.fit(frame)
    if kind == "SparkXGBClassifier":
        evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    else:
        evaluator = RegressionEvaluator(metricName="mae")
    value = evaluator.evaluate(model.transform(frame))
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.autologging"] == "pyspark"
    assert run.data.tags["estimator_name"] == kind
    params = run.data.params
    assert (params["n_estimators"], params["max_depth"]) == ("4", "2")
    assert {name: params[name] for name in settings} == settings
    summary = model.training_summary
    key = metric.replace("@", "_at_")  # As in MLflow's own autologging.
    assert recorder.history(run, f"training-{key}") == list(enumerate(summary.train_objective_history[metric]))
    held_out = list(enumerate(summary.validation_objective_history[metric]))
    assert recorder.history(run, f"validation-{key}") == held_out and len(held_out) == 4
    assert run.data.metrics[f"{evaluator.getMetricName()}_frame"] == value
    for importance in ("weight", "gain"):
        scores = model.get_feature_importances(importance)
        # XGBoost 2 numbers them: f0, f1.
        expected = {{"f0": "x", "f1": "y"}.get(name, name): score for name, score in scores.items()}
        assert expected and artifact(run, f"feature_importance_{importance}.json") == expected
    (logged,) = recorder.models()
    assert logged.status == "READY"
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    assert [each["name"] for each in signature.inputs.to_dict()] == ["x", "y"]
    served = mlflow.pyfunc.load_model(logged.model_uri)
    expected = [row.prediction for row in model.transform(frame).collect()]
    assert served.predict(frame.select("x", "y").toPandas()) == expected
    requirements = mlflow.artifacts.load_text(f"{logged.artifact_location}/requirements.txt")
    assert "xgboost==" in requirements and "pyspark==" in requirements
