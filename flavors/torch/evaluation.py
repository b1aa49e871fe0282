"""Losses as the user's code computes them: what evaluations showed, and how often classes were right.

The loss functions of ``torch.nn.functional`` are looked at, which torch's loss modules call, too. In a pass without
steps, their values without gradients are added up, weighted by batch size. For classification losses with integer
targets the predicted class is compared with the target, from the very tensors that the loss saw.

Accuracy is looked at within a budget: of a training, all batches while that takes some milliseconds in all, then as
many as take a hundredth of the time, so that an epoch's is that of a sample of its batches. Of an evaluation, it is
recorded only where every batch was looked at, which may take a few milliseconds and a hundredth of its time.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from autolog import guard, runtime

if TYPE_CHECKING:
    from flavors.torch.losses import Pending, Threads
    from flavors.torch.passes import Pass

FUNCTIONS = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cross_entropy",
    "ctc_loss",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "margin_ranking_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
)
_CLASSES = ("cross_entropy", "nll_loss")
#: Seconds for accuracy in each evaluation, and the share of its time besides.
_FREE, _SHARE = 0.005, 0.01
#: Seconds for accuracy in the epochs of each training before that share holds.
_FREE_IN_TRAINING = 0.02


class Budget:
    """When to compare classes again while training. due: not before that time."""

    __slots__ = ("_free", "due")

    def __init__(self) -> None:
        self._free = _FREE_IN_TRAINING
        self.due = 0.0

    def spent(self, seconds: float, at: float) -> None:
        """Note that it took so long, until `at`."""
        self._free -= seconds
        if self._free < 0:
            self.due = at + seconds / _SHARE


def wrap(name: str, original: Any, threads: Threads, under_way: Mapping[int, Pass]) -> Any:
    """Return a function that calls `original`, one of :data:`FUNCTIONS`, and looks at its result.

    under_way: the passes over loaders.
    """
    import torch

    compiling = torch.compiler.is_dynamo_compiling
    grad, run = torch.is_grad_enabled, guard.run

    @functools.wraps(original)
    def loss(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if not compiling() and under_way and runtime.enabled:
            pending = threads.pending
            if pending.passes:
                training = grad()
                inner: Pass = pending.passes[-1]
                if training and pending.function is name and inner.at < pending.budget.due:
                    pending.called = pending.stepped
                else:
                    run("look at a loss", see, pending, inner, name, result, args, kwargs, training)
        return result

    # torch.jit.script compiles what stands here instead.
    loss.__script_if_tracing_wrapper = True  # type: ignore[attr-defined]
    loss.__original_fn = original  # type: ignore[attr-defined]
    return loss


def see(
    pending: Pending,
    inner: Pass,
    name: str,
    result: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    training: bool,
) -> None:
    """Look at one loss inside a pass; name: of the function that returned `result`; training: with gradients."""
    scores = args[0] if args else kwargs.get("input")
    if scores is None or not scores.dim() or result.dim():
        return
    if training:
        pending.computes(name)
    elif inner.stepped:
        return
    else:
        size = int(scores.shape[0])
        value = result.item() if result.is_cpu else result.detach()
        total = inner.losses.setdefault(name, [0.0, 0, 0])
        # Summed up already, where that is what was asked for.
        total[0] = total[0] + (value if kwargs.get("reduction") == "sum" else value * size)
        total[1] += size
        total[2] += 1
    if name not in _CLASSES:
        return
    target = args[1] if len(args) > 1 else kwargs.get("target")
    if target is None or scores.dim() != target.dim() + 1 or target.is_floating_point():
        return
    started = time.perf_counter()
    if started < pending.budget.due if training else inner.cost > _FREE + (started - inner.started) * _SHARE:
        inner.skipped = True
        return
    _compare(inner, scores.detach(), target, kwargs.get("ignore_index", -100), training=training)
    at = time.perf_counter()
    if training:
        pending.budget.spent(at - started, at)
    else:
        inner.cost += at - started


def _compare(inner: Pass, scores: Any, target: Any, ignored: int, *, training: bool) -> None:
    predicted = scores.argmax(1)
    right = predicted == target
    if predicted.is_cpu and predicted.dim() == 1 and not training:
        inner.predicted.append(predicted)
    count: Any = target.numel()
    # No class has a negative number; the common case, that no target has either, is seen without a comparison.
    if count and (ignored >= 0 or not target.is_cpu or int(target.min()) < 0):
        kept = target != ignored
        right, count = right & kept, kept.sum()
    right = right.sum()
    if target.is_cpu:
        right, count = int(right), int(count)
    inner.correct[0] = inner.correct[0] + right
    inner.correct[1] = count if inner.correct[1] is None else inner.correct[1] + count


def names(evaluated: Mapping[str, Any], trained: Collection[str], prefix: str) -> dict[str, str]:
    """Return the metric name of each function's mean: ``<prefix>_loss`` for the one that the training uses.

    Where the training uses several, or another one, each is called ``<prefix>_<function>``.
    """
    only = next(iter(trained)) if len(trained) == 1 else None
    return {name: f"{prefix}_loss" if name == only else f"{prefix}_{name}" for name in evaluated}


__all__ = ["FUNCTIONS", "Budget", "names", "see", "wrap"]
