"""A module as it is now: its tensors are copied on the training thread, everything slow happens on the worker thread.

The files are those of ``mlflow.pytorch.save_model`` with ``serialization_format="pickle"``: ``data/model.pth`` as
``torch.save`` writes it with cloudpickle, and ``data/pickle_module_info.txt``, the module that loads it.
"""

from __future__ import annotations

import copy
import pickle
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolog import models
from autolog.models import ModelSnapshot

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_PICKLE_MODULE = "mlflow.pytorch.pickle_module"


class Torn(Exception):
    """Somebody trained the module while it was copied."""


def take(module: Module, signature: dict[str, str] | None) -> ModelSnapshot:
    """Copy `module` to the CPU. Tied tensors stay tied, gradients are not copied, no random state changes.

    A CUDA device is not waited for: copies are queued behind the step that is under way, into pinned memory.

    Raises: Torn, where tensors changed meanwhile; what the module's own ``__deepcopy__`` raises; TypeError for a
        module whose parameters are spread over several processes.
    """
    import torch

    tensors = list(_tensors(module))
    if any(type(tensor).__name__ in ("DTensor", "FlatParameter") for tensor in tensors):
        raise TypeError("its parameters are spread over several processes, which only all of them together can gather")
    before = [_version(tensor) for tensor in tensors]
    memo: dict[int, Any] = {}
    waits: list[Any] = []
    for tensor in tensors:
        if type(tensor) in (torch.Tensor, torch.nn.Parameter):
            memo[id(tensor)] = _copy(tensor)
    for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        waits.append(event)
    copied = copy.deepcopy(module, memo)
    if [_version(tensor) for tensor in tensors] != before:
        raise Torn("it was trained on meanwhile")
    found: set[str] = {"torch", "cloudpickle"}

    def write(path: Path) -> None:
        for event in waits:
            event.synchronize()
        if isinstance(copied, torch.jit.ScriptModule):
            torch.jit.save(copied, str(path))
            return
        torch.save(copied, path, pickle_module=_pickler())
        with zipfile.ZipFile(path) as archive:
            data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            found.update(models.pickled_modules(archive.read(data)))

    return ModelSnapshot(
        flavor="pytorch",
        flavor_config={"model_data": "data", "pytorch_version": str(torch.__version__), "code": None},
        files={"data/pickle_module_info.txt": _PICKLE_MODULE.encode(), "data/model.pth": write},
        loader_module="mlflow.pytorch",
        pyfunc_config={
            "data": "data",
            "pickle_module_name": _PICKLE_MODULE,
            "code": None,
            "model_config": {"device": None},
        },
        signature=signature,
        requirements=lambda: models.requirements_for(found),
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


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _copy(tensor: Tensor) -> Tensor:
    import torch

    values = tensor.detach()
    if values.is_cuda and values.layout == torch.strided:
        copied = torch.empty_like(values, device="cpu", pin_memory=True)
        copied.copy_(values, non_blocking=True)
    else:
        copied = values.to("cpu", copy=True)
    if type(tensor) is torch.nn.Parameter:
        return torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied.requires_grad_(tensor.requires_grad) if tensor.is_leaf else copied


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
