"""Batches fetched ahead of the loop, as by accelerate, timm and Transformers: epochs lack none of them."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autolog

F = nn.functional
accelerate = pytest.importorskip("accelerate")


def dataset(rows, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(rows, 4, generator=generator), torch.randint(0, 3, (rows,), generator=generator))


def by_accelerate(loader):
    return accelerate.Accelerator(cpu=True).prepare(loader)


class OneBehind:
    """As timm's PrefetchLoader: hands each batch out once it has the next."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        last = None
        for batch in self.loader:
            if last is not None:
                yield last
            last = batch
        if last is not None:
            yield last


class Preloading:
    """As the prefetcher of NVIDIA's examples: an object that asks for the next batch as it hands one out."""

    def __init__(self, loader, depth=2):
        self.loader, self.depth = loader, depth

    def __iter__(self):
        self.iterator, self.ready = iter(self.loader), []
        return self

    def __next__(self):
        while len(self.ready) < self.depth:
            try:
                self.ready.append(next(self.iterator))
            except StopIteration:
                break
        if not self.ready:
            raise StopIteration
        return self.ready.pop(0)


class Plain:
    """As tqdm: a generator that hands out what it gets at once."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        yield from self.loader


def persistent(loader):
    return by_accelerate(
        DataLoader(loader.dataset, batch_size=loader.batch_size, num_workers=1, persistent_workers=True)
    )


AHEAD = [by_accelerate, OneBehind, Preloading, Plain]


def train(wrap, train_rows, eval_rows, *, epochs=3, evaluate_first=False):
    """A loop over batches of 4; returns the losses of each epoch and (loss, accuracy) of each evaluation."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = wrap(DataLoader(dataset(train_rows), batch_size=4))
    held_out = wrap(DataLoader(dataset(eval_rows, seed=2), batch_size=4))
    criterion = nn.CrossEntropyLoss()

    def evaluate():
        total, right = 0.0, 0
        with torch.no_grad():
            for X, y in held_out:
                scores = model(X)
                total += criterion(scores, y).item() * len(y)
                right += int((scores.argmax(1) == y).sum())
        return total / eval_rows, right / eval_rows

    losses, evaluations = [], []
    for _ in range(epochs):
        losses.append([])
        for i, (X, y) in enumerate(loader):
            if evaluate_first and i and i % 2 == 0:
                evaluations.append(evaluate())
            optimizer.zero_grad()
            loss = criterion(model(X), y)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        if not evaluate_first:
            evaluations.append(evaluate())
    return losses, evaluations


@pytest.mark.parametrize("wrap", [*AHEAD, persistent])
@pytest.mark.parametrize(("train_rows", "eval_rows"), [(20, 11), (8, 8), (4, 3)])
def test_no_epoch_and_no_evaluation_lacks_its_last_batches(recorder, wrap, train_rows, eval_rows):
    recorder.start(log_models=False)
    losses, evaluations = train(wrap, train_rows, eval_rows)
    autolog.disable()
    run = recorder.run()
    per_epoch = len(losses[0])
    ends = [per_epoch * (i + 1) - 1 for i in range(3)]
    assert recorder.history(run, "loss") == list(enumerate(itertools.chain(*losses)))
    assert recorder.history(run, "epoch") == [(end, float(i)) for i, end in enumerate(ends)]
    means = [pytest.approx(sum(each) / per_epoch, rel=1e-12) for each in losses]
    assert recorder.history(run, "loss_epoch") == list(zip(ends, means, strict=True))
    found = [(end, pytest.approx(loss, rel=1e-6)) for end, (loss, _) in zip(ends, evaluations, strict=True)]
    assert recorder.history(run, "val_loss") == found
    found = [(end, pytest.approx(accuracy)) for end, (_, accuracy) in zip(ends, evaluations, strict=True)]
    assert recorder.history(run, "val_accuracy") == found


