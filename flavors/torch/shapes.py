"""The model's signature, and the precision that it computes in, from one training forward.

``Module.__call__`` is replaced for that one iteration. A forward hook on the user's module would be found in what the
user saves or copies in between, and a global forward hook disables torch's fast path and recompiles compiled modules.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autolog import guard, signature
from autolog.signature import Schema

if TYPE_CHECKING:
    from torch.nn import Module

#: Gets the signature, None where it cannot be told, and the dtype that autocast computes in, None where it is off.
Found = Callable[[dict[str, str] | None, str | None], None]

_armed: dict[int, tuple[Any, Found]] = {}
_lock = threading.Lock()
_replaced: list[tuple[Any, Any]] = []

#: Tensor types that MLflow's tensor schemas know, as numpy does.
_TYPES = {
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
    "complex64",
    "complex128",
}


def arm(module: Module, found: Found) -> None:
    """Call `found` with what the next training forward of `module` shows."""
    import torch

    compiled = type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
    if compiled or isinstance(module, torch.jit.ScriptModule) or compiles():
        return
    with _lock:
        _armed[id(module)] = (module, found)
        if not _replaced:
            _replace()


def disarm(module: Module) -> None:
    """Take :func:`arm` back."""
    with _lock:
        _armed.pop(id(module), None)
        if not _armed and _replaced:
            original, ours = _replaced.pop()
            import torch

            if vars(torch.nn.Module).get("__call__") is ours:
                torch.nn.Module.__call__ = original  # type: ignore[method-assign]


def compiles() -> bool:
    """Return whether torch.compile has compiled anything here: its guards may look at what would be replaced."""
    utils = sys.modules.get("torch._dynamo.utils")
    return bool(utils is not None and utils.counters.get("frames"))


def _replace() -> None:
    import torch

    original = vars(torch.nn.Module)["__call__"]
    compiling = torch.compiler.is_compiling

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        if id(self) in _armed and not compiling() and self.training and torch.is_grad_enabled():
            guard.run("infer the model's signature", _see, self, args, kwargs, output)
        return output

    _replaced.append((original, __call__))
    torch.nn.Module.__call__ = __call__  # type: ignore[method-assign]


def _see(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
    armed = _armed.get(id(module))
    if armed is None or armed[0] is not module:
        return
    disarm(module)
    made = guard.run("infer the model's signature", lambda: _signature(module, args, kwargs, output))
    armed[1](made, _autocast(module))


def _signature(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> dict[str, str] | None:
    return signature.signature(inputs(module, args, kwargs), outputs(output))


def _autocast(module: Any) -> str | None:
    import torch

    kind = next((parameter.device.type for parameter in module.parameters()), None)
    if kind is None or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")


def inputs(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Schema | None:
    """Return the schema of a forward's inputs: unnamed for one tensor, by parameter name for several."""
    if len(args) == 1 and not kwargs:
        return _tensor(args[0])
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    specs = [_tensor(value, name) for name, value in bound.items() if value is not None]
    return None if not all(specs) else [spec for one in specs if one for spec in one]


def outputs(output: Any) -> Schema | None:
    """Return the schema of a forward's output: a tensor, or a mapping of tensors."""
    if isinstance(output, Mapping):
        specs = [_tensor(value, str(name)) for name, value in output.items()]
        return None if not all(specs) else [spec for one in specs if one for spec in one]
    return _tensor(output)


def _tensor(value: Any, name: str | None = None) -> Schema | None:
    import torch

    if not isinstance(value, torch.Tensor) or str(value.dtype).removeprefix("torch.") not in _TYPES or not value.dim():
        return None
    return signature.tensor(value.dtype, value.shape, name)


def disarm_all() -> None:
    """Stop looking."""
    for module, _ in list(_armed.values()):
        disarm(module)
