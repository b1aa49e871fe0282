"""Passes over data loaders: which of them are epochs, and which evaluate the model.

A pass in which an optimizer stepped is an epoch; a pass without steps, in which losses were computed without
gradients, is an evaluation. No loader, no epoch. Where several loaders are walked at once (``zip``, one inside the
other), the pass that ends first with steps is the epoch, the others are none.

Patched are ``DataLoader.__iter__`` and ``__next__`` of torch's own iterators, as plain functions: the user gets torch's
own iterator, nothing is put on it, and whoever leaves a loop early lets go of it, which ends the pass.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autolog import guard
from flavors.torch.evaluation import Outputs

if TYPE_CHECKING:
    from types import FrameType

    from flavors.torch.losses import Pending, Threads


class Pass:
    """One walk over a loader.

    loader: its dataset, weakly, and what it is called in the user's code.
    waited: seconds that the loop waited for data; samples: how many it got; in batches of `batch_size`.
    logged_elsewhere: whether whoever walks it logs what it evaluates itself.
    losses: function -> [sum of loss times batch size, sum of batch sizes, count], without gradients.
    outputs: of the model, without gradients; predicted: the class of each sample, batch by batch and on the CPU.
    correct: [how many classes were right, how many looked at], a number or on a device; None where none was.
    """

    __slots__ = (
        "at",
        "batch_size",
        "begun",
        "correct",
        "cost",
        "dataset",
        "dataset_class",
        "iterator",
        "length",
        "logged_elsewhere",
        "losses",
        "name",
        "outputs",
        "pending",
        "predicted",
        "samples",
        "skipped",
        "spoken_for",
        "started",
        "waited",
    )

    def __init__(self, loader: Any, name: str, iterator: weakref.ref[Any], pending: Pending) -> None:
        dataset = loader.dataset
        self.dataset = weakref.ref(dataset) if type(dataset).__weakrefoffset__ else lambda: dataset
        self.dataset_class = type(dataset).__name__
        self.length = len(dataset) if hasattr(type(dataset), "__len__") else None
        self.batch_size: int | None = loader.batch_size
        self.name = name
        self.iterator = iterator
        self.pending = pending
        self.begun = pending.stepped
        #: When it began, and when the loop got the last batch.
        self.started = self.at = time.perf_counter()
        self.waited = 0.0
        self.samples = 0
        self.spoken_for = False
        self.logged_elsewhere = _by_lightning()
        self.losses: dict[str, list[Any]] = {}
        self.outputs = Outputs()
        self.predicted: list[Any] = []
        self.correct: list[Any] = [0, None]
        #: Seconds spent on :attr:`correct`, and whether batches were left out of it.
        self.cost = 0.0
        self.skipped = False

    @property
    def stepped(self) -> bool:
        """Whether an optimizer has stepped in it."""
        return self.pending.stepped != self.begun

    def got(self, batch: Any, asked: float, at: float) -> None:
        """Note one batch, asked for and got at these times."""
        self.waited += at - asked
        self.at = at
        self.samples += size(batch)

    def end(self) -> None:
        """Say what it was."""
        pending = self.pending
        if self not in pending.passes:
            return
        pending.passes.remove(self)
        training = pending.training
        if training is None or training.ended:
            return
        if not self.stepped:
            training.evaluated(self)
        elif not self.spoken_for:
            for other in pending.passes:
                other.spoken_for = True
            training.epoch(self)


def _by_lightning() -> bool:
    """Return whether Lightning's Trainer walks the loader that is asked for its iterator now."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in ("lightning", "pytorch_lightning"):
            return True
        frame = frame.f_back
    return False


class Passes:
    """All passes under way, by the identity of their iterator."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        #: Looked at by each wrapper before anything else: where no loader is walked, there is nothing to do.
        self.open: dict[int, Pass] = {}

    def before(self) -> None:
        """Say that an iterator is about to be made, which draws random numbers."""
        training = self._threads.pending.training
        if training is not None and not training.ended:
            training.checkpoints.pass_begins()

    def begin(self, loader: Any, iterator: Any, name: str) -> None:
        """Begin a pass; `iterator` may be one that loaders with persistent workers use again."""
        number = id(iterator)
        before = self.open.pop(number, None)
        if before is not None:
            before.end()
        pending = self._threads.pending
        made = Pass(loader, name, weakref.ref(iterator, lambda _: self._left(number)), pending)
        self.open[number] = made
        pending.passes.append(made)

    def end(self, iterator: Any) -> None:
        """End a pass whose iterator has nothing more."""
        known = self.open.pop(id(iterator), None)
        if known is not None:
            known.end()

    def _left(self, number: int) -> None:
        known = self.open.get(number)
        # A pass of another iterator may have got the identity by now.
        if known is not None and known.iterator() is None:
            del self.open[number]
            guard.run("end a pass over a loader", known.end)


def size(batch: Any) -> int:
    """Return how many samples a batch has: the length of its first tensor; 0 where there is none."""
    while True:
        if type(batch) in (list, tuple) and batch:
            batch = batch[0]
            continue
        shape = getattr(batch, "shape", None)
        if shape is not None:
            return int(shape[0]) if len(shape) else 0
        if isinstance(batch, Mapping):
            batch = next(iter(batch.values()), None)
        elif isinstance(batch, list | tuple) and batch:
            batch = batch[0]
        else:
            return 0


__all__ = ["Pass", "Passes", "size"]
