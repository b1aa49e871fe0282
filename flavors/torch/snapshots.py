"""A module as it is now: its tensors are copied on the training thread, everything slow happens on the worker thread.

The files are those of ``mlflow.pytorch.save_model`` with ``serialization_format="pickle"``: ``data/model.pth`` as
``torch.save`` writes it with cloudpickle, and ``data/pickle_module_info.txt``, the module that loads it. Beside them
is what a training needs to go on (:mod:`flavors.torch.state`).
"""

from __future__ import annotations

import pickle
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolog import models
from autolog.models import Content, ModelSnapshot
from flavors.torch import copies, export
from flavors.torch.copies import Shadow
from flavors.torch.state import TRAINING_STATE, TrainingState

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_PICKLE_MODULE = "mlflow.pytorch.pickle_module"


class Torn(Exception):
    """Somebody trained the module while it was copied."""


class Spread(Exception):
    """No process has the whole module, and to gather it all of them would have to take part."""


class Untraceable(Exception):
    """A parameter that is not trained was written to in a way that leaves no trace."""


def take(
    module: Module,
    signature: dict[str, str] | None,
    shadow: Shadow | None = None,
    state: TrainingState | None = None,
    export_as: str | None = None,
) -> ModelSnapshot:
    """Copy `module` into `shadow`. Tied tensors stay tied, gradients are not copied, no random state changes.

    A CUDA device is not waited for: copies are queued behind the step that is under way, into pinned memory. The
    shadow is in use until the snapshot is written.

    state: what else is to be saved, whose tensors are copied, too; it is written as it is then.
    export_as: a name for the model, for all of its snapshots that are to be exported (:mod:`flavors.torch.export`).

    Raises: Torn, where tensors changed meanwhile; Spread, for a module that is sharded; what the module's own methods
        of copying raise.
    """
    import torch

    shadow = shadow or Shadow()
    tensors = list(_tensors(module))
    _refuse_spread(module, tensors)
    before = [_version(tensor) for tensor in tensors]
    plain = [tensor for tensor in tensors if type(tensor) in (torch.Tensor, torch.nn.Parameter)]
    # An evaluation may end, and a checkpoint be due, in the user's inference mode: what is made there is no parameter.
    with torch.inference_mode(False):
        shadow.begin([*plain, *(state.tensors() if state is not None else ())])
        memo: dict[int, Any] = {id(tensor): shadow.copy(tensor) for tensor in plain}
        if state is not None:
            state.copy(shadow)
        shadow.finish()
        copied = copies.module(module, memo)
    if [_version(tensor) for tensor in tensors] != before:
        raise Torn("it was trained on meanwhile")
    found: set[str] = {"torch", "cloudpickle"}

    def write(path: Path) -> None:
        if not shadow.verify():
            raise Untraceable("a parameter that is not trained was changed through its .data; the next has it right")
        if isinstance(copied, torch.jit.ScriptModule):
            torch.jit.save(copied, str(path))
            return
        torch.save(copied, path, pickle_module=_pickler())
        with zipfile.ZipFile(path) as archive:
            data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            found.update(models.pickled_modules(archive.read(data)))

    files: dict[str, Content] = {"data/pickle_module_info.txt": _PICKLE_MODULE.encode(), "data/model.pth": write}
    if state is not None:
        files[TRAINING_STATE] = state.write
    if export_as is not None:
        files[export.REQUEST] = export.request(export_as)
    return ModelSnapshot(
        flavor="pytorch",
        flavor_config={"model_data": "data", "pytorch_version": str(torch.__version__), "code": None},
        files=files,
        loader_module="mlflow.pytorch",
        pyfunc_config={
            "data": "data",
            "pickle_module_name": _PICKLE_MODULE,
            "code": None,
            "model_config": {"device": None},
        },
        signature=signature,
        requirements=lambda: models.requirements_for(found),
        finish="torch" if export_as is not None else None,
    )


def _tensors(module: Module) -> Iterator[Tensor]:
    """Yield every parameter, buffer and tensor attribute in `module`, each once."""
    import torch

    seen: set[int] = set()
    for layer in module.modules():
        if isinstance(layer, torch.jit.ScriptModule):
            continue
        # Tensors that were computed and kept as attributes cannot be copied by copy.deepcopy.
        for held in (*layer._parameters.values(), *layer._buffers.values(), *vars(layer).values()):
            if isinstance(held, torch.Tensor) and id(held) not in seen:
                seen.add(id(held))
                yield held


def _refuse_spread(module: Module, tensors: list[Tensor]) -> None:
    # FSDP's parameters look like ordinary ones where it is asked for use_orig_params, so its wrappers tell.
    kinds = {one.__name__ for layer in module.modules() for one in type(layer).__mro__}
    kinds |= {type(tensor).__name__ for tensor in tensors}
    if kinds & {"FullyShardedDataParallel", "FSDPModule", "DTensor", "FlatParameter"}:
        raise Spread("its parameters are spread over several processes, which only all of them together can gather")


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _pickler() -> Any:
    """Return what ``mlflow.pytorch.pickle_module`` consists of, without importing mlflow."""
    import cloudpickle

    made = types.ModuleType("cloudpickle_for_torch")
    vars(made).update(
        Pickler=cloudpickle.Pickler,
        Unpickler=pickle.Unpickler,
        dump=cloudpickle.dump,
        dumps=cloudpickle.dumps,
        load=cloudpickle.load,
        loads=cloudpickle.loads,
    )
    return made
