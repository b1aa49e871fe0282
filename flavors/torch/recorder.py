"""What the patches of :mod:`flavors.torch.flavor` call: from backwards and steps to trainings and their runs."""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from autolog import guard, patching, runtime, scope
from flavors.torch import models, transformers, unwinding
from flavors.torch.losses import Compiled, Pending, Recent, Threads
from flavors.torch.optimizers import Entry, Origin, Registry
from flavors.torch.passes import Passes
from flavors.torch.sites import find
from flavors.torch.training import Training

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

    from flavors.torch.roots import Root, Weights


class Recorder:
    """All trainings of this process. wrapped_step: the code object that ``Optimizer.profile_hook_step`` runs."""

    def __init__(self, wrapped_step: Any) -> None:
        import torch

        self._wrapped_step = wrapped_step
        self._searching = torch.optim.LBFGS
        self._tensor = torch.Tensor
        self.registry = Registry(self._died)
        self.compiled = Compiled()
        self.recent = Recent()
        self.threads = Threads(torch.Tensor, self.registry.unused, self.compiled, self.recent)
        self.passes = Passes(self.threads)
        self._trainings: list[Training] = []

    # -- around a step --------------------------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer, pending: Pending) -> None:
        """Note that a step begins, where another may be under way, or with a closure."""
        # An optimizer may call another's step, or its base class's; a step that raised has never ended.
        if pending.depth and not self._is_under_way(pending.stepping):
            pending.depth = 0
        if not pending.depth:
            pending.stepping = id(optimizer)
            pending.searching = isinstance(optimizer, self._searching)
        pending.depth += 1

    def after_step(self, optimizer: Optimizer, pending: Pending) -> None:
        """Record a step that succeeded."""
        for lingering in list(pending.lingering):
            lingering.stepping()
        pending.stepped += 1
        entry = self.registry.get(optimizer)
        training = entry.training if entry is not None else None
        norm, pending.clipped = pending.clipped, None
        losses = pending.take()
        if entry is None or training is None or training.ended:
            entry, training = self._join(optimizer, entry, pending)
            if entry is None or training is None:
                return
        if pending.training is not training:
            pending.training = training
            training.followers.append(pending)
        training.record(entry, optimizer, pending, losses, norm)

    def clipped(self, args: Any, kwargs: Any, norm: Any) -> None:
        """Take the norm that the user's clipping computed: the 2-norm, of gradients that are not scaled."""
        pending = self.threads.pending
        kind = args[2] if len(args) > 2 else kwargs.get("norm_type", 2.0)
        if float(kind) != 2.0 or type(norm) is not self._tensor:
            return
        if not pending.unscaled and pending.scaled():
            return
        pending.clipped = norm.detach()

    def zeroed(self, optimizer: Optimizer) -> None:
        """Note that the gradients of `optimizer` are zero: what was differentiated before is in no update of its."""
        pending = self.threads.pending
        training = pending.training
        if pending.depth or not pending.holds():
            return
        known = self.registry.waiting(threading.get_ident()) if training is None or training.ended else training.entries
        # Of several optimizers, the loss may be another's.
        if len(known) == 1 and known[0].optimizer() is optimizer:
            pending.clear()

    def _is_under_way(self, optimizer: int) -> bool:
        """Return whether a step of the optimizer with that id is up the stack, besides the one that begins now."""
        frame: FrameType | None = sys._getframe(1)
        begun = 0
        while frame is not None:
            if frame.f_code is self._wrapped_step:
                begun += 1
                args = frame.f_locals.get("args")
                if begun > 1 and args and id(args[0]) == optimizer:
                    return True
            frame = frame.f_back
        return False

    # -- whose step it is -----------------------------------------------------------------------------------------

    def _join(
        self, optimizer: Optimizer, entry: Entry | None, pending: Pending
    ) -> tuple[Entry | None, Training | None]:
        """Return the training that `optimizer`'s first step belongs to, opened where it is new.

        Optimizers that existed at a training's first step are part of it (a GAN's two), and so is one that trains the
        same parameters. Any other begins a training of its own, which ends the one before in this thread.
        """
        if scope.current() is not None or (entry is not None and entry.refused):
            return None, None
        if entry is None:
            entry = self.registry.add(optimizer)
        frame = self._caller(optimizer)
        if frame is not None:
            entry.name = find(frame, "step", method=True).name
        current = pending.training
        if current is not None and not current.ended:
            if entry.serial <= current.serial or current.trains_part_of(entry):
                current.add(entry, models.visible(frame))
                return entry, current
            current.end("FAILED" if current.failed else "FINISHED")
        if not self._may_record():
            entry.refused = True
            return None, None
        waiting = self.registry.waiting(threading.get_ident())
        # One that wraps this one, as SAM and Lookahead do, trains nothing else.
        mine = {id(parameter) for parameter in entry.parameters()}
        others = [other for other in waiting if not mine.issuperset(id(p) for p in other.parameters())]
        newest = max((other.serial for other in waiting), default=entry.serial)
        pending.begin()
        run = runtime.open_run("torch")
        if run.adopted:
            guard.run("see who else logs into the user's run", transformers.yield_to_callback, run)
        training = Training(run, max(newest, entry.serial), several=bool(others))
        self._trainings = [known for known in self._trainings if not known.ended]
        self._trainings.append(training)
        training.add(entry, models.visible(frame))
        return entry, training

    def _caller(self, optimizer: Optimizer) -> FrameType | None:
        """Return the frame that called the step of `optimizer` which is under way."""
        frame: FrameType | None = sys._getframe(1)
        found = None
        while frame is not None:
            if frame.f_code is self._wrapped_step:
                found = frame.f_back
                args = frame.f_locals.get("args")
                if args and args[0] is optimizer:
                    break
            frame = frame.f_back
        # A learning rate scheduler wraps the step of its optimizer.
        if found is not None and found.f_code.co_filename.endswith("lr_scheduler.py"):
            found = found.f_back
        return found

    def _may_record(self) -> bool:
        import torch

        if not runtime.may_record("torch"):
            return False
        # Looked at only now: the process group is made after autolog() was called.
        distributed = torch.distributed
        return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0)

    # -- going on from a checkpoint -------------------------------------------------------------------------------

    def resumed(self, optimizer: Optimizer, origin: Origin) -> None:
        """Note that `optimizer` goes on from a checkpoint: what it trains next is a run of its own."""
        entry = self.registry.get(optimizer) or self.registry.add(optimizer)
        if entry.training is not None:
            entry.training.end("FINISHED")
        entry.origin = origin
        entry.training = None

    def loaded(self, optimizer: Optimizer) -> None:
        """Note that `optimizer` has got another state, which is the one that its last checkpoint will need."""
        entry = self.registry.get(optimizer)
        if entry is not None and entry.kept is not None:
            entry.keep(optimizer)

    def weights(self, module: Module) -> list[tuple[Training, Root, Weights | None]]:
        """Return what the models that are trained, and that `module` is part of, have for weights now."""
        found = [training for training in self._trainings if not training.ended]
        return [(training, root, root.weights()) for training in found for root in training.roots_with(module)]

    def replaced(self, before: list[tuple[Training, Root, Weights | None]]) -> None:
        """Note that models have got other weights than they had before, unless these are the same."""
        for training, root, weights in before:
            now = root.weights()
            if now is None or now != weights:
                training.checkpoints.replaced(root, now)

    # -- the end --------------------------------------------------------------------------------------------------

    def _died(self, entry: Entry) -> None:
        """End the training whose last optimizer died; may be called inside a garbage collection, in any thread."""
        training = entry.training
        if training is None or training.ended or training.process != os.getpid() or not runtime.enabled:
            return
        if any(other.optimizer() is not None for other in training.entries):
            return
        if threading.get_ident() == training.thread:
            guard.run("end the run", self._end, training)
        else:
            # Not now: somebody else's code is under way here, perhaps inside one of our own locks.
            training.run.later("end the run", lambda: self._end(training))

    def _end(self, training: Training) -> None:
        # A step that raised has never ended.
        pending = self.threads.pending
        unfinished = pending.depth > 0 and any(entry.number == pending.stepping for entry in training.entries)
        failed = training.failed or unfinished
        successor = next((e for e in self.registry.waiting(training.thread) if training.trains_part_of(e)), None)
        if successor is not None:
            return  # The same parameters go on being trained.
        error = sys.exc_info()[1]
        if error is not None and self._raised_in(training, error):
            training.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
        else:
            failed = failed or unwinding.by_exception(patching.user_frame())
            training.end("FAILED" if failed else "FINISHED")

    def _raised_in(self, training: Training, error: BaseException) -> bool:
        """Return whether `error`, which is being handled, came through the function that trains."""
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code in training.codes:
                return True
            trace = trace.tb_next
        return False

    def finish(self, status: str, error: BaseException | None) -> None:
        """End every training that is open."""
        for training in self._trainings:
            if training.process == os.getpid():
                training.end(status, error)
        self._trainings = []
        if self.compiled.ever:
            self.compiled.ever = False
            guard.say_once(
                "compiled step",
                "mlflow-autolog: an optimizer's steps are not recorded, since torch.compile has compiled its step(): "
                "nothing runs in Python there. To have them recorded, compile the model instead: torch.compile(model).",
            )

    def finish_here(self, status: str, error: BaseException | None) -> None:
        """End the training of the calling thread, if it began there."""
        training = self.threads.pending.training
        if training is not None and training.thread == threading.get_ident():
            training.end(status, error)

    def finish_adopted(self, run_id: str) -> None:
        """End the trainings of run `run_id`, the user's own or that of a carried call, which ends now."""
        for training in self._trainings:
            if run_id in (training.run.adopted, training.run.host):
                training.end("FINISHED")
