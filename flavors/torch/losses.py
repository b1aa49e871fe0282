"""The losses of a step: what ``backward`` was called on since the last one.

The value recorded is the loss as the user means it. Under gradient accumulation that is the mean over the
micro-batches; ``(loss / k).backward()`` counts as `loss` where k is the number of micro-batches of the step. A factor
that mixed precision multiplies in is taken out where it is the scale of the very ``GradScaler`` that makes the step.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flavors.torch.sites import Site, find
from flavors.torch.values import Later

if TYPE_CHECKING:
    from types import FrameType

    from torch import Tensor

    from flavors.torch.training import Training

#: Backwards without any optimizer step after which nothing is kept: then no optimizer of torch's is in use.
_LIMIT = 10_000

#: (site, loss, divisor or 0, factor or None) of one loss that is about to be differentiated.
Seen = tuple[Site, "Tensor", int, Any]


class Pending(threading.local):
    """The losses of this thread that no optimizer step has used yet, and the step under way."""

    def __init__(self) -> None:
        #: Per site: (value, divisor, factor) of each backward.
        self.losses: dict[Site, list[tuple[Any, int, Any]]] = {}
        self.count = 0
        #: id of the optimizer whose step is under way, the outermost where one calls another's.
        self.stepping = 0
        self.depth = 0
        #: Whether its step evaluates the loss several times (LBFGS); then the first one is what `step` returns.
        self.searching = False
        #: The training that stepped last in this thread.
        self.training: Training | None = None

    def look(self, tensors: Any, frame: FrameType, tensor_backward: Any) -> list[Seen] | None:
        """Look at what is about to be differentiated; None where it is no loss.

        frame: the caller of ``torch.autograd.backward``; tensor_backward: the code of ``Tensor.backward``.
        """
        import torch

        method = frame.f_code is tensor_backward
        if method and frame.f_back is not None:
            frame = frame.f_back
        if isinstance(tensors, torch.Tensor):
            found: Sequence[Any] = (tensors,)
        elif isinstance(tensors, list | tuple):
            found = tensors
        else:
            return None
        if self.losses and not self.depth and self.training is not None and self.training.gradients_reset():
            # The gradients of these were thrown away: a retry, or a step that mixed precision skipped.
            self.clear()
        site = find(frame, "backward", method=method)
        seen: list[Seen] = []
        for i, tensor in enumerate(found):
            if not isinstance(tensor, torch.Tensor) or tensor.numel() != 1 or tensor.is_complex():
                continue
            if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
                return None  # A CUDA graph replays without Python: what is captured here is not the value of any step.
            divisor, factor = _root(tensor)
            seen.append((site.part(i) if i else site, tensor, divisor, factor))
        return seen

    def keep(self, seen: list[Seen]) -> None:
        """Keep the losses whose gradients are computed now."""
        self.count += 1
        if self.count > _LIMIT:
            self.losses.clear()
            return
        for site, tensor, divisor, factor in seen:
            kept = self.losses.get(site)
            if kept is not None and self.searching:
                continue
            value = tensor.item() if tensor.device.type == "cpu" else tensor.detach()
            if kept is None:
                self.losses[site] = [(value, divisor, factor)]
            else:
                kept.append((value, divisor, factor))

    def clear(self) -> None:
        """Forget what is kept."""
        self.losses.clear()
        self.count = 0

    def take(self) -> dict[Site, Any]:
        """Return the loss of each site, a float or :class:`Later`, and forget them."""
        if not self.losses:
            self.count = 0
            return {}
        taken, self.losses, self.count = self.losses, {}, 0
        scale: Any = None
        if any(kept[2] is not None for values in taken.values() for kept in values):
            scale = _live_scale()
        return {site: _mean(site, values, scale) for site, values in taken.items()}


def _root(loss: Tensor) -> tuple[int, Any]:
    """Return (k, None) for ``loss / k``, (0, f) for ``loss * f``, (k, f) for ``loss / k * f`` with a tensor f."""
    node: Any = loss.grad_fn
    kind = type(node).__name__
    factor = None
    if kind == "MulBackward0":
        factor = node._saved_other
        if factor is None or factor.numel() != 1:
            return 0, None
        node = node.next_functions[0][0]
        kind = type(node).__name__
    if kind == "DivBackward0":
        other = node._saved_other
        if other is not None and other.dim() == 0 and other.device.type == "cpu" and not other.requires_grad:
            k = other.item()
            if k > 1 and k == int(k):
                return int(k), factor
    return 0, factor


def _mean(site: Site, kept: list[tuple[Any, int, Any]], scale: Any) -> Any:
    count = len(kept)
    divisor = kept[0][1]
    if divisor and count == divisor and all(one[1] == divisor for one in kept):
        site.divisor = divisor
    # The last step of an epoch may have fewer micro-batches than the site divides by.
    certain = divisor and divisor == site.divisor and all(one[1] == divisor for one in kept)
    times = float(divisor) if certain else 1.0
    scaled = scale is not None and all(one[2] is not None and _same(one[2], scale) for one in kept)
    values = [one[0] for one in kept]
    if all(isinstance(value, float | int) for value in values) and (not scaled or scale.device.type == "cpu"):
        mean = values[0] if count == 1 else sum(values) / count
        mean = mean * times if certain else mean
        return mean / scale.item() if scaled else mean
    # GradScaler.update() changes the scale in place.
    return Later([float(v) if isinstance(v, int) else v for v in values], times, scale.clone() if scaled else None)


def _same(one: Any, other: Any) -> bool:
    return bool(one.data_ptr() == other.data_ptr())


def _live_scale() -> Any:
    """Return the scale of the ``GradScaler`` that makes the step under way, a tensor; None where there is none."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(20):
        if frame is None:
            return None
        if frame.f_code.co_filename.endswith("grad_scaler.py"):
            return getattr(frame.f_locals.get("self"), "_scale", None)
        frame = frame.f_back
    return None
