"""What whole passes over loaders show of one training: epochs, evaluations, the datasets that both are made of."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from autolog import guard, patching, predictions
from autolog.records import now
from autolog.run import Run
from flavors.torch import datasets, evaluation
from flavors.torch.passes import TRANSFORMERS
from flavors.torch.sites import user_frames
from flavors.torch.values import Drain, Later, Row

if TYPE_CHECKING:
    from collections.abc import Mapping

    from autolog.datasets import Dataset
    from flavors.torch.checkpoints import Checkpointer
    from flavors.torch.datasets import Data
    from flavors.torch.losses import Pending
    from flavors.torch.optimizers import Entry
    from flavors.torch.passes import Pass


#: What metrics of the first data evaluated on are called, and of the data that is trained on.
FIRST, OWN = "val", "train_eval"
#: How many parts of one dataset are told apart: a sampler made anew for each epoch draws another each time.
_PARTS = 8


class Epochs:
    """The passes of one training, recorded at the step of the last update, so that all metrics share one axis.

    said: names of metrics of whole passes; held: those that are still to be recorded, each with losses as
    :meth:`Drain.add` has them; batch_size_known: whether the run has a batch size already.
    """

    __slots__ = (
        "_checkpoints",
        "_datasets",
        "_drain",
        "_evaluated_on",
        "_passes",
        "_predicted",
        "_run",
        "_trained_on",
        "batch_size_known",
        "held",
        "said",
    )

    def __init__(self, run: Run, checkpoints: Checkpointer, drain: Drain) -> None:
        self._run = run
        self._checkpoints = checkpoints
        self._drain = drain
        self._passes = 0
        self.batch_size_known = False
        self.said: set[str] = set()
        self.held: list[tuple[Row, tuple[str, ...] | None]] = []
        #: What evaluations of each data have predicted last.
        self._predicted: dict[str, tuple[predictions.Told, Any]] = {}
        #: The data that epochs were made of, and other data with the names of its loader and of its metrics; weakly.
        self._trained_on: list[Data] = []
        self._evaluated_on: list[tuple[Data, str, str]] = []
        #: What each data is to MLflow, None where it cannot be told apart.
        self._datasets: list[tuple[Data, Dataset | None]] = []

    def ended(self, walked: Pass, entry: Entry, means: Mapping[str, float], *, more: bool) -> None:
        """Record an epoch of the optimizer `entry`.

        Metrics: ``epoch``, its number from 0; the mean of each loss over its updates as ``<name>_epoch``; ``accuracy``;
        ``samples_per_second``; ``data_wait_share``, the part of its time that the loop waited for data. Per update and
        per epoch the same loss has two names, as with Lightning, since one name would mix both in one curve.

        means: of the losses, as far as they are known; more: whether the drain knows others.
        """
        if walked.dataset_class and not self._passes:
            found = {"dataset_class": walked.dataset_class, "dataset_length": walked.data.length}
            if not self.batch_size_known:
                found["batch_size"] = walked.batch_size
            self._run.params({name: value for name, value in found.items() if value is not None})
        self._passes += 1
        if not any(known.same(walked.data) for known in self._trained_on):
            self._trained_on.append(walked.data)
        at, step = now(), entry.steps - 1
        values: dict[str, Any] = {"epoch": float(self._checkpoints.epochs)}
        values.update({f"{name}_epoch": mean for name, mean in means.items()})
        if walked.correct[1] is not None:
            values["accuracy"] = _ratio(*walked.correct)
        seconds = (walked.worked or time.perf_counter()) - walked.started
        if walked.samples and seconds > 0:
            values["samples_per_second"] = walked.samples / seconds
            values["data_wait_share"] = min(1.0, walked.waited / seconds)
        key = self._checkpoints.epoch_ended(entry)
        self._hold(Row(values, step, at, key, self._dataset(walked, "train", "train")), entry, None if more else ())

    def evaluated(self, walked: Pass, entry: Entry) -> None:
        """Record what a pass without steps showed, after the last update of the optimizer `entry`.

        Metrics: ``val_loss``, the mean over samples of the loss that the training uses, and ``val_accuracy``. The first
        data evaluated on is called ``val``, other data by its loader's variable; the training's own data
        ``train_eval``, since users call the mean of an epoch ``train_loss``.
        """
        at, step = now(), entry.steps - 1
        prefix = self._prefix(walked)
        # Transformers' loaders have no names, and what its Trainer logs has one.
        if prefix is None or (walked.trainer == TRANSFORMERS and prefix not in (FIRST, OWN)):
            return
        called = evaluation.names(walked.losses, walked.pending.functions, walked.pending.whole, prefix)
        values: dict[str, Any] = {}
        for name, (total, size, _) in walked.losses.items():
            if size:
                values[called[name]] = total / size if type(total) is float else Later([total], 1.0 / size)
        if walked.correct[1] is not None and not walked.skipped:
            values[f"{prefix}_accuracy"] = _ratio(*walked.correct)
        row = Row(values, step, at, dataset=self._dataset(walked, "eval", prefix))
        row = row._replace(model=self._checkpoints.evaluated(entry, row))
        self._hold(row, entry)
        if self._run.config.log_post_training_metrics:
            self._follow(prefix, walked, row)

    def _follow(self, prefix: str, walked: Pass, row: Row) -> None:
        """Have metrics that the user computes on what a pass predicted recorded as ``<metric>_<prefix>``.

        They are recognised by their values, since each batch's have been through the user's lists and arrays.
        """
        import torch

        arrays = walked.outputs.arrays() if walked.outputs.complete else []
        if not arrays and walked.predicted and not walked.skipped:
            arrays.append(torch.cat(walked.predicted).numpy())
        if not arrays:
            return
        told, _ = self._predicted.get(prefix) or (predictions.Told(), None)
        told.begin_step(row.step)
        # Held as long as nothing newer is known of this data.
        self._predicted[prefix] = (told, arrays)
        by = predictions.Trained(self._run, row.model, told)
        for array in arrays:
            predictions.follow(array, by, arrays[0], prefix, lambda: row.dataset)

    # -- what waits -----------------------------------------------------------------------------------------------

    def _hold(self, row: Row, entry: Entry, losses: tuple[str, ...] | None = ()) -> None:
        """Record metrics of a whole pass; losses: as :meth:`Drain.add` has it.

        Those of the first epoch wait until the next one steps, or the end: by then the user has logged by hand what
        they log each epoch, and what is logged under the same names is left to them.
        """
        self.said.update(row.values)
        self.held.append((row, losses))
        if self._passes > 1:
            self.say()
        if entry.series is not None and (self.held or self._checkpoints.under_way):
            entry.series.look_soon()

    def say(self) -> None:
        """Record what waits."""
        held, self.held = self.held, []
        for row, losses in held:
            if losses is None or not row.known:
                self._drain.add(row, losses)
            else:
                row.record(self._run)
        self._checkpoints.recorded()

    def release(self) -> None:
        """Let go of what the model has given."""
        self._predicted.clear()

    # -- the data -------------------------------------------------------------------------------------------------

    def trained_with(self, pending: Pending) -> Dataset | None:
        """Return what the data of the innermost pass is to MLflow: that of the update that is just being made."""
        return self._dataset(pending.passes[-1], "train", "train") if pending.passes else None

    def _dataset(self, walked: Pass, role: str, called: str) -> Dataset | None:
        """Return what the data of a pass is to MLflow, recorded as an input of the run the first time; None if nothing.

        role: "train" or "eval"; called: its name where the user has no variable for it.
        """
        if not self._run.config.log_datasets:
            return None
        for data, known in self._datasets:
            if data.same(walked.data):
                return known
        data = walked.data
        dataset = data.dataset()
        if dataset is None or sum(other.overlies(data) for other, _ in self._datasets) >= _PARTS:
            return None
        names = (patching.variable_name(dataset, frame) for frame in user_frames(patching.user_frame()))
        name = next((name for name in names if name), called)
        found = guard.run("describe the data", datasets.describe, dataset, name, data.length, data.part)
        self._datasets.append((data, found))
        if found is not None:
            self._run.dataset(found, role)
            if role == "train":
                self._checkpoints.dataset = found
        return found

    def _prefix(self, walked: Pass) -> str | None:
        """Return what metrics of an evaluation of this data begin with; None for one of too many parts of a dataset."""
        here = walked.data
        under_way = [other.data for other in walked.pending.passes if other.stepped]
        if any(data.same(here) for data in (*self._trained_on, *under_way)):
            return OWN
        for data, loader, known in self._evaluated_on:
            # Another part under the same name is what a sampler has drawn anew.
            if data.same(here) or (data.overlies(here) and loader == walked.name != ""):
                return known
        if sum(data.overlies(here) for data, _, _ in self._evaluated_on) >= _PARTS:
            return None
        taken = {known for _, _, known in self._evaluated_on} | {"train", OWN}
        base = FIRST if not self._evaluated_on else walked.name or "eval"
        prefix = next(name for name in (base, *(f"{base}_{i}" for i in range(2, 1000))) if name not in taken)
        self._evaluated_on.append((here, walked.name, prefix))
        return prefix


def _ratio(part: Any, whole: Any) -> Any:
    """Return part / whole, :class:`Later` where a device holds them."""
    if isinstance(whole, int):
        return part / whole if isinstance(part, int) else Later([part], 1.0 / whole)
    return Later([part], 1.0, whole)


__all__ = ["Epochs"]
