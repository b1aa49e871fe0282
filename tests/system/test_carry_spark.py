"""carry() on Spark: groups, retries, copies of a task, TorchDistributor. Spark Connect is in test_pyspark_connect."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

PARENT = "mlflow.parentRunId"


def alphas(runs) -> list[str]:
    return sorted(run.data.params["alpha"] for run in runs)


SPARK = """
    import contextlib
    import json
    import os
    import sqlite3
    import time
    import autolog
    import pandas as pd
    from pyspark import TaskContext
    from sklearn.linear_model import Ridge

    def fit(rows, alpha):
        return float(Ridge(alpha=alpha).fit(rows[["x"]], rows["y"]).coef_[0])

    def by_key(key, rows):
        return pd.DataFrame({"k": [key[0]], "coef": [fit(rows, 1.0)]})

    def flaky(rows):
        # Attempts have a sender each: on a busy machine the first's may come last, when its runs are in the trash.
        if TaskContext.get().attemptNumber():
            wait_for_a_failed_run()
        coef = fit(rows, 2.0)
        if TaskContext.get().attemptNumber() == 0 and rows["k"].iloc[0] == "b":
            raise ValueError("at the first attempt")
        return pd.DataFrame({"k": rows["k"][:1], "coef": [coef]})

    def wait_for_a_failed_run():
        path = os.environ["AUTOLOG_TRACKING_URI"].removeprefix("sqlite:///")
        failed = "SELECT 1 FROM runs JOIN experiments e USING (experiment_id) WHERE status = 'FAILED' AND e.name = ?"
        until = time.monotonic() + 120
        while time.monotonic() < until:
            time.sleep(0.1)
            with contextlib.closing(sqlite3.connect(path, timeout=60)) as store:
                if store.execute(failed, (os.environ["AUTOLOG_EXPERIMENT"],)).fetchone():
                    return
        raise TimeoutError("the first attempt's run did not end")

    def slow_at_first(key, rows):
        fit(rows, 1.0)
        attempt = TaskContext.get().attemptNumber()
        if key[0] == "b" and attempt == 0:
            time.sleep(120)
        fit(rows, 2.0)
        return pd.DataFrame({"k": [key[0]], "attempt": [attempt]})

    def boosted(key, rows):
        import xgboost
        told = {}
        data = xgboost.DMatrix(rows[["x"]], rows["y"])
        settings = {"max_depth": 1, "base_score": 0.0, "nthread": 1}
        xgboost.train(settings, data, 3, evals=[(data, "train")], evals_result=told, verbose_eval=False)
        return pd.DataFrame({"k": [key[0]], "rmse": [told["train"]["rmse"]]})

    def net(key, rows):
        import torch
        x, y = (torch.tensor(rows[name].to_numpy(), dtype=torch.float32)[:, None] for name in ("x", "y"))
        model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125)
        losses = []
        for _ in range(2):
            loss = torch.nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return pd.DataFrame({"k": [key[0]], "losses": [losses]})

    def leaves_a_rank(batches):
        os.environ.update(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
        yield from batches

    def ranks(batches):
        for _ in batches:
            yield pd.DataFrame({"rank": [os.environ["RANK"]]})

    def descend(rate):
        import torch
        import torch.distributed
        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo")
        model = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        model = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        for _ in range(2):
            loss = torch.nn.functional.mse_loss(model(torch.ones(4, 1)), torch.full((4, 1), 1.0 + rank))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.distributed.destroy_process_group()
        return loss.item()

    def connect(master):
        from pyspark.sql import SparkSession
        session = SparkSession.builder.master(master).getOrCreate()
        session.sparkContext.setLogLevel("OFF")
        rows = [(k, float(i), n * i) for k, n in (("a", 1.0), ("b", 2.0), ("c", 3.0)) for i in range(3)]
        return session, session.createDataFrame(rows, "k string, x double, y double").groupBy("k")

    if __name__ == "__main__":
        autolog.autolog()
{body}
        session.stop()
"""


def on_spark(place, body: str, **environ: str) -> list:
    """Run a script that connects to Spark and prints JSON; return what it printed."""
    text = SPARK.replace("{body}", textwrap.indent(textwrap.dedent(body), " " * 8))
    process = place.start(
        place.script(text),
        PYSPARK_PYTHON=sys.executable,
        SPARK_CONF_DIR=str(Path(__file__).parents[1] / "spark"),
        **environ,
    )
    out, err = process.communicate(timeout=600)  # A JVM, its workers and torchrun, on a busy machine.
    assert process.returncode == 0, (out, err)
    place.wait_for(lambda: not place.spools(), 90)
    return [json.loads(line) for line in out.splitlines() if line.startswith(("[", "{"))]


def calls_of(place, name: str) -> list:
    """The calls of the carried function `name`, all of them finished children of the one run of that name."""
    runs = place.runs()
    (parent,) = [run for run in runs if run.data.tags["mlflow.runName"] == name and PARENT not in run.data.tags]
    children = [run for run in runs if run.data.tags.get(PARENT) == parent.info.run_id]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    return children


def test_spark_groups_and_retries_count_once(place) -> None:
    by_key, flaky = on_spark(
        place,
        """
        session, groups = connect("local[1,2]")
        for function in (by_key, flaky):
            done = groups.applyInPandas(autolog.carry(function), "k string, coef double").collect()
            print(json.dumps(sorted((row.k, round(row.coef, 3)) for row in done)))
        """,
    )
    assert by_key == [["a", 0.667], ["b", 1.333], ["c", 2.0]]
    assert flaky == [["a", 0.5], ["b", 1.0], ["c", 1.5]]
    runs = place.runs()
    assert sorted(run.data.tags["mlflow.runName"] for run in runs if PARENT not in run.data.tags) == ["by_key", "flaky"]
    assert sorted(run.data.params["by_key.key.0"] for run in calls_of(place, "by_key")) == ["a", "b", "c"]
    assert alphas(calls_of(place, "by_key")) == ["1.0"] * 3
    # The first attempt trained "a" and "b" before it failed; both are in the trash, and said by those that stand.
    calls = calls_of(place, "flaky")
    assert alphas(calls) == ["2.0"] * 3
    assert sorted(len(run.data.tags.get("autolog.retried", "")) for run in calls) == [0, 32, 32]
    client = MlflowClient(tracking_uri=place.store)
    experiment_id = calls[0].info.experiment_id
    trash = client.search_runs([experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert sorted(run.info.status for run in trash) == ["FAILED", "FINISHED"]
    models = client.search_logged_models([experiment_id], max_results=50)
    standing = {run.info.run_id for name in ("by_key", "flaky") for run in calls_of(place, name)}
    assert {model.source_run_id for model in models} == standing


def test_xgboost_and_torch_in_spark_groups_where_an_earlier_task_left_a_rank(place) -> None:
    """TorchDistributor puts RANK into the environment of worker processes, which Spark uses again."""
    ranks, told, losses = on_spark(
        place,
        """
        session, groups = connect("local[1]")
        one = session.range(1)
        one.mapInPandas(leaves_a_rank, "id long").collect()
        print(json.dumps([row.rank for row in one.mapInPandas(ranks, "rank string").collect()]))
        done = groups.applyInPandas(autolog.carry(boosted), "k string, rmse array<double>").collect()
        print(json.dumps({row.k: row.rmse for row in done}))
        done = groups.applyInPandas(autolog.carry(net), "k string, losses array<double>").collect()
        print(json.dumps({row.k: row.losses for row in done}))
        """,
    )
    assert ranks == ["1"]
    calls = calls_of(place, "boosted")
    recorded = {run.data.params["boosted.key.0"]: place.history(run, "train-rmse") for run in calls}
    assert recorded == {key: list(enumerate(values)) for key, values in told.items()}
    assert len(calls) == len(told) == 3
    assert {len(values) for values in told.values()} == {3}
    assert {run.data.params["max_depth"] for run in calls} == {"1"}
    assert {run.data.tags["mlflow.autologging"] for run in calls} == {"xgboost"}
    nets = calls_of(place, "net")
    recorded = {run.data.params["net.key.0"]: place.history(run, "loss") for run in nets}
    assert recorded == {key: list(enumerate(values)) for key, values in losses.items()}
    assert len(nets) == len(losses) == 3
    assert {run.data.tags["mlflow.autologging"] for run in nets} == {"torch"}
    client = MlflowClient(tracking_uri=place.store)
    models = client.search_logged_models([calls[0].info.experiment_id])
    assert {model.source_run_id for model in models} == {run.info.run_id for run in (*calls, *nets)}
    assert {model.status for model in models} == {"READY"}


@pytest.mark.parametrize("local", [True, False], ids=["driver", "executors"])
def test_torch_distributor_is_one_run_by_its_first_rank(place, local: bool) -> None:
    """On the driver, or by a barrier of Spark tasks; both start torchrun, and two ranks that train together."""
    (losses,) = on_spark(
        place,
        f"""
        from pyspark.ml.torch.distributor import TorchDistributor
        session, _ = connect("local[2]")
        trained = TorchDistributor(2, local_mode={local}, use_gpu=False).run(autolog.carry(descend), 0.25)
        print(json.dumps([trained]))
        """,
    )
    # Targets 1 and 2: the mean of the ranks' gradients takes weight and bias to 0.75 each, and their sum to 1.5.
    assert losses == [0.25]
    (call,) = calls_of(place, "descend")
    assert place.history(call, "loss") == [(0, 1.0), (1, 0.25)]
    assert call.data.params["descend.rate"] == call.data.params["lr"] == "0.25"


# -- speculative execution --------------------------------------------------------------------------------------------


#: A cluster of two hosts in the JVM of the driver, as Spark copies a slow task to another host than its own only.
CLUSTER = """
from pyspark import SparkContext
SparkContext._ensure_initialized()
jvm, gateway = SparkContext._jvm, SparkContext._gateway
deploy, conf = jvm.org.apache.spark.deploy, jvm.org.apache.spark.SparkConf()
master = deploy.master.Master.startRpcEnvAndEndpoint("127.0.0.1", 0, 0, conf)._1()
urls = gateway.new_array(jvm.java.lang.String, 1)
urls[0] = f"spark://{master.address().hostPort()}"
for number, host in enumerate(("127.0.0.1", "127.0.0.2")):
    deploy.worker.Worker.startRpcEnvAndEndpoint(
        host, 0, 0, 1, 1024, urls, os.path.abspath("workers"),
        jvm.scala.Option.apply(number), conf, jvm.scala.Option.empty(),
    )
"""

SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "100ms",
    "spark.speculation.quantile": "0.25",
    "spark.speculation.multiplier": "1.1",
    "spark.speculation.minTaskRuntime": "100ms",
    "spark.sql.shuffle.partitions": "4",
    "spark.executor.extraJavaOptions": (
        "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:+UnlockDiagnosticVMOptions -XX:-BytecodeVerificationRemote"
    ),
}


@pytest.mark.slow
def test_a_task_that_spark_runs_twice_by_speculation_counts_once(place) -> None:
    """The first attempt at a group trains and then sleeps; Spark has the other host run it, and kills the sleeper."""
    settings = " ".join(f"--conf {name}='{value}'" for name, value in SPECULATION.items())
    (done,) = on_spark(
        place,
        CLUSTER
        + """
session, groups = connect(urls[0])
done = groups.applyInPandas(autolog.carry(slow_at_first), "k string, attempt int").collect()
print(json.dumps({row.k: row.attempt for row in done}))
""",
        PYSPARK_SUBMIT_ARGS=f"{settings} pyspark-shell",
        SPARK_SCALA_VERSION="2.13",  # Spark's jars as pip installs them do not say.
    )
    assert set(done) == {"a", "b", "c"} and done["b"] == 1  # What Spark kept is the second attempt's.
    calls = calls_of(place, "slow_at_first")
    assert alphas(calls) == ["1.0"] * 3
    standing = {run.data.params["slow_at_first.key.0"]: run for run in calls}
    assert set(standing) == {"a", "b", "c"}
    # The second training of each call, a child of it.
    client = MlflowClient(tracking_uri=place.store)
    ids = [run.info.run_id for run in calls]
    seconds = [run for run in place.runs() if run.data.tags.get(PARENT) in ids]
    assert sorted(run.data.tags[PARENT] for run in seconds) == sorted(ids)
    assert alphas(seconds) == ["2.0"] * 3
    assert {run.info.status for run in seconds} == {"FINISHED"}
    experiment_id = calls[0].info.experiment_id
    trash = client.search_runs([experiment_id], run_view_type=ViewType.DELETED_ONLY)
    gone = [run for run in trash if run.data.params.get("slow_at_first.key.0") == "b"]
    assert [run.data.tags["autolog.superseded_by"] for run in gone] == [standing["b"].info.run_id]
    assert standing["b"].data.tags["autolog.retried"] == gone[0].info.run_id
    models = client.search_logged_models([experiment_id])
    assert sorted(model.source_run_id for model in models) == sorted([*ids, *(run.info.run_id for run in seconds)])
    assert {model.status.value for model in models} == {"READY"}
