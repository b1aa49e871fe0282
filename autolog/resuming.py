"""Going on from a checkpoint: find it in the tracking store, fetch it, and have its flavor restore the user's objects.

Unlike everything else here this is a call of the user's own, in the training process, that waits: so it may import
mlflow and talk to the store.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolog import beside, guard, registry, runtime
from autolog.checkpoints import RESUMABLE

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from autolog.flavor import Flavor

#: Seconds to wait until what earlier trainings on this machine left is in the store.
_DELIVERY = 60.0


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a training goes on.

    step: number of the next step, which is how many were made; steps count from 0.
    epoch: number of the next epoch, which is how many were complete.
    run_id, model_id: the run and the LoggedModel that were restored.
    """

    step: int
    epoch: int
    run_id: str
    model_id: str


def resume(
    model: Any,
    optimizer: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    generator: Any = None,
    run_id: str | None = None,
    model_id: str | None = None,
    required: bool = True,
) -> Resumed | None:
    """Restore a checkpoint, so that the training goes on as if it had never stopped.

    Sets the weights of `model` and the states of `optimizer`, `scheduler` and `scaler` (each one object or a list), and
    of the global random generators of Python, numpy, torch and CUDA. What is trained from here on is recorded in a new
    run whose steps go on from the checkpoint's and whose tags ``autolog.resumed_from.run_id``, ``.model_id`` and
    ``.step`` name it: the old run's points after the checkpoint stay what they are. To go on in the old run, open it
    yourself with ``mlflow.start_run(run_id)`` around the training.

    A checkpoint of an epoch's end goes on bit for bit with ``for epoch in range(resumed.epoch, epochs)``; one taken
    inside an epoch does so where batches are drawn by generators and not by a pass over a loader.

    generator: random generators of your own, one or a list, such as the one given to a ``DataLoader``: torch's, numpy's
        or ``random.Random``. Each gets the state saved under its variable's name, or the only one that is left.
    run_id: the run whose last checkpoint is wanted; "latest" or None is the newest checkpoint of a model of this class
        in the current experiment.
    model_id: the checkpoint wanted, such as "m-...".
    required: whether it is an error that there is none; else None is returned and nothing is changed.

    Raises:
        LookupError: there is no checkpoint that holds the states asked for.
        TypeError: no flavor can restore a model of this kind.
        ValueError: run_id and model_id are both given, or a state does not fit the object.
        mlflow.MlflowException: the store cannot be reached or refuses.
    """
    if run_id is not None and model_id is not None:
        raise ValueError("give run_id or model_id, not both")
    import tempfile  # With subprocess and sqlite3 below: not before somebody resumes.

    flavor = _flavor(model)
    wanted = {
        name
        for name, one in (
            ("optimizer", optimizer),
            ("scheduler", scheduler),
            ("scaler", scaler),
            ("generator", generator),
        )
        if one is not None
    }
    with beside.own_calls():
        _deliver()
        client, uri = _client()
        found = _find(client, flavor.model_class(model), wanted, run_id, model_id)
        if found is None:
            if required:
                what = model_id or (run_id if run_id not in (None, "latest") else "the current experiment")
                states = ", ".join(sorted(wanted)) or "its weights"
                raise LookupError(f"no checkpoint of a {flavor.model_class(model)} with {states} in {what}")
            return None
        with tempfile.TemporaryDirectory(prefix="autolog-resume-") as folder:
            import mlflow

            mlflow.artifacts.download_artifacts(f"models:/{found.model_id}", dst_path=folder, tracking_uri=uri)
            source = str(found.source_run_id)
            tags = {"run_id": source, "model_id": found.model_id}
            step, epoch = flavor.resume(
                Path(folder),
                model,
                _several(optimizer),
                _several(scheduler),
                scaler,
                _several(generator),
                {f"autolog.resumed_from.{name}": value for name, value in tags.items()},
            )
    return Resumed(step, epoch, source, found.model_id)


def _several(given: Any) -> list[Any]:
    if given is None:
        return []
    return list(given) if isinstance(given, Sequence) else [given]


def _flavor(model: Any) -> Flavor:
    for name in registry.entry_points():
        if name in sys.modules:
            flavor = registry.load_flavor(name)
            if flavor.model_class(model):
                return flavor
    raise TypeError(f"a {type(model).__qualname__} cannot be resumed; models of PyTorch can")


def _deliver() -> None:
    """Have everything of this process, and of those that died here, in the store, as far as that is possible now."""
    import subprocess

    from autolog.spool import Lease, spools

    if runtime.writer is not None:
        runtime.writer.flush(_DELIVERY)
    dead = [folder for folder in spools() if Lease.is_free(folder / "owner.lock")]
    if not dead:
        return
    # Not here: delivery changes the working folder.
    path = [entry for entry in sys.path if entry]
    code = f"import sys; sys.path[:] = {path!r}; from autolog.sender import sync; sync()"
    guard.attempt(
        subprocess.run, [sys.executable, "-I", "-c", code], stdin=subprocess.DEVNULL, check=False, timeout=_DELIVERY
    )
    # The sender of a dead training may be at it still.
    deadline = time.monotonic() + _DELIVERY
    while any(folder.is_dir() and not Lease.is_free(folder / "sender.lock") for folder in dead):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _client() -> tuple[MlflowClient, str]:
    from mlflow import MlflowClient

    from autolog.uris import absolute_uri, working_folder

    uri = absolute_uri(runtime.config.tracking_uri or beside.tracking_uri(), working_folder())
    return MlflowClient(tracking_uri=uri), uri


def _find(client: MlflowClient, model_class: str, wanted: set[str], run_id: str | None, model_id: str | None) -> Any:
    """Return the LoggedModel to go on from, None where there is none."""
    if model_id is not None:
        found = client.get_logged_model(model_id)
        return found if wanted <= _parts(found) else None
    if run_id not in (None, "latest"):
        run = client.get_run(run_id)
        models = _models(client, str(run.info.experiment_id), model_class, wanted)
        models = [model for model in models if model.source_run_id == run_id]
    else:
        experiment = _experiment(client)
        models = _models(client, experiment, model_class, wanted) if experiment else []
        # The newest run's, and of these the one that got farthest: the best so far may have been saved later than it.
        newest = max(models, key=lambda model: model.creation_timestamp, default=None)
        models = [model for model in models if newest is not None and model.source_run_id == newest.source_run_id]
    return max(models, key=lambda model: (_steps(model), model.creation_timestamp), default=None)


def _models(client: MlflowClient, experiment: str, model_class: str, wanted: set[str]) -> list[Any]:
    found: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_logged_models(
            [experiment],
            filter_string=f"tags.`autolog.model_class` = '{model_class}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
            page_token=token,
        )
        found += [
            model
            for model in page
            if RESUMABLE in model.tags and wanted <= _parts(model) and str(model.status).endswith("READY")
        ]
        token = page.token
        if not token:
            return found


def _experiment(client: MlflowClient) -> str | None:
    name = runtime.config.experiment
    number = None if name else beside.experiment_id()
    if number:
        return str(number)
    found = client.get_experiment_by_name(name or "Default")
    return str(found.experiment_id) if found is not None else None


def _parts(model: Any) -> set[str]:
    return {part for part in model.tags.get(RESUMABLE, "").split(",") if part}


def _steps(model: Any) -> int:
    return int(model.tags.get("autolog.steps", -1))


__all__ = ["Resumed", "resume"]
