"""What Transformers' Trainer logs, taken where it hands it to its callbacks.

Its losses, steps and models are seen as those of any other loop. What it logs besides, such as what the user's
``compute_metrics`` returns, is recorded under the Trainer's own names at the last update, unless its
``MLflowCallback`` does so: then the names that both would write are left to that.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from autolog import guard, predictions, runtime, scope
from flavors.torch.values import is_number, number

if TYPE_CHECKING:
    from autolog.run import Run
    from flavors.torch.recorder import Recorder

#: Where the Trainer is.
MODULE = "transformers.trainer"
#: What it logs of its updates, which are seen one by one.
_OF_UPDATES = ("loss", "grad_norm", "learning_rate", "epoch", "step")


def patch_trainer(module: ModuleType, recorder: Recorder, replace: Callable[[Any, str, Any, Any], None]) -> None:
    """Patch :data:`MODULE`. replace: called with owner, name, original and what to put there."""
    trainer: Any = module.__dict__["Trainer"]
    original = trainer.log

    @functools.wraps(original)
    def log(self: Any, logs: Any, *args: Any, **kwargs: Any) -> None:
        if runtime.enabled and not scope.is_muted():
            guard.run("record what Transformers' Trainer logs", _logged, recorder, self, logs)
        # TensorBoard's writer is looked at, too, as are the others that its callbacks hand it to.
        with predictions.nested():
            original(self, logs, *args, **kwargs)

    replace(trainer, "log", original, log)


def _logged(recorder: Recorder, trainer: Any, logs: Mapping[str, Any]) -> None:
    training = recorder.threads.pending.training
    if training is None or training.ended or _logs_to_mlflow(trainer):
        return
    values = {name: number(value) for name, value in logs.items() if name not in _OF_UPDATES and is_number(value)}
    evaluation = any(name.endswith("_runtime") and name != "train_runtime" for name in values)
    training.logged(values, evaluation=evaluation)


def _logs_to_mlflow(trainer: Any) -> bool:
    return any(type(callback).__name__ == "MLflowCallback" for callback in trainer.callback_handler.callbacks)


def yield_to_callback(run: Run) -> None:
    """Leave the names of the Trainer's ``MLflowCallback`` to it from the start, where it logs into this same run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == MODULE:
            trainer = frame.f_locals.get("self")
            if hasattr(trainer, "callback_handler"):
                if _logs_to_mlflow(trainer):
                    run.claim(_OF_UPDATES)
                return
        frame = frame.f_back


__all__ = ["MODULE", "patch_trainer", "yield_to_callback"]
