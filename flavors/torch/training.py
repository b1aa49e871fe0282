"""One training: the optimizers that step in turn, the run that they are recorded in, the model that they train."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from autolog import guard, runtime
from autolog.checkpoints import Schedule, Shelf
from autolog.records import now
from autolog.run import Run
from flavors.torch import models, shapes, snapshots
from flavors.torch.models import Visible
from flavors.torch.values import Drain, Later, number

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from flavors.torch.optimizers import Entry
    from flavors.torch.sites import Site


class Root:
    """A whole model of the training. Held strongly, and only until the run ends."""

    __slots__ = ("failed", "module", "name", "shelf", "signature")

    def __init__(self, name: str, module: Module, shelf: Shelf) -> None:
        self.name = name
        self.module: Module | None = module
        self.signature: dict[str, str] | None = None
        self.shelf = shelf
        #: It cannot be copied; said once.
        self.failed = False

    def saw(self, signature: dict[str, str]) -> None:
        """Take the signature that a forward showed."""
        self.signature = signature


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
        #: The optimizer whose steps decide when a checkpoint is due.
        self._leader: Entry | None = None
        takes = run.config.log_models and run.config.checkpoints.every != "end"
        self._schedule = Schedule(run.config.checkpoints) if takes else None
        self._drain = Drain(run)

    # -- joining --------------------------------------------------------------------------------------------------

    def add(self, entry: Entry, around: Visible) -> None:
        """Make an optimizer part of this training, at its first step here; around: what its caller holds."""
        mine = {id(parameter) for parameter in entry.parameters()}
        # Dead optimizers count: their parameters live on in the model that is held.
        predecessor = [other.steps for other, theirs in zip(self.entries, self._trained, strict=True) if mine & theirs]
        entry.training = self
        # An optimizer that takes over the parameters of another goes on counting.
        entry.steps = max(predecessor, default=0)
        self.entries.append(entry)
        self._leader = self._leader if self._leader is not None and self._leader.optimizer() is not None else entry
        entry.probe = next((parameter for parameter in entry.parameters() if parameter.grad is not None), None)
        self._trained.append(mine)
        optimizer = entry.optimizer()
        if optimizer is None:
            return
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
                self.run.params(known)

    def _unused(self, entry: Entry) -> str:
        """Return the name of an optimizer's variable, made different from the other optimizers'."""
        taken = {other.name for other in self.entries if other is not entry}
        base = entry.name or "optimizer"
        return next(name for name in (base, *(f"{base}_{i}" for i in range(2, 1000))) if name not in taken)

    def trains_part_of(self, entry: Entry) -> bool:
        """Return whether `entry`'s optimizer trains parameters of this training's models."""
        held = {id(p) for root in self.roots if root.module is not None for p in root.module.parameters()}
        held.update(id(parameter) for other in self.entries for parameter in other.parameters())
        return any(id(parameter) in held for parameter in entry.parameters())

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
        if self.run.config.log_models and self.run.config.log_model_signatures:
            guard.run("infer the model's signature", shapes.arm, module, root.saw)
        return root

    # -- each step ------------------------------------------------------------------------------------------------

    def record(self, entry: Entry, optimizer: Optimizer, losses: dict[Site, Any]) -> None:
        """Record one update: its losses and the learning rates that it was made with."""
        step = entry.steps
        entry.steps = step + 1
        self.failed = False
        later = False
        values: dict[str, Any] = {}
        for site, value in losses.items():
            values[self._names.get(site) or self._name(site, losses)] = value
            later = later or type(value) is not float
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
        key = None
        if self._schedule is not None and entry is self._leader and self._schedule.due_at_step(step + 1):
            key = self._checkpoint(entry, step, values)
        at = now()
        entry.last = (values, step, at)
        if later:
            self._drain.add(values, step, at, key)
        elif values:
            self.run.metrics(values, step=step, time=at, model=key)

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
        name = "learning_rate"
        if self.several or self._independent > 1:
            name += f"_{entry.name}"
        return [name] if groups == 1 else [f"{name}_{i}" for i in range(groups)]

    # -- models ---------------------------------------------------------------------------------------------------

    def _checkpoint(self, entry: Entry, step: int, values: dict[str, Any]) -> str | None:
        """Take a snapshot of every model; return the key of the one that `entry` trains."""
        started = time.perf_counter()
        linked = None
        score = values.get(self.run.config.checkpoints.monitor)
        for root in self.roots:
            name = f"checkpoint-{step}" if len(self.roots) == 1 else f"{root.name}-checkpoint-{step}"
            key = self._save(root, name, step, register=False)
            if key is None:
                continue
            self.run.drop_models(root.shelf.add(key, score if isinstance(score, float) else None))
            if root is entry.root:
                linked = key
        if self._schedule is not None:
            self._schedule.taken(step + 1, time.perf_counter() - started)
        return linked

    def _save(self, root: Root, name: str, step: int, *, register: bool, since: int | None = None) -> str | None:
        if not self.run.config.log_models or root.failed or root.module is None:
            return None
        taken = guard.attempt(snapshots.take, root.module, root.signature)
        if taken.value is None:
            if isinstance(taken.error, snapshots.Torn):
                guard.say_once("torn", "mlflow-autolog: the model is not recorded, since %s.", taken.error)
            elif taken.error is not None:
                root.failed = True
                guard.report("take a snapshot of the model", taken.error)
            return None
        return self.run.model(taken.value, name=name, step=step, register=register, metrics_since=since)

    def _final(self, status: str) -> None:
        for root in self.roots:
            if root.module is not None:
                shapes.disarm(root.module)
            mine = [entry for entry in self.entries if entry.root is root and entry.last is not None]
            if not mine:
                continue
            newest = max(mine, key=lambda entry: entry.steps)
            assert newest.last is not None
            values, step, at = newest.last
            name = "model" if len(self.roots) == 1 else root.name
            # What the user logged by hand since the last step is about this model, if there is only one.
            since = at if len(self.roots) == 1 else None
            key = self._save(root, name, step, register=status == "FINISHED", since=since)
            if key is None or not values:
                continue
            # The same points again, in name, step, time and value: the store keeps one, and links it to the model.
            if any(type(value) is Later for value in values.values()):
                self._again(values, step, at, key)
            else:
                self.run.metrics(values, step=step, time=at, model=key)

    def _again(self, values: dict[str, Any], step: int, at: int, key: str) -> None:
        # By then the drain, which is on the same thread and was asked before, has put numbers in.
        self.run.later("link metrics", lambda: self.run.metrics(values, step=step, time=at, model=key))

    # -- the end --------------------------------------------------------------------------------------------------

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Record the final model and end the run, once."""
        if self.ended:
            return
        self.ended = True
        guard.run("record the final model", self._final, status)
        guard.run("end the run", self.run.end, status, error)
        runtime.closed(self.run)
        self.release()

    def release(self) -> None:
        """Let go of the user's objects."""
        for root in self.roots:
            root.module = None
        for entry in self.entries:
            entry.probe = entry.root = entry.last = None


__all__ = ["Root", "Training"]
