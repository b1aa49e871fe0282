"""Penguin species with Spark ML: the well-known MLflow lab, without any of its logging code."""

import penguins
from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import MinMaxScaler, StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import col

import autolog

autolog.autolog()


def train_penguin_model(
    training_data: DataFrame, test_data: DataFrame, maxIterations: int, regularization: float
) -> None:
    catFeature = "Island"
    numFeatures = ["CulmenLength", "CulmenDepth", "FlipperLength", "BodyMass"]

    catIndexer = StringIndexer(inputCol=catFeature, outputCol=catFeature + "Idx")
    numVector = VectorAssembler(inputCols=numFeatures, outputCol="numericFeatures")
    numScaler = MinMaxScaler(inputCol=numVector.getOutputCol(), outputCol="normalizedFeatures")
    featureVector = VectorAssembler(inputCols=["IslandIdx", "normalizedFeatures"], outputCol="Features")
    algo = LogisticRegression(
        labelCol="Species", featuresCol="Features", maxIter=maxIterations, regParam=regularization
    )
    pipeline = Pipeline(stages=[catIndexer, numVector, numScaler, featureVector, algo])
    model = pipeline.fit(training_data)

    prediction = model.transform(test_data)
    for metric in ["accuracy", "weightedRecall", "weightedPrecision"]:
        evaluator = MulticlassClassificationEvaluator(labelCol="Species", predictionCol="prediction", metricName=metric)
        print(f"{metric}: {evaluator.evaluate(prediction):.4f}")


spark = SparkSession.builder.appName("penguins").getOrCreate()
spark.sparkContext.setLogLevel("ERROR")

data = spark.read.format("csv").option("header", "true").load(penguins.write_csv("penguins.csv"))
data = data.dropna().select(
    col("Island").astype("string"),
    col("CulmenLength").astype("float"),
    col("CulmenDepth").astype("float"),
    col("FlipperLength").astype("float"),
    col("BodyMass").astype("float"),
    col("Species").astype("int"),
)
train, test = data.randomSplit([0.7, 0.3], seed=42)

train_penguin_model(train, test, 5, 0.5)
train_penguin_model(train, test, 10, 0.2)

spark.stop()
