"""What the user computed for the eye: progress bars, TensorBoard, torchmetrics.

Numbers shown while a training is open in the same thread are recorded in its run. Those that the recording has under
the same name already are left out, since two sources would mix in one curve.

* ``tqdm.set_postfix``: numbers, at the step of the last update. Text is not read: it is rounded for the eye.
* ``SummaryWriter.add_scalar``, of torch and of tensorboardX: at the user's ``global_step``, else the last update's.
* ``SummaryWriter.add_hparams``: parameters and metrics.
* ``torchmetrics.Metric.compute``, as the user calls it: under the variable's name, else the class's, at the last step.
  Each metric wraps its own ``compute`` when it is made, so what is looked at is the result that it keeps.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Generator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autolog import guard, patching, predictions, runtime
from autolog.patching import Call, Hook
from flavors.torch.values import is_number, number

if TYPE_CHECKING:
    from flavors.torch.losses import Threads

#: Metrics that are computed for one batch, in between.
_PER_BATCH = ("forward", "_forward_full_state_update", "_forward_reduce_state_update")


class Harvest:
    """Hooks that say what is shown to the training of the calling thread."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    def say(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record numbers of the training that is open in this thread, if one is."""
        training = self._threads.pending.training
        if training is None or training.ended:
            return
        found = {name: number(value) for name, value in values.items() if is_number(value)}
        if found:
            training.shown(found, step)

    def set_postfix(self, call: Call) -> Generator[None, Any, None]:
        """Hook for ``tqdm.set_postfix``."""
        shown = call.args[0] if call.args else call.kwargs.get("ordered_dict")
        named = {name: value for name, value in call.kwargs.items() if name not in ("ordered_dict", "refresh")}
        self.say({**(shown or {}), **named})
        yield

    def add_scalar(self, call: Call) -> Generator[None, Any, None]:
        """Hook for ``SummaryWriter.add_scalar``."""
        if predictions.by_user(call):
            given = call.arguments
            step: Any = given.get("global_step")
            self.say({given["tag"]: given["scalar_value"]}, int(step) if is_number(step) else None)
        yield

    def add_hparams(self, call: Call) -> Generator[None, Any, None]:
        """Hook for ``SummaryWriter.add_hparams``."""
        given = call.arguments
        training = self._threads.pending.training
        if training is not None and not training.ended:
            training.run.params(given["hparam_dict"])
            self.say(given["metric_dict"])
        with predictions.nested():
            yield

    def patch_writer(self, wrap: Callable[[Any, str, Hook], None], module: ModuleType) -> None:
        """Patch a module's ``SummaryWriter``."""
        wrap(module.SummaryWriter, "add_scalar", self.add_scalar)
        wrap(module.SummaryWriter, "add_hparams", self.add_hparams)

    def patch_metrics(self, replace: Callable[[Any, str, Any, Any], None], module: ModuleType) -> None:
        """Patch ``torchmetrics.Metric``."""
        metric_class = module.Metric
        original = metric_class.__setattr__

        @functools.wraps(original)
        def __setattr__(instance: Any, name: str, value: Any) -> None:
            original(instance, name, value)
            if name == "_computed" and value is not None and runtime.recording():
                guard.run("see a metric's value", self._computed, instance, value)

        replace(metric_class, "__setattr__", original, __setattr__)

    def _computed(self, metric: Any, value: Any) -> None:
        frame = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OURS:
            if frame.f_code.co_name in _PER_BATCH:
                return
            frame = frame.f_back  # type: ignore[assignment]
        name = patching.variable_name(metric, patching.user_frame()) or type(metric).__name__
        self.say({name: value})


_OURS = ("autolog", "flavors", "torchmetrics")


__all__ = ["Harvest"]
