"""Copies that the training thread makes: tensors into host memory that is used again, modules without their tensors.

A copy into fresh memory takes three times as long as one into memory that has been written before, since the operating
system has to provide each page. Large pages are no way out: a virtual machine may have given free ones back to its
host, and then waits five times as long for them. And ``copy.deepcopy`` of a module takes 40 us for each layer; most of
what it looks at is empty or cannot change.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flavors.torch.models import unwrap

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


class Shadow:
    """Host memory of one snapshot: pinned for what is on a CUDA device, whose copies nobody waits for here.

    Between :meth:`begin` and :meth:`finish` tensors are asked for with :meth:`copy`; the copying itself is one call at
    the end. What is copied stays as it is until the next :meth:`begin`.
    """

    def __init__(self) -> None:
        self._slots: list[_Slot] = []
        self._used = 0
        self._pairs: dict[bool, tuple[list[Tensor], list[Tensor]]] = {}
        self._storages: dict[int, Any] = {}
        self._whole: set[int] = set()
        #: CUDA events after which the copies are complete.
        self.events: list[Any] = []
        #: (parameter, copy) of what was not copied again, as nothing seems to have written to it.
        self.trusted: list[tuple[Tensor, Tensor]] = []
        #: Bytes that the snapshot takes.
        self.size = 0

    def begin(self, tensors: Iterable[Tensor]) -> None:
        """Forget the last snapshot; `tensors` are all that will be asked for, by which shared memory is known."""
        self._used = 0
        self._pairs = {}
        self._storages = {}
        self.events = []
        self.trusted = []
        self.size = 0
        users: dict[int, list[int]] = {}
        for tensor in tensors:
            if _has_storage(tensor):
                held = users.setdefault(tensor.untyped_storage()._cdata, [tensor.untyped_storage().nbytes(), 0, 0])
                held[1] += tensor.nbytes
                held[2] += 1
        # Views of one storage stay views of one; but not of a storage of which most is something else.
        self._whole = {key for key, (size, used, count) in users.items() if count > 1 and used * 2 >= size}

    def copy(self, tensor: Tensor) -> Tensor:
        """Return a tensor like `tensor`, on the host, that has its values after :meth:`finish`.

        Raises: what torch raises for a tensor that has no values (meta) or cannot be copied.
        """
        import torch

        values = tensor.detach()
        if not _has_storage(values):
            made = values.to("cpu", copy=True)
            self.size += made.nbytes if made.layout == torch.strided else 0
        elif values.untyped_storage()._cdata in self._whole:
            held = self._storages.get(values.untyped_storage()._cdata)
            if held is None:
                everything = torch.empty(0, dtype=torch.uint8, device=values.device).set_(values.untyped_storage())
                held = self._storages[values.untyped_storage()._cdata] = self._into(everything, None)
            made = torch.empty(0, dtype=values.dtype, device="cpu").set_(
                held.untyped_storage(), values.storage_offset(), values.size(), values.stride()
            )
        else:
            made = self._into(values, tensor if type(tensor) is torch.nn.Parameter else None)
        if type(tensor) is torch.nn.Parameter:
            return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
        return made.requires_grad_() if tensor.requires_grad and tensor.is_leaf else made

    def _into(self, values: Tensor, parameter: Tensor | None) -> Tensor:
        import torch

        if self._used == len(self._slots):
            self._slots.append(_Slot())
        slot = self._slots[self._used]
        self._used += 1
        self.size += values.nbytes
        kind = (values.dtype, values.shape, values.stride(), values.is_cuda)
        if slot.kind != kind:
            slot.kind = kind
            slot.seen = None
            slot.buffer = torch.empty_like(values, device="cpu", pin_memory=values.is_cuda)
        assert slot.buffer is not None
        if parameter is not None and values.is_cpu and not parameter.requires_grad:
            if slot.unchanged(parameter):
                self.trusted.append((parameter, slot.buffer))
                return slot.buffer
        else:
            slot.seen = None
        to, of = self._pairs.setdefault(values.is_cuda, ([], []))
        to.append(slot.buffer)
        of.append(values)
        return slot.buffer

    def finish(self) -> None:
        """Copy all that was asked for. A CUDA device is not waited for: its copies are queued behind the step."""
        import torch

        with torch.no_grad():
            for on_cuda, (to, of) in self._pairs.items():
                torch._foreach_copy_(to, of, non_blocking=on_cuda)
        for device in {values.device for values in self._pairs.get(True, ([], []))[1]}:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self.events.append(event)
        self._pairs = {}

    def verify(self) -> bool:
        """Wait for the copies and return whether what was not copied again is still what it was; off the training
        thread.

        ``parameter.data`` can be written to with no trace (moving averages often are). What is caught at that is
        copied each time from then on.
        """
        import torch

        for event in self.events:
            event.synchronize()
        wrong = {id(copied) for parameter, copied in self.trusted if not torch.equal(parameter, copied)}
        for slot in self._slots:
            if id(slot.buffer) in wrong:
                slot.distrust()
        self.trusted = []
        return not wrong


class _Slot:
    """One buffer, and the frozen parameter that it holds a copy of."""

    __slots__ = ("buffer", "confirmed", "kind", "never", "seen")

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self.kind: Any = None
        #: (weak reference to the parameter, its memory, its version) at the last copy.
        self.seen: tuple[Any, int, int] | None = None
        self.confirmed = False
        self.never = False

    def unchanged(self, parameter: Tensor) -> bool:
        """Return whether the copy of a frozen parameter is good. The second time its values are compared."""
        import torch

        if self.never or parameter.is_inference():
            return False
        at = (parameter.data_ptr(), parameter._version)
        seen = self.seen
        if seen is None or seen[0]() is not parameter or seen[1:] != at:
            self.seen = (weakref.ref(parameter), *at)
            self.confirmed = False
            return False
        if not self.confirmed:
            assert self.buffer is not None
            if not torch.equal(parameter, self.buffer):
                self.distrust()
                return False
            self.confirmed = True
        return True

    def distrust(self) -> None:
        """Copy each time from now on."""
        self.never = True


def _has_storage(tensor: Tensor) -> bool:
    import torch

    return tensor.layout == torch.strided and (tensor.is_cpu or tensor.is_cuda) and not tensor.is_quantized


# -- modules --------------------------------------------------------------------------------------------------------

#: Types whose values ``copy.deepcopy`` returns as they are.
_ATOMS: set[type] = {
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    type(Ellipsis),
    range,
    property,
    weakref.ref,
}


def module(original: Module, memo: dict[int, Any]) -> Any:
    """Return what ``copy.deepcopy(original, memo)`` returns, with wrapped and compiled modules inside unwrapped.

    memo: id of an object -> its copy, filled in for the tensors; as that of ``copy.deepcopy``.

    Raises: what the module's own methods of copying raise.
    """
    import torch

    return _module(original, memo, _ATOMS | {torch.dtype, torch.device, torch.Size, torch.layout}, torch.nn.Module)


def _module(original: Any, memo: dict[int, Any], atoms: set[type], base: type) -> Any:
    made = memo.get(id(original))
    if made is not None:
        return made
    inner = unwrap(original, base)
    if inner is not original:
        made = memo[id(original)] = _module(inner, memo, atoms, base)
        return made
    cls: Any = type(original)
    if not _is_plain(cls, base):
        return copy.deepcopy(original, memo)
    made = memo[id(original)] = cls.__new__(cls)
    state = made.__dict__
    for name, value in original.__dict__.items():
        kind = type(value)
        if kind in atoms:
            state[name] = value
        elif name == "_compiled_call_impl":
            continue  # As torch.nn.Module.__getstate__ has it.
        elif kind is dict or kind is OrderedDict:
            copied = memo[id(value)] = kind()
            for key, held in value.items():
                copied[key] = _value(held, memo, atoms, base)
            state[name] = copied
        elif kind is set and not value:
            state[name] = set()
        else:
            state[name] = _value(value, memo, atoms, base)
    return made


def _value(value: Any, memo: dict[int, Any], atoms: set[type], base: type) -> Any:
    kind = type(value)
    if kind in atoms:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    return _module(value, memo, atoms, base) if issubclass(kind, base) else copy.deepcopy(value, memo)


@functools.cache
def _is_plain(cls: Any, base: Any) -> bool:
    """Return whether instances are copied by copying their ``__dict__``: nothing of the class's own says otherwise."""
    return (
        not hasattr(cls, "__deepcopy__")
        and cls not in copyreg.dispatch_table
        and cls.__new__ is object.__new__
        and not hasattr(cls, "__getnewargs__")
        and not hasattr(cls, "__getnewargs_ex__")
        and cls.__reduce_ex__ is object.__reduce_ex__
        and cls.__reduce__ is object.__reduce__
        and getattr(cls, "__getstate__", None)
        in (getattr(base, "__getstate__", None), getattr(object, "__getstate__", None))
        # torch's own only fill in what old pickles lack.
        and str(getattr(cls.__setstate__, "__module__", "")).startswith("torch.")
        and not any("__slots__" in vars(one) for one in cls.__mro__[:-1])
    )


__all__ = ["Shadow", "module"]
