"""The work that is timed: ordinary training code that knows nothing of who records it.

Each workload is a function that prepares its data once and returns the function to time.
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
    #: How many processes of each recorder share the turns.
    processes: int = 12
    #: Turns of each process that do not count: by then the sender, too, has made its first runs.
    warm_up: int = 4
    #: The framework's name where MLflow can autolog it; None where it has no capture at all.
    mlflow: str | None = None
    goal: str = ""
    #: Makes what is timed by itself, in the bare process, for a goal that is a multiple of it.
    reference: Callable[[], Timed] | None = None


def logistic_regression() -> Timed:
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    X, y = load_breast_cancer(return_X_y=True)
    return lambda: LogisticRegression(max_iter=50).fit(X, y)


def grid_search() -> Timed:
    import numpy as np
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    X, y = load_breast_cancer(return_X_y=True)
    grid = {"C": np.logspace(-3, 2, 20)}
    return lambda: GridSearchCV(LogisticRegression(max_iter=20), grid, cv=2).fit(X, y)


def million_rows() -> Timed:
    import numpy as np
    from sklearn.linear_model import Ridge

    X = np.random.default_rng(0).normal(size=(1_000_000, 20))
    y = X[:, 0]
    return lambda: Ridge(solver="cholesky").fit(X, y)


def xgb_train() -> Timed:
    import xgboost
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    matrix = xgboost.DMatrix(X, y)
    params = {"objective": "binary:logistic", "eval_metric": ["logloss", "error"], "max_depth": 2, "nthread": 1}
    return lambda: xgboost.train(params, matrix, 1000, evals=[(matrix, "train")], verbose_eval=False)


TORCH_STEPS = 2000


#: (rows, width) of what one step of a plain loop computes.
TORCH_SIZES = {"torch-step": (256, 128), "torch-2ms": (512, 512)}


def torch_loop() -> Timed:
    def train() -> None:
        torch_step(*TORCH_SIZES["torch-step"])(TORCH_STEPS)

    return train


def torch_step(rows: int, width: int) -> Callable[[int], None]:
    """Return a training that goes on for as many steps as it is called with."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, targets = torch.randn(rows, 64), torch.randn(rows, 1)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.MSELoss()

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()

    return train


def torch_checkpoint() -> Timed:
    """One step of a model of 100 MB, whose end takes its checkpoint: what is added is what that blocks."""
    import torch

    torch.set_num_threads(1)
    inputs = torch.randn(1, 5000)

    def train() -> None:
        model = torch.nn.Linear(5000, 5000, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        model(inputs).sum().backward()
        optimizer.step()

    return train


def copy_of_100_mb() -> Timed:
    """A copy of that model's weights into memory that is new to the process, as its first checkpoint needs it."""
    import torch

    torch.set_num_threads(1)
    return torch.randn(5000, 5000).clone


def _penguins_in_spark() -> tuple[Any, list[str]]:
    """Return the penguins as a cached Spark DataFrame, and the names of their measures."""
    from palmerpenguins import load_penguins
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.master("local[2]").getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    frame = load_penguins().dropna()
    columns = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
    rows = [
        (str(row.island), *(float(row[name]) for name in columns), int(code))
        for (_, row), code in zip(frame.iterrows(), frame.species.astype("category").cat.codes, strict=True)
    ]
    data = spark.createDataFrame(rows, ["Island", *columns, "Species"]).cache()
    data.count()
    return data, columns


def _spark_stages(columns: list[str]) -> list[Any]:
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import MinMaxScaler, StringIndexer, VectorAssembler

    return [
        StringIndexer(inputCol="Island", outputCol="IslandIdx"),
        VectorAssembler(inputCols=columns, outputCol="numericFeatures"),
        MinMaxScaler(inputCol="numericFeatures", outputCol="normalizedFeatures"),
        VectorAssembler(inputCols=["IslandIdx", "normalizedFeatures"], outputCol="Features"),
        LogisticRegression(labelCol="Species", featuresCol="Features", maxIter=10, regParam=0.2),
    ]


def spark_pipeline() -> Timed:
    from pyspark.ml import Pipeline

    data, columns = _penguins_in_spark()
    return lambda: Pipeline(stages=_spark_stages(columns)).fit(data)


def spark_search() -> Timed:
    from pyspark.ml import Pipeline
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator
    from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

    data, columns = _penguins_in_spark()

    def train() -> Any:
        stages = _spark_stages(columns)
        last = stages[-1].setMaxIter(2)
        grid = ParamGridBuilder().addGrid(last.regParam, [0.0, 0.1, 0.5]).addGrid(last.elasticNetParam, [0.0, 0.5, 1.0])
        return CrossValidator(
            estimator=Pipeline(stages=stages),
            estimatorParamMaps=grid.build(),
            evaluator=MulticlassClassificationEvaluator(labelCol="Species", metricName="accuracy"),
            numFolds=3,
            seed=1,
        ).fit(data)

    return train


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "sklearn",
            "LogisticRegression(max_iter=50).fit, breast cancer",
            logistic_regression,
            60,
            mlflow="sklearn",
            goal="<= 4 ms added, readable <= 150 ms later",
        ),
        Workload(
            "sklearn-search",
            "GridSearchCV of 20 candidates, breast cancer",
            grid_search,
            60,
            mlflow="sklearn",
            goal="<= 20 ms added",
        ),
        Workload(
            "sklearn-million",
            "Ridge.fit, 1,000,000 x 20",
            million_rows,
            5,
            processes=1,
            warm_up=2,
            mlflow="sklearn",
            goal="<= 2 passes + 5 ms added",
        ),
        Workload(
            "xgboost", "xgb.train, 1000 rounds, 2 metrics", xgb_train, 60, mlflow="xgboost", goal="<= 1 % + 5 ms added"
        ),
        Workload("torch", f"plain torch loop, {TORCH_STEPS} steps of a 64-128-1 MLP", torch_loop, 12),
        Workload(
            "torch-checkpoint",
            "torch, 100 MB model, one step and its checkpoint",
            torch_checkpoint,
            12,
            processes=4,
            goal="<= 1.5 copies of it + 5 ms added; a copy takes {reference}",
            reference=copy_of_100_mb,
        ),
        Workload(
            "pyspark",
            "penguin Pipeline.fit",
            spark_pipeline,
            9,
            processes=1,
            warm_up=2,
            mlflow="pyspark.ml",
            goal="<= 50 ms added",
        ),
        Workload(
            "pyspark-cv",
            "penguin CrossValidator.fit, 9 candidates x 3 folds",
            spark_search,
            5,
            processes=1,
            warm_up=2,
            mlflow="pyspark.ml",
            goal="<= 100 ms added",
        ),
    )
}
