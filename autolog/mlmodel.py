"""An MLmodel folder from native bytes, with MLflow's own ``Model``: nothing is loaded, no process is started.

Written like ``mlflow.<flavor>.save_model`` of MLflow 3 writes it: ``MLmodel``, ``conda.yaml``, ``python_env.yaml``,
``requirements.txt`` beside the flavor's files.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import mlflow
import yaml
from mlflow import pyfunc
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.models.utils import _save_example
from mlflow.utils.environment import _mlflow_conda_env, _PythonEnv


def compose(folder: Path, package: Mapping[str, Any], *, model_id: str, run_id: str, artifact_path: str) -> None:
    """Complete `folder`, which holds a snapshot's files, to an MLflow model. May be repeated on the same folder.

    package: what :meth:`autolog.models.ModelSnapshot.write` returned.
    """
    model = Model(artifact_path=artifact_path, model_uuid=model_id, run_id=run_id, model_id=model_id)
    if package["signature"]:
        model.signature = ModelSignature.from_dict(package["signature"])
    if package["example"]:
        _save_example(model, _example(package["example"]), str(folder))
    if package["loader_module"]:
        pyfunc.add_to_model(
            model,
            loader_module=package["loader_module"],
            conda_env="conda.yaml",
            python_env="python_env.yaml",
            **package["pyfunc_config"],
        )
    model.add_flavor(package["flavor"], **package["flavor_config"])
    model.model_size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    requirements = [f"mlflow=={mlflow.__version__}", *package["requirements"]]
    (folder / "requirements.txt").write_text("\n".join(requirements))
    (folder / "conda.yaml").write_text(_conda(tuple(requirements)))
    _PythonEnv(
        python=package["python"],
        build_dependencies=list(_build_dependencies()),
        dependencies=["-r requirements.txt"],
    ).to_yaml(str(folder / "python_env.yaml"))
    model.save(str(folder / "MLmodel"))


@lru_cache(maxsize=64)
def _conda(requirements: tuple[str, ...]) -> str:
    """Return ``conda.yaml``, which is the same for all checkpoints of a training."""
    conda = _mlflow_conda_env(additional_pip_deps=list(requirements), install_mlflow=False)
    return str(yaml.safe_dump(conda, default_flow_style=False))


@cache
def _build_dependencies() -> tuple[str, ...]:
    return tuple(_PythonEnv.get_current_build_dependencies())


def _example(stored: Mapping[str, Any]) -> Any:
    if stored["kind"] == "dataframe":
        import pandas as pd

        return pd.DataFrame(stored["data"], columns=stored["columns"])
    import numpy as np

    return np.asarray(stored["data"], dtype=stored["dtype"])


def discard(folder: Path) -> None:
    """Delete the local files of a model that the store has."""
    shutil.rmtree(folder, ignore_errors=True)