@pytest.mark.parametrize("wrap", AHEAD)
def test_an_evaluation_in_front_of_an_epochs_last_batch_does_not_end_it(recorder, wrap):
    recorder.start(log_models=False)
    losses, evaluations = train(wrap, 20, 11, evaluate_first=True)
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "epoch") == [(4, 0.0), (9, 1.0), (14, 2.0)]
    means = [pytest.approx(sum(each) / 5, rel=1e-12) for each in losses]
    assert [value for _, value in recorder.history(run, "loss_epoch")] == means
    steps = [epoch * 5 + i - 1 for epoch in range(3) for i in (2, 4)]
    found = [(step, pytest.approx(loss, rel=1e-6)) for step, (loss, _) in zip(steps, evaluations, strict=True)]
    assert recorder.history(run, "val_loss") == found


def test_all_micro_batches_of_an_update_may_be_fetched_at_once(recorder):
    """As Transformers' Trainer does, from a loader of accelerate's that is one batch ahead itself."""
    recorder.start(log_models=False)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = by_accelerate(DataLoader(dataset(28), batch_size=4))  # 7 batches: 3 updates of 2, one of 1.
    losses = []
    for _ in range(2):
        batches = iter(loader)
        losses.append([])
        while gathered := list(itertools.islice(batches, 2)):
            parts = []
            for X, y in gathered:
                loss = F.cross_entropy(model(X), y)
                parts.append(loss.item())
                (loss / len(gathered)).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(sum(parts) / len(parts))
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "loss") == [
        (i, pytest.approx(value, rel=1e-6)) for i, value in enumerate(itertools.chain(*losses))
    ]
    assert recorder.history(run, "epoch") == [(3, 0.0), (7, 1.0)]
    assert recorder.history(run, "loss_epoch") == [
        (3 + 4 * i, pytest.approx(sum(each) / 4, rel=1e-6)) for i, each in enumerate(losses)
    ]


def test_batches_that_are_read_into_a_list_are_no_epoch(recorder):
    recorder.start(log_models=False)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = list(DataLoader(dataset(12), batch_size=4))
    for X, y in batches * 2:
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()
    autolog.disable()
    run = recorder.run()
    assert [step for step, _ in recorder.history(run, "loss")] == list(range(6))
    assert "epoch" not in run.data.metrics


def test_batches_that_are_looked_at_through_a_progress_bar_are_no_epoch(recorder):
    """Such as for their mean, in front of a training without a loader."""
    recorder.start(log_models=False)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total = sum(X.sum() for X, _ in Plain(DataLoader(dataset(40), batch_size=2)))
    X, y = dataset(12).tensors
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(X - total / 40), y).backward()
        optimizer.step()
    autolog.disable()
    run = recorder.run()
    assert len(recorder.history(run, "loss")) == 30
    assert "epoch" not in run.data.metrics


def test_length_of_a_loader_over_an_iterable_is_not_asked_for(recorder):
    """Torch would keep the answer, and warn where it was wrong."""

    class Rows(torch.utils.data.IterableDataset):
        def __len__(self):
            return 2  # Of three.

        def __iter__(self):
            return iter(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))

    recorder.start(log_models=False)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Rows(), batch_size=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, X in enumerate(loader):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
            if i == 1:
                for _ in DataLoader(dataset(4), batch_size=4):
                    pass
    autolog.disable()
    assert recorder.history(recorder.run(), "epoch") == [(2, 0.0)]


@pytest.mark.parametrize(
    ("module", "trainer"), [("lightning.fabric.wrappers", ""), ("lightning.pytorch.loops", "lightning")]
)
def test_loops_of_ones_own_with_fabric_are_not_the_trainers(recorder, module, trainer):
    """Lightning's Trainer logs what it evaluates; Fabric, from the same package, leaves that to the loop."""
    around = {"__name__": module}
    exec("def batches(loader):\n    yield from loader", around)
    recorder.start(log_models=False)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for X, y in around["batches"](DataLoader(dataset(12), batch_size=4)):
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()
    with torch.no_grad():
        for X, y in around["batches"](DataLoader(dataset(8, seed=2), batch_size=4)):
            F.cross_entropy(model(X), y)
    autolog.disable()
    assert ("val_loss" in recorder.run().data.metrics) == (not trainer)


