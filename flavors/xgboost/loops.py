"""Trainings that the user's own loop drives by ``Booster.update`` or ``Booster.boost``.

A run is opened by the first round outside of any ``train``, and each round is a step. It ends when the booster is gone,
when the same thread begins another loop, or with the process: nobody says before that a loop is over. What ``eval_set``
and ``eval`` are asked for between two rounds are the metrics of the earlier one.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from autolog import guard, predictions, runtime, scope
from autolog.patching import user_frame, variable_name
from autolog.predictions import Trained
from autolog.records import now
from autolog.run import Run
from flavors.xgboost import importances, lineage, matrices, params, snapshots
from flavors.xgboost.snapshots import Frozen


class _Loop:
    """One booster that a loop trains."""

    def __init__(self, booster: Any, run: Run) -> None:
        self._booster = weakref.ref(booster)
        self.run = run
        self.thread = threading.get_ident()
        self.process = os.getpid()
        #: Whether a round raised and none has succeeded since.
        self.failed = False
        self.step = 0
        self.rounds = 0
        self.inputs: Any = None
        self.told: Trained | None = None
        self.data: set[tuple[str, str]] = set()
        #: What the last round scored, name -> (value, time).
        self.values: dict[str, tuple[float, int]] = {}

    def end(self, status: str, error: BaseException | None = None) -> None:
        """Record the model as it is now, and end the run."""
        booster = self._booster()
        self._end(self._freeze(booster), booster, status, error)

    def die(self, booster: Any) -> None:
        """End with a booster that is about to be freed; may be called inside a garbage collection, in any thread."""
        frozen = self._freeze(booster)
        status = "FAILED" if self.failed else "FINISHED"
        if threading.get_ident() == self.thread:
            self._end(frozen, None, status)
        else:
            # Somebody else's code is under way here, perhaps inside one of our own locks.
            self.run.later("end the run", lambda: self._end(frozen, None, status))

    def _freeze(self, booster: Any) -> Frozen | None:
        if booster is None or not self.run.config.log_models or not self.rounds:
            return None
        return guard.run("take a snapshot of the model", snapshots.freeze, booster)

    def _end(self, frozen: Frozen | None, booster: Any, status: str, error: BaseException | None = None) -> None:
        if frozen is not None:
            guard.run("save the model", self._save, frozen, booster)
        self.run.end(status, error)
        runtime.closed(self.run)

    def _save(self, frozen: Frozen, booster: Any) -> None:
        inputs, form = self.inputs, snapshots.format_of(self.run)
        key = self.run.model(lambda: snapshots.booster_snapshot(frozen, inputs, form), step=self.step, register=True)
        if booster is not None:
            lineage.remember(booster, key)
            predictions.remember(booster, self.run, key)
        for name, (value, time) in self.values.items():
            # The run's own point, time included, so that it is one.
            self.run.metrics({name: value}, step=self.step, time=time, model=key)
        importances.say(self.run, frozen, key)


class Loops:
    """The loops of this process that are under way."""

    def __init__(self, may_record: Callable[[], bool]) -> None:
        self._may_record = may_record
        self._open: dict[int, _Loop] = {}

    # -- Booster's methods ----------------------------------------------------------------------------------------

    def patch(self, booster: type) -> Callable[[], None]:
        """Watch the methods of the class ``Booster`` that train and evaluate; return what undoes it.

        ``xgboost.train`` calls two of them a round, which may take some microseconds. So these are plain functions, as
        the methods themselves are, which pickle and copy by name: reached through wrapt they would take three times
        as long. Somebody else's wrapper around one of them stays, and so does the function inside, to no effect.
        """
        originals = {name: vars(booster)[name] for name in ("update", "boost", "eval_set")}
        made = {
            name: _around(method, self.evaluate if name == "eval_set" else self.update)
            for name, method in originals.items()
        }
        originals["__del__"] = vars(booster)["__del__"]
        made["__del__"] = self._around_death(originals["__del__"])
        for name, function in made.items():
            setattr(booster, name, function)

        def unpatch() -> None:
            for name, function in made.items():
                if vars(booster)[name] is function:
                    setattr(booster, name, originals[name])

        return unpatch

    def update(self, method: Any, booster: Any, args: Any, kwargs: Any) -> Any:
        """Go around ``Booster.update`` and ``Booster.boost``, outside of any training: a round."""
        if getattr(_inside, "here", False):
            return method(booster, *args, **kwargs)
        if not runtime.recording():
            predictions.forget(booster)
            return method(booster, *args, **kwargs)
        loop = guard.run("record a boosting loop", self._begin, booster, args, kwargs)
        _inside.here = True  # update calls boost where there is an objective of the user's.
        try:
            result = method(booster, *args, **kwargs)
        except BaseException:
            if loop is not None:
                loop.failed = True
            raise
        finally:
            _inside.here = False
        if loop is not None:
            guard.run("record a boosting round", self._round, loop, booster, args, kwargs)
        return result

    def evaluate(self, method: Any, booster: Any, args: Any, kwargs: Any) -> Any:
        """Go around ``Booster.eval_set``, which ``eval`` calls, outside of any training: what a round scored."""
        result = method(booster, *args, **kwargs)
        loop = self._open.get(id(booster))
        if loop is not None and runtime.recording():
            evals = args[0] if args else kwargs.get("evals")
            guard.run("record what a round scored", self._scored, loop, result, evals)
        return result

    # -- what they say --------------------------------------------------------------------------------------------

    def _begin(self, booster: Any, args: Any, kwargs: Any) -> _Loop | None:
        loop = self._open.get(id(booster))
        if loop is not None:
            return loop
        predictions.forget(booster)
        if not self._may_record():
            return None
        self.end_of_thread(threading.get_ident())
        run = runtime.open_run("xgboost")
        loop = self._open[id(booster)] = _Loop(booster, run)
        before = booster.num_boosted_rounds()
        parent = lineage.tags(booster) if before else {}
        if parent:
            run.tags(parent)
        lineage.forget(booster)
        # What it predicts between two rounds is a series of the run, and of no recorded model.
        predictions.remember(booster, run, None)
        loop.told = predictions.trained(booster)
        loop.step = before - 1
        self._describe(loop, args[0] if args else kwargs.get("dtrain"))
        return loop

    def _describe(self, loop: _Loop, matrix: Any) -> None:
        run = loop.run
        if run.config.log_model_signatures:
            loop.inputs = guard.run("make the signature", matrices.schema, matrix)
        if run.config.log_datasets:
            name = variable_name(matrix, user_frame()) or "dataset"
            dataset = guard.run("describe the data", matrices.describe, matrix, name)
            if dataset is not None:
                run.dataset(dataset, "train")

    def _round(self, loop: _Loop, booster: Any, args: Any, kwargs: Any) -> None:
        loop.rounds += 1
        loop.failed = False
        loop.values = {}
        given = args[1] if len(args) > 1 else kwargs.get("iteration")
        loop.step = int(given) if given is not None else loop.step + 1
        if loop.told is not None:
            loop.told.told.begin_step(max(0, loop.step))
        if loop.rounds == 1:
            loop.run.params(params.defaults(params.in_effect(booster), {}))

    def _scored(self, loop: _Loop, line: Any, evals: Any) -> None:
        values: dict[str, float] = {}
        for item in (line if isinstance(line, str) else line.decode()).split()[1:]:
            name, _, value = item.rpartition(":")
            values[name] = float(value)
        new = {name: value for name, value in values.items() if name not in loop.values}
        time = now()
        loop.values.update({name: (value, time) for name, value in new.items()})
        if new:
            loop.run.metrics(new, step=max(0, loop.step), time=time)
        for matrix, name in evals if loop.run.config.log_datasets and isinstance(evals, list | tuple) else ():
            dataset = matrices.describe(matrix, str(name)) if ("eval", str(name)) not in loop.data else None
            loop.data.add(("eval", str(name)))
            if dataset is not None:
                loop.run.dataset(dataset, "eval")

    # -- the end --------------------------------------------------------------------------------------------------

    def _around_death(self, method: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return the finalizer of a booster, in front of which its loop ends: freed, a booster cannot be saved."""

        @functools.wraps(method)
        def __del__(booster: Any) -> None:
            loop = self._open.pop(id(booster), None)
            if loop is not None and runtime.enabled and loop.process == os.getpid():
                guard.run("end a boosting loop", loop.die, booster)
            method(booster)

        return __del__

    def end_of_thread(self, thread: int) -> None:
        """End the loops of a thread that begins to train something else."""
        for number, loop in list(self._open.items()):
            if loop.thread == thread:
                self._open.pop(number, None)
                loop.end("FINISHED")

    def finish(self, status: str, error: BaseException | None) -> None:
        """End every loop."""
        while self._open:
            _, loop = self._open.popitem()
            loop.end(status, error)

    def finish_adopted(self, run_id: str) -> None:
        """End the loops in the user's own run `run_id`, which ends now."""
        for number, loop in list(self._open.items()):
            if run_id in (loop.run.adopted, loop.run.host):
                self._open.pop(number, None)
                loop.end("FINISHED")


_inside = threading.local()


def _around(method: Callable[..., Any], recorded: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that is `recorded` where no training call is under way."""
    current = scope.current

    @functools.wraps(method)
    def around(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        if current() is not None:
            return method(self, *args, **kwargs)
        return recorded(method, self, args, kwargs)

    return around
