"""One Spark session for all tests that need one, and the frames that they share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Also for the processes that tests start.
os.environ["SPARK_CONF_DIR"] = str(Path(__file__).parents[1] / "spark")

NUMBERS = ["CulmenLength", "CulmenDepth", "FlipperLength", "BodyMass"]


@pytest.fixture(scope="session")
def spark(tmp_path_factory):
    from pyspark.sql import SparkSession

    folder = tmp_path_factory.mktemp("spark")
    os.environ["PYSPARK_PYTHON"] = sys.executable
    session = (
        SparkSession.builder.master("local[2]")
        .appName("test_pyspark")
        .config("spark.sql.warehouse.dir", str(folder / "warehouse"))
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def penguins_csv(tmp_path_factory):
    """The file of the Azure Databricks lab, rebuilt from the palmerpenguins package."""
    import pandas as pd
    from palmerpenguins import load_penguins

    raw = load_penguins()
    frame = pd.DataFrame(
        {
            "Island": raw["island"],
            "CulmenLength": raw["bill_length_mm"],
            "CulmenDepth": raw["bill_depth_mm"],
            "FlipperLength": raw["flipper_length_mm"],
            "BodyMass": raw["body_mass_g"],
            "Species": raw["species"].map({"Adelie": 0, "Gentoo": 1, "Chinstrap": 2}),
        }
    )
    path = tmp_path_factory.mktemp("data") / "penguins.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def penguins(spark, penguins_csv):
    """The lab's frame: Island is text, the measures are floats, Species an integer."""
    from pyspark.sql.functions import col

    data = spark.read.format("csv").option("header", "true").load(str(penguins_csv))
    return data.dropna().select(
        col("Island").astype("string"), *(col(name).astype("float") for name in NUMBERS), col("Species").astype("int")
    )


@pytest.fixture(scope="session")
def vectors(spark):
    """Forty rows of a label and a vector of two."""
    from pyspark.ml.linalg import Vectors

    rows = [(float(i % 2), Vectors.dense([float(i), float(-i % 3)])) for i in range(40)]
    return spark.createDataFrame(rows, ["label", "features"])


@pytest.fixture(scope="session")
def lab_pipeline():
    """Makes the lab's pipeline: five stages, the last a logistic regression with the given params."""
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import MinMaxScaler, StringIndexer, VectorAssembler

    def make(**settings):
        settings = {"maxIter": 5, "regParam": 0.5, **settings}
        indexer = StringIndexer(inputCol="Island", outputCol="IslandIdx")
        numbers = VectorAssembler(inputCols=NUMBERS, outputCol="numericFeatures")
        scaler = MinMaxScaler(inputCol=numbers.getOutputCol(), outputCol="normalizedFeatures")
        together = VectorAssembler(inputCols=["IslandIdx", "normalizedFeatures"], outputCol="Features")
        algo = LogisticRegression(labelCol="Species", featuresCol="Features", **settings)
        return Pipeline(stages=[indexer, numbers, scaler, together, algo])

    return make


@pytest.fixture
def spark_store(recorder):
    """The recorder, switched on for Spark, with MLflow reading from its store."""
    import mlflow

    mlflow.set_tracking_uri(recorder.store_uri)
    recorder.start("pyspark")
    return recorder
