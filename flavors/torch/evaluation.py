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
import sys
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from autolog import guard, runtime
from autolog.postprocessed import KEPT

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
#: What users compute metrics on, where it is not what the loss function is given: its probabilities.
_PROBABILITIES: dict[str, Callable[[Any], Any]] = {
    "binary_cross_entropy_with_logits": lambda scores: scores.sigmoid(),
    "cross_entropy": lambda scores: scores.softmax(1),
    "nll_loss": lambda scores: scores.exp(),
}
#: Functions of one prediction a sample, or of one for each class.
_PREDICTING = frozenset(
    {*_PROBABILITIES, "binary_cross_entropy", "huber_loss", "l1_loss", "mse_loss", "poisson_nll_loss", "smooth_l1_loss"}
)
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
        pending.computes(name, result)
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
        if name in _PREDICTING and "sklearn" in sys.modules:
            inner.outputs.add(name, scores)
    _compare_classes(pending, inner, name, scores, args, kwargs, training=training)
    if inner.lingers and not training:
        inner.evaluating()


def _compare_classes(
    pending: Pending,
    inner: Pass,
    name: str,
    scores: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    training: bool,
) -> None:
    """Compare the classes with the largest scores with the targets, within the budget."""
    if name not in _CLASSES:
        return
    target = args[1] if len(args) > 1 else kwargs.get("target")
    if target is None or scores.dim() != target.dim() + 1 or target.is_floating_point():
        return
    started = time.perf_counter()
    if started < pending.budget.due if training else inner.cost > _FREE + (started - inner.started) * _SHARE:
        inner.skipped = True
        return
    # The processor's time is what it costs: on a machine with more to do than it can, the clock goes on meanwhile.
    before = time.thread_time()
    _compare(inner, scores.detach(), target, kwargs.get("ignore_index", -100), training=training)
    took = time.thread_time() - before
    if training:
        pending.budget.spent(took, started + took)
    else:
        inner.cost += took


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


class Outputs:
    """What a model has given for the data of an evaluation, as loss functions were given it; on the CPU, and few.

    complete: whether all of it was kept.
    """

    __slots__ = ("_batches", "_numbers", "complete")

    def __init__(self) -> None:
        self._batches: dict[str, list[Any]] = {}
        self._numbers = 0
        self.complete = True

    def add(self, function: str, scores: Any) -> None:
        """Keep what the loss `function` was given: (rows,), (rows, 1) or (rows, classes)."""
        self._numbers += scores.numel()
        known = self._batches.setdefault(function, [])
        like = not known or known[0].shape[1:] == scores.shape[1:]
        if not self.complete or self._numbers > KEPT or not scores.is_cpu or scores.dim() > 2 or not like:
            self.complete = False
            self._batches.clear()
            return
        known.append(scores.detach())

    def arrays(self) -> list[Any]:
        """Return it as numpy arrays of all rows, and the probabilities that users make of it.

        Batch by batch, as the user did: the last bit of a sigmoid may depend on where in a batch it stands.
        """
        import torch

        found = []
        for function, batches in self._batches.items():
            made = _PROBABILITIES.get(function)
            found += [batches, *([[made(scores) for scores in batches]] if made is not None else [])]
        return [torch.cat(batches).float().numpy() for batches in found]


def names(
    evaluated: Mapping[str, Any], trained: Collection[str], whole: Collection[str], prefix: str
) -> dict[str, str]:
    """Return the metric name of each function's mean: ``<prefix>_loss`` for the one that the training uses.

    trained: the functions that the training uses; whole: those whose result is the loss. Where it uses several,
    another one, or one as a part of its loss only, each is called ``<prefix>_<function>``: what the user makes of it in
    an evaluation is not known.
    """
    only = next(iter(trained)) if len(trained) == 1 else None
    return {name: f"{prefix}_loss" if name == only and only in whole else f"{prefix}_{name}" for name in evaluated}


__all__ = ["FUNCTIONS", "Budget", "Outputs", "names", "see", "wrap"]
