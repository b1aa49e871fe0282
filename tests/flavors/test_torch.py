"""Plain PyTorch loops, recorded and read back."""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import backward as backward_bound_early
from torch.utils.data import DataLoader, TensorDataset

import autolog
from autolog import Checkpoints, guard

mse = nn.functional.mse_loss


def data(rows=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 1, generator=generator)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def train(model, steps=3, lr=0.1, make=torch.optim.SGD):
    """A loop whose optimizer dies when it returns."""
    X, y = data()
    optimizer = make(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def steps(values):
    return list(enumerate(values))


# -- one loop, whole ------------------------------------------------------------------------------------------------


def test_loop_is_recorded_whole(recorder):
    recorder.start()
    model = net()
    losses = train(model, make=torch.optim.Adam)
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert recorder.history(run, "loss") == steps(losses)
    assert recorder.history(run, "learning_rate") == steps([0.1] * 3)
    params = run.data.params
    assert (params["optimizer_name"], params["lr"], params["betas"]) == ("Adam", "0.1", "(0.9, 0.999)")
    assert (params["model_class"], params["total_parameters"], params["trainable_parameters"]) == (
        "Sequential",
        "19",
        "19",
    )
    assert (params["device"], params["dtype"]) == ("cpu", "float32")
    assert run.data.tags["mlflow.autologging"] == "torch"
    assert recorder.artifacts(run) == ["model_summary.txt"]
    text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/model_summary.txt")
    assert [line.split() for line in text.splitlines() if "Linear" in line] == [
        ["0", "Linear", "15", "yes"],
        ["2", "Linear", "4", "yes"],
    ]
    assert "Total params: 19" in text


def test_final_model_loads_with_plain_mlflow(recorder):
    recorder.start()
    model = net()
    losses = train(model)
    (logged,) = recorder.models()
    assert (logged.name, logged.status) == ("model", "READY")
    run = recorder.run()
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [(logged.model_id, 2)]
    assert {(metric.key, metric.step, metric.value) for metric in logged.metrics} == {
        ("loss", 2, losses[2]),
        ("learning_rate", 2, 0.1),
    }
    assert recorder.history(run, "loss") == steps(losses)  # Linking the last point has not doubled it.
    mlflow.set_tracking_uri(recorder.store_uri)
    loaded = mlflow.pytorch.load_model(f"models:/{logged.model_id}")
    X, _ = data()
    with torch.no_grad():
        expected = model(X)
        assert torch.equal(loaded(X), expected)
    predicted = mlflow.pyfunc.load_model(f"models:/{logged.model_id}").predict(X.numpy())
    np.testing.assert_array_equal(predicted, expected.numpy())
    info = mlflow.models.get_model_info(f"models:/{logged.model_id}")
    assert [(str(spec.type), spec.shape) for spec in info.signature.inputs.inputs] == [("float32", (-1, 4))]
    assert [(str(spec.type), spec.shape) for spec in info.signature.outputs.inputs] == [("float32", (-1, 1))]
    folder = mlflow.artifacts.download_artifacts(f"models:/{logged.model_id}")
    requirements = Path(folder, "requirements.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements.splitlines()


def test_checkpoints_by_steps_are_kept_and_linked(recorder):
    recorder.start(checkpoints=Checkpoints(every="2 steps", keep_last=2, keep_best=0))
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, weights = [], []
    for _ in range(8):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        weights.append(copy.deepcopy(model.state_dict()))
    autolog.disable()
    run = recorder.run()
    logged = {model.name: model for model in recorder.models()}
    assert sorted(logged) == ["checkpoint-5", "checkpoint-7", "model"]
    assert recorder.history(run, "loss") == steps(losses)
    by_id = {output.model_id: output.step for output in run.outputs.model_outputs}
    mlflow.set_tracking_uri(recorder.store_uri)
    for name, step in (("checkpoint-5", 5), ("checkpoint-7", 7), ("model", 7)):
        assert by_id[logged[name].model_id] == step
        assert {(m.key, m.step, m.value) for m in logged[name].metrics if m.key == "loss"} == {
            ("loss", step, losses[step])
        }
        stored = mlflow.pytorch.load_model(logged[name].model_uri).state_dict()
        assert all(torch.equal(stored[key], weights[step][key]) for key in stored)


def test_best_checkpoint_by_loss_is_kept(recorder):
    recorder.start(checkpoints=Checkpoints(every="1 step", keep_last=1, keep_best=1, monitor="loss"))
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for value in (3.0, 1.0, 2.0, 5.0):
        optimizer.zero_grad()
        loss = (model(data()[0]) * 0).sum() + value
        loss.backward()
        optimizer.step()
    autolog.disable()
    assert sorted(model.name for model in recorder.models()) == ["checkpoint-1", "checkpoint-3", "model"]


# -- what the loss is -----------------------------------------------------------------------------------------------


def accumulate(model, groups, divide):
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for parts in groups:
        optimizer.zero_grad()
        values = []
        for part in parts:
            loss = mse(model(X[part : part + 3]), y[part : part + 3])
            values.append(loss.item())
            loss = loss / divide
            loss.backward()
        optimizer.step()
        expected.append(sum(values) / len(values))
    return expected


def test_accumulation_is_the_mean(recorder):
    recorder.start()
    expected = accumulate(net(), [(0, 3, 6), (0, 3, 6)], 1)
    assert recorder.history(recorder.run(), "loss") == steps(expected)


def test_accumulation_divided_by_micro_batches_is_the_undivided_mean(recorder):
    recorder.start()
    # The last step of an epoch has fewer micro-batches and is divided by four all the same.
    expected = accumulate(net(), [(0, 3, 6, 9), (0, 3, 6, 9), (0, 3)], 4)
    assert recorder.history(recorder.run(), "loss") == steps(expected)  # Dividing by four is exact.


def test_weighted_loss_is_not_mistaken_for_accumulation(recorder):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = mse(model(X), y) / 2
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    autolog.disable()
    assert recorder.history(recorder.run(), "loss") == steps(expected)


def gan(steps_):
    X, _ = data()
    netD, netG = net(1), nn.Linear(4, 4)
    optimizerD = torch.optim.SGD(netD.parameters(), lr=0.1)
    optimizerG = torch.optim.Adam(netG.parameters(), lr=0.01)
    expected = {"errD_real": [], "errD_fake": [], "errG": []}
    for _ in range(steps_):
        netD.zero_grad()
        errD_real = mse(netD(X), torch.ones(12, 1))
        errD_real.backward()
        errD_fake = mse(netD(netG(X).detach()), torch.zeros(12, 1))
        errD_fake.backward()
        optimizerD.step()
        netG.zero_grad()
        errG = mse(netD(netG(X)), torch.ones(12, 1))
        errG.backward()
        optimizerG.step()
        for name, value in (("errD_real", errD_real), ("errD_fake", errD_fake), ("errG", errG)):
            expected[name].append(value.item())
    return expected, netD, netG


def test_gan_is_one_run_with_each_loss(recorder):
    recorder.start()
    expected, netD, netG = gan(3)
    run = recorder.run()
    assert run.info.status == "FINISHED"
    for name, values in expected.items():
        assert recorder.history(run, name) == steps(values)
    names = ("learning_rate_optimizerD", "learning_rate_optimizerG", "grad_norm_optimizerD", "grad_norm_optimizerG")
    assert set(run.data.metrics) == {*expected, *names}
    assert recorder.history(run, "learning_rate_optimizerG") == steps([0.01] * 3)
    assert (run.data.params["optimizer_name"], run.data.params["optimizerG.optimizer_name"]) == ("SGD", "Adam")
    logged = {model.name: model for model in recorder.models()}
    assert sorted(logged) == ["netD", "netG"]
    mlflow.set_tracking_uri(recorder.store_uri)
    for name, model in (("netD", netD), ("netG", netG)):
        stored = mlflow.pytorch.load_model(logged[name].model_uri).state_dict()
        assert all(torch.equal(stored[key], value) for key, value in model.state_dict().items())


def test_several_losses_of_one_step_keep_their_names(recorder):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {"task": [], "penalty": []}
    for _ in range(2):
        optimizer.zero_grad()
        task = mse(model(X), y)
        penalty = model[0].weight.square().sum() / 100
        task.backward()
        penalty.backward()
        optimizer.step()
        expected["task"].append(task.item())
        expected["penalty"].append(penalty.item())
    autolog.disable()
    run = recorder.run()
    assert {name: recorder.history(run, name) for name in expected} == {k: steps(v) for k, v in expected.items()}
    assert "loss" not in run.data.metrics


@pytest.mark.parametrize("function", [torch.autograd.backward, backward_bound_early])
def test_autograd_backward_of_several_losses(recorder, function):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    task, penalty = mse(model(X), y), model[0].weight.square().sum()
    backward = torch.autograd.backward if function is not backward_bound_early else globals()["backward_bound_early"]
    backward([task, penalty])
    optimizer.step()
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "task") == [(0, task.item())]
    assert recorder.history(run, "penalty") == [(0, penalty.item())]


def test_lbfgs_step_is_its_first_closure_loss(recorder):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    evaluations, expected = [], []

    def closure():
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        evaluations.append(loss.item())
        return loss

    for _ in range(3):
        expected.append(optimizer.step(closure).item())
    autolog.disable()
    assert len(evaluations) > 3
    assert recorder.history(recorder.run(), "loss") == steps(expected)


def test_scaled_loss_is_the_unscaled_one(recorder):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    expected = []
    for i in range(5):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        if i == 1:
            loss = loss * float("inf")  # The scaler skips this step.
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if i != 1:
            expected.append(loss.item())
    autolog.disable()
    assert recorder.history(recorder.run(), "loss") == steps(expected)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_micro_batches_of_a_failed_step_are_dropped(recorder, set_to_none):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for i in range(3):
        for attempt in range(2):
            optimizer.zero_grad(set_to_none)
            try:
                loss = mse(model(X), y) * (1 + attempt)
                loss.backward()
                if attempt == 0 and i == 1:
                    raise MemoryError
            except MemoryError:
                continue
            optimizer.step()
            expected.append(loss.item())
            break
    autolog.disable()
    assert recorder.history(recorder.run(), "loss") == steps(expected)


def test_step_that_raises_is_not_counted(recorder):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for i in range(3):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        if i == 1:
            with pytest.raises(ZeroDivisionError):
                optimizer.step(lambda: 1 / 0)
            continue
        optimizer.step()
        expected.append(loss.item())
    autolog.disable()
    assert recorder.history(recorder.run(), "loss") == steps(expected)


class Doubled(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def test_optimizer_that_calls_its_base_class_counts_once(recorder):
    recorder.start()
    losses = train(net(), make=Doubled)
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(losses)
    assert run.data.params["optimizer_name"] == "Doubled"


def test_learning_rates_are_those_used(recorder):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}], lr=0.1, momentum=0.9
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1)
    criterion = nn.MSELoss()
    used = []
    for _ in range(4):
        optimizer.zero_grad()
        criterion(model(X), y).backward()
        used.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    autolog.disable()
    run = recorder.run()
    for i in range(2):
        assert recorder.history(run, f"learning_rate_{i}") == steps([rates[i] for rates in used])
    params = run.data.params
    assert (params["lr"], params["lr_1"], params["momentum"]) == ("0.1", "0.5", "0.9")
    assert "momentum_1" not in params
    assert (params["lr_scheduler"], params["loss_function"]) == ("StepLR", "MSELoss")
    assert params["total_parameters"] == "19"  # Of the whole model, though no group is of all of it.
    (logged,) = recorder.models()
    assert logged.params["total_parameters"] == "19"


