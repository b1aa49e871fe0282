"""Passes over data loaders: which of them are epochs, and which evaluate the model.

A pass in which an optimizer stepped is an epoch; a pass without steps, in which losses were computed without
gradients, is an evaluation. No loader, no epoch. Where several loaders are walked at once (``zip``, one inside the
other), the pass that ends first with steps is the epoch, the others are none.

Patched are ``DataLoader.__iter__`` and ``__next__`` of torch's own iterators, as plain functions: the user gets torch's
own iterator, nothing is put on it, and whoever leaves a loop early lets go of it, which ends the pass.

What stands between a loader and the loop may fetch ahead: accelerate and timm take each batch before they hand out the
one before it, Transformers' Trainer takes all micro-batches of an update at once. Such a pass is not over when its
iterator has nothing more, or it would lack its last batches: it lingers until they are used.
"""

from __future__ import annotations

import inspect
import opcode
import sys
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from autolog import guard
from flavors.torch import transformers
from flavors.torch.datasets import Data, length
from flavors.torch.evaluation import Outputs

if TYPE_CHECKING:
    from types import FrameType

    from flavors.torch.losses import Pending, Threads


#: How many batches are fetched ahead at most, as far as is known of a pass of which nothing has been used: who walks
#: over more of them has something else in mind, such as their mean.
_DEEPEST = 16
#: See :attr:`Pass.trainer`.
LIGHTNING, TRANSFORMERS = "lightning", "transformers"


