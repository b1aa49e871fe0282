"""The work that is timed: ordinary training code that knows nothing of who records it.

Each workload is a function that prepares its data once and returns the function to time. `units` says how many units
of work (steps, points) one call does, where the figure of interest is per unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Timed = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    """One row of the table."""

    name: str
    title: str
    prepare: Callable[[], Timed]
    repeat: int
    units: int = 1
    #: The framework's name where MLflow can autolog it; None where it has no capture at all.
    mlflow: str | None = None
    goal: str = ""


def logistic_regression() -> Timed:
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    X, y = load_breast_cancer(return_X_y=True)
    return lambda: LogisticRegression(max_iter=50).fit(X, y)


def xgb_train() -> Timed:
    import xgboost
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    matrix = xgboost.DMatrix(X, y)
    params = {"objective": "binary:logistic", "eval_metric": ["logloss", "error"], "max_depth": 2, "nthread": 1}
    return lambda: xgboost.train(params, matrix, 1000, evals=[(matrix, "train")], verbose_eval=False)


TORCH_STEPS = 2000


def torch_loop() -> Timed:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, targets = torch.randn(256, 64), torch.randn(256, 1)

    def train() -> None:
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        criterion = nn.MSELoss()
        for _ in range(TORCH_STEPS):
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()

    return train


def spark_pipeline() -> Timed:
    from palmerpenguins import load_penguins
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import MinMaxScaler, StringIndexer, VectorAssembler
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("OFF")
    frame = load_penguins().dropna()
    columns = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    rows = [
        (str(row.island), *(float(row[name]) for name in columns), int(code))
        for (_, row), code in zip(frame.iterrows(), frame.species.astype("category").cat.codes, strict=True)
    ]
    data = spark.createDataFrame(rows, ["Island", *columns, "Species"]).cache()
    data.count()

    def train() -> Any:
        return Pipeline(
            stages=[
                StringIndexer(inputCol="Island", outputCol="IslandIdx"),
                VectorAssembler(inputCols=columns, outputCol="numericFeatures"),
                MinMaxScaler(inputCol="numericFeatures", outputCol="normalizedFeatures"),
                VectorAssembler(inputCols=["IslandIdx", "normalizedFeatures"], outputCol="Features"),
                LogisticRegression(labelCol="Species", featuresCol="Features", maxIter=10, regParam=0.2),
            ]
        ).fit(data)

    return train


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "sklearn",
            "LogisticRegression(max_iter=50).fit, breast cancer",
            logistic_regression,
            15,
            mlflow="sklearn",
            goal="<= 5 ms added",
        ),
        Workload(
            "xgboost", "xgb.train, 1000 rounds, 2 metrics", xgb_train, 9, mlflow="xgboost", goal="<= 2 % + 10 ms added"
        ),
        Workload(
            "torch",
            "plain torch loop, 64-128-1 MLP, per step",
            torch_loop,
            9,
            units=TORCH_STEPS,
            goal="<= 25 us added a step",
        ),
        Workload("pyspark", "penguin Pipeline.fit", spark_pipeline, 9, mlflow="pyspark.ml", goal="<= 150 ms added"),
    )
}
