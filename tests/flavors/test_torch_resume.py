"""Interrupted PyTorch trainings that go on from a checkpoint, compared with ones that were never interrupted."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autolog
from autolog import Checkpoints

mse = nn.functional.mse_loss
STEPS, EPOCHS = 12, 4


class Interrupted(Exception):
    pass


def data(rows=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 1, generator=generator)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def parts(seed, make=torch.optim.Adam):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model = Net()
    optimizer = make(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.7)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    return model, optimizer, scheduler, scaler


def by_steps(model, optimizer, scheduler, scaler, first=0, until=STEPS):
    """Draws its batches from the generators of torch, numpy and Python."""
    X, y = data()
    losses = []
    for _ in range(first, until):
        rows = torch.randperm(len(X))[: 6 + np.random.randint(3)]
        optimizer.zero_grad()
        loss = mse(model(X[rows] + random.gauss(0, 0.1)), y[rows])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        losses.append(loss.item())
    return losses


def test_continued_curve_is_bit_identical(recorder):
    """From a checkpoint in the middle: dropout, batch norm, scheduler, scaler, all random generators."""
    expected = by_steps(*parts(0))
    recorder.start(checkpoints=Checkpoints(every="5 steps"))
    before = by_steps(*parts(0), until=7)
    autolog.disable()
    assert before == expected[:7]
    recorder.start(checkpoints=Checkpoints(every="5 steps"))
    (first,) = recorder.runs()
    checkpoint = next(model for model in recorder.models() if model.name == "checkpoint-4")
    objects = parts(99)
    resumed = autolog.resume(*objects, model_id=checkpoint.model_id)
    assert (resumed.step, resumed.epoch) == (5, 0)
    assert (resumed.run_id, resumed.model_id) == (first.info.run_id, checkpoint.model_id)
    after = by_steps(*objects, first=resumed.step)
    assert after == expected[5:]
    del objects
    autolog.disable()
    _, second = recorder.runs()
    assert recorder.history(second, "loss") == list(enumerate(expected))[5:]
    assert {key: value for key, value in second.data.tags.items() if "resumed" in key} == {
        "autolog.resumed_from.run_id": first.info.run_id,
        "autolog.resumed_from.model_id": checkpoint.model_id,
        "autolog.resumed_from.step": "4",
    }
    # Every fifth step, as if never interrupted.
    assert [m.name for m in recorder.models() if m.source_run_id == second.info.run_id] == ["checkpoint-9", "model"]


@pytest.mark.parametrize("which", ["latest", "run"])
def test_latest_is_the_last_state_of_an_interrupted_run(recorder, which):
    expected = by_steps(*parts(0))
    recorder.start(checkpoints=Checkpoints(every="5 steps"))
    objects = parts(0)
    try:
        by_steps(*objects, until=7)
        raise Interrupted
    except Interrupted:
        autolog.disable()  # As the end of the process does: the last checkpoint is of where it got to.
    recorder.start()
    (run,) = recorder.runs()
    objects = parts(99)
    resumed = autolog.resume(*objects, run_id="latest" if which == "latest" else run.info.run_id)
    assert resumed.step == 7
    assert by_steps(*objects, first=7) == expected[7:]


def test_the_optimizer_that_died_with_its_function_goes_on(recorder):
    """The usual loop: its optimizer is gone when the last checkpoint is taken."""

    def train(model, steps, optimizer=None):
        X, y = data()
        optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.1)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = mse(model(X), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    torch.manual_seed(0)
    expected = train(Net(), 6)
    recorder.start()
    torch.manual_seed(0)
    assert train(Net(), 4) == expected[:4]
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.9)
    assert autolog.resume(model, optimizer).step == 4
    assert train(model, 2, optimizer) == expected[4:]


def test_nothing_to_go_on_from(recorder):
    recorder.start()
    model, optimizer, *_ = parts(0)
    assert autolog.resume(model, optimizer, required=False) is None
    with pytest.raises(LookupError, match="no checkpoint of a Net with optimizer"):
        autolog.resume(model, optimizer)
    with pytest.raises(TypeError, match="cannot be resumed"):
        autolog.resume(object())
    with pytest.raises(ValueError, match="not both"):
        autolog.resume(model, run_id="r", model_id="m")


def test_without_the_optimizers_state_weights_and_counts_are_restored(recorder):
    recorder.start(checkpoints=Checkpoints(optimizer=False))
    model, *others = parts(0)
    by_steps(model, *others, until=3)
    autolog.disable()
    (logged,) = recorder.models()
    assert logged.tags["autolog.training_state"] == ""
    recorder.start()
    fresh, optimizer, *_ = parts(99)
    with pytest.raises(LookupError, match="optimizer"):
        autolog.resume(fresh, optimizer)
    assert autolog.resume(fresh).step == 3
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in fresh.state_dict().items())


def by_epochs(model, optimizer, scheduler, scaler, first=0, stop_in=None):
    """Shuffles, validates, steps its scheduler after each epoch; stops after one step of epoch `stop_in`."""
    loader = DataLoader(TensorDataset(*data()), batch_size=4, shuffle=True)
    validation = DataLoader(TensorDataset(*data()), batch_size=6)
    losses = []
    for epoch in range(first, EPOCHS):
        model.train()
        for X, y in loader:
            optimizer.zero_grad()
            loss = mse(model(X), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
            if epoch == stop_in:
                return losses
        model.eval()
        with torch.no_grad():
            for X, y in validation:
                mse(model(X), y)
        scheduler.step()
    return losses


def test_continued_epochs_are_bit_identical(recorder):
    """With shuffling, whose order the next epoch draws after the validation pass has drawn its own seed."""
    expected = by_epochs(*parts(0))
    recorder.start(checkpoints=Checkpoints(every="epoch", keep_last=None))
    assert by_epochs(*parts(0), stop_in=2) == expected[:7]
    autolog.disable()
    checkpoint = next(model for model in recorder.models() if model.name == "checkpoint-5")
    assert {metric.key for metric in checkpoint.metrics} >= {"val_loss"}
    recorder.start(checkpoints=Checkpoints(every="epoch"))
    objects = parts(99)
    resumed = autolog.resume(*objects, model_id=checkpoint.model_id)
    assert (resumed.step, resumed.epoch) == (6, 2)
    assert by_epochs(*objects, first=resumed.epoch) == expected[6:]
    del objects
    autolog.disable()
    _, second = recorder.runs()
    assert recorder.history(second, "loss") == list(enumerate(expected))[6:]


def test_training_ends_with_its_function_though_a_checkpoint_is_not_complete(recorder):
    """A checkpoint of the last epoch's end waits for what the loop still does; it must not keep the optimizer alive."""
    recorder.start(checkpoints=Checkpoints(every="epoch"))
    by_epochs(*parts(0))
    assert recorder.run().info.status == "FINISHED"  # Nobody has switched recording off.
    states = {model.name: model.tags["autolog.training_state"] for model in recorder.models()}
    assert states["checkpoint-11"] == "optimizer,scheduler,scaler"


