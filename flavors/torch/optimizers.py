"""Which optimizers there are, whose parameters they train, and which training they belong to.

Optimizers are known by identity and weakly: nothing is put on them, and nothing keeps them alive.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from types import GeneratorType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from flavors.torch.gradients import Sampler
    from flavors.torch.series import Series
    from flavors.torch.training import Root, Training

_serial = itertools.count(1)


class Origin(NamedTuple):
    """The checkpoint that an optimizer goes on from: steps made, epochs complete, and what to tag the run with."""

    steps: int
    epochs: int
    tags: Mapping[str, str]


class Entry:
    """One optimizer.

    serial: counts optimizers in the order in which they were made.
    module: the module whose ``parameters()`` it was given, where that is known and alive.
    steps: how many updates it has made in its training.
    """

    __slots__ = (
        "_steps",
        "apart",
        "kept",
        "learning_rates",
        "module",
        "name",
        "number",
        "optimizer",
        "origin",
        "probe",
        "refused",
        "root",
        "sampler",
        "serial",
        "series",
        "thread",
        "training",
    )

    def __init__(self, optimizer: Optimizer, module: Module | None, died: Callable[[Entry], None]) -> None:
        self.serial = next(_serial)
        self.number = id(optimizer)
        self.thread = threading.get_ident()
        self.module = weakref.ref(module) if module is not None else None
        self.training: Training | None = None
        self._steps = 0
        self.refused = False
        self.name = ""
        #: Metric name of each parameter group's learning rate.
        self.learning_rates: list[str] = []
        #: The whole model that it trains a part of.
        self.root: Root | None = None
        #: (values, step, time) of its last update, where that is not the last of :attr:`series`.
        self.apart: tuple[dict[str, Any], int, int] | None = None
        #: What its updates are recorded in while each has the same metrics, all of them numbers.
        self.series: Series | None = None
        self.sampler: Sampler | None = None
        #: A parameter that gets gradients: None again once they are reset.
        self.probe: Any = None
        #: (class name, state, parameter groups) of the optimizer, which is dead when the last checkpoint is taken.
        self.kept: tuple[str, Any, list[dict[str, Any]]] | None = None
        self.origin: Origin | None = None
        self.optimizer = weakref.ref(optimizer, lambda _: died(self))

    @property
    def steps(self) -> int:
        """How many updates it has made in its training."""
        series = self.series
        return self._steps if series is None or series.site is None else series.next

    @steps.setter
    def steps(self, made: int) -> None:
        self._steps = made

    @property
    def last(self) -> tuple[dict[str, Any], int, int] | None:
        """(values, step, time) of its last update."""
        if self.apart is not None or self.series is None:
            return self.apart
        return self.series.last

    def keep(self, optimizer: Optimizer) -> None:
        """Hold the optimizer's state, but not the optimizer; again whenever it has got another one."""
        # What a class of its own makes of its state may need other processes, or be of no use as it is.
        own = type(optimizer).state_dict.__module__.partition(".")[0] != "torch"
        known = not own and type(optimizer).__name__ != "ZeroRedundancyOptimizer"
        self.kept = (type(optimizer).__name__, optimizer.state, optimizer.param_groups) if known else None

    def parameters(self) -> list[Any]:
        """Return the tensors that it trains."""
        optimizer = self.optimizer()
        if optimizer is None:
            return []
        return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class Registry:
    """All optimizers of this process that are alive."""

    def __init__(self, died: Callable[[Entry], None]) -> None:
        self._entries: dict[int, Entry] = {}
        self._died = died

    def get(self, optimizer: Optimizer) -> Entry | None:
        """Return what is known of `optimizer`."""
        entry = self._entries.get(id(optimizer))
        return entry if entry is not None and entry.optimizer() is optimizer else None

    def add(self, optimizer: Optimizer, module: Module | None = None) -> Entry:
        """Note that `optimizer` exists; module: the owner of its parameters."""
        number = id(optimizer)

        def died(entry: Entry) -> None:
            if entry.series is not None:
                entry.series.number = 0
            # A new optimizer may have got the identity of the dead one before this is called.
            if self._entries.get(number) is entry:
                del self._entries[number]
            self._died(entry)

        entry = self._entries[number] = Entry(optimizer, module, died)
        return entry

    def waiting(self, thread: int) -> list[Entry]:
        """Return the living optimizers made in `thread` that have not stepped yet, oldest first."""
        found = [e for e in list(self._entries.values()) if e.thread == thread and e.training is None and not e.refused]
        return [entry for entry in found if entry.optimizer() is not None]

    def unused(self) -> bool:
        """Return whether there are such optimizers in this thread, none of whose parameters has a gradient.

        What was differentiated is in no step of theirs then: the gradients were reset, as for a second attempt.
        """
        waiting = self.waiting(threading.get_ident())
        return bool(waiting) and all(p.grad is None for entry in waiting for p in entry.parameters())


def owner(params: Any) -> Module | None:
    """Return the module whose ``parameters()`` or ``named_parameters()`` `params` is, not yet begun; else None.

    params: what the user gives to an optimizer; for a list of groups, all of them must be of one module.
    """
    import torch

    if isinstance(params, GeneratorType):
        frame = params.gi_frame
        if frame is None or frame.f_code.co_name not in ("parameters", "named_parameters", "_named_members"):
            return None
        found = frame.f_locals.get("self")
        return found if isinstance(found, torch.nn.Module) else None
    if isinstance(params, list | tuple) and params and all(isinstance(group, Mapping) for group in params):
        owners = {id(found): found for found in (owner(group.get("params")) for group in params)}
        return next(iter(owners.values())) if len(owners) == 1 else None
    return None
