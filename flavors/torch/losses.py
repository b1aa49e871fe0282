"""The losses of a step: what ``backward`` was called on since the last one.

The value recorded is the loss as the user means it. Under gradient accumulation that is the mean over the
micro-batches; ``(loss / k).backward()`` counts as `loss` where k is the number of micro-batches of the step. A sum that
is divided by what all micro-batches hold together, such as their number of tokens, is a part of the loss, and the parts
are added up. A factor that mixed precision multiplies in is taken out where it is the scale of the very ``GradScaler``
that makes the step.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flavors.torch.evaluation import Budget
from flavors.torch.sites import Site, find, known_sites
from flavors.torch.values import Later

if TYPE_CHECKING:
    from types import FrameType

    from flavors.torch.series import Series
    from flavors.torch.training import Training

#: Backwards without any optimizer step after which nothing is kept: then no optimizer of torch's is in use.
_LIMIT = 10_000

#: After how many losses of a site that are no quotient or product it is taken to be of that form, and the count of one
#: that is not.
_PLAIN, _NEVER = 16, -(10**12)

#: How many losses of a training are compared with what loss functions have returned.
_LOOKS = 32

#: What is kept of one loss: its value, or (value, divisor or 0, factor or None, whole or None) where it is the result
#: of a division or multiplication; see :func:`_root`.
Kept = Any
#: What the results of a division and of a multiplication have for ``grad_fn``.
_OVER, _TIMES = "DivBackward0", "MulBackward0"
#: See :func:`origin`.
Origin = tuple[str, tuple[str, ...]]
#: What gives the same number again.
_COPIES = frozenset(
    f"{name}Backward{i}"
    for name in ("Alias", "Clone", "ReshapeAlias", "Squeeze", "ToCopy", "Unsqueeze", "View")
    for i in range(3)
)
#: ``at::Reduction::Sum``, as functions of losses keep it for their gradient.
_SUM = 2


class Compiled:
    """Steps that torch.compile has compiled: nothing of them runs in Python but what is written here, by them.

    stepped: whether one was made since losses were looked at; ever: whether any was; pending: of the threads that are
    alive and keep losses.
    """

    def __init__(self) -> None:
        self.stepped = self.ever = False
        self.pending: weakref.WeakSet[Pending] = weakref.WeakSet()


class Pending:
    """The losses of one thread that no optimizer step has used yet, and the step under way."""

    __slots__ = (
        "__weakref__",
        "_compiled",
        "_inside",
        "_looks",
        "_tensor",
        "_unused",
        "batches",
        "budget",
        "called",
        "clipped",
        "count",
        "depth",
        "function",
        "functions",
        "known",
        "lingering",
        "losses",
        "made",
        "passes",
        "searching",
        "seen_in",
        "series",
        "stepped",
        "stepping",
        "thread",
        "training",
        "unscaled",
        "whole",
    )

    def __init__(self, tensor: Any, unused: Callable[[], bool], compiled: Compiled) -> None:
        """tensor: ``torch.Tensor``; unused: see :attr:`_unused`; compiled: steps of all threads."""
        self._tensor = tensor
        self._compiled = compiled
        compiled.pending.add(self)
        #: Whose it is; 0 once that thread has ended.
        self.thread = threading.get_ident()
        #: Whether some of :attr:`losses` come from inside of what is compiled, as may the step that uses them.
        self._inside = False
        #: Whether no optimizer that is still to make its first step in this thread has gradients to step with.
        self._unused = unused
        self.losses: dict[Site, list[Kept]] = {}
        #: How many they are.
        self.count = 0
        #: What expects the next loss, and may keep it instead of :attr:`losses`; all that expect one, by its line.
        self.series: Series | None = None
        self.known: dict[Site, Series] = {}
        #: id of the optimizer whose step is under way, the outermost where one calls another's.
        self.stepping = 0
        self.depth = 0
        #: Whether its step evaluates the loss several times (LBFGS); then the first one is what `step` returns.
        self.searching = False
        #: The training that stepped last in this thread.
        self.training: Training | None = None
        #: How many losses each line had in the last step, 0 where they differ or share one.
        self.batches = 0
        #: The training that was under way when the first of :attr:`losses` was kept.
        self.seen_in: Training | None = None
        #: What the user's clipping returned since the last step, the norm of the gradients.
        self.clipped: Any = None
        #: Whether ``GradScaler.unscale_`` was called since the last step.
        self.unscaled = False
        #: How many optimizer steps this thread has made.
        self.stepped = 0
        #: The loss functions that the training uses, each with the value of :attr:`stepped` at its last call.
        self.functions: dict[str, int] = {}
        #: How each came about, as :func:`origin` has it; and those that are the loss, not only a part of it, likewise
        #: with the value of :attr:`stepped` when that was seen last.
        self.made: dict[str, Origin] = {}
        self.whole: dict[str, int] = {}
        #: How many losses are still to be compared with what loss functions returned.
        self._looks = _LOOKS
        #: The last that was called, and when, which :attr:`functions` need not know yet.
        self.function = ""
        self.called = 0
        self.budget = Budget()
        #: The loader passes under way in this thread, outermost first.
        self.passes: list[Any] = []
        #: Those of them whose loader has nothing more, while batches that were fetched ahead are still to be used.
        self.lingering: list[Any] = []

    def see(self, tensors: Any, frame: FrameType, tensor_backward: Any, *, inside: bool) -> int:
        """Keep what is about to be differentiated, where it is a loss; return how many losses were kept.

        frame: the caller of ``torch.autograd.backward``; tensor_backward: the code of ``Tensor.backward``.
        inside: whether it may be called by what torch.compile has compiled.
        """
        method = frame.f_code is tensor_backward
        if method and frame.f_back is not None:
            frame = frame.f_back
        self._unfold()
        self._forget_used()
        if self.losses and not self.depth and self._thrown_away():
            self.clear()
        self._inside = self._inside or inside
        before = self.count
        site = known_sites.get((id(frame.f_code), frame.f_lasti)) or find(frame, "backward", method=method)
        if isinstance(tensors, list | tuple):
            for i, tensor in enumerate(tensors):
                self._keep(site.part(i), tensor)
        else:
            site.direct = method and frame.f_code is site.code and frame.f_lasti == site.offset
            series = self.known.get(site)
            if (
                series is not None
                and series.site is site
                and not self.losses
                and type(tensors) is self._tensor
                and tensors.is_cpu
            ):
                series.kept = tensors.item()
                self.series = series
                return 1
            self._keep(site, tensors)
        return max(0, self.count - before)

    def _unfold(self) -> None:
        series = self.series
        if series is not None and series.kept is not None and series.site is not None:
            self.losses[series.site] = [series.kept]
            self.count = 1
            self.seen_in = self.training
            series.kept = None

    def _open(self) -> Training | None:
        training = self.training
        return None if training is None or training.ended else training

    def holds(self) -> bool:
        """Return whether something is kept."""
        return bool(self.losses) or (self.series is not None and self.series.kept is not None)

    def expect(self, series: Series, number: int, site: Site, due: float, left: int | None) -> None:
        """Say that the next updates are like the last; as :meth:`Series.expect`."""
        if site.plain >= _PLAIN and not self.searching:
            series.expect(number, site, due, left)
            self.known[site] = series
            self.series = series

    def expect_not(self, series: Series) -> None:
        """Say that the next update is not like the last one in `series`."""
        if series.site is not None:
            self.known.pop(series.site, None)
        series.expect_nothing()
        if self.series is series:
            self.series = None

    def ended(self) -> None:
        """Say that :attr:`training` has ended."""
        self._unfold()
        self.series = None
        self.known.clear()

    def _forget_used(self) -> None:
        """Forget what a compiled step has used, and the loss functions that it came from."""
        # In which thread is not known.
        if self._compiled.stepped and (self._inside or len(self._compiled.pending) == 1):
            self.clear()
            for known in (self.functions, self.made, self.whole):
                known.clear()
            self.function = ""
        self._compiled.stepped = False

    def _thrown_away(self) -> bool:
        """Return whether no step will use the gradients of what is kept.

        That is so where they were reset, for a retry or as mixed precision skipped the step, and where the training
        has ended before it used them.
        """
        training = self.training
        if training is None:
            return self._unused()
        if training.ended:
            return self.seen_in is training or self._unused()
        return training.gradients_reset()

    def _keep(self, site: Site, tensor: Any) -> None:
        kept = self.losses.get(site)
        first = kept is None
        if kept is None:
            if not self.losses:
                self.seen_in = self._open()
            kept = []
        elif self.searching:
            return
        elif self.count > _LIMIT:
            self.clear()
            return
        if not isinstance(tensor, self._tensor) or tensor.numel() != 1:
            return
        value = tensor.item() if tensor.is_cpu else _later(tensor)
        if value is None or type(value) is complex:
            return
        if self.made and self._looks:
            self._looks -= 1
            made = origin(tensor.grad_fn)
            self.whole.update((name, self.stepped) for name, by in self.made.items() if by == made)
        if not (first and site.plain >= _PLAIN and type(value) is float):
            node = tensor.grad_fn
            if type(node).__name__ in (_OVER, _TIMES):
                value = (value, *_root(node))
                site.plain = _NEVER
            elif type(value) is float:
                site.plain += 1
        kept.append(value)
        self.count += 1
        self.losses[site] = kept

    def forget(self, kept: int) -> None:
        """Take back the last of what was kept, as its backward raised; kept: how many."""
        if self.training is not None:
            self.training.failed = True
        if self.series is not None:
            self.series.look_soon()
            if kept and self.series.kept is not None:
                self.series.kept = None
                return
        left = self.count - kept
        for site, held in reversed(list(self.losses.items())):
            if self.count <= left:
                return
            del held[-1]
            self.count -= 1
            if not held:
                del self.losses[site]

    def clear(self) -> None:
        """Forget what is kept."""
        self.losses.clear()
        self.count = 0
        if self.series is not None:
            self.series.kept = None
        self.clipped = None
        self.searching = self.unscaled = self._inside = False

    def begin(self) -> None:
        """Say that the step under way is the first of a training: other loss functions than its own are forgotten."""
        if self.function:
            self.functions[self.function] = self.called
        self.functions = {name: at for name, at in self.functions.items() if at == self.stepped - 1}
        self.made = {name: made for name, made in self.made.items() if name in self.functions}
        self.whole = {name: at for name, at in self.whole.items() if at == self.stepped - 1}
        self._looks = _LOOKS
        self.function = ""
        self.budget = Budget()

    def computes(self, function: str, result: Any) -> None:
        """Note that a loss function has returned what is to be differentiated."""
        self._forget_used()
        self.made[function] = origin(result.grad_fn)
        if self.function:
            self.functions[self.function] = self.called
        self.function, self.called = function, self.stepped
        self.functions[function] = self.stepped

    def scaled(self) -> bool:
        """Return whether a loss kept has a factor of its own, as mixed precision multiplies in."""
        return any(type(one) is tuple and one[2] is not None for kept in self.losses.values() for one in kept)

    def take(self) -> dict[Site, Any]:
        """Return the loss of each site, a float or :class:`Later`, and forget them."""
        self._unfold()
        self._forget_used()
        taken, self.losses, self.count = self.losses, {}, 0
        self.unscaled = self._inside = False
        counts = {len(kept) for kept in taken.values()}
        self.batches = next(iter(counts)) if len(counts) == 1 else 0
        found: dict[Site, Any] = {}
        scale: Any = None
        for site, kept in taken.items():
            if len(kept) == 1 and type(kept[0]) is float:
                found[site] = kept[0]
                continue
            if scale is None and any(type(one) is tuple and one[2] is not None for one in kept):
                scale = _live_scale()
            found[site] = _mean(site, [one if type(one) is tuple else (one, 0, None, None) for one in kept], scale)
        return found


class Recent:
    """What the thread has pending that asked last: found by a comparison, where a ``threading.local`` is slow."""

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending: Pending | None = None


class Threads(threading.local):
    """Each thread's :class:`Pending`; arguments as it has them. recent: where it may be found besides."""

    def __init__(self, tensor: Any, unused: Callable[[], bool], compiled: Compiled, recent: Recent) -> None:
        self.pending = Pending(tensor, unused, compiled)
        self._end = _End(self.pending, recent)


