"""Losses as the user's code computes them: what evaluations showed, and how often classes were right.

The loss functions of ``torch.nn.functional`` are looked at, which torch's loss modules call, too. In a pass without
steps, their values without gradients are added up, weighted by batch size. For classification losses with integer
targets the predicted class is compared with the target, from the very tensors that the loss saw.

Accuracy is looked at within a budget: a hundredth of the pass, and a few milliseconds besides. Of a training pass that
leaves a sample of its batches. Of an evaluation it is recorded only where every batch was looked at.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Mapping
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
#: Seconds for accuracy in each pass, and the share of its time besides.
_FREE, _SHARE = 0.005, 0.01


def wrap(name: str, original: Any, threads: Threads) -> Any:
    """Return a function that calls `original`, one of :data:`FUNCTIONS`, and looks at its result."""
    import torch

    compiling = torch.compiler.is_dynamo_compiling
    grad = torch.is_grad_enabled

    @functools.wraps(original)
    def loss(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if not compiling() and threads.pending.passes and runtime.enabled:
            guard.run("look at a loss", see, threads.pending, name, result, args, kwargs, grad)
        return result

    # torch.jit.script compiles what stands here instead.
    loss.__script_if_tracing_wrapper = True  # type: ignore[attr-defined]
    loss.__original_fn = original  # type: ignore[attr-defined]
    return loss


def see(
    pending: Pending, name: str, result: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], grad: Callable[[], bool]
) -> None:
    """Look at one loss inside a pass; name: of the function that returned `result`."""
    inner: Pass = pending.passes[-1]
    scores = args[0] if args else kwargs.get("input")
    if scores is None or not scores.dim() or result.dim():
        return
    if not grad():
        if inner.stepped:
            return
        size = int(scores.shape[0])
        value = result.item() if result.is_cpu else result.detach()
        total = inner.losses.setdefault(name, [0.0, 0, 0])
        # Summed up already, where that is what was asked for.
        total[0] = total[0] + (value if kwargs.get("reduction") == "sum" else value * size)
        total[1] += size
        total[2] += 1
    else:
        pending.functions[name] = pending.stepped
    if name in _CLASSES:
        _compare(inner, scores, args[1] if len(args) > 1 else kwargs.get("target"), kwargs.get("ignore_index", -100))


def _compare(inner: Pass, scores: Any, target: Any, ignored: int) -> None:
    if target is None or scores.dim() != target.dim() + 1 or target.is_floating_point():
        return
    started = time.perf_counter()
    if inner.cost > _FREE + (started - inner.started) * _SHARE:
        inner.skipped = True
        return
    import torch

    with torch.no_grad():
        right = (scores.detach().argmax(1) == target).sum()
        count: Any = target.numel()
        if ignored >= 0 or (count and target.is_cpu and bool((target == ignored).any())):
            kept = target != ignored
            right, count = ((scores.detach().argmax(1) == target) & kept).sum(), kept.sum()
    if target.is_cpu:
        right, count = int(right), int(count)
    inner.correct[0] = inner.correct[0] + right
    inner.correct[1] = count if inner.correct[1] is None else inner.correct[1] + count
    inner.cost += time.perf_counter() - started


def names(evaluated: Mapping[str, Any], trained: Collection[str], prefix: str) -> dict[str, str]:
    """Return the metric name of each function's mean: ``<prefix>_loss`` for the one that the training uses.

    Where the training uses several, or another one, each is called ``<prefix>_<function>``.
    """
    only = next(iter(trained)) if len(trained) == 1 else None
    return {name: f"{prefix}_loss" if name == only else f"{prefix}_{name}" for name in evaluated}


__all__ = ["FUNCTIONS", "names", "see", "wrap"]
