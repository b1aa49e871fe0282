"""Which PyTorch functions are patched, and why there.

* ``torch.autograd.backward``: every backward ends there, ``Tensor.backward`` included, which looks it up at each call.
  So ``Tensor`` itself stays as it is for pickles, subclasses and torch.compile. A plain function, as a wrapt wrapper
  costs six times as much.
* the global optimizer step hooks: they are torch's own seam, they reach optimizers made before ``autolog()``, and
  unlike a wrapped ``step`` they do not meet the wrappers that optimizers and schedulers put on it.
* ``Optimizer.zero_grad``: where it leaves zeros, that gradients were thrown away cannot be seen otherwise.
* ``Optimizer.load_state_dict``: to know the state that outlives the optimizer, for the last checkpoint.
* ``Module.load_state_dict``: to know that a model is no longer what its last update made of it, such as the best again.
* ``Optimizer.__init__``: to see which module's ``parameters()`` an optimizer gets, before it consumes them.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from autolog import guard, patching, runtime
from autolog.flavor import Flavor
from flavors.torch import evaluation, hot, models, optimizers, shapes, transformers
from flavors.torch.harvest import Harvest
from flavors.torch.lightning import CONNECTORS, patch_connector
from flavors.torch.optimizers import Origin
from flavors.torch.passes import Pass
from flavors.torch.recorder import Recorder


class TorchFlavor(Flavor):
    """Plain PyTorch training loops: one run per training, one point per optimizer step."""

    name: ClassVar[str] = "torch"
    # Its estimators are loops of torch's.
    claims: ClassVar[tuple[str, ...]] = ("skorch",)

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

        wrapped_step = Optimizer.profile_hook_step(lambda: None).__code__
        recorder = self._recorder = self._recorder or Recorder(wrapped_step)

        before, after = hot.step_hooks(module, recorder)
        self.on_unpatch(register_optimizer_step_pre_hook(before).remove)
        self.on_unpatch(register_optimizer_step_post_hook(after).remove)
        self._leave_untraced(before, after)
        self._patch_backward(module, recorder)
        self._patch_init(Optimizer, recorder)
        self._patch_load(Optimizer, recorder)
        self._patch_weights(module.nn.Module, recorder)
        self._patch_zero(Optimizer, recorder)
        for connector in CONNECTORS:
            self.when_imported(connector, lambda found: patch_connector(found, recorder, self._replace))
        self.when_imported(
            transformers.MODULE, lambda found: transformers.patch_trainer(found, recorder, self._replace)
        )
        self._patch_clipping(module, recorder)
        self._patch_loaders(module, recorder)
        self._patch_losses(module, recorder)
        harvest = Harvest(recorder.threads)
        self.when_imported("tqdm.std", lambda tqdm: self.wrap_call(tqdm.tqdm, "set_postfix", harvest.set_postfix))
        for name in ("torch.utils.tensorboard.writer", "tensorboardX.writer"):
            self.when_imported(name, lambda found: harvest.patch_writer(self.wrap_call, found))
        self.when_imported("torchmetrics.metric", lambda found: harvest.patch_metrics(self._replace, found))
        self.on_unpatch(shapes.disarm_all)

    def _leave_untraced(self, *functions: Any) -> None:
        """Have torch.compile leave `functions` to Python where it calls them from there, and all that they record with.

        It goes on with whatever Python runs where it could not compile the caller, would find `compiling()` to be true,
        and look into the writer. Where it does compile the caller, it includes them as before.
        """

        def tell(eval_frame: Any) -> None:
            if hasattr(eval_frame, "set_code_exec_strategy"):  # Not in torch before 2.7.
                action, strategy = eval_frame.FrameAction, eval_frame.FrameExecStrategy
                for function in functions:
                    eval_frame.set_code_exec_strategy(function.__code__, strategy(action.SKIP, action.DEFAULT))
                eval_frame.set_code_exec_strategy(guard.run.__code__, strategy(action.SKIP, action.SKIP))

        self.when_imported("torch._dynamo.eval_frame", tell)

    def _patch_backward(self, torch: Any, recorder: Recorder) -> None:
        original = torch.autograd.backward
        backward = hot.backward_in_place_of(original, torch, recorder)
        self._replace(torch.autograd, "backward", original, backward)
        self._rebind({id(original): (original, backward)})
        self._leave_untraced(backward)

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

    def _patch_load(self, optimizer_class: Any, recorder: Recorder) -> None:
        original = optimizer_class.load_state_dict

        @functools.wraps(original)
        def load_state_dict(self: Any, state_dict: Any) -> None:
            original(self, state_dict)
            guard.run("see an optimizer's new state", recorder.loaded, self)

        self._replace(optimizer_class, "load_state_dict", original, load_state_dict)

    def _patch_weights(self, module_class: Any, recorder: Recorder) -> None:
        original = module_class.load_state_dict

        @functools.wraps(original)
        def load_state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
            before = guard.run("see a model's weights", recorder.weights, self)
            result = original(self, *args, **kwargs)
            if before:
                guard.run("see a model's new weights", recorder.replaced, before)
            return result

        self._replace(module_class, "load_state_dict", original, load_state_dict)

    def _patch_zero(self, optimizer_class: Any, recorder: Recorder) -> None:
        original = optimizer_class.zero_grad

        @functools.wraps(original)
        def zero_grad(self: Any, set_to_none: bool = True) -> None:
            original(self, set_to_none)
            # That they are None is seen at the next backward.
            if not set_to_none:
                guard.run("see that gradients are zero", recorder.zeroed, self)

        self._replace(optimizer_class, "zero_grad", original, zero_grad)

    def _patch_clipping(self, torch: Any, recorder: Recorder) -> None:
        original = torch.nn.utils.clip_grad_norm_
        unscale = torch.amp.GradScaler.unscale_
        compiling = torch.compiler.is_dynamo_compiling

        @functools.wraps(original)
        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
            norm = original(*args, **kwargs)
            if not compiling() and runtime.enabled:
                guard.run("see the norm of the gradients", recorder.clipped, args, kwargs, norm)
            return norm

        @functools.wraps(unscale)
        def unscale_(self: Any, optimizer: Any) -> None:
            unscale(self, optimizer)
            recorder.threads.pending.unscaled = True

        self._replace(torch.nn.utils, "clip_grad_norm_", original, clip_grad_norm_)
        self._replace(torch.amp.GradScaler, "unscale_", unscale, unscale_)
        self._rebind({id(original): (original, clip_grad_norm_)})

    def _patch_loaders(self, torch: Any, recorder: Recorder) -> None:
        from torch.utils.data.dataloader import _BaseDataLoaderIter

        original, original_next = torch.utils.data.DataLoader.__iter__, _BaseDataLoaderIter.__next__
        passes = recorder.passes
        clock, run, got, under_way = time.perf_counter, guard.run, Pass.got, passes.open
        frame_at = sys._getframe

        @functools.wraps(original)
        def __iter__(self: Any) -> Any:
            if not runtime.recording():
                return original(self)
            guard.run("begin a pass over a loader", passes.before)
            iterator = original(self)
            name = guard.run("see what a loader is called", loader_name, self)
            guard.run("begin a pass over a loader", passes.begin, self, iterator, name or "")
            return iterator

        @functools.wraps(original_next)
        def __next__(self: Any) -> Any:
            started = clock()
            try:
                batch = original_next(self)
            except StopIteration:
                guard.run("end a pass over a loader", passes.exhausted, self, frame_at(1))
                raise
            known = under_way.get(id(self))
            if known is not None:
                run("note a batch", got, known, batch, started, clock())
            return batch

        self._replace(torch.utils.data.DataLoader, "__iter__", original, __iter__)
        self._replace(_BaseDataLoaderIter, "__next__", original_next, __next__)

    def _patch_losses(self, torch: Any, recorder: Recorder) -> None:
        functional = torch.nn.functional
        replaced: dict[int, tuple[Any, Any]] = {}

        for name in evaluation.FUNCTIONS:
            original = getattr(functional, name)
            made = evaluation.wrap(name, original, recorder.threads, recorder.passes.open)
            self._replace(functional, name, original, made)
            replaced[id(original)] = (original, made)
        self._rebind(replaced)

    def _rebind(self, replaced: dict[int, tuple[Any, Any]]) -> None:
        with ExitStack() as stack:
            patching.rebind(stack, replaced)
            self.on_unpatch(stack.pop_all().close)

    def _replace(self, owner: Any, name: str, original: Any, made: Any) -> None:
        setattr(owner, name, made)

        def undo() -> None:
            # What somebody has put over it meanwhile stays; it leads through to the original, as ours is off then.
            if vars(owner).get(name) is made:
                setattr(owner, name, original)

        self.on_unpatch(undo)

    def finish_model(self, folder: Path, package: Mapping[str, Any]) -> Mapping[str, Any]:
        """Export a model, in the sender, where ``serialization_format="pt2"`` asked for that."""
        from flavors.torch import export

        return export.finish(folder, package)

    def model_class(self, model: Any) -> str:
        """Return the name of a module's class, "" for what is no module."""
        import torch

        module = models.unwrap(model, torch.nn.Module)
        return "" if module is None else type(module).__qualname__

    def resume(
        self,
        folder: Path,
        model: Any,
        optimizers: Sequence[Any],
        schedulers: Sequence[Any],
        scaler: Any,
        generators: Sequence[Any],
        tags: Mapping[str, str],
    ) -> tuple[int, int]:
        """Restore a checkpoint and go on counting from it; see :func:`autolog.resume`."""
        from flavors.torch.resume import restore

        steps, epochs = restore(folder, model, optimizers, schedulers, scaler, generators)
        tags = {**tags, "autolog.resumed_from.step": str(steps - 1)}
        for optimizer in optimizers:
            if self._recorder is not None:
                self._recorder.resumed(getattr(optimizer, "optimizer", optimizer), Origin(steps, epochs, tags))
        return steps, epochs

    def finish(self, status: str, error: BaseException | None) -> None:
        """End the trainings that are still open, as the process ends or recording is switched off."""
        if self._recorder is not None:
            self._recorder.finish(status, error)

    def finish_here(self, status: str, error: BaseException | None) -> None:
        """End the training of the calling thread."""
        if self._recorder is not None:
            self._recorder.finish_here(status, error)

    def finish_adopted(self, run_id: str) -> None:
        """Record the final model of what was trained in the user's own run, which ends now."""
        if self._recorder is not None:
            self._recorder.finish_adopted(run_id)


def loader_name(loader: Any) -> str:
    """Return what the user's code calls a loader, without the word loader: ``test_loader`` is "test"."""
    name = (patching.variable_name(loader, patching.user_frame()) or "").lower()
    for ending in ("_dataloader", "_data_loader", "_loader", "dataloader", "loader", "_dl"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name
