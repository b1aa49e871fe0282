"""Write docs/generated/: what each framework's training records, taken from real trainings.

Each function below is one example of a page; its source stands there above the table of what it recorded. Run this
again when a test says that the tables have changed: ``python docs/generate.py [framework ...]``; and with ``figures``
where docs/benchmarks.md has new ones, which the READMEs are to show, too.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import autolog
from autolog.testing import CapturedRun, capture

FOLDER = Path(__file__).parent / "generated"
BENCHMARKS = Path(__file__).parent / "benchmarks.md"
READMES = [FOLDER.parent.parent / name for name in ("README.md", "README.ko.md")]


def sklearn_pipeline() -> None:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y = load_iris(return_X_y=True, as_frame=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(X_train, y_train)
    predictions = model.predict(X_test)
    accuracy_score(y_test, predictions)


def sklearn_search() -> None:
    from sklearn.datasets import load_iris
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV

    X, y = load_iris(return_X_y=True)
    GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, cv=2).fit(X, y)


def torch_loop() -> None:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    train_data = TensorDataset(torch.randn(32, 4), torch.randint(0, 2, (32,)))
    val_data = TensorDataset(torch.randn(16, 4), torch.randint(0, 2, (16,)))
    train_loader = DataLoader(train_data, batch_size=8, shuffle=True)
    val_loader = DataLoader(val_data, batch_size=16)
    model = torch.nn.Linear(4, 2)
    loss_function = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)
    for _epoch in range(2):
        model.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            loss_function(model(x), y).backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            for x, y in val_loader:
                loss_function(model(x), y)


def xgboost_train() -> None:
    import xgboost
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    train_data = xgboost.DMatrix(X[:400], y[:400])
    val_data = xgboost.DMatrix(X[400:], y[400:])
    params = {"objective": "binary:logistic", "max_depth": 2}
    evals = [(train_data, "train"), (val_data, "val")]
    xgboost.train(params, train_data, 20, evals=evals, early_stopping_rounds=3, verbose_eval=False)


def xgboost_estimator() -> None:
    from sklearn.datasets import load_breast_cancer
    from xgboost import XGBClassifier

    X, y = load_breast_cancer(return_X_y=True)
    XGBClassifier(n_estimators=3, max_depth=2).fit(X, y, eval_set=[(X, y)], verbose=False)


def pyspark_pipeline() -> None:
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    rows = [(float(i % 7), float(i % 3), i % 2) for i in range(40)]
    df = spark.createDataFrame(rows, ["a", "b", "label"])
    stages = [VectorAssembler(inputCols=["a", "b"], outputCol="features"), LogisticRegression(maxIter=3)]
    model = Pipeline(stages=stages).fit(df)
    predictions = model.transform(df)
    MulticlassClassificationEvaluator(metricName="accuracy").evaluate(predictions)


EXAMPLES: dict[str, tuple[Callable[[], None], ...]] = {
    "sklearn": (sklearn_pipeline, sklearn_search),
    "torch": (torch_loop,),
    "xgboost": (xgboost_train, xgboost_estimator),
    "pyspark": (pyspark_pipeline,),
}
#: Recorded after a time rather than a number of steps.
_BY_TIME = ("grad_norm",)
_TITLES = {
    sklearn_pipeline: "A pipeline, and a metric on its predictions",
    sklearn_search: "A search over parameters",
    torch_loop: "A plain loop with validation",
    xgboost_train: "`xgboost.train`",
    xgboost_estimator: "The scikit-learn API",
    pyspark_pipeline: "A pipeline, and an evaluator on its predictions",
}


def _page(framework: str) -> str:
    """Return the generated part of a framework's page."""
    parts = []
    for example in EXAMPLES[framework]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with capture(framework, checkpoints=autolog.Checkpoints("epoch")) as seen:
                example()
            runs = seen.runs
        body = textwrap.dedent(inspect.getsource(example).partition("\n")[2])
        parts.append(f"### {_TITLES[example]}\n\n```python\n{body.rstrip()}\n```\n")
        for run in runs:
            parts.append(_run(run, runs))
    return "\n".join(parts)


def _run(run: CapturedRun, runs: list[CapturedRun]) -> str:
    if run.parent is not None:
        siblings = [each for each in runs if each.parent == run.parent]
        if run is not siblings[0]:
            return ""
        lines = [f"**Child runs**: {len(siblings)}, each with\n"]
    else:
        lines = ["**The run** has\n"]
    lines += ["| what | key | values |", "|---|---|---|"]
    tags = sorted(name for name in run.tags if not name.startswith(("mlflow.source", "mlflow.user")))
    lines.append(_row("tags", ", ".join(f"`{name}`" for name in tags), ""))
    lines.append(_row("parameters", ", ".join(f"`{name}`" for name in sorted(run.params)), str(len(run.params))))
    for name in sorted({name for name, _, _ in run.metrics}):
        steps = sorted({step for step, _ in run.history(name)})
        text = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} points, steps {steps[0]} to {steps[-1]}"
        lines.append(_row("metric", f"`{name}`", "now and then" if name in _BY_TIME else text))
    for name, context in sorted(run.datasets):
        lines.append(_row("dataset", f"`{name}`", f"as `{context}`"))
    for path in sorted(run.texts):
        lines.append(_row("artifact", f"`{path}`", "text"))
    for path in sorted(run.figures):
        lines.append(_row("artifact", f"`{path}`", "picture"))
    for model in run.models:
        if model.status == "DELETED":
            continue
        linked = len({name for name, _, _ in model.metrics})
        files = ", ".join(f"`{path}`" for path in model.files if path.count("/") == 0)
        text = f"step {model.step}" + (f"; {linked} metrics linked" if linked else "") + (f"; {files}" if files else "")
        lines.append(_row("model", f"`{model.name}`", text))
    return "\n".join(line for line in lines if line) + "\n"


def _row(what: str, key: str, values: str) -> str:
    return f"| {what} | {key} | {values} |" if key else ""


def generate(framework: str) -> str:
    """Return what docs/generated/<framework>.md is to hold."""
    if framework == "pyspark":
        from pyspark.sql import SparkSession

        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
        builder.config("spark.driver.host", "127.0.0.1").getOrCreate().sparkContext.setLogLevel("OFF")
    return f"<!-- Written by docs/generate.py; do not edit. -->\n\n{_page(framework)}"


def with_figures(readme: str) -> str:
    """Return a README with the figures of docs/benchmarks.md, less what a first look does without."""
    measured = BENCHMARKS.read_text(encoding="utf-8")
    lines = [line for line in measured.splitlines() if line.startswith("| ")]
    left_out = [i for i, name in enumerate(lines[0].split("|")) if name.strip() in ("ratio", "with pictures")]
    rows = ["|".join(cell for i, cell in enumerate(row.split("|")) if i not in left_out) for row in lines[1:]]
    first = re.escape(rows[0].split("|")[1])
    readme = re.sub(rf"(\|{first}\|.*\n)(\|.*\n)*", lambda _: "\n".join(rows) + "\n", readme)
    machine = re.compile(r"\d+ cores, [^;\n]*?wrapt \d+(\.\d+)*")
    found = machine.search(measured)
    assert found is not None
    return machine.sub(found[0], readme)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or EXAMPLES:
        if name == "figures":
            for path in READMES:
                path.write_text(with_figures(path.read_text(encoding="utf-8")), encoding="utf-8")
            continue
        (FOLDER / f"{name}.md").write_text(generate(name), encoding="utf-8")
        print(f"docs/generated/{name}.md")