def by_generators(model, optimizer, shuffling, noise, shaking, first=0, until=EPOCHS):
    """Draws from the user's own generators only: torch's in a loader, numpy's, Python's."""
    loader = DataLoader(TensorDataset(*data()), batch_size=4, shuffle=True, generator=shuffling)
    losses = []
    for _ in range(first, until):
        for X, y in loader:
            optimizer.zero_grad()
            loss = mse(model(X + float(noise.normal()) + shaking.random()), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def generators(seed):
    return torch.Generator().manual_seed(seed), np.random.default_rng(seed), random.Random(seed)


def test_own_generators_go_on_where_they_were(recorder):
    model, optimizer, *_ = parts(0)
    expected = by_generators(model, optimizer, *generators(1))
    recorder.start(checkpoints=Checkpoints(every="epoch"))
    model, optimizer, *_ = parts(0)
    assert by_generators(model, optimizer, *generators(1), until=2) == expected[:6]
    autolog.disable()
    recorder.start()
    shuffling, noise, shaking = generators(9)
    model, optimizer, *_ = parts(99)
    resumed = autolog.resume(model, optimizer, generator=[noise, shuffling, shaking])
    assert (resumed.step, resumed.epoch) == (6, 2)
    assert by_generators(model, optimizer, shuffling, noise, shaking, first=2) == expected[6:]


def test_the_only_generator_needs_no_name_and_one_that_is_not_given_is_named(recorder, caplog):
    def train(model, optimizer, loader, epochs):
        return [step(model, optimizer, X, y) for _ in range(epochs) for X, y in loader]

    def step(model, optimizer, X, y):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    def loaded(seed):
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(*data()), batch_size=4, shuffle=True, generator=generator)

    model, optimizer, *_ = parts(0)
    expected = train(model, optimizer, loaded(1), 3)
    recorder.start(checkpoints=Checkpoints(every="epoch"))
    model, optimizer, *_ = parts(0)
    train(model, optimizer, loaded(1), 2)
    autolog.disable()
    recorder.start()
    model, optimizer, *_ = parts(99)
    train_loader = loaded(9)
    with pytest.raises(ValueError, match="one of torch, not of numpy"):
        autolog.resume(model, optimizer, generator=np.random.default_rng(1))
    with pytest.raises(LookupError, match=r"no state of a generator '' \(it holds: loader.generator\)"):
        autolog.resume(model, optimizer, generator=[train_loader.generator, torch.Generator()])
    autolog.resume(model, optimizer)
    assert "(loader.generator)" in caplog.text and "autolog.resume(generator=...)" in caplog.text
    autolog.resume(model, optimizer, generator=train_loader.generator)
    assert train(model, optimizer, train_loader, 1) == expected[6:]
