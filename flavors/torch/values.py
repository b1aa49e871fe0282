"""Numbers of a step: those on the CPU are read at once, those on a device later, without holding up the training.

Reading a device's value (``.item()``) waits until the device has done all that was asked of it. So a value on a device
is kept as a tensor, and the worker thread copies many at a time into pinned memory and looks now and then whether the
copy is done.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from autolog.datasets import Dataset
from autolog.run import Run

if TYPE_CHECKING:
    from torch import Tensor

#: In place of the names of losses: an epoch is complete.
_EPOCH = ("(epoch)",)
#: Seconds between two looks at a copy under way.
_LOOK = 0.001


class Later:
    """The mean of several numbers of which some are on a device: ``factor * mean(parts) / scale``."""

    __slots__ = ("factor", "parts", "scale", "stream")

    def __init__(self, parts: Sequence[Any], factor: float = 1.0, scale: Tensor | None = None) -> None:
        import torch

        self.parts = list(parts)
        self.factor = factor
        self.scale = scale
        on_cuda = next((part for part in self.parts if isinstance(part, torch.Tensor) and part.is_cuda), None)
        #: The stream that computes the parts: what is asked of it later sees them complete.
        self.stream = torch.cuda.current_stream(on_cuda.device) if on_cuda is not None else None

    def tensors(self) -> list[Tensor]:
        """Return the parts that are still on a device, the scale last."""
        found = [part for part in self.parts if not isinstance(part, float)]
        return found if self.scale is None else [*found, self.scale]

    def value(self, read: Sequence[float]) -> float:
        """Return the number, given what :meth:`tensors` hold."""
        left = iter(read)
        numbers = [part if isinstance(part, float) else next(left) for part in self.parts]
        mean = sum(numbers) / len(numbers) * self.factor
        return mean if self.scale is None else mean / next(left)


class Row(NamedTuple):
    """Metrics of one moment: their names and values, the step, the time in milliseconds, what they are linked to."""

    values: dict[str, Any]
    step: int
    time: int
    model: str | None = None
    dataset: Dataset | None = None

    @property
    def known(self) -> bool:
        """Whether no device holds any of the values."""
        return not any(type(value) is Later for value in self.values.values())

    def record(self, run: Run) -> None:
        """Record them, numbers by now."""
        if self.values:
            run.metrics(self.values, step=self.step, time=self.time, model=self.model, dataset=self.dataset)


class Drain:
    """The values of one run that are on a device, in the order of their steps."""

    __slots__ = ("_queue", "_run", "_scheduled", "_sums")

    def __init__(self, run: Run) -> None:
        self._run = run
        self._queue: deque[tuple[Row, tuple[str, ...]]] = deque()
        #: (sum, count) of each loss of the epoch, as far as it is read; the worker thread's own.
        self._sums: dict[str, list[float]] = {}
        self._scheduled = False

    def add(self, row: Row, losses: tuple[str, ...] | None = ()) -> None:
        """Record `row` once its values can be read; those of type :class:`Later` are replaced by numbers then.

        losses: which of them the epoch's means are about; None where an epoch is complete, whose means are added to
            its values as ``<name>_epoch``.
        """
        self._queue.append((row, losses if losses is not None else _EPOCH))
        if not self._scheduled:
            self._scheduled = True
            self._run.later("read values from the device", self._read, quick=True)

    def _read(self) -> None:
        self._scheduled = False  # First: what is added from here on gets a job of its own.
        items = [self._queue.popleft() for _ in range(len(self._queue))]
        waiting = [value for row, _ in items for value in row.values.values() if isinstance(value, Later)]
        numbers = read([(tensor, later.stream) for later in waiting for tensor in later.tensors()])
        at = 0
        known: dict[int, float] = {}
        for later in waiting:
            count = len(later.tensors())
            known[id(later)] = later.value(numbers[at : at + count])
            at += count
        for row, losses in items:
            values = row.values
            for name, value in list(values.items()):
                if isinstance(value, Later):
                    values[name] = known[id(value)]
            if losses is _EPOCH:
                values.update({f"{name}_epoch": total / count for name, (total, count) in self._sums.items()})
                self._sums = {}
            else:
                for name in losses:
                    entry = self._sums.setdefault(name, [0.0, 0.0])
                    entry[0] += values[name]
                    entry[1] += 1
            row.record(self._run)


def read(tensors: Sequence[tuple[Tensor, Any]]) -> list[float]:
    """Return the numbers in 0-dimensional tensors; on the worker thread.

    tensors: each with the CUDA stream that computes it, or None for other devices.
    """
    import torch

    found: list[float] = [0.0] * len(tensors)
    streams: dict[Any, list[int]] = {}
    for i, (tensor, stream) in enumerate(tensors):
        if stream is None:
            found[i] = float(tensor.detach().to("cpu").item())
        else:
            streams.setdefault((tensor.device, stream), []).append(i)
    for (device, stream), indices in streams.items():
        with torch.cuda.device(device), torch.cuda.stream(stream):
            stacked = torch.stack([tensors[i][0].detach().reshape(()).to(torch.float64) for i in indices])
            host = torch.empty(len(indices), dtype=torch.float64, pin_memory=True)
            host.copy_(stacked, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)
        while not done.query():  # type: ignore[no-untyped-call]
            time.sleep(_LOOK)
        for i, number in zip(indices, host.tolist(), strict=True):
            found[i] = number
    return found


def is_number(value: Any) -> bool:
    """Return whether `value` is one real number, of Python, numpy or torch."""
    if isinstance(value, bool | str | bytes) or value is None:
        return False
    if isinstance(value, int | float):
        return True
    return getattr(value, "shape", None) == () and getattr(getattr(value, "dtype", None), "is_complex", False) is False


def number(value: Any) -> Any:
    """Return a Python or tensor number as something to record: a float, or :class:`Later` where a device holds it."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.device.type == "cpu":
            return float(value.detach().item())
        return Later([value.detach().clone()])  # A scheduler changes it in place.
    return float(value)


def plain(value: Any) -> Any:
    """Return a hyper-parameter without tensors; a tensor on a device is only named, since reading it would wait."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.device.type == "cpu" and value.numel() == 1:
            return value.detach().item()
        return f"tensor on {value.device}"
    return value


__all__ = ["Drain", "Later", "Row", "is_number", "number", "plain", "read"]
