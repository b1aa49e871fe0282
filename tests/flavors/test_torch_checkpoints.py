"""Snapshots of modules: exact, cheap, bounded; checkpoints that are linked, ranked and thinned in the store."""

from __future__ import annotations

import copy
import gc
import logging
import statistics
import threading
import time

import mlflow
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autolog
from autolog import Checkpoints, guard
from autolog.checkpoints import Schedule, Shelf
from flavors.torch import copies, snapshots
from flavors.torch.copies import Shadow

mse = nn.functional.mse_loss


def data(rows=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 1, generator=generator)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def train(model, steps, after=lambda step: None):
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        after(step)
    return losses


def copied(module, shadow=None):
    """The module as a snapshot has it."""
    shadow = shadow or Shadow()
    tensors = list(snapshots._tensors(module))
    shadow.begin(tensors)
    memo = {id(tensor): shadow.copy(tensor) for tensor in tensors}
    shadow.finish()
    return copies.module(module, memo)


# -- copies ---------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """What users put on modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.alias = self.first
        self.blocks = nn.ModuleList([nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2)])
        self.table = nn.ParameterDict({"scale": nn.Parameter(torch.ones(3))})
        self.register_buffer("mask", torch.arange(3), persistent=False)
        self.register_buffer("missing", None)
        self.names, self.sizes = ["a", "b"], {"a": [1, 2], "b": (3, {4})}
        self.cache = self.first.weight * 2  # Computed: copy.deepcopy refuses it.
        self.dtype, self.count, self.fn = torch.float16, 3, nn.functional.relu
        self.eval()


def test_copy_is_what_deepcopy_makes():
    odd = Odd()
    with torch.no_grad():
        odd.blocks[0].running_mean += 1
    made = copied(odd)
    for name, value in odd.state_dict().items():
        assert torch.equal(made.state_dict()[name], value)
        assert made.state_dict()[name].data_ptr() != value.data_ptr()
    assert made.second.weight is made.first.weight and made.alias is made.first
    assert torch.equal(made.mask, odd.mask) and made.mask is not odd.mask and made.missing is None
    assert made._non_persistent_buffers_set == {"mask"}
    assert (made.names, made.sizes) == (odd.names, odd.sizes)
    assert made.names is not odd.names and made.sizes["a"] is not odd.sizes["a"]
    assert torch.equal(made.cache, odd.cache)
    assert (made.dtype, made.count, made.fn, made.training) == (torch.float16, 3, nn.functional.relu, False)
    assert [type(module) for module in made.modules()] == [type(module) for module in odd.modules()]
    odd.cache = None
    assert made.__dict__.keys() == copy.deepcopy(odd).__dict__.keys()


class Custom(nn.Linear):
    def __deepcopy__(self, memo):
        made = type(self)(self.in_features, self.out_features)
        made.load_state_dict(self.state_dict())
        made.by_its_own = True
        return made


class Slotted(nn.Linear):
    def __getstate__(self):
        return {**self.__dict__, "seen": True}