class Pass:
    """One walk over a loader.

    data: what it is over; name: what its loader is called in the user's code.
    waited: seconds that the loop waited for data; samples: how many it got; in batches of `batch_size`.
    trainer: the package whose Trainer walks it, which logs what it evaluates itself; "" for the user's own loop.
    ahead: how many batches had been fetched before anything was done with the first; lingers: whether the iterator has
    nothing more, while batches that were fetched ahead are still to be used; survives: whether it does so without its
    iterator; worked: when the last of them was used.
    losses: function -> [sum of loss times batch size, sum of batch sizes, count], without gradients.
    outputs: of the model, without gradients; predicted: the class of each sample, batch by batch and on the CPU.
    correct: [how many classes were right, how many looked at], a number or on a device; None where none was.
    """

    __slots__ = (
        "_batches",
        "_held",
        "_idle",
        "_loader",
        "_open",
        "_stepped_at",
        "_steps_before",
        "_used_before",
        "ahead",
        "at",
        "batch_size",
        "begun",
        "correct",
        "cost",
        "data",
        "dataset_class",
        "iterator",
        "lingers",
        "losses",
        "name",
        "outputs",
        "pending",
        "predicted",
        "samples",
        "skipped",
        "spoken_for",
        "started",
        "survives",
        "trainer",
        "waited",
        "worked",
    )

    def __init__(
        self, loader: Any, name: str, iterator: weakref.ref[Any], pending: Pending, under_way: dict[int, Pass]
    ) -> None:
        """under_way: all passes, of which this one takes itself out when it ends."""
        self._open = under_way
        self.data = Data(loader)
        self.dataset_class = type(loader.dataset).__name__
        self._loader = weakref.ref(loader)
        self.batch_size: int | None = loader.batch_size
        self.name = name
        self.iterator = iterator
        self.pending = pending
        self.begun = pending.stepped
        self._held = pending.count
        self._batches = self.ahead = 0
        #: How many updates had been made when the last batch came.
        self._stepped_at = pending.stepped
        #: Whether nothing has been done with any batch yet.
        self._idle = True
        self.lingers = self.survives = False
        #: How many updates had been made, and losses computed, when it began to linger.
        self._steps_before = self._used_before = 0
        self.worked: float | None = None
        #: When it began, and when the loop got the last batch.
        self.started = self.at = time.perf_counter()
        self.waited = 0.0
        self.samples = 0
        self.spoken_for = False
        self.trainer = _trainer()
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
        if self._idle:
            self._look()
        if self.pending.lingering:
            self._resume()
        self._batches += 1
        self._stepped_at = self.pending.stepped
        self.waited += at - asked
        self.at = at
        self.samples += size(batch)

    # -- what is fetched ahead ------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See whether something has been done with the batches got so far."""
        pending = self.pending
        if (
            self.stepped
            or pending.count != self._held
            or self.losses
            or (pending.series is not None and pending.series.kept is not None)
        ):
            self._idle = False
        else:
            self.ahead = self._batches

    def _resume(self) -> None:
        """End what lingers inside this pass, whose loop goes on."""
        passes = self.pending.passes
        if self in passes:
            for inner in passes[passes.index(self) + 1 :]:
                if inner.lingers:
                    inner.end()

    def exhausted(self, frame: FrameType) -> None:
        """Note that there are no more batches, as `frame` is told: the end, unless some are still to be used."""
        if self._idle:
            self._look()
        unused = self.ahead == self._batches
        if self.lingers or not self.ahead or not _may_lag(frame) or (unused and self._batches > _DEEPEST):
            self.end()
            return
        self.lingers = True
        # Of what has all batches and nothing done with any, a list that was made of them cannot be told from the rest.
        self.survives = not unused or bool(frame.f_code.co_flags & inspect.CO_GENERATOR)
        self._steps_before, self._used_before = self.pending.stepped, self._used()
        self.pending.lingering.append(self)
        # Each update is looked at closely as long as it does.
        for series in self.pending.known.values():
            series.look_soon()

    def _used(self) -> int:
        return sum(int(count) for _, _, count in self.losses.values())

    @property
    def moved(self) -> bool:
        """Whether it has been used since it began to linger."""
        return self.pending.stepped != self._steps_before or self._used() != self._used_before

    def _left(self, so_far: int) -> tuple[int, bool]:
        """Return of how much there is still to come, and whether that is certain; so_far: before it lingered.

        What the batches behind the ones that were fetched ahead led to, those will lead to.
        """
        used = self._batches - self.ahead
        if used <= 0 or not so_far:
            return self.ahead, False
        return -(-self.ahead * so_far // used), self.ahead * so_far % used == 0

    def has_more(self) -> bool:
        """Return whether it lingers and is certain to lead to more updates."""
        left, certain = self._left(self._steps_before - self.begun)
        return self.lingers and certain and self.pending.stepped - self._steps_before < left

    def stepping(self) -> None:
        """Note that an update is about to be counted, while it lingers: the pass ends if that cannot be its own."""
        evaluates = bool(self.losses) and not self.stepped
        left, _ = self._left(self._steps_before - self.begun)
        if evaluates or self.pending.stepped - self._steps_before >= left:
            self.end()
        else:
            self.worked = time.perf_counter()

    def evaluating(self) -> None:
        """Note a loss without gradients, while it lingers: with that of the last batch, the pass ends."""
        left, certain = self._left(self._used_before)
        if certain and self._used() - self._used_before >= left:
            self.end()

    # -- the end --------------------------------------------------------------------------------------------------

    def is_complete(self) -> bool:
        """Return whether an update was made with the last batch that its loader has, which was not asked for more.

        So it is where a trainer counts the batches.
        """
        from torch.utils.data import IterableDataset

        pending = self.pending
        if self.ahead or pending.stepped == self._stepped_at or pending.holds():
            return False
        loader = self._loader()
        # One over an iterable keeps what it is asked for its length, and warns where it was wrong.
        if loader is None or isinstance(loader.dataset, IterableDataset):
            return False
        return self._batches == length(loader)

    def end(self) -> None:
        """Say what it was."""
        pending = self.pending
        for number in [number for number, known in self._open.items() if known is self]:
            del self._open[number]
        if self in pending.lingering:
            pending.lingering.remove(self)
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


def _may_lag(frame: FrameType) -> bool:
    """Return whether what is told that there are no more batches may still have some that it has not handed out.

    A ``for`` loop has none, unless it is a generator's.
    """
    code = frame.f_code
    return bool(code.co_flags & inspect.CO_GENERATOR) or code.co_code[frame.f_lasti] != opcode.opmap["FOR_ITER"]


def _trainer() -> str:
    """Return the package whose Trainer walks the loader that is asked for its iterator now; "" where none does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(("lightning.pytorch.", "pytorch_lightning.")):
            return LIGHTNING
        if module == transformers.MODULE:
            return TRANSFORMERS
        frame = frame.f_back
    return ""


class Passes:
    """All passes under way, by the identity of their iterator."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        #: Looked at by each wrapper before anything else: where no loader is walked, there is nothing to do.
        self.open: dict[int, Pass] = {}

    def before(self) -> None:
        """Say that an iterator is about to be made, which draws random numbers."""
        pending = self._threads.pending
        for known in list(pending.passes):
            if known.is_complete() or (known.lingers and not known.has_more()):
                known.end()
        training = pending.training
        if training is not None and not training.ended:
            training.checkpoints.pass_begins()

    def begin(self, loader: Any, iterator: Any, name: str) -> None:
        """Begin a pass; `iterator` may be one that loaders with persistent workers use again."""
        number = id(iterator)
        before = self.open.get(number)
        if before is not None:
            before.end()
        pending = self._threads.pending
        made = Pass(loader, name, weakref.ref(iterator, lambda _: self._left(number)), pending, self.open)
        self.open[number] = made
        pending.passes.append(made)

    def exhausted(self, iterator: Any, frame: FrameType) -> None:
        """Note that an iterator has nothing more, as `frame` is told that asked for it."""
        known = self.open.get(id(iterator))
        if known is not None:
            known.exhausted(frame)

    def _left(self, number: int) -> None:
        known = self.open.get(number)
        # A pass of another iterator may have got the identity by now.
        if known is None or known.iterator() is not None:
            return
        if known.survives and not known.moved:
            # Let go of by a loop in between, which still has the last batches. No other has the identity of the pass.
            self.open[id(known)] = self.open.pop(number)
        else:
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
