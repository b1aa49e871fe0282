"""The models that one training trains, and the memory that their snapshots are copied into."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from autolog.checkpoints import Shelf
from autolog.models import ModelSnapshot
from flavors.torch.copies import Shadow
from flavors.torch.state import TrainingState
from flavors.torch.values import Row

if TYPE_CHECKING:
    from torch.nn import Module

#: Bytes of snapshots that may wait to be written; one may always, whatever its size.
WAITING = 64 * 2**20
#: Snapshots that may wait, of whatever size.
_QUEUE = 16
#: How many times longer than the last one took to write nothing more is written only because it is the best so far.
_PAUSE = 9.0

#: See :meth:`Root.weights`.
Weights = tuple[float, ...]
#: How many parameters of a model that looks at.
_SAMPLED = 32


class Root:
    """A whole model of the training. Held strongly, and only until the run ends."""

    __slots__ = ("failed", "module", "name", "pool", "replaced", "shelf", "signature")

    def __init__(self, name: str, module: Module, shelf: Shelf) -> None:
        self.name = name
        self.module: Module | None = module
        self.signature: dict[str, str] | None = None
        #: Only the worker thread looks at it.
        self.shelf = shelf
        self.pool = Pool()
        #: It cannot be copied; said once.
        self.failed = False
        #: Whether it has got other weights than its last updates gave it; None where it never has.
        self.replaced: Replaced | None = None

    def weights(self) -> Weights | None:
        """Return a sample of the trained weights that is another after any update; None for what is on a device."""
        import torch

        if self.module is None:
            return None
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad and parameter.numel()]
        # What is sharded would have to be asked of other processes.
        if not trained or not all(type(each) is torch.nn.Parameter and each.is_cpu for each in trained):
            return None
        sample = trained[:: -(-len(trained) // _SAMPLED)]
        return tuple(parameter[(end,) * parameter.dim()].item() for parameter in sample for end in (0, -1))


class Replaced(NamedTuple):
    """Other weights that a model has got: after how many updates and when, and what evaluations show of them."""

    steps: int
    since: int
    shown: list[Row]


class Pool:
    """The memory that the snapshots of one model are copied into."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Shadow] = []
        self._size = 0
        #: Snapshots that are open or wait to be written.
        self._busy = 0
        self._closed = False
        self._began = self._ended = 0.0

    def get(self, *, force: bool = False) -> Shadow | None:
        """Return memory for one more snapshot, None while too many wait."""
        with self._lock:
            full = self._busy >= _QUEUE or (self._busy + 1) * self._size > WAITING
            if self._busy and full and not force:
                return None
            self._busy += 1
            return self._free.pop() if self._free else Shadow()

    def took(self, size: int) -> None:
        """Note the size of a snapshot, in bytes."""
        self._size = size

    def hold(self) -> None:
        """Say that a snapshot is kept, and nobody is going to write it now."""
        with self._lock:
            self._busy -= 1

    def unhold(self) -> None:
        """Take :meth:`hold` back."""
        with self._lock:
            self._busy += 1

    def writing(self, snapshot: ModelSnapshot) -> ModelSnapshot:
        """Note that the worker begins to write `snapshot`."""
        self._began = time.monotonic()
        return snapshot

    def give(self, shadow: Shadow) -> None:
        """Take memory back whose snapshot is written or given up."""
        self._ended = time.monotonic()
        with self._lock:
            self._busy -= 1
            # Of a large model not more than what may be in use together.
            if not self._closed and (not self._free or (len(self._free) + 1) * self._size <= WAITING):
                self._free.append(shadow)

    def close(self) -> None:
        """Free the memory, what is in use as soon as it is not."""
        with self._lock:
            self._closed = True
            self._free.clear()

    def rested(self) -> bool:
        """Return whether nothing is being written now, and writing has taken a small part of the time."""
        took = self._ended - self._began
        return not self._busy and time.monotonic() - self._ended >= _PAUSE * took


class Snapshot:
    """A copy that is not written yet. key: None until it is declared."""

    __slots__ = ("key", "name", "package", "points", "root", "score", "shadow", "state", "step", "won")

    def __init__(
        self, root: Root, name: str, step: int, shadow: Shadow, package: ModelSnapshot, training: TrainingState
    ) -> None:
        self.root = root
        self.name = name
        self.step = step
        self.shadow = shadow
        self.package = package
        self.state = training
        self.key: str | None = None
        #: Where the monitored metric's value will be, by the time that the worker looks.
        self.score: Mapping[str, Any] = {}
        #: What is known of the model, recorded already.
        self.points: Row | None = None
        #: Whether it is known to be the best so far.
        self.won = False


__all__ = ["Pool", "Replaced", "Root", "Snapshot", "Weights"]