def test_what_a_class_says_about_its_copies_is_asked():
    made = copied(nn.Sequential(Custom(2, 2), Slotted(2, 2)))
    assert made[0].by_its_own and made[1].seen


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(3, 4, 2),
        nn.Transformer(8, 2, 1, 1, 16),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        nn.LazyLinear(3),
        nn.Embedding(5, 3, padding_idx=0, sparse=True),
        torch.ao.nn.quantized.Linear(3, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_copies_of_torchs_own(module):
    made = copied(module) if not isinstance(module, nn.LazyLinear) else copy.deepcopy(module)
    assert made.state_dict().keys() == module.state_dict().keys()
    if isinstance(module, nn.Linear | nn.LSTM | nn.Embedding | nn.Transformer) and not isinstance(
        module, nn.LazyLinear
    ):
        assert all(torch.equal(value, made.state_dict()[name]) for name, value in module.state_dict().items())


def test_views_of_one_storage_stay_views_of_one():
    flat = torch.arange(6.0)
    module = nn.Module()
    module.a, module.b = nn.Parameter(flat[:4].view(2, 2).t()), nn.Parameter(flat[4:])
    shadow = Shadow()
    made = copied(module, shadow)
    assert torch.equal(made.a, module.a) and torch.equal(made.b, module.b) and made.a.stride() == module.a.stride()
    assert made.a.untyped_storage().data_ptr() == made.b.untyped_storage().data_ptr()
    assert shadow.size == flat.nbytes  # Not copied twice.


def test_a_small_view_does_not_bring_all_of_its_storage():
    module = nn.Module()
    module.register_buffer("sample", torch.zeros(1_000_000)[:10])
    shadow = Shadow()
    copied(module, shadow)
    assert shadow.size == 40


def test_memory_is_used_again():
    model, shadow = net(), Shadow()
    first = [p.data_ptr() for p in copied(model, shadow).parameters()]
    assert [p.data_ptr() for p in copied(model, shadow).parameters()] == first


def frozen():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    return model


def test_frozen_parameters_are_not_copied_again():
    model, shadow = frozen(), Shadow()
    for expected in ([], [True, True], [True, True]):
        made = copied(model, shadow)
        assert [torch.equal(parameter, held) for parameter, held in shadow.trusted] == expected
        assert all(torch.equal(v, made.state_dict()[k]) for k, v in model.state_dict().items())
        assert shadow.verify()
    with torch.no_grad():
        model[0].weight.add_(1)  # As load_state_dict does it.
    made = copied(model, shadow)
    assert len(shadow.trusted) == 1 and torch.equal(made[0].weight, model[0].weight)


def test_moving_average_through_data_is_never_taken_for_frozen():
    model, shadow = frozen(), Shadow()
    for _ in range(4):
        model[0].weight.data.mul_(0.9).add_(0.1)
        made = copied(model, shadow)
        assert shadow.verify()
        assert torch.equal(made[0].weight, model[0].weight)


def test_late_write_through_data_spoils_one_snapshot_and_is_said():
    model, shadow = frozen(), Shadow()
    for _ in range(3):
        copied(model, shadow)
        assert shadow.verify()
    model[0].weight.data.add_(1)
    copied(model, shadow)
    assert not shadow.verify()
    made = copied(model, shadow)
    assert shadow.verify() and torch.equal(made[0].weight, model[0].weight)


def test_batch_norms_statistics_are_always_copied():
    """Their versions do not change as they do."""
    model, shadow = nn.BatchNorm1d(4), Shadow()
    for _ in range(4):
        model(torch.randn(8, 4))
        assert torch.equal(copied(model, shadow).running_mean, model.running_mean)


def test_copying_blocks_little_longer_than_memcpy():
    """The issue's bound is 1.5 times a plain copy and 5 ms; the machine may be busy, so they take turns."""
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(160, 8, 640), 20, enable_nested_tensor=False)
    source = torch.randn(sum(p.numel() for p in model.parameters()))
    target, shadow = torch.empty_like(source), Shadow()
    plain, ours = [], []
    for turn in range(9):
        start = time.perf_counter()
        target.copy_(source)
        plain.append(time.perf_counter() - start)
        start = time.perf_counter()
        snapshots.take(model, None, shadow)
        if turn:
            ours.append(time.perf_counter() - start)
    assert min(ours) <= 3 * statistics.median(plain) + 0.025


