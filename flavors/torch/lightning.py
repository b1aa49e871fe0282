"""What a LightningModule logs, taken where the Trainer hands it to its loggers, whether it has any or not.

Its losses, steps and models are seen as those of any other loop. Both names of the package are known,
``lightning.pytorch`` and ``pytorch_lightning``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autolog import guard, predictions, runtime, scope
from flavors.torch.values import number

if TYPE_CHECKING:
    from flavors.torch.recorder import Recorder

#: Where ``Trainer.logged_metrics`` is filled.
CONNECTORS = tuple(
    f"{package}.trainer.connectors.logger_connector.logger_connector"
    for package in ("pytorch_lightning", "lightning.pytorch")
)


def patch_connector(module: ModuleType, recorder: Recorder, replace: Callable[[Any, str, Any, Any], None]) -> None:
    """Patch one of :data:`CONNECTORS`. replace: called with owner, name, original and what to put there."""
    connector: Any = module.__dict__["_LoggerConnector"]
    original = connector.log_metrics

    @functools.wraps(original)
    def log_metrics(self: Any, metrics: Any, step: Any = None) -> None:
        if runtime.enabled and not scope.is_muted():
            guard.run("record what Lightning logs", _logged, recorder, self.trainer, metrics, step)
        # Its loggers write with TensorBoard's writer, which is looked at, too.
        with predictions.nested():
            original(self, metrics, step)

    replace(connector, "log_metrics", original, log_metrics)


def _logged(recorder: Recorder, trainer: Any, metrics: Mapping[str, Any], step: Any) -> None:
    training = recorder.threads.pending.training
    if training is None or training.ended or not metrics:
        return
    if step is None:
        # As _LoggerConnector.log_metrics has it.
        step = metrics.get("step", trainer.fit_loop.epoch_loop._batches_that_stepped)
    values = {name: number(value) for name, value in metrics.items() if name not in ("step", "epoch")}
    training.logged(values, int(step), evaluation=bool(trainer.evaluating))


__all__ = ["CONNECTORS", "patch_connector"]