# -- which run ------------------------------------------------------------------------------------------------------


def test_loop_over_hyper_parameters_is_several_runs(recorder):
    recorder.start()
    expected, kept = {}, []
    for lr in (0.1, 0.2, 0.3):
        model = net()
        X, y = data()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        kept.append((optimizer, scheduler))  # Alive to the end.
        expected[str(lr)] = []
        for _ in range(2):
            optimizer.zero_grad()
            loss = mse(model(X), y)
            loss.backward()
            optimizer.step()
            expected[str(lr)].append(loss.item())
    autolog.disable()
    runs = recorder.runs()
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert {run.data.params["lr"]: recorder.history(run, "loss") for run in runs} == {
        lr: steps(values) for lr, values in expected.items()
    }
    assert len(recorder.models()) == 3


def test_second_optimizer_over_the_same_model_goes_on_in_the_run(recorder):
    recorder.start()
    model = net()
    X, y = data()
    expected = []
    for make, lr in ((torch.optim.Adam, 0.1), (torch.optim.SGD, 0.01)):
        optimizer = make(model.parameters(), lr=lr)
        for _ in range(2):
            optimizer.zero_grad()
            loss = mse(model(X), y)
            loss.backward()
            optimizer.step()
            expected.append(loss.item())
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(expected)
    assert recorder.history(run, "learning_rate") == steps([0.1, 0.1, 0.01, 0.01])
    assert run.data.params["optimizer_name"] == "Adam"
    assert run.data.params["optimizer_2.optimizer_name"] == "SGD"