def test_no_random_number_is_drawn_and_nothing_of_the_model_changes():
    model = Odd()
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    attributes = {name: list(vars(module)) for name, module in model.named_modules()}
    snapshots.take(model, None)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: list(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(not parameter.grad_fn and not parameter._backward_hooks for parameter in model.parameters())


# -- in the store ---------------------------------------------------------------------------------------------------


def test_ranking_by_the_monitored_metric(recorder):
    recorder.start(checkpoints=Checkpoints(every="2 steps", keep_last=None, monitor="loss"))
    losses = train(net(), 6)
    recorder.run()
    ranked = recorder.client.search_logged_models(
        [recorder.experiment_id], order_by=[{"field_name": "metrics.loss", "ascending": True}]
    )
    names = [model.name for model in ranked]
    assert losses == sorted(losses, reverse=True)
    assert names in (
        ["model", "checkpoint-5", "checkpoint-3", "checkpoint-1"],
        ["checkpoint-5", "model", "checkpoint-3", "checkpoint-1"],
    )
    assert [{m.key: m.value for m in model.metrics}["loss"] for model in ranked[2:]] == [losses[3], losses[1]]


def test_two_models_are_taken_when_both_have_stepped(recorder):
    """A checkpoint of step s is each model after its own update s, though they step one after the other."""
    recorder.start(checkpoints=Checkpoints(every="2 steps", keep_last=None))
    X, _ = data()
    netD, netG = net(1), nn.Linear(4, 4)
    optimizerD, optimizerG = torch.optim.SGD(netD.parameters(), 0.1), torch.optim.SGD(netG.parameters(), 0.1)
    weights = []
    for _ in range(3):
        netD.zero_grad()
        errD = mse(netD(netG(X).detach()), torch.zeros(12, 1))
        errD.backward()
        optimizerD.step()
        netG.zero_grad()
        errG = mse(netD(netG(X)), torch.ones(12, 1))
        errG.backward()
        optimizerG.step()
        weights.append({"netD": copy.deepcopy(netD.state_dict()), "netG": copy.deepcopy(netG.state_dict())})
    autolog.disable()
    logged = {model.name: model for model in recorder.models()}
    assert sorted(logged) == ["netD", "netD-checkpoint-1", "netG", "netG-checkpoint-1"]
    mlflow.set_tracking_uri(recorder.store_uri)
    for name in ("netD", "netG"):
        checkpoint = logged[f"{name}-checkpoint-1"]
        stored = mlflow.pytorch.load_model(checkpoint.model_uri).state_dict()
        assert all(torch.equal(stored[key], weights[1][name][key]) for key in stored)
        assert {metric.step for metric in checkpoint.metrics} == {1}


class Slow(nn.Linear):
    """Cannot be pickled before the test allows it."""

    gate = threading.Event()
    size = 4

    def __reduce_ex__(self, protocol):
        assert threading.current_thread().name == "autolog-worker"
        assert self.gate.wait(30)
        return super().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        made = type(self)(self.in_features, 1)
        made.load_state_dict(self.state_dict())
        return made


def test_checkpoints_of_a_large_model_are_skipped_while_one_is_written(recorder, caplog, monkeypatch):
    monkeypatch.setattr("flavors.torch.roots.WAITING", 0)
    recorder.start(checkpoints=Checkpoints(every="1 step", keep_last=None))
    Slow.gate = threading.Event()
    with caplog.at_level(logging.WARNING, logger="autolog"):
        losses = train(Slow(4, 1), 6)
    assert [r.message for r in caplog.records if "is skipped" in r.message] and len(caplog.records) == 1
    Slow.gate.set()
    run = recorder.run()
    assert [(m.name, m.status) for m in recorder.models()] == [("checkpoint-0", "READY"), ("model", "READY")]
    assert recorder.history(run, "loss") == list(enumerate(losses))


def test_small_checkpoints_wait_in_a_bounded_queue(recorder):
    recorder.start(checkpoints=Checkpoints(every="1 step", keep_last=None, optimizer=False))
    Slow.gate = threading.Event()
    train(Slow(4, 1), 40)
    Slow.gate.set()
    assert sorted(m.name for m in recorder.models()) == sorted([f"checkpoint-{i}" for i in range(16)] + ["model"])


def test_memory_of_snapshots_is_freed_with_the_training(recorder):
    recorder.start(checkpoints=Checkpoints(every="1 step"))
    train(net(), 4)
    recorder.run()
    gc.collect()
    assert not [held for held in gc.get_objects() if type(held) is Shadow]


def test_failed_save_is_said_and_the_next_one_works(recorder):
    class Local(nn.Linear):
        refuses = True

        def __reduce_ex__(self, protocol):
            if Local.refuses:
                raise TypeError("not now")
            return nn.Linear, (4, 1)

        def __deepcopy__(self, memo):
            return Local(4, 1)

    recorder.start(checkpoints=Checkpoints(every="2 steps"))

    def after(step):
        if step == 2:  # The checkpoint of step 1 is handed over by now.
            autolog.flush(30)
            Local.refuses = False

    train(Local(4, 1), 5, after)
    status = {model.name: str(model.status).rpartition(".")[2] for model in recorder.models()}
    assert status == {"checkpoint-1": "FAILED", "checkpoint-3": "READY", "model": "READY"}
    assert [(what, str(error)) for what, error in guard.swallowed] == [("save the model", "not now")]
    guard.swallowed.clear()


# -- the policy -----------------------------------------------------------------------------------------------------


def test_policy_means_something():
    assert Checkpoints().optimizer is True
    with pytest.raises(TypeError, match="optimizer"):
        Checkpoints(optimizer="no")


def test_schedule_goes_on_from_where_a_training_was():
    schedule = Schedule(Checkpoints(every="5 steps"))
    schedule.begin(7, 0)
    assert [step for step in range(8, 12) if schedule.due_at_step(step)] == [10, 11]
    by_epochs = Schedule(Checkpoints(every="2 epochs"))
    by_epochs.begin(0, 3)
    assert [by_epochs.due_at_epoch() for _ in range(3)] == [True, False, True]


def test_score_that_comes_later_keeps_the_best():
    shelf = Shelf(Checkpoints(keep_last=1, keep_best=1))
    assert shelf.add("a", None) == ()
    assert shelf.score("a", 1.0) == ()
    assert shelf.add("b", None) == ()
    assert shelf.score("b", 2.0) == ()
    assert shelf.add("c", None) == ("b",)
    assert shelf.score("c", 0.5) == ("a",)


def test_score_may_come_before_its_checkpoint_is_written():
    shelf = Shelf(Checkpoints(keep_last=1, keep_best=1))
    assert shelf.score("a", 1.0) == ()
    assert shelf.add("a", None) == ()
    assert shelf.add("b", 2.0) == ()
    assert shelf.add("c", 3.0) == ("b",)
    assert shelf.score("c", 0.5) == ("a",)


def test_checkpoints_taken_in_inference_mode_are_whole_models(recorder):
    """An evaluation under ``torch.inference_mode`` ends, and with it the first checkpoint is taken, inside of it."""
    recorder.start()
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    X, y = data()
    training, held_out = TensorDataset(X, y), TensorDataset(X[:8], y[:8])
    weights = {}
    for epoch in range(3):
        model.train()
        for features, target in DataLoader(training, batch_size=4):
            optimizer.zero_grad()
            mse(model(features), target).backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.inference_mode():
            for features, target in DataLoader(held_out, batch_size=4):
                mse(model(features), target)
        weights[epoch * 3 + 2] = model[0].weight.detach().clone()
        assert autolog.flush(30)  # What the checkpoint was copied into can be used again.
    autolog.disable()
    run = recorder.run()
    assert [step for step, _ in recorder.history(run, "val_loss")] == [2, 5, 8]
    models = {one.name: one for one in recorder.models()}
    assert "model" in models and len(models) > 1
    mlflow.set_tracking_uri(recorder.store_uri)
    for name, one in models.items():
        loaded = mlflow.pytorch.load_model(f"models:/{one.model_id}")
        step = 8 if name == "model" else int(name.split("-")[1])
        assert torch.equal(loaded[0].weight, weights[step]), name
        loaded.train()
        mse(loaded(X), y).backward()  # Its parameters can be trained.
        assert loaded[0].weight.grad is not None


@pytest.mark.parametrize("best_epoch", [0, 2, None])
def test_weights_loaded_after_the_last_step_have_the_metrics_of_where_they_are_from(recorder, best_epoch):
    """The usual end of early stopping: the best weights again, and a test of these; or weights from elsewhere."""
    recorder.start(checkpoints=Checkpoints("epoch", keep_last=5))
    model = net()
    best = copy.deepcopy(net(seed=7).state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = data()
    train_loader = DataLoader(TensorDataset(X, y), batch_size=4)
    val_loader = DataLoader(TensorDataset(X[:8], y[:8]), batch_size=4)
    test_loader = DataLoader(TensorDataset(X[8:], y[8:]), batch_size=4)
    for epoch in range(3):
        for features, target in train_loader:
            optimizer.zero_grad()
            mse(model(features), target).backward()
            optimizer.step()
        with torch.no_grad():
            for features, target in val_loader:
                mse(model(features), target)
        if epoch == best_epoch:
            best = copy.deepcopy(model.state_dict())
    time.sleep(0.01)
    model.load_state_dict(best)
    with torch.no_grad():
        for features, target in test_loader:
            mse(model(features), target)
    autolog.disable()
    run = recorder.run()
    models = {one.name: one for one in recorder.models()}
    linked = {name: {metric.key: metric.value for metric in one.metrics or []} for name, one in models.items()}
    ((step, tested),) = recorder.history(run, "test_loss")
    assert step == 8 and linked["model"]["test_loss"] == tested
    evaluated = [value for _, value in recorder.history(run, "val_loss")]
    assert linked["model"].get("val_loss") == (None if best_epoch is None else evaluated[best_epoch])
    # The last update's own are those of its weights: which are the best, or are not the model's any more.
    assert ("loss" in linked["model"]) == (best_epoch == 2)
    assert linked["checkpoint-8"]["val_loss"] == evaluated[2] and ("test_loss" in linked["checkpoint-8"]) == (
        best_epoch == 2
    )
    mlflow.set_tracking_uri(recorder.store_uri)
    loaded = mlflow.pytorch.load_model(f"models:/{models['model'].model_id}")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in best.items())


def test_weights_loaded_between_steps_change_nothing_in_the_end(recorder):
    recorder.start(checkpoints=Checkpoints("end"))
    model = net()
    start = copy.deepcopy(model.state_dict())
    losses = train(model, 4, lambda step: model.load_state_dict(start) if step == 1 else None)
    autolog.disable()
    recorder.run()
    (one,) = recorder.models()
    assert {metric.key: metric.value for metric in one.metrics}["loss"] == losses[-1]
