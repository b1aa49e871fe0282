"""Fitted models as files, laid out as ``mlflow.spark.save_model`` lays them out.

``mlflow.spark`` loads nothing but a ``PipelineModel``, so that other models are saved as the only stage of one.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from autolog import guard, models, signature
from autolog.models import ModelSnapshot
from flavors.pyspark import columns, frames, schemas, stages
from flavors.pyspark.background import Hold

#: Where models go first on clusters whose executors do not see the driver's disk.
_TMPDIR = "/tmp/mlflow-autolog"

_ROWS = 5

#: Models whose ``transformSchema`` calls their integers doubles.
_CLUSTERINGS = ("KMeansModel", "BisectingKMeansModel", "GaussianMixtureModel")


def detach(part: Any) -> Any:
    """Return a copy of a model (or estimator, evaluator) that shares nothing that can be changed with the original.

    Params, stages and the companion objects in the JVM are copied, at one call to the JVM for each of the latter;
    ``copy()`` makes dozens, as it sends every param there once more. Coefficients, trees and the like are shared: they
    cannot change.

    Raises: what the JVM raises.
    """
    from pyspark import SparkContext
    from pyspark.ml.param import Params

    empty: list[Any] = []

    def copy(value: Any) -> Any:
        if isinstance(value, Params):
            return copy_params(value)
        if type(value) in (list, tuple) and len(value) and isinstance(value[0], Params | list | tuple | dict):
            return type(value)(copy(each) for each in value)
        if type(value) is dict and all(type(key).__name__ == "Param" for key in value):
            return {key: copy(each) for key, each in value.items()}
        return value

    def copy_params(original: Any) -> Any:
        state = {}
        for name, value in vars(original).items():
            if name == "_java_obj" and hasattr(value, "_target_id"):
                # By its full name: on the way over the packages, each would be looked up in the JVM.
                empty[:] = empty or [getattr(SparkContext._jvm, "org.apache.spark.ml.param.ParamMap")()]
                state[name] = value.copy(empty[0])
            elif name == "_java_obj" and hasattr(value, "add_ref"):
                value.add_ref()  # Spark Connect: the server forgets a model that nobody refers to any more.
                state[name] = value
            else:
                state[name] = copy(value)
        # Complete before it exists: its destructor releases the companion that it holds at that time.
        made = object.__new__(type(original))
        made.__dict__.update(state)
        return made

    return copy(part)


def take(model: Any, frame: Any, steps: list[columns.Step] | None, hold: Hold, config: Any) -> ModelSnapshot:
    """Describe a detached model, on the worker thread; its files are written when the snapshot is.

    frame: the training data; steps: what it goes through when the model predicts, None where that is not known.

    Raises: SparkStopped, and what the JVM raises.
    """
    import pyspark

    fields = hold.call("reading a schema", frames.schema, frame)
    names = [field["name"] for field in fields]
    inputs = None
    if steps is not None:
        parse = frames.sql_parser(frame)
        inputs = guard.run("follow the columns", hold.call, "following columns", columns.consumed, steps, names, parse)
    taken = [field for field in fields if inputs is not None and field["name"] in inputs]
    output = guard.attempt(_output, model, frame)
    made = None
    if config.log_model_signatures:
        result = [{**output.value, "required": True}] if output.value else None
        specs = schemas.specs(taken)
        # A column without a spec would be withheld from the model, so that it could not predict.
        made = signature.signature(specs if len(specs) == len(taken) else None, result)
    example = None
    if config.log_input_examples and inputs:
        example = guard.run("take an input example", hold.call, "taking an input example", _example, frame, inputs)

    def save(path: Path) -> None:
        hold.call("saving the model", _save, model, frame.sparkSession, path)

    predicts = output.error is not None or output.value is not None
    return ModelSnapshot(
        flavor="spark",
        flavor_config={
            "pyspark_version": pyspark.__version__,
            "model_data": "sparkml",
            "code": None,
            "model_class": "pyspark.ml.pipeline.PipelineModel",
        },
        files={"sparkml": save},
        loader_module="mlflow.spark" if predicts else None,
        pyfunc_config={"data": "sparkml"} if predicts else {},
        signature=made,
        requirements=lambda: models.requirements_for({"pyspark", *_packages(model)}),
        example=example,
    )


def _packages(model: Any) -> set[str]:
    """Return the top-level modules that define the model's stages."""
    inner = [*(stages.fitted(model) or ()), *(getattr(model, "models", None) or ())]
    own = type(model).__module__.partition(".")[0]
    return {own, *(name for each in inner for name in _packages(each))} - {"__main__"}


