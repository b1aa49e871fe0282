"""What a training needs besides the weights to go on as if it had never stopped.

A checkpoint is taken inside the optimizer's step, where the weights are those of that step. What the loop does after it
(the scheduler's step, the scaler's update) belongs to the same step, so these are read when the next one is recorded,
a new pass over the data begins, or the training ends, whichever comes first. Random states are those of the checkpoint,
or of the beginning of the next pass where that is what comes: an epoch begins with drawing the order of its samples.
The user's own generators count like the global ones.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flavors.torch import randomness

if TYPE_CHECKING:
    from torch import Tensor

    from flavors.torch.copies import Shadow
    from flavors.torch.models import Visible
    from flavors.torch.optimizers import Entry

#: The file in the model's folder.
TRAINING_STATE = "training_state.pth"
_FORMAT = 1


class TrainingState:
    """The state of the optimizers of one model, their schedulers, the loss scaler and random generators.

    step: how many updates were made; epoch: how many epochs are complete.
    """

    def __init__(self, entries: Sequence[Entry], around: Visible, step: int, epoch: int) -> None:
        self._optimizers = [(entry.name, *entry.kept) for entry in entries if entry.kept is not None]
        living = {id(optimizer) for entry in entries if (optimizer := entry.optimizer()) is not None}
        # Weakly: a scheduler keeps its optimizer alive, with which the training ends.
        found, scales = schedulers(around, living), scaler(around)
        self._schedulers = [weakref.ref(one) for one in found]
        self._scaler = weakref.ref(scales) if scales is not None else None
        self._generators = randomness.generators(around)
        held = (
            ("optimizer", self._optimizers),
            ("scheduler", self._schedulers),
            ("scaler", self._scaler),
            ("generator", self._generators),
        )
        self._has_read = False
        #: What it is the state of: some of optimizer, scheduler, scaler and generator, joined by commas.
        self.holds = ",".join(name for name, one in held if one)
        self._saved: dict[str, Any] = {"format": _FORMAT, "step": step, "epoch": epoch}
        self._read_random()
        self._saved["schedulers"] = [("", None)] * len(found)
        self._saved["scaler"] = None
        self._read_companions()

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that :meth:`copy` will ask for."""
        for _, _, state, _ in self._optimizers:
            yield from _tensors(state)

    def copy(self, shadow: Shadow) -> None:
        """Copy the optimizers' state into `shadow`."""
        saved = self._saved["optimizers"] = []
        for name, kind, state, groups in self._optimizers:
            numbers: dict[int, int] = {}
            for group in groups:
                for parameter in group["params"]:
                    numbers.setdefault(id(parameter), len(numbers))
            packed = {
                numbers.get(id(owner), owner) if _is_tensor(owner) else owner: _copied(held, shadow)
                for owner, held in state.items()
            }
            saved.append({"name": name, "class": kind, "state": packed})

    def read(self) -> None:
        """Read what may have changed since the step, with the random states of now: a pass over data begins.

        It may be one for validation, after which there is more to come; so the last one in front of a step counts.
        """
        self._read_on()
        self._read_random()
        self._has_read = True

    def complete(self, *, last: bool = False, anew: bool = False) -> None:
        """Read what may have changed since the step, unless a pass has begun since; then let go of all user objects.

        last: no step follows, so that what is now counts in any case; anew: with the random states of now.
        """
        if anew:
            self.read()
        elif last or not self._has_read:
            self._read_on()
        self._optimizers = []
        self._generators = {}

    def _read_on(self) -> None:
        for saved, (_, _, _, groups) in zip(self._saved["optimizers"], self._optimizers, strict=True):
            count = 0
            saved["param_groups"] = packed = []
            for group in groups:
                values = {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
                values["params"] = list(range(count, count + len(group["params"])))
                count += len(group["params"])
                packed.append(values)
        self._read_companions()

    def _read_random(self) -> None:
        self._saved["random"] = randomness.random_state()
        self._saved["generators"] = randomness.states(self._generators)

    def _read_companions(self) -> None:
        """Read schedulers and scaler; those that are dead by now stay as they were last."""
        for i, ref in enumerate(self._schedulers):
            one = ref()
            if one is not None:
                self._saved["schedulers"][i] = (type(one).__name__, copy.deepcopy(one.state_dict()))
        scales = self._scaler() if self._scaler is not None else None
        if scales is not None:
            self._saved["scaler"] = _scaler_state(scales)

    def write(self, path: Path) -> None:
        """Write the file, on the worker thread, after :meth:`complete`."""
        import torch

        scaler = self._saved["scaler"]
        if scaler is not None:
            for name in ("scale", "_growth_tracker"):
                scaler[name] = scaler[name].item() if _is_tensor(scaler[name]) else scaler[name]
        torch.save(self._saved, path)


def schedulers(around: Visible, optimizers: set[int]) -> list[Any]:
    """Return the schedulers in reach that belong to optimizers (by id), those that others are made of left out."""
    import torch

    kinds = (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    found: dict[int, Any] = {}
    for _, held in around:
        held = _inner(held, "AcceleratedScheduler", "scheduler")
        if issubclass(type(held), kinds) and id(getattr(held, "optimizer", None)) in optimizers:
            found.setdefault(id(held), held)
    parts = {id(part) for held in found.values() for part in getattr(held, "_schedulers", ())}
    return [held for number, held in found.items() if number not in parts]


def scaler(around: Visible) -> Any:
    """Return the gradient scaler in reach, None where there is none or it is switched off."""
    import torch

    return next((one for _, one in around if issubclass(type(one), torch.amp.GradScaler) and one.is_enabled()), None)


def _inner(held: Any, wrapper: str, attribute: str) -> Any:
    return getattr(held, attribute) if type(held).__name__ == wrapper else held


def _scaler_state(scaler: Any) -> dict[str, Any]:
    # Not its state_dict(), which waits for the device.
    scale, tracker = scaler._scale, scaler._growth_tracker
    return {
        "scale": scaler._init_scale if scale is None else scale.detach().clone(),
        "growth_factor": scaler._growth_factor,
        "backoff_factor": scaler._backoff_factor,
        "growth_interval": scaler._growth_interval,
        "_growth_tracker": scaler._init_growth_tracker if tracker is None else tracker.detach().clone(),
    }


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Mapping):
        for held in value.values():
            yield from _tensors(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _tensors(held)
    elif _is_tensor(value):
        yield value


def _copied(value: Any, shadow: Shadow) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(held, shadow) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(held, shadow) for held in value)
    if _is_tensor(value):
        return shadow.copy(value)
    return copy.copy(value)


__all__ = ["TRAINING_STATE", "TrainingState", "scaler", "schedulers"]