class _End:
    """Goes with its thread: another may get the same number."""

    def __init__(self, pending: Pending, recent: Recent) -> None:
        self._pending = pending
        self._recent = recent

    def __del__(self) -> None:
        self._pending.thread = 0
        if self._recent.pending is self._pending:
            self._recent.pending = None


def _later(tensor: Any) -> Any:
    """Return a loss that is on a device, to be read later; None where it is not the value of any step."""
    import torch

    # A CUDA graph replays what is captured without Python.
    return None if tensor.is_cuda and torch.cuda.is_current_stream_capturing() else tensor.detach()


def _root(node: Any) -> tuple[int, Any, Any]:
    """Return what a loss was divided by and multiplied with: (divisor, factor, whole).

    (k, None, None) for ``loss / k``, (0, f, None) for ``loss * f``, (k, f, None) for ``loss / k * f`` with a tensor f.
    whole: n of ``loss / n`` where the loss is a sum over less than n things, or the tensor n where that is on a device.
    """
    factor = None
    while (other := _number(node)) is not None:
        before = node.next_functions[0][0]
        known = other.item() if other.is_cpu and not other.dim() else None
        if known == 1:
            pass  # As trainers do that might have had to divide, or to multiply.
        elif type(node).__name__ == _TIMES:
            if factor is not None:
                break
            factor = other
        elif other.dim():
            break
        else:
            summed = _summed(before)
            if known is None:
                return 0, factor, None if summed is None else other
            if known > 1 and known == int(known):
                return int(known), factor, known if summed is not None and known > summed else None
            break
        node = before
    return 0, factor, None


