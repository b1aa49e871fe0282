"""One training: the optimizers that step in turn, the run that they are recorded in, the model that they train."""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
from typing import TYPE_CHECKING, Any

from autolog import guard, runtime
from autolog.checkpoints import Shelf
from autolog.records import now
from autolog.run import Run
from flavors.torch import models, shapes
from flavors.torch.checkpoints import Checkpointer
from flavors.torch.epochs import Epochs
from flavors.torch.gradients import Sampler
from flavors.torch.models import Visible
from flavors.torch.passes import LIGHTNING
from flavors.torch.roots import Root
from flavors.torch.series import Series
from flavors.torch.values import Drain, Later, Row, number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.nn import Module, Parameter
    from torch.optim import Optimizer

    from flavors.torch.losses import Pending
    from flavors.torch.optimizers import Entry
    from flavors.torch.passes import Pass
    from flavors.torch.sites import Site

#: Milliseconds after which an update is looked at closely at the latest: what it leaves is kept until then.
_LOOK = 1000


class Training:
    """A run that is open from the first optimizer step until its optimizers are dead.

    Steps count the updates of each optimizer from 0. A checkpoint of step s is the model after update s, and the
    metrics of step s are linked to it.
    """

    def __init__(self, run: Run, serial: int, several: bool) -> None:
        """Record in `run`; optimizers up to number `serial` existed at its first step, `several` that may be part."""
        self.run = run
        self.serial = serial
        self.several = several
        self.thread = threading.get_ident()
        self.process = os.getpid()
        self.ended = False
        #: Whether a backward or step raised and none has succeeded since.
        self.failed = False
        self.entries: list[Entry] = []
        self.roots: list[Root] = []
        self.codes: set[Any] = set()
        #: How many optimizers train parameters that no other has trained before.
        self._independent = 0
        #: ids of the parameters of each optimizer.
        self._trained: list[set[int]] = []
        self._described: list[dict[str, Any]] = []
        self._names: dict[Site, str] = {}
        #: The optimizer whose steps decide when a checkpoint is due: the last to join, as its step ends the iteration.
        self._leader: Entry | None = None
        self.checkpoints = Checkpointer(run, self.roots, self.entries)
        self._drain = Drain(run)
        self.epochs = Epochs(run, self.checkpoints, self._drain)
        #: (sum, count) of each loss of the epoch under way, and how many updates of it the drain knows.
        self.sums: dict[str, list[float]] = {}
        self._later = 0
        #: The last update and how many micro-batches it took, None once their number is recorded.
        self._accumulated: tuple[int, int] | None = (-1, 0)
        #: What the threads that it is trained in have pending.
        self.followers: list[Pending] = []

    # -- joining --------------------------------------------------------------------------------------------------

    def add(self, entry: Entry, around: Visible) -> None:
        """Make an optimizer part of this training, at its first step here; around: what its caller holds."""
        mine = {id(parameter) for parameter in entry.parameters()}
        # Dead optimizers count: their parameters live on in the model that is held.
        predecessor = [other.steps for other, theirs in zip(self.entries, self._trained, strict=True) if mine & theirs]
        entry.training = self
        # An optimizer that takes over the parameters of another goes on counting.
        entry.steps = max(predecessor, default=0)
        if entry.origin is not None:
            entry.steps = entry.origin.steps
            self.checkpoints.resumed(entry.origin)
            self.run.tags(entry.origin.tags)
            entry.origin = None
        self.entries.append(entry)
        self._leader = entry
        entry.probe = next((parameter for parameter in entry.parameters() if parameter.grad is not None), None)
        optimizer = entry.optimizer()
        if optimizer is None:
            self._trained.append(mine)
            return
        for other, theirs in zip(self.entries, self._trained, strict=False):
            if mine & theirs and other.optimizer() is None:
                other.kept = None  # Nobody goes on from it.
        self._trained.append(mine)
        entry.keep(optimizer)
        entry.sampler = Sampler(optimizer)
        found = guard.run("find the model", models.root, entry, around)
        if found is not None:
            entry.root = self._root(*found)
        first = len(self.entries) == 1
        if not predecessor:
            self._independent += 1
            entry.name = self._unused(entry)
        params = guard.run("read the hyper-parameters", models.hyper_parameters, optimizer)
        if params and not (predecessor and params in self._described):
            self._described.append(params)
            prefix = "" if first else f"{entry.name}_{len(self.entries)}." if predecessor else f"{entry.name}."
            self.run.params({prefix + name: value for name, value in params.items()})
        if first:
            module = found[1] if found is not None else None
            known = guard.run("describe the training", models.facts, module, optimizer, around)
            if known:
                self.epochs.batch_size_known = "batch_size" in known
                self.run.params(known)
        guard.run("look for schedulers", self.checkpoints.joined, around)

    def _unused(self, entry: Entry) -> str:
        """Return the name of an optimizer's variable, made different from the other optimizers'."""
        taken = {other.name for other in self.entries if other is not entry}
        base = entry.name or "optimizer"
        return next(name for name in (base, *(f"{base}_{i}" for i in range(2, 1000))) if name not in taken)

    def trains_part_of(self, entry: Entry) -> bool:
        """Return whether `entry`'s optimizer trains parameters of this training's models."""
        models = (root.module.parameters() for root in self.roots if root.module is not None)
        optimizers = (other.parameters() for other in self.entries)
        return _share(itertools.chain(*models, *optimizers), entry.parameters())

    def _root(self, name: str, module: Module) -> Root:
        for root in self.roots:
            if root.module is module:
                return root
        root = Root(name, module, Shelf(self.run.config.checkpoints))
        if self.roots:
            taken = {other.name for other in self.roots}
            root.name = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 99))) if n not in taken)
        self.roots.append(root)
        text = guard.run("summarize the model", models.summary, module)
        if text is not None:
            self.run.text("model_summary.txt" if len(self.roots) == 1 else f"model_summary_{root.name}.txt", text)
        guard.run("look at the model's next forward", shapes.arm, module, functools.partial(self._saw, root))
        return root

    def _saw(self, root: Root, signature: dict[str, str] | None, autocast: str | None) -> None:
        if self.run.config.log_model_signatures:
            root.signature = signature
        if autocast is not None and root is self.roots[0]:
            self.run.params({"autocast": autocast})

    # -- each step ------------------------------------------------------------------------------------------------

    def record(
        self, entry: Entry, optimizer: Optimizer, pending: Pending, losses: dict[Site, Any], norm: Any = None
    ) -> None:
        """Record one update: its losses, the learning rates that it was made with, the norm of its gradients.

        norm: what the user's clipping computed, a tensor.
        """
        if self.epochs.held:
            self.epochs.say()
        self._sum_up(entry)
        step = entry.steps
        if entry.series is not None:
            pending.expect_not(entry.series)
        entry.steps = step + 1
        self.failed = False
        if self._accumulated is not None:
            self._count(step, pending.batches)
        later = False
        values: dict[str, Any] = {}
        for site, value in losses.items():
            name = self._names.get(site) or self._name(site, losses)
            values[name] = value
            if type(value) is float:
                self._sum(name, value)
            else:
                later = True
        groups = optimizer.param_groups
        names = entry.learning_rates
        if len(names) != len(groups):
            names = entry.learning_rates = self._learning_rates(entry, len(groups))
        for i, group in enumerate(groups):
            rate = group.get("lr")
            if type(rate) is not float:
                if rate is None:
                    continue
                rate = number(rate)
                later = later or type(rate) is not float
            values[names[i]] = rate
        clips = norm is not None
        if clips:
            entry.sampler = None
            norm = values[self._of("grad_norm", entry)] = number(norm)
            later = later or type(norm) is not float
        key, at = None, now()
        due, left = math.inf, None
        if entry is self._leader:
            key = self.checkpoints.after_step(entry, step, values)
            due = at + min(_LOOK, self.checkpoints.milliseconds_left())
            left = self.checkpoints.steps_left(step + 1)
        self._sample(entry, optimizer, step, at)
        if entry.sampler is not None:
            due = min(due, entry.sampler.due)
        entry.apart = (values, step, at)
        if later:
            self._later += 1
            dataset = self.epochs.trained_with(pending) if key is not None else None
            self._drain.add(Row(values, step, at, key, dataset), tuple(self._names[site] for site in losses))
        elif key is not None:
            self.run.metrics(values, step=step, time=at, model=key, dataset=self.epochs.trained_with(pending))
        elif values:
            series = entry.series
            if series is None or series.next != step or series.names != tuple(values):
                if series is not None:
                    series.close()
                series = entry.series = Series(self.run, tuple(values), step)
            series.add((*values.values(), at))
            series.counted = step + 1
            entry.apart = None
            if len(losses) == 1 and len(values) == 1 + len(groups) + clips and not pending.lingering:
                pending.expect(series, id(optimizer), next(iter(losses)), due, left)

    def _count(self, step: int, batches: int) -> None:
        """Record how many micro-batches an update takes, once two in turn have taken as many."""
        if batches > 1 and self._accumulated == (step - 1, batches):
            self.run.params({"gradient_accumulation_steps": batches})
            self._accumulated = None
        else:
            self._accumulated = (step, batches)

    def _sum(self, name: str, value: float) -> None:
        total = self.sums.setdefault(name, [0.0, 0])
        total[0] += value
        total[1] += 1

    def _sum_up(self, entry: Entry) -> None:
        """Add to the sums of the epoch what the updates of the steady state have left out."""
        series = entry.series
        if series is not None and series.site is not None:
            name = self._names[series.site]
            for value in series.uncounted():
                self._sum(name, value)

    def _sample(self, entry: Entry, optimizer: Optimizer, step: int, at: int) -> None:
        """Measure the norm of the gradients, where that is due."""
        sampler = entry.sampler
        if sampler is None or at < sampler.due:
            return
        norm = sampler.measure(optimizer, at)
        if norm is None:
            return
        value = number(norm)
        name = self._of("grad_norm", entry)
        if type(value) is float:
            self.run.metrics({name: value}, step=step, time=at)
        else:
            self._drain.add(Row({name: value}, step, at))

    def _of(self, metric: str, entry: Entry) -> str:
        """Return the name of a metric of `entry`'s, told apart where there are several optimizers."""
        return f"{metric}_{entry.name}" if self.several or self._independent > 1 else metric

    def shown(self, values: dict[str, Any], step: int | None) -> None:
        """Record what the user shows, at `step` or at the last update's, unless that is recorded under its name."""
        entry = self._leader
        own = {name for other in self.entries if other.series is not None for name in other.series.names}
        own.update(self._names.values(), self.epochs.said)
        values = {name: value for name, value in values.items() if name not in own}
        if not values or entry is None:
            return
        at, step = now(), _last(entry) if step is None else step
        if any(type(value) is Later for value in values.values()):
            self._drain.add(Row(values, step, at))
        else:
            self.run.metrics(values, step=step, time=at)

    # -- each pass over a loader ----------------------------------------------------------------------------------

    def epoch(self, walked: Pass) -> None:
        """Record the end of an epoch."""
        if self._leader is None or not self._leader.steps:
            return
        for entry in self.entries:
            self._sum_up(entry)
        sums, self.sums = self.sums, {}
        later, self._later = self._later, 0
        means = {name: total / count for name, (total, count) in sums.items()}
        self.epochs.ended(walked, self._leader, means, more=later > 0)

    def evaluated(self, walked: Pass) -> None:
        """Record what a pass without steps showed. Lightning logs its evaluations itself."""
        entry = self._leader
        if entry is not None and entry.steps and walked.losses and walked.trainer != LIGHTNING:
            self.epochs.evaluated(walked, entry)

    def roots_with(self, module: Module) -> list[Root]:
        """Return the models that have trained parameters in common with `module`."""
        if not any(id(p) in trained for p in module.parameters() for trained in self._trained):
            return []
        return [
            root
            for root in self.roots
            if root.module is not None and _share(root.module.parameters(), module.parameters())
        ]

    def gradients_reset(self) -> bool:
        """Return whether all gradients have been set to None since the last backward."""
        for entry in self.entries:
            if entry.probe is not None and entry.probe.grad is not None:
                return False
        # Or is it only that these parameters get none any more?
        known = False
        for entry in self.entries:
            known = known or entry.probe is not None
            entry.probe = next((p for p in entry.parameters() if p.grad is not None), entry.probe)
            if entry.probe is not None and entry.probe.grad is not None:
                return False
        return known

    def _name(self, site: Site, among: dict[Site, Any]) -> str:
        """Return the metric name of a loss: ``loss`` where it is the only one, else its variable's name."""
        alone = not self._names and len(among) == 1 and not self.several
        base = "loss" if alone else site.name or "loss"
        taken = {self._names[other] for other in among if other in self._names}
        names = (base, *(f"{base}_{i}" for i in range(2, 1000)))
        name = self._names[site] = next(name for name in names if name not in taken)
        self.codes.add(site.code)
        return name

    def _learning_rates(self, entry: Entry, groups: int) -> list[str]:
        name = self._of("learning_rate", entry)
        return [name] if groups == 1 else [f"{name}_{i}" for i in range(groups)]

    def logged(self, values: dict[str, Any], step: int | None = None, *, evaluation: bool) -> None:
        """Record what a trainer of the user's logs, at `step` or at the last update's.

        evaluation: whether it is of the weights as they are now.
        """
        # A loss that is seen by itself keeps its own steps.
        own = {*self._names.values(), *self.epochs.said}
        values = {name: value for name, value in values.items() if name not in own}
        if not values or self._leader is None:
            return
        at, step, key = now(), _last(self._leader) if step is None else step, None
        if evaluation:
            key = self.checkpoints.evaluated(self._leader, Row(values, step, at))
        if all(type(value) is float for value in values.values()):
            self.run.metrics(values, step=step, time=at, model=key)
        else:
            self._drain.add(Row(values, step, at, key))
        self.checkpoints.recorded()

    # -- the end --------------------------------------------------------------------------------------------------

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Record the final model and end the run, once."""
        if self.ended:
            return
        for pending in self.followers:
            for lingering in list(pending.lingering):
                if status == "FINISHED" or not lingering.has_more():
                    lingering.end()
        self.ended = True
        for pending in self.followers:
            pending.ended()
        for root in self.roots:
            if root.module is not None:
                shapes.disarm(root.module)
        self.epochs.say()
        for entry in self.entries:
            if entry.series is not None:
                entry.steps = entry.steps
                entry.series.expect_nothing()
                entry.series.close()
        guard.run("record the final model", self.checkpoints.final, status)
        guard.run("end the run", self.run.end, status, error)
        runtime.closed(self.run)
        self.release()

    def release(self) -> None:
        """Let go of the user's objects."""
        self.epochs.release()
        for root in self.roots:
            root.module = None
        for entry in self.entries:
            entry.probe = entry.root = entry.apart = entry.kept = None
            entry.series = entry.sampler = None


def _last(entry: Entry) -> int:
    """Return the step of an optimizer's last update, 0 where it has made none."""
    return max(0, entry.steps - 1)


def _share(some: Iterable[Parameter], others: Iterable[Parameter]) -> bool:
    """Return whether any parameter is among both."""
    held = {id(parameter) for parameter in some}
    return any(id(parameter) in held for parameter in others)


__all__ = ["Root", "Training"]
