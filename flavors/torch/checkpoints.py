"""Snapshots of one training's models: when one is taken, what it is linked to, when its memory can be used again.

The training thread copies; the worker thread writes. Memory is bounded: of a large model one snapshot is under way at a
time, and one more is kept where it is the best so far and the one before is still being written.
"""

from __future__ import annotations

import functools
import math
import sys
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autolog import guard
from autolog.checkpoints import RESUMABLE, Schedule
from autolog.datasets import Dataset
from autolog.records import now
from autolog.run import Run
from flavors.torch import models, randomness, snapshots, state
from flavors.torch.models import Visible
from flavors.torch.roots import Replaced, Root, Snapshot, Weights
from flavors.torch.state import TrainingState
from flavors.torch.values import Row

if TYPE_CHECKING:
    from flavors.torch.optimizers import Entry, Origin

#: Of how many evaluations the weights are known.
_EVALUATIONS = 256


class Checkpointer:
    """Takes the snapshots of one training.

    roots, entries: the models and optimizers, lists that the training fills.
    epochs: how many epochs are complete; dataset: what was trained on last, as far as that is known.
    """

    def __init__(self, run: Run, roots: Sequence[Root], entries: Sequence[Entry]) -> None:
        self._run = run
        self._policy = run.config.checkpoints
        self._roots = roots
        self._entries = entries
        self._schedule = Schedule(self._policy) if run.config.log_models and self._policy.every != "end" else None
        #: Copied, but the loop may not be through with the step yet.
        self._open: list[Snapshot] = []
        #: The best so far of each model, where it is not written yet, and one of which that is not known yet.
        self._held: dict[Root, list[Snapshot]] = {}
        self._best: float | None = None
        #: The keys of the checkpoints of the weights as they are, and the number of steps at which that was so.
        self._current: dict[Root, str] = {}
        self._current_at = -1
        #: Schedulers and scaler, weakly.
        self._companions: list[Any] = []
        #: Held, since the last checkpoint may be taken when the function that drew from them has returned.
        self._generators: dict[str, Any] = {}
        #: (keys, values) of evaluations whose values are still to be recorded.
        self._unscored: list[tuple[Mapping[Root, str], Mapping[str, Any]]] = []
        #: What the last evaluations have shown, and of which weights.
        self._evaluated: deque[tuple[dict[Root, Weights | None], Row]] = deque(maxlen=_EVALUATIONS)
        self.epochs = 0
        self.dataset: Dataset | None = None

    # -- what the training says -----------------------------------------------------------------------------------

    def joined(self, around: Visible) -> None:
        """Look for schedulers, scaler and generators where an optimizer makes its first step."""
        if self._policy.optimizer:
            living = {id(optimizer) for entry in self._entries if (optimizer := entry.optimizer()) is not None}
            found = [*state.schedulers(around, living), state.scaler(around)]
            known = {id(ref()) for ref in self._companions}
            self._companions += [weakref.ref(one) for one in found if one is not None and id(one) not in known]
            self._generators.update(randomness.generators(around))

    def resumed(self, origin: Origin) -> None:
        """Go on counting from a checkpoint."""
        self.epochs = origin.epochs
        if self._schedule is not None:
            self._schedule.begin(origin.steps, origin.epochs)

    def after_step(self, entry: Entry, step: int, values: Mapping[str, Any]) -> str | None:
        """Take a snapshot where one is due after update `step`; return the key that `values` are to be linked to.

        Called at each update of the training's leading optimizer, so it does nearly nothing at most of them.
        values: what is recorded of this step; may still be on a device.
        """
        if self._open:
            self.complete()
        if self._schedule is None or not self._schedule.due_at_step(step + 1):
            return None
        return self._take(entry, step, values)

    def steps_left(self, steps: int) -> int | None:
        """Return in how many updates :meth:`after_step` has to be asked again at the latest, None where time decides.

        steps: how many were made.
        """
        return 1 if self._open else self._schedule.steps_left(steps) if self._schedule is not None else None

    def milliseconds_left(self) -> float:
        """Return after what time :meth:`after_step` has to be asked again at the latest."""
        return self._schedule.seconds_left() * 1000 if self._schedule is not None else math.inf

    @property
    def under_way(self) -> bool:
        """Whether there is one that :meth:`after_step` is to hand over."""
        return bool(self._open)

    def pass_begins(self) -> None:
        """Say that a pass over a loader is about to begin, before any random number is drawn for it."""
        for one in self._open:
            guard.run("save the state of the training", one.state.read)

    def epoch_ended(self, entry: Entry) -> str | None:
        """Say that a pass over training data is complete; return the key of the checkpoint of the weights, if any.

        What is found out about the weights from here on is of that checkpoint, until the next step.
        """
        self.epochs += 1
        if self._schedule is None or not entry.steps:
            return None
        due = self._schedule.due_at_epoch() or self._schedule.due_at_step(entry.steps)
        return self._take(entry, entry.steps - 1, {}) if due else self.current(entry)

    def current(self, entry: Entry) -> str | None:
        """Return the key of the checkpoint of the weights as they are now, None where there is none."""
        if entry.root is None or self._current_at != entry.steps:
            return None
        return self._current.get(entry.root)

    def replaced(self, root: Root, weights: Weights | None) -> None:
        """Say that a model has got other weights: what was said of its last is not of these.

        weights: what they are, where that is known; they may be those of an earlier evaluation, as the best again.
        """
        shown = [row for of, row in self._evaluated if weights is not None and of.get(root) == weights]
        # What was said in this very millisecond was said before.
        root.replaced = Replaced(self._steps(root), now() + 1, shown)
        self._current.pop(root, None)

    def _replaced(self, root: Root) -> Replaced | None:
        """Return what other weights `root` has got since its last update, if any."""
        found = root.replaced
        return found if found is not None and found.steps == self._steps(root) else None

    def _steps(self, root: Root) -> int:
        return max((entry.steps for entry in self._entries if entry.root is root), default=0)

    def evaluated(self, entry: Entry, shown: Row) -> str | None:
        """Say what an evaluation of the weights as they are now has shown; return the key to link it to, if any.

        shown: numbers, or what a device still computes; the caller records it, and with this same dict of values.
        """
        values = shown.values
        score = values.get(self._policy.monitor)
        if self._run.config.log_models:
            self._evaluated.append(({root: root.weights() for root in self._roots}, shown))
            for root in self._roots:
                if (replaced := self._replaced(root)) is not None:
                    replaced.shown.append(shown)
        key = self.current(entry)
        if score is None or self._schedule is None:
            return key
        if key is not None:
            self._unscored.append((dict(self._current), values))
        self._settle()
        # What a device still computes may be better, so the weights are kept until that is known.
        known = isinstance(score, float)
        if known and not self._is_better(score):
            return key
        if known:
            self._best = score
            self._discard_held()
        if key is None and self._schedule.affordable():
            key = self._take_best(entry, shown, known=known)
        return key

    def recorded(self) -> None:
        """Say that what evaluations have shown is recorded, so that the worker will find numbers there."""
        unscored, self._unscored = self._unscored, []
        for keys, values in unscored:
            self._run.later("keep the best checkpoint", functools.partial(self._score, keys, values))

    def complete(self, *, last: bool = False) -> None:
        """Hand over what was copied, now that the step is over; last: no other follows."""
        opened, self._open = self._open, []
        for one in opened:
            guard.run("save the state of the training", one.state.complete, last=last)
            if one.key is not None:
                self._write(one)

    def final(self, status: str) -> None:
        """Take the last snapshot of each model."""
        self.complete(last=True)
        self._settle(force=True)
        for root in self._roots:
            mine = [entry for entry in self._entries if entry.root is root and entry.last is not None]
            if not mine:
                continue
            newest = max(mine, key=lambda entry: entry.steps)
            assert newest.last is not None
            values, step, at = newest.last
            name = "model" if len(self._roots) == 1 else root.name
            one = self._copy(root, name, step, [], force=True)
            if one is None:
                continue
            replaced = self._replaced(root)
            # What the user logged by hand since the last step is about this model, if there is only one.
            since = at if replaced is None else replaced.since
            self._declare(one, register=status == "FINISHED", since=since if len(self._roots) == 1 else None)
            shown = [Row(values, step, at, dataset=self.dataset)] if replaced is None else replaced.shown
            for row in shown:
                self._link_again(one, row)
            guard.run("save the state of the training", one.state.complete, anew=True)
            self._write(one, shelve=False)

        for root in self._roots:
            root.pool.close()

    # -- one snapshot ---------------------------------------------------------------------------------------------

    def _take(self, entry: Entry, step: int, values: Mapping[str, Any]) -> str | None:
        """Copy every model; return the key of the one that `entry` trains."""
        assert self._schedule is not None
        self.complete()
        started = time.perf_counter()
        around = self._around()
        self._current, self._current_at = {}, step + 1
        for root in self._roots:
            mine = [other for other in self._entries if other.root is root]
            own = step if entry in mine else max((other.steps for other in mine), default=1) - 1
            one = self._copy(root, f"checkpoint-{own}", own, around)
            if one is None:
                continue
            one.score = values
            self._open.append(one)
            self._current[root] = self._declare(one)
            if entry not in mine:
                last = max((other for other in mine if other.last), key=lambda other: other.steps, default=None)
                if last is not None and last.last is not None:
                    self._link_again(one, Row(*last.last, dataset=self.dataset))
        if self._current:
            self._schedule.taken(step + 1, time.perf_counter() - started)
        else:
            self._schedule.skipped(step + 1)
        return self._current.get(entry.root) if entry.root is not None else None

    def _take_best(self, entry: Entry, shown: Row, *, known: bool) -> str | None:
        """Copy every model as the best so far, or as what may be; written at once only where that is no burden."""
        assert self._schedule is not None
        self.complete()
        started = time.perf_counter()
        around = self._around()
        self._current, self._current_at = {}, entry.steps
        for root in self._roots:
            step = max(0, self._steps(root) - 1)
            rested = root.pool.rested()
            one = self._copy(root, f"checkpoint-{step}", step, around, force=True)
            if one is None:
                continue
            one.score, one.points, one.won = shown.values, shown, known
            self._open.append(one)
            if known and rested:
                self._current[root] = self._declare(one)
            else:
                root.pool.hold()
                self._held.setdefault(root, []).append(one)
        self._schedule.spent(time.perf_counter() - started)
        return self._current.get(entry.root) if entry.root is not None else None

    def _around(self) -> Visible:
        return models.visible(sys._getframe(2)) if self._policy.optimizer else []

    def _copy(self, root: Root, name: str, step: int, around: Visible, *, force: bool = False) -> Snapshot | None:
        if not self._run.config.log_models or root.failed or root.module is None:
            return None
        shadow = root.pool.get(force=force)
        if shadow is None:
            guard.say_once(
                "skipped",
                "mlflow-autolog: checkpoint %r is skipped, since those before it are still being written; "
                "checkpoints may be asked for more often than they can be saved.",
                name,
            )
            return None
        mine = [entry for entry in self._entries if entry.root is root and self._policy.optimizer]
        seen = [*around, *(("", held) for ref in self._companions if (held := ref()) is not None)]
        seen += self._generators.items()
        training = TrainingState(mine, seen, step + 1, self.epochs)
        pt2 = self._run.config.serialization_format == "pt2"
        export_as = f"{self._run.key}-{self._roots.index(root)}" if pt2 else None
        taken = guard.attempt(snapshots.take, root.module, root.signature, shadow, training, export_as)
        if taken.value is None:
            root.pool.give(shadow)
            if isinstance(taken.error, snapshots.Torn | snapshots.Spread):
                guard.say_once("torn", "mlflow-autolog: the model is not recorded, since %s.", taken.error)
            elif taken.error is not None:
                root.failed = True
                guard.report("take a snapshot of the model", taken.error)
            return None
        root.pool.took(shadow.size)
        return Snapshot(root, name, step, shadow, taken.value, training)

    def _declare(self, one: Snapshot, *, register: bool = False, since: int | None = None) -> str:
        tags = {
            "autolog.model_class": type(one.root.module).__qualname__,
            RESUMABLE: one.state.holds,
            "autolog.steps": str(one.step + 1),
        }
        name = one.name if len(self._roots) == 1 or one.name == one.root.name else f"{one.root.name}-{one.name}"
        key = self._run.declare_model(name=name, step=one.step, tags=tags, register=register, metrics_since=since)
        one.key = key
        return key

    def _write(self, one: Snapshot, *, shelve: bool = True) -> None:
        assert one.key is not None
        pool, package = one.root.pool, one.package
        self._run.save_model(one.key, lambda: pool.writing(package))
        self._run.later("put a checkpoint away", functools.partial(self._written, one, shelve=shelve))

    # -- which ones to keep ---------------------------------------------------------------------------------------

    def _is_better(self, score: float) -> bool:
        if score != score:
            return False
        return self._best is None or (score < self._best if self._policy.mode == "min" else score > self._best)

    def _settle(self, *, force: bool = False) -> None:
        """Find out which of those held is the best, now that its score may be known, and write it if there is time.

        force: write all of them; the worker knows by then which one to keep.
        """
        for root, held in list(self._held.items()):
            for one in list(held) if not force else ():
                score = one.score.get(self._policy.monitor)
                if one.won or not isinstance(score, float):
                    continue
                if self._is_better(score):
                    self._best = score
                    self._drop_held(root, but=one)
                    one.won = True
                else:
                    self._drop_held(root, only=one)
            for one in list(self._held.get(root, ())):
                if (force or (one.won and root.pool.rested())) and one not in self._open and one.points is not None:
                    self._held[root].remove(one)
                    root.pool.unhold()
                    self._declare(one)
                    self._link_again(one, one.points)
                    self._write(one)

    def _discard_held(self) -> None:
        """Give up what was the best so far."""
        for root in list(self._held):
            self._drop_held(root)

    def _drop_held(self, root: Root, *, but: Snapshot | None = None, only: Snapshot | None = None) -> None:
        for one in list(self._held.get(root, ())):
            # What is not known yet may still be better.
            if one is but or (only is not None and one is not only):
                continue
            if but is not None and not isinstance(one.score.get(self._policy.monitor), float):
                continue
            self._held[root].remove(one)
            if one in self._open:
                self._open.remove(one)
            root.pool.unhold()
            root.pool.give(one.shadow)

    def _link_again(self, one: Snapshot, shown: Row) -> None:
        """Link what is recorded already: the same points again, in name, step, time and value, are kept once."""
        row = shown._replace(model=one.key)
        if row.known:
            row.record(self._run)
        else:
            # By then the drain, which is on the same thread and was asked before, has put numbers in.
            self._run.later("link metrics", functools.partial(row.record, self._run))

    # -- on the worker thread -------------------------------------------------------------------------------------

    def _written(self, one: Snapshot, *, shelve: bool) -> None:
        one.root.pool.give(one.shadow)
        if shelve:
            assert one.key is not None
            score = one.score.get(self._policy.monitor)
            self._run.drop_models(one.root.shelf.add(one.key, score if isinstance(score, float) else None))

    def _score(self, keys: Mapping[Root, str], values: Mapping[str, Any]) -> None:
        score = values.get(self._policy.monitor)
        if isinstance(score, float):
            for root, key in keys.items():
                self._run.drop_models(root.shelf.score(key, score))


__all__ = ["Checkpointer"]