def test_an_epoch_that_fails_in_its_last_batch_is_none(recorder):
    recorder.start(log_models=False)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loop():
        for epoch in range(2):
            for i, (X, y) in enumerate(by_accelerate(loader)):
                if epoch == 1 and i == 2:
                    raise RuntimeError("no")
                optimizer.zero_grad()
                F.cross_entropy(model(X), y).backward()
                optimizer.step()

    loader = DataLoader(dataset(12), batch_size=4)
    with pytest.raises(RuntimeError, match="no"):
        loop()
    autolog.disable()
    run = recorder.run()
    assert [step for step, _ in recorder.history(run, "loss")] == list(range(5))
    assert recorder.history(run, "epoch")[:1] == [(2, 0.0)]


@pytest.mark.parametrize("total", ["number", "tensor"])
@pytest.mark.parametrize("neutral", [False, True])
def test_sums_over_what_all_micro_batches_hold_are_added_up(recorder, total, neutral):
    """``cross_entropy(..., reduction="sum") / tokens`` where `tokens` is the number of tokens of the whole update."""
    recorder.start(log_models=False)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = dataset(24).tensors
    y = y.clone()
    y[::3] = -100
    expected = []
    for step in range(3):
        tokens = int((y != -100).sum())
        if step == 2:
            tokens *= 2  # Whatever it is, it is what the gradients are of.
        with torch.no_grad():
            expected.append(F.cross_entropy(model(X), y, reduction="sum").item() / tokens)
        for rows in (slice(0, 12), slice(12, 24)):
            loss = F.cross_entropy(model(X[rows]), y[rows], reduction="sum")
            loss = loss / (tokens if total == "number" else torch.tensor(tokens))
            if neutral:
                loss = loss * 1 / 1
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    autolog.disable()
    run = recorder.run()
    found = recorder.history(run, "loss")
    assert found == [(i, pytest.approx(value, rel=1e-5)) for i, value in enumerate(expected)]


def test_sums_over_each_micro_batch_are_averaged(recorder):
    recorder.start(log_models=False)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = dataset(24).tensors
    expected = []
    for _ in range(3):
        parts = []
        for rows in (slice(0, 12), slice(12, 24)):
            loss = F.cross_entropy(model(X[rows]), y[rows], reduction="sum") / 12
            parts.append(loss.item())
            loss.backward()
        expected.append(sum(parts) / 2)
        optimizer.step()
        optimizer.zero_grad()
    autolog.disable()
    found = recorder.history(recorder.run(), "loss")
    assert found == [(i, pytest.approx(value, rel=1e-6)) for i, value in enumerate(expected)]


def test_an_epoch_of_counted_batches_is_over_when_the_evaluation_begins(recorder):
    """As ignite's engines and loops over ``range(len(loader))`` have it: the loader is never asked for one more."""
    recorder.start(checkpoints=autolog.Checkpoints(every="epoch"))
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_loader = DataLoader(dataset(12), batch_size=4)
    val_loader = DataLoader(dataset(8, seed=2), batch_size=4)
    for _ in range(2):
        batches = iter(train_loader)
        for i in range(len(train_loader)):
            X, y = next(batches)
            optimizer.zero_grad()
            F.cross_entropy(model(X), y).backward()
            optimizer.step()
            if i == 1:  # In the middle, at a batch that is not the last.
                with torch.no_grad():
                    for X, y in val_loader:
                        F.cross_entropy(model(X), y)
        with torch.no_grad():
            for X, y in val_loader:
                F.cross_entropy(model(X), y)
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "epoch") == [(2, 0.0), (5, 1.0)]
    evaluated = recorder.history(run, "val_loss")
    assert [step for step, _ in evaluated] == [1, 2, 4, 5]
    ranked = {model.name: {metric.key: metric.value for metric in model.metrics or []} for model in recorder.models()}
    assert ranked["checkpoint-2"]["val_loss"] == evaluated[1][1]
    assert ranked["checkpoint-2"]["epoch"] == 0.0


def test_dataset_that_has_no_length_though_its_class_has_one(recorder):
    class Endless(torch.utils.data.IterableDataset):
        def __len__(self):
            raise TypeError("how many?")

        def __iter__(self):
            return iter(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))

    recorder.start(log_models=False)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for X in DataLoader(Endless(), batch_size=1):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "epoch") == [(2, 0.0)]
    assert run.data.params["dataset_class"] == "Endless"
    assert "dataset_length" not in run.data.params