def _number(node: Any) -> Any:
    """Return the tensor of one number that `node` divides by or multiplies with, None where it does something else."""
    if type(node).__name__ not in (_TIMES, _OVER):
        return None
    other = node._saved_other
    return None if other is None or other.numel() != 1 or other.requires_grad else other


def origin(node: Any) -> Origin:
    """Return how a loss came about: the operation that made it, and those that made what it was made of.

    Without what is done to a finished loss: multiplied or divided by a number, copied, averaged where it is one alone.
    """
    while node is not None:
        kind = type(node).__name__
        if kind in ("MeanBackward0", "SumBackward0"):
            if math.prod(int(size) for size in node._saved_self_sym_sizes) != 1:
                break
        elif kind not in _COPIES and _number(node) is None:
            break
        node = node.next_functions[0][0]
    if node is None:
        return "", ()
    return type(node).__name__, tuple(type(each).__name__ for each, _ in node.next_functions)


def _summed(node: Any) -> float | None:
    """Return how many things a sum is over that `node` is of, at most; None where it is no sum."""
    sizes = getattr(node, "_saved_self_sym_sizes", None) if type(node).__name__ == "SumBackward0" else None
    if sizes is not None:
        return math.prod(int(size) for size in sizes)
    if getattr(node, "_saved_reduction", None) != _SUM:
        return None
    weight = getattr(node, "_saved_total_weight", None)
    if weight is not None and node._saved_weight is None and weight.is_cpu:
        return float(weight.item())  # Of the targets that are not ignored.
    over = node._saved_target if weight is not None else getattr(node, "_saved_self", None)
    return None if over is None else int(over.numel())


