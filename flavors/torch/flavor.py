"""Which PyTorch functions are patched, and why there.

* ``torch.autograd.backward``: every backward ends there, ``Tensor.backward`` included, which looks it up at each call.
  So ``Tensor`` itself stays as it is for pickles, subclasses and torch.compile. A plain function, as a wrapt wrapper
  costs six times as much.
* the global optimizer step hooks: they are torch's own seam, they reach optimizers made before ``autolog()``, and
  unlike a wrapped ``step`` they do not meet the wrappers that optimizers and schedulers put on it.
* ``Optimizer.__init__``: to see which module's ``parameters()`` an optimizer gets, before it consumes them.
"""

from __future__ import annotations

import functools
import sys
from contextlib import ExitStack
from types import ModuleType
from typing import Any, ClassVar

from autolog import guard, patching, runtime, scope
from autolog.flavor import Flavor
from flavors.torch import optimizers, shapes
from flavors.torch.recorder import Recorder


class TorchFlavor(Flavor):
    """Plain PyTorch training loops: one run per training, one point per optimizer step."""

    name: ClassVar[str] = "torch"

    def __init__(self) -> None:
        super().__init__()
        self._recorder: Recorder | None = None

    def patch(self, module: ModuleType) -> None:
        """Patch backward, optimizer steps and optimizer construction."""
        from torch.optim import Optimizer
        from torch.optim.optimizer import (
            register_optimizer_step_post_hook,
            register_optimizer_step_pre_hook,
        )

        muted = scope.is_muted
        wrapped_step = Optimizer.profile_hook_step(lambda: None).__code__
        recorder = self._recorder = self._recorder or Recorder(wrapped_step)

        compiling = module.compiler.is_compiling
        threads = recorder.threads

        # Each step: as little as can be, and nothing that could raise, outside of guard.run.
        def before(optimizer: Any, args: Any, kwargs: Any) -> None:
            if compiling():
                return
            pending = threads.pending
            if pending.depth or len(args) != 1 or kwargs:
                guard.run("note an optimizer step", recorder.before_step, optimizer, pending)
            else:
                pending.depth = 1
                pending.stepping = id(optimizer)

        def after(optimizer: Any, args: Any, kwargs: Any) -> None:
            if compiling():
                return
            pending = threads.pending
            if pending.depth > 1:
                pending.depth -= 1
                return
            pending.depth = pending.stepping = 0
            pending.searching = False
            if runtime.enabled and not muted():
                guard.run("record an optimizer step", recorder.after_step, optimizer, pending)
            else:
                pending.clear()

        self.on_unpatch(register_optimizer_step_pre_hook(before).remove)
        self.on_unpatch(register_optimizer_step_post_hook(after).remove)
        self._patch_backward(module, recorder)
        self._patch_init(Optimizer, recorder)
        self.on_unpatch(shapes.disarm_all)

    def _patch_backward(self, torch: Any, recorder: Recorder) -> None:
        original = torch.autograd.backward
        compiling = torch.compiler.is_compiling
        inside_backward = torch._C._current_graph_task_id
        tensor_backward = torch.Tensor.backward.__code__
        threads = recorder.threads
        muted = scope.is_muted

        @functools.wraps(original)
        def backward(
            tensors: Any,
            grad_tensors: Any = None,
            retain_graph: Any = None,
            create_graph: Any = False,
            grad_variables: Any = None,
            inputs: Any = None,
        ) -> None:
            # A backward inside a backward recomputes activations; weighted outputs are no loss.
            if (
                compiling()
                or grad_tensors is not None
                or grad_variables is not None
                or inside_backward() != -1
                or not runtime.enabled
                or muted()
            ):
                original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
                return
            pending = threads.pending
            before = pending.count
            # In front of it, since it frees the graph.
            guard.run("record a loss", pending.see, tensors, sys._getframe(1), tensor_backward)
            try:
                original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
            except BaseException:
                pending.forget(before)
                if pending.training is not None:
                    pending.training.failed = True
                raise

        self._replace(torch.autograd, "backward", original, backward)
        with ExitStack() as stack:
            patching.rebind(stack, {id(original): (original, backward)})
            self.on_unpatch(stack.pop_all().close)

    def _patch_init(self, optimizer_class: Any, recorder: Recorder) -> None:
        original = optimizer_class.__init__

        @functools.wraps(original)
        def __init__(self: Any, params: Any, defaults: Any) -> None:
            recording = runtime.recording()
            module = (
                guard.run("see whose parameters an optimizer gets", optimizers.owner, params) if recording else None
            )
            original(self, params, defaults)
            if recording:
                guard.run("note an optimizer", recorder.registry.add, self, module)

        self._replace(optimizer_class, "__init__", original, __init__)

    def _replace(self, owner: Any, name: str, original: Any, made: Any) -> None:
        setattr(owner, name, made)

        def undo() -> None:
            # What somebody has put over it meanwhile stays; it leads through to the original, as ours is off then.
            if vars(owner).get(name) is made:
                setattr(owner, name, original)

        self.on_unpatch(undo)

    def finish(self, status: str, error: BaseException | None) -> None:
        """End the trainings that are still open, as the process ends or recording is switched off."""
        if self._recorder is not None:
            self._recorder.finish(status, error)

    def finish_adopted(self, run_id: str) -> None:
        """Record the final model of what was trained in the user's own run, which ends now."""
        if self._recorder is not None:
            self._recorder.finish_adopted(run_id)
