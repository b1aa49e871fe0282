"""The norm of the gradients: what the user's own clipping computed, else measured now and then.

Measuring takes at most a hundredth of the training's time, and is as rare as a curve of that length needs it: ten times
a second at first, twice a second after some seconds. It launches a few kernels on a device and waits for none;
gradients that are spread over processes are left alone, as their norm takes all of them together.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer

#: Milliseconds between two measurements, at first and later, in between a part of what the training has taken; and how
#: many times longer than a measurement the training in between must take.
_APART, _LATER, _PART, _SHARE = 100.0, 500.0, 0.1, 100.0


class Sampler:
    """When to measure the gradients of one optimizer. due: time of the next measurement, in milliseconds."""

    __slots__ = ("_began", "due")

    def __init__(self, optimizer: Optimizer) -> None:
        #: Time of the first measurement.
        self._began: int | None = None
        # torch's own leave the gradients as they were; others may write into them.
        self.due = 0.0 if type(optimizer).__module__.partition(".")[0] == "torch" else float("inf")

    def measure(self, optimizer: Any, at: int) -> Any:
        """Return the 2-norm of all gradients as a 0-dimensional tensor; None where it cannot be told.

        As ``torch.nn.utils.get_total_norm`` computes it.
        """
        import torch

        started = time.perf_counter()
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        scaled = getattr(optimizer, "grad_scale", None) is not None
        if scaled or not gradients or any(type(g) is not torch.Tensor or g.layout != torch.strided for g in gradients):
            self.due = float("inf")
            return None
        if len({(gradient.device, gradient.dtype) for gradient in gradients}) > 1:
            self.due = float("inf")
            return None
        with torch.no_grad():
            norms = torch._foreach_norm(gradients)
            norm = torch.linalg.vector_norm(torch.stack(norms))
        if self._began is None:
            self._began = at
        apart = min(max(_APART, (at - self._began) * _PART), _LATER)
        self.due = at + max(apart, (time.perf_counter() - started) * 1000 * _SHARE)
        return norm


__all__ = ["Sampler"]