def _mean(site: Site, kept: list[tuple[Any, int, Any, Any]], scale: Any) -> Any:
    count = len(kept)
    divisor, whole = kept[0][1], kept[0][3]
    if divisor and count == divisor and all(one[1] == divisor for one in kept):
        site.divisor = divisor
    # The last step of an epoch may have fewer micro-batches than the site divides by.
    certain = divisor and divisor == site.divisor and all(one[1] == divisor for one in kept)
    times = float(divisor) if certain else 1.0
    if whole is not None and all(_equal(one[3], whole) for one in kept):
        times = float(count)
    scaled = scale is not None and all(one[2] is not None and _same(one[2], scale) for one in kept)
    values = [one[0] for one in kept]
    if all(type(value) is float for value in values) and (not scaled or scale.is_cpu):
        mean = values[0] if count == 1 else sum(values) / count
        mean = mean * times if times != 1.0 else mean
        return mean / scale.item() if scaled else mean
    # GradScaler.update() changes the scale in place.
    return Later(values, times, scale.clone() if scaled else None)


def _equal(one: Any, other: Any) -> bool:
    """Return whether two losses are divided by the same number, or by the same tensor where a device holds it."""
    if isinstance(one, int | float) or isinstance(other, int | float) or one is None:
        return bool(type(one) is type(other) and one == other)
    return _same(one, other)


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