def test_threads_train_in_runs_of_their_own(recorder):
    recorder.start()
    expected = {}

    def work(lr):
        expected[str(lr)] = train(nn.Linear(4, 1), 20, lr)

    threads = [threading.Thread(target=work, args=(lr,)) for lr in (0.1, 0.2, 0.3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {run.data.params["lr"]: recorder.history(run, "loss") for run in recorder.runs()}
    assert found == {lr: steps(values) for lr, values in expected.items()}


def test_users_run_is_adopted_and_complete_when_it_ends(recorder):
    recorder.start()
    mlflow.set_tracking_uri(recorder.store_uri)
    mlflow.set_experiment(recorder.experiment)
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with mlflow.start_run() as mine:
        for _ in range(3):
            optimizer.zero_grad()
            loss = mse(model(X), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    run = recorder.run()
    assert run.info.run_id == mine.info.run_id
    assert run.info.status == "FINISHED"
    assert recorder.history(run, "loss") == steps(losses)
    assert [output.step for output in run.outputs.model_outputs] == [2]


def test_what_the_user_logs_after_the_last_step_is_linked_to_the_final_model(recorder):
    recorder.start()
    mlflow.set_tracking_uri(recorder.store_uri)
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        optimizer.zero_grad()
        mse(model(X), y).backward()
        optimizer.step()
        time.sleep(0.005)
        mlflow.log_metric("accuracy", 0.5 + epoch / 4, step=epoch)
        mlflow.log_metric(f"of_epoch_{epoch}", 1.0, step=epoch)
        time.sleep(0.005)
    del optimizer
    run = recorder.run()
    assert recorder.history(run, "accuracy") == [(0, 0.5), (1, 0.75)]
    (logged,) = recorder.models()
    assert {(m.key, m.step, m.value) for m in logged.metrics if m.key in ("accuracy", "of_epoch_0", "of_epoch_1")} == {
        ("accuracy", 1, 0.75),
        ("of_epoch_1", 1, 1.0),
    }


def test_paused_and_disabled_record_nothing(recorder):
    recorder.start()
    with autolog.paused():
        train(net())
    autolog.disable()
    train(net())
    assert recorder.runs() == []


def test_torch_inside_another_training_opens_no_run(recorder):
    from sklearn.base import BaseEstimator, RegressorMixin

    class Wrapped(RegressorMixin, BaseEstimator):
        def fit(self, X, y):
            self.losses_ = train(net())
            return self

        def predict(self, X):
            return np.zeros(len(X))

    recorder.start()
    Wrapped().fit(np.zeros((4, 2)), np.zeros(4))
    run = recorder.run()
    assert run.data.tags["mlflow.autologging"] == "sklearn"
    assert "loss" not in run.data.metrics


# -- nothing of the user's is touched -------------------------------------------------------------------------------


def whole_training():
    X, y = data(64)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    loader = DataLoader(TensorDataset(X, y), batch_size=16, shuffle=True)
    losses = []
    for _ in range(3):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = mse(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
    state = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], state)
    return losses, state.getvalue(), torch.get_rng_state(), np.random.get_state()[1].tolist()


def test_training_is_bit_identical(recorder):
    torch.manual_seed(7)
    bare = whole_training()
    recorder.start(checkpoints=Checkpoints(every="2 steps"))
    torch.manual_seed(7)
    recorded = whole_training()
    assert recorded[:2] == bare[:2]
    assert torch.equal(recorded[2], bare[2])
    assert recorded[3] == bare[3]
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(bare[0])
    assert run.data.params["batch_size"] == "16"


class Tied(nn.Module):
    """Tied weights, a buffer, a tensor with a graph kept as an attribute."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        self.last = self.second(self.first(x))
        return self.last


def test_model_and_optimizer_are_unchanged_after_each_step(recorder):
    recorder.start(checkpoints=Checkpoints(every="1 step"))
    model = Tied()
    X, _ = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = set(vars(model)) | {"last"}, set(vars(optimizer)) | {"_opt_called"}  # The scheduler's.
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        # In front of the forward that the signature is inferred from, and after it.
        for module in model.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks and not module._backward_hooks
        file = io.BytesIO()
        torch.save(model.first, file)
        assert b"flavors" not in file.getvalue() and b"autolog" not in file.getvalue()
        for held in (model.first, optimizer, scheduler):
            assert b"autolog" not in pickle.dumps(held) and b"flavors" not in pickle.dumps(held)
        copy.deepcopy(model.first)(X)
        copy.deepcopy(optimizer)
    assert (set(vars(model)), set(vars(optimizer))) == before
    assert not optimizer._optimizer_step_post_hooks
    autolog.disable()
    mlflow.set_tracking_uri(recorder.store_uri)
    stored = next(logged for logged in recorder.models() if logged.name == "model")
    loaded = mlflow.pytorch.load_model(stored.model_uri)
    assert loaded.first.weight is loaded.second.weight
    assert loaded.first.weight.grad is None
    assert loaded.seen.item() == 2
    assert torch.equal(loaded.first.weight, model.first.weight)


def test_unpatched_is_as_before(recorder):
    before = torch.autograd.backward, torch.Tensor.backward, torch.optim.Optimizer.__init__, nn.Module.__call__
    hooks = sys.modules["torch.optim.optimizer"]
    recorder.start()
    train(net(), steps=1)  # No second forward: the signature is still waited for.
    assert torch.autograd.backward is not before[0]
    assert torch.Tensor.backward is before[1]
    assert pickle.loads(pickle.dumps(torch.autograd.backward)) is torch.autograd.backward
    autolog.disable()
    after = torch.autograd.backward, torch.Tensor.backward, torch.optim.Optimizer.__init__, nn.Module.__call__
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert globals()["backward_bound_early"] is torch.autograd.backward
    assert not hooks._global_optimizer_pre_hooks and not hooks._global_optimizer_post_hooks
    assert recorder.run().info.status == "FINISHED"


def test_optimizer_and_model_are_not_kept_alive(recorder):
    import weakref

    recorder.start()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = data()
    for _ in range(2):
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
    batch = weakref.ref(X)
    del X
    assert batch() is None
    gone = weakref.ref(model), weakref.ref(optimizer)
    del model, optimizer, loss
    gc.collect()
    autolog.flush()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    assert recorder.run().info.status == "FINISHED"


class Refusing(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("not to be copied")


def test_module_that_cannot_be_copied_is_said_and_trains_on(recorder):
    recorder.start(checkpoints=Checkpoints(every="1 step"))
    losses = train(Refusing(4, 1))
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(losses)
    assert recorder.models() == []
    assert [(what, str(error)) for what, error in guard.swallowed] == [
        ("take a snapshot of the model", "not to be copied")
    ]
    guard.swallowed.clear()


def test_worker_processes_of_a_loader_neither_record_nor_hang(recorder):
    recorder.start()
    X, y = data()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        for inputs, targets in DataLoader(TensorDataset(X, y), batch_size=6, num_workers=2):
            optimizer.zero_grad()
            loss = mse(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(losses)


def test_compiled_model_is_recorded_and_saved_uncompiled(recorder):
    recorder.start()
    model = net()
    compiled = torch.compile(model, backend="aot_eager")
    X, y = data()
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = mse(compiled(X), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(losses)
    assert run.data.params["model_class"] == "Sequential"
    mlflow.set_tracking_uri(recorder.store_uri)
    (logged,) = recorder.models()
    stored = mlflow.pytorch.load_model(logged.model_uri)
    assert type(stored) is nn.Sequential
    assert torch.equal(stored[0].weight, model[0].weight)


def test_checkpointed_activations_are_no_second_loss(recorder):
    from torch.utils.checkpoint import checkpoint

    recorder.start()
    model = net()
    X, y = data()
    X.requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = mse(checkpoint(model, X, use_reentrant=True), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(losses)
    assert set(run.data.metrics) == {"loss", "learning_rate", "grad_norm"}


# -- how it ends ----------------------------------------------------------------------------------------------------


def test_exception_is_the_same_object_and_the_run_failed(recorder):
    recorder.start()
    model = net()
    error = ValueError("data is bad")

    def broken():
        X, y = data()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        try:
            for i in range(5):
                optimizer.zero_grad()
                loss = mse(model(X), y)
                loss.backward()
                if i == 2:
                    raise error
                optimizer.step()
        finally:
            del optimizer

    with pytest.raises(ValueError) as caught:
        broken()
    assert caught.value is error
    assert error.__context__ is None
    run = recorder.run()
    assert run.info.status == "FAILED"
    assert [step for step, _ in recorder.history(run, "loss")] == [0, 1]
    assert "data is bad" in mlflow.artifacts.load_text(f"{run.info.artifact_uri}/traceback.txt")


def test_loss_of_a_training_that_failed_is_not_the_next_ones(recorder):
    recorder.start()
    kept = []

    def attempt(fails):
        X, y = data()
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(3):
            optimizer.zero_grad()
            loss = mse(model(X), y)
            loss.backward()
            if fails and i == 2:
                raise MemoryError
            optimizer.step()
            kept.append(loss.item())

    for fails in (True, False):
        kept.clear()
        try:
            attempt(fails)
        except MemoryError:
            continue
    autolog.disable()
    failed, finished = recorder.runs()
    assert (failed.info.status, finished.info.status) == ("FAILED", "FINISHED")
    assert recorder.history(finished, "loss") == steps(kept)


@pytest.mark.parametrize("how", ["as", "plain", "loop", "returns", "inside"])
def test_training_whose_exception_somebody_catches_failed(recorder, how):
    recorder.start()

    def work(fails):
        X, y = data()
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(3):
            optimizer.zero_grad()
            mse(model(X), y).backward()
            optimizer.step()
            if fails and i == 1:
                raise ValueError("data is bad")

    def caught():
        try:
            work(True)
        except ValueError:
            return "caught"
        return ""

    if how == "as":
        try:
            work(True)
        except ValueError as error:
            assert error.args == ("data is bad",)
    elif how == "plain":
        try:
            work(True)
        except ValueError:
            pass
    elif how == "loop":
        for _ in range(1):
            try:
                work(True)
            except ValueError:
                continue
    elif how == "returns":
        assert caught() == "caught"
    else:
        # Another's exception, handled around a training that ends well.
        try:
            raise KeyError
        except KeyError:
            work(False)
    autolog.disable()
    run = recorder.run()
    assert run.info.status == ("FINISHED" if how == "inside" else "FAILED")
    assert len(recorder.history(run, "loss")) == (3 if how == "inside" else 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_exception_in_a_thread_that_trains_fails_its_run_alone(recorder):
    hooked = threading.excepthook
    recorder.start()
    seen, losses = [], []
    hook, threading.excepthook = threading.excepthook, lambda args: (seen.append(args.exc_value), hook(args))
    barrier = threading.Barrier(2, timeout=60)
    error = ValueError("data is bad")

    def work(fails):
        X, y = data()
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if fails else 0.2)
        for i in range(5):
            optimizer.zero_grad()
            loss = mse(model(X), y)
            loss.backward()
            optimizer.step()
            if i == 2:
                barrier.wait()
                if fails:
                    raise error
            if fails:
                losses.append(loss.item())

    threads = [threading.Thread(target=work, args=(fails,)) for fails in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = hook
    autolog.disable()
    assert threading.excepthook is hooked
    assert seen == [error]
    runs = {run.data.params["lr"]: run for run in recorder.runs()}
    assert {lr: run.info.status for lr, run in runs.items()} == {"0.1": "FAILED", "0.2": "FINISHED"}
    assert recorder.history(runs["0.1"], "loss")[:2] == steps(losses)
    assert [len(recorder.history(runs[lr], "loss")) for lr in ("0.1", "0.2")] == [3, 5]
    assert "data is bad" in mlflow.artifacts.load_text(f"{runs['0.1'].info.artifact_uri}/traceback.txt")


def script(tmp_path, body, **env):
    """Run a user's script with autologging switched on in its first lines; return (result, client)."""
    path = tmp_path / "train.py"
    path.write_text(
        textwrap.dedent(
            """
            import autolog
            autolog.autolog()
            import torch
            from torch import nn

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.layer = nn.Linear(4, 1)
                def forward(self, x):
                    return self.layer(x)

            def main(end):
                torch.manual_seed(0)
                X, y = torch.randn(8, 4), torch.randn(8, 1)
                model = Net()
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                step = 0
                while True:
                    optimizer.zero_grad()
                    loss = nn.functional.mse_loss(model(X), y)
                    loss.backward()
                    optimizer.step()
                    step += 1
                    end(step)
            """
        )
        + textwrap.dedent(body)
    )
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_EXPERIMENT")},
        "AUTOLOG_SPOOL_DIR": str(tmp_path / "spool"),
        "AUTOLOG_TRACKING_URI": store,
        "AUTOLOG_EXIT_TIMEOUT": "120",
        **env,
    }
    process = subprocess.Popen(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    return process, mlflow.MlflowClient(tracking_uri=store)


def recomputed(count):
    torch.manual_seed(0)
    X, y = torch.randn(8, 4), torch.randn(8, 1)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def only_run(client, timeout=120):
    """Wait until the script's only run has ended."""
    deadline = time.monotonic() + timeout
    while True:
        runs = client.search_runs(["0"])
        if runs and runs[0].info.status != "RUNNING":
            (run,) = runs
            return run
        assert time.monotonic() < deadline, "the run was not closed"
        time.sleep(0.2)


def history(client, run, key="loss"):
    # One read may hold 25,000 points at most.
    return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, key))