# -- what it predicts -----------------------------------------------------------------------------------------------


def _output(model: Any, frame: Any) -> dict[str, Any] | None:
    """Return the type of what ``mlflow.spark`` takes for the prediction, or None where it finds none.

    That is the column "prediction", or else what a last stage with an outputCol makes.

    Raises: LookupError where a stage cannot say what columns it makes; what the JVM raises.
    """
    made = {field["name"]: field["type"] for field in _fields_made(model, frame)}
    for stage in stages.flat(model):
        if type(stage).__name__ in _CLUSTERINGS:
            made[stage.getOrDefault("predictionCol")] = "integer"
    if "prediction" in made:
        return schemas.mlflow_type(made["prediction"])
    inner = getattr(model, "stages", None)
    last = inner[-1] if inner else model
    if last.hasParam("outputCol"):
        return schemas.mlflow_type(made.get(last.getOrDefault("outputCol"), "void"))
    return None


def _fields_made(model: Any, frame: Any) -> list[schemas.Field]:
    if frames.is_remote(frame):
        return frames.schema(model.transform(frame))  # The plan of it is analyzed, no more.
    schema = frame._jdf.schema()
    for stage in stages.flat(model):
        if not hasattr(stage, "_to_java"):
            raise LookupError(f"{type(stage).__name__} does not say what columns it makes")
        # The companion of a transformer that fit had no need to run has not been told its params yet.
        schema = stage._to_java().transformSchema(schema)
    return list(json.loads(schema.json())["fields"])


def _example(frame: Any, inputs: list[str]) -> dict[str, Any] | None:
    rows = frame.select([f"`{name}`" for name in inputs]).limit(_ROWS).collect()
    data = [[value.toArray().tolist() if hasattr(value, "toArray") else value for value in row] for row in rows]
    json.dumps(data)  # Dates and the like have no place in the package: no example then.
    return {"kind": "dataframe", "columns": inputs, "data": data}


# -- files ----------------------------------------------------------------------------------------------------------


def _save(model: Any, session: Any, path: Path) -> None:
    """Save `model` at the local `path`.

    With a local master Spark writes there directly. Elsewhere executors write, so it goes to the cluster's file system
    first (folder AUTOLOG_SPARK_TMPDIR there) and is copied from there by the driver.
    """
    from pyspark.ml import PipelineModel

    pipeline = model if isinstance(model, PipelineModel) else PipelineModel([model])
    if type(session).__module__.startswith("pyspark.sql.connect"):
        pipeline.write().overwrite().save(f"file://{path.absolute()}")
        if not path.exists():
            raise OSError("the Spark Connect server wrote it to a disk of its own, which cannot be read from here")
        return
    context = session.sparkContext
    tmpdir = os.environ.get("AUTOLOG_SPARK_TMPDIR") or ""
    if not tmpdir and context.master.startswith("local"):
        _write(pipeline, session, f"file://{path.absolute()}")
        return
    hadoop = context._jvm.org.apache.hadoop.fs
    remote = f"{(tmpdir or _TMPDIR).rstrip('/')}/{uuid.uuid4().hex}"
    place = hadoop.Path(remote)
    files = place.getFileSystem(context._jsc.hadoopConfiguration())
    try:
        _write(pipeline, session, files.makeQualified(place).toString())
        # Raw: without the checksum files that Hadoop's local file system adds.
        files.copyToLocalFile(False, place, hadoop.Path(f"file://{path.absolute()}"), True)
    finally:
        guard.attempt(files.delete, place, True)


def _write(pipeline: Any, session: Any, url: str) -> None:
    pipeline.write().session(session).overwrite().save(url)
