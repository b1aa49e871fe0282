"""What runs in the training thread at every step, in place of torch's own and around it.

By then the step's own code and data have pushed ours out of the processor's caches: each function, each object and each
call into torch that is touched costs ten times what it costs in a loop by itself (a call through ``guard.run`` a
microsecond, a ``threading.local`` as much). So an update that is like the one before it is recorded here, in place and
from few objects; whatever is different goes the long way, through :mod:`flavors.torch.recorder`. Nothing here may
raise: what could stands inside ``guard.run``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from threading import get_ident
from time import time_ns
from typing import TYPE_CHECKING, Any

from autolog import guard, runtime, scope
from flavors.torch.series import Series

if TYPE_CHECKING:
    from flavors.torch.losses import Pending
    from flavors.torch.recorder import Recorder


def step_hooks(torch: Any, recorder: Recorder) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return the functions that torch is to call before and after each optimizer step."""
    compiling = torch.compiler.is_dynamo_compiling
    threads, recent, compiled = recorder.threads, recorder.recent, recorder.compiled
    after_step, again, go_on, run = recorder.after_step, Series.step, Series.go_on, guard.run
    mutes, muted, ident, clock = scope.mutes, scope.is_muted, get_ident, time_ns

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        if compiling():
            # All that is compiled along with the step.
            compiled.stepped = compiled.ever = True
            return
        pending = recent.pending
        if pending is None or pending.thread != ident():
            pending = recent.pending = threads.pending
        if pending.depth or len(args) != 1 or kwargs:
            run("note an optimizer step", recorder.before_step, optimizer, pending)
        else:
            pending.depth = 1
            pending.stepping = id(optimizer)

    def after(optimizer: Any, args: Any, kwargs: Any) -> None:
        if compiling():
            return
        pending = recent.pending
        if pending is None or pending.thread != ident():
            pending = recent.pending = threads.pending
        if pending.depth > 1:
            pending.depth -= 1
            return
        pending.depth = 0
        if not runtime.enabled or (mutes and muted()):
            pending.clear()
            return
        series = pending.series
        if series is not None:
            loss, left, groups = series.kept, series.left, optimizer.param_groups
            if (
                loss is not None
                and series.number == pending.stepping
                and series.short
                and pending.clipped is None
                and (left is None or left > 1)
                and len(groups) == 1
            ):
                at, rate = clock() // 1_000_000, groups[0].get("lr")
                if at < series.due and type(rate) is float:
                    if left is not None:
                        series.left = left - 1
                    series.kept = None
                    series.rows.extend((loss, rate, at))
                    block = series.block
                    if block is None or block.taken is not None:
                        run("record an optimizer step", go_on, series)
                    pending.stepped += 1
                    return
            if run("record an optimizer step", again, series, optimizer, pending):
                return
        run("record an optimizer step", after_step, optimizer, pending)
        pending.searching = False

    return before, after


def backward_in_place_of(original: Any, torch: Any, recorder: Recorder) -> Callable[..., None]:
    """Return what stands for ``torch.autograd.backward``, which is `original`."""
    compiling = torch.compiler.is_dynamo_compiling
    inside_backward = torch._C._current_graph_task_id
    tensor_backward = torch.Tensor.backward.__code__
    # Not before torch 2.7.
    looked_at = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: True)
    threads, recent = recorder.threads, recorder.recent
    mutes, muted, ident = scope.mutes, scope.is_muted, get_ident
    run, frame_at, tensor_class = guard.run, sys._getframe, torch.Tensor

    @functools.wraps(original)
    def backward(
        tensors: Any,
        grad_tensors: Any = None,
        retain_graph: Any = None,
        create_graph: Any = False,
        grad_variables: Any = None,
        inputs: Any = None,
    ) -> None:
        # Weighted outputs are no loss.
        if (
            compiling()
            or grad_tensors is not None
            or grad_variables is not None
            or not runtime.enabled
            or (mutes and muted())
        ):
            original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
            return
        pending: Pending | None = recent.pending
        if pending is None or pending.thread != ident():
            pending = recent.pending = threads.pending
        series = pending.series
        kept = 0
        # In front of it, since it frees the graph. A backward inside a backward recomputes activations; that is never
        # at a line that is known for its losses.
        if (
            series is not None
            and series.kept is None
            and not pending.count
            and type(tensors) is tensor_class
            and tensors.is_cpu
        ):
            try:
                caller = frame_at(2)
                if caller.f_lasti == series.offset and caller.f_code is series.code:
                    # The only loss of a step is what it is, divided or not, so its graph need not be looked at.
                    series.kept = tensors.item()
                    kept = 1
            except (ValueError, RuntimeError):
                pass  # Nobody called who called this; or it has several elements.
        if not kept and inside_backward() == -1:
            inside = looked_at() is not None
            kept = run("record a loss", pending.see, tensors, frame_at(1), tensor_backward, inside=inside) or 0
        try:
            original(tensors, grad_tensors, retain_graph, create_graph, grad_variables, inputs)
        except BaseException:
            pending.forget(kept)
            raise

    return backward


__all__ = ["backward_in_place_of", "step_hooks"]