@pytest.mark.parametrize(
    ("raised", "status"),
    [("RuntimeError('no')", "FAILED"), ("KeyboardInterrupt", "KILLED"), ("SystemExit", "FINISHED")],
)
def test_script_that_raises(tmp_path, raised, status):
    process, client = script(
        tmp_path,
        f"""
        def end(step):
            if step == 5:
                raise {raised}
        main(end)
        """,
    )
    _, stderr = process.communicate(timeout=180)
    assert "mlflow-autolog" not in stderr.decode()
    run = only_run(client)
    assert run.info.status == status
    assert history(client, run) == steps(recomputed(5))
    (logged,) = client.search_logged_models(["0"])
    assert (logged.name, logged.status) == ("model", "READY")
    # The class was defined in the script: it loads where the script is not.
    mlflow.set_tracking_uri(client.tracking_uri)
    model = mlflow.pytorch.load_model(logged.model_uri)
    assert (type(model).__name__, len(model(torch.ones(2, 4)))) == ("Net", 2)
    if status != "FAILED":
        return  # Once in a process that has nothing else of ours, which takes longest here.
    code = (
        "import sys, mlflow, torch; mlflow.set_tracking_uri(sys.argv[1]);"
        "model = mlflow.pytorch.load_model(sys.argv[2]);"
        "print(type(model).__name__, model(torch.ones(2, 4)).shape[0])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, client.tracking_uri, logged.model_uri], capture_output=True, text=True, timeout=180
    )
    assert loaded.stdout.split() == ["Net", "2"], loaded.stderr


