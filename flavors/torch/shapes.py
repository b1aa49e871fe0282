"""The model's signature, and the precision that it computes in, from one training forward.

``Module.__call__`` is replaced for that one iteration. A forward hook on the user's module would be found in what the
user saves or copies in between, and a global forward hook disables torch's fast path and recompiles compiled modules.
Where torch.compile is in use, guards may look at ``Module.__call__``. Then the model's class gets a ``__call__`` of its
own instead, and of a compiled module what stands in front of its code is replaced: ``OptimizedModule.__call__``, or
after ``model.compile()`` its own ``_compiled_call_impl``, which torch itself leaves out of copies and pickles.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autolog import guard, signature
from autolog.signature import Schema
from flavors.torch.models import unwrap

if TYPE_CHECKING:
    from torch.nn import Module

#: Gets the signature, None where it cannot be told, and the dtype that autocast computes in, None where it is off.
Found = Callable[[dict[str, str] | None, str | None], None]

#: (owner, attribute) of a callable: a class and ``__call__``, or a module and ``_compiled_call_impl``.
_Place = tuple[Any, str]

_armed: dict[int, tuple[Any, Found, list[_Place]]] = {}
_lock = threading.Lock()
#: What is in those that are replaced, by the id of their owner: (what was there, None where inherited; what is now).
_replaced: dict[int, tuple[Any, Any]] = {}

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

    if isinstance(module, torch.jit.ScriptModule):
        return
    disarm(module)  # It may have been compiled since: then other places are looked at than before.
    with _lock:
        places = _places(module)
        _armed[id(module)] = (module, found, places)
        for owner, name in places:
            if id(owner) not in _replaced:
                _replace(owner, name)


def disarm(module: Module) -> None:
    """Take :func:`arm` back."""
    with _lock:
        armed = _armed.pop(id(module), None)
        needed = {id(owner) for _, _, places in _armed.values() for owner, _ in places}
        for owner, name in armed[2] if armed is not None else ():
            if id(owner) not in needed:
                _restore(owner, name)


def compiles() -> bool:
    """Return whether torch.compile has compiled anything here: its guards may look at what would be replaced."""
    utils = sys.modules.get("torch._dynamo.utils")
    return bool(utils is not None and utils.counters.get("frames"))


def _places(module: Module) -> list[_Place]:
    import torch

    if getattr(module, "_compiled_call_impl", None) is not None:
        return [(module, "_compiled_call_impl")]
    if not compiles():
        return [(torch.nn.Module, "__call__")]
    from torch._dynamo.eval_frame import OptimizedModule

    return [(OptimizedModule, "__call__"), (type(module), "__call__")]


def _replace(owner: Any, name: str) -> None:
    import torch

    known = vars(owner).get(name)
    original = known or getattr(owner, name)
    compiling = torch.compiler.is_compiling
    # What a module holds itself is called without the module.
    of_module = not isinstance(owner, type)
    compiled = not of_module and owner.__name__ == "OptimizedModule"

    def call(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        called = owner if of_module else args[0]
        # Every layer comes by here, as long as the model has not.
        if not compiling() and (compiled or id(called) in _armed):
            given = args if of_module else args[1:]
            guard.run("infer the model's signature", _see, called, given, kwargs, output)
        return output

    _replaced[id(owner)] = (known, call)
    setattr(owner, name, call)


def _restore(owner: Any, name: str) -> None:
    known, ours = _replaced.pop(id(owner))
    if vars(owner).get(name) is not ours:
        return
    if known is None:
        delattr(owner, name)
    else:
        setattr(owner, name, known)


def _see(called: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
    import torch

    module = unwrap(called, torch.nn.Module)
    armed = _armed.get(id(module))
    if armed is None or armed[0] is not module or not (module.training and torch.is_grad_enabled()):
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
    for module, _, _ in list(_armed.values()):
        disarm(module)