def test_killed_script_is_complete_and_failed(tmp_path):
    process, client = script(
        tmp_path,
        """
        import json, pathlib, time
        def end(step):
            time.sleep(0.001)
            if step == 200:
                pathlib.Path("ready").touch()
        main(end)
        """,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "ready").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    time.sleep(0.3)  # Longer than the interval of the spool: step 199 is on disk.
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    run = only_run(client)
    assert run.info.status == "FAILED"
    found = history(client, run)
    assert len(found) >= 200
    assert found == steps(recomputed(len(found)))
    assert json.loads(run.data.params["lr"]) == 0.01


# -- values on a device ---------------------------------------------------------------------------------------------


def test_values_kept_for_later_are_recorded_in_order_with_their_steps(recorder):
    """The way of CUDA losses, walked with tensors that are on the CPU."""
    from autolog import runtime
    from flavors.torch.values import Drain, Later, Row

    recorder.start()
    run = runtime.open_run("torch")
    drain = Drain(run)
    for step in range(50):
        parts = [torch.tensor(float(step)), torch.tensor(float(step + 1))]
        values = {"loss": Later(parts, 2.0, torch.tensor(4.0)), "learning_rate": 0.5}
        drain.add(Row(values, step, 1000 + step))
    run.end()
    runtime.closed(run)
    stored = recorder.run()
    assert recorder.history(stored, "loss") == [(step, (step + 0.5) * 2 / 4) for step in range(50)]
    assert recorder.history(stored, "learning_rate") == steps([0.5] * 50)
