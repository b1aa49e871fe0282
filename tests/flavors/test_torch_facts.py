"""What is said once about a PyTorch training, and what must be as if nobody looked: torch.compile, averaged weights."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import autolog

F = nn.functional


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


def test_scheduler_with_its_arguments_scaler_and_wrapper_are_params(recorder):
    recorder.start()
    inner = net()
    model = nn.DataParallel(inner)
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=0.01)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    criterion = nn.HuberLoss()
    scaler.scale(criterion(model(X), y)).backward()
    scaler.step(optimizer)
    scheduler.step()
    autolog.disable()
    params = recorder.run().data.params
    assert {name: value for name, value in params.items() if name.startswith("lr_scheduler")} == {
        "lr_scheduler": "CosineAnnealingLR",
        "lr_scheduler.T_max": "7",
        "lr_scheduler.eta_min": "0.01",
    }
    assert (params["grad_scaler"], params["wrapped_in"]) == ("False", "DataParallel")
    assert (params["loss_function"], params["model_class"]) == ("HuberLoss", "Sequential")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = net()

    def forward(self, X):
        return self.layers(X)


def graphs(train):
    """What torch.compile made of three steps: graphs captured, graph breaks, frames compiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses = train()
    counters = torch._dynamo.utils.counters
    found = (dict(counters["stats"]).get("unique_graphs"), sum(counters["graph_break"].values()))
    return losses, found, dict(counters["frames"])


@pytest.mark.parametrize("what", ["model", "model in place", "model and loss"])
def test_compiled_graphs_are_those_of_the_bare_training(recorder, what):
    def train():
        X, y = data()
        # torch.compile leaves the frames of its own layers alone.
        model = Net() if what == "model in place" else net()

        def whole(X, y):
            return F.mse_loss(model(X), y)

        if what == "model in place":
            model.compile(backend="aot_eager")
            compiled = model
        else:
            compiled = torch.compile(model if what == "model" else whole, backend="aot_eager")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = compiled(X, y) if what == "model and loss" else F.mse_loss(compiled(X), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    bare = graphs(train)
    recorder.start()
    recorded = graphs(train)
    autolog.disable()
    torch._dynamo.reset()
    assert recorded == bare
    assert bare[1] == (1, 0)
    run = recorder.run()
    assert recorder.history(run, "loss") == list(enumerate(bare[0]))
    assert run.data.params.get("wrapped_in") == ("torch.compile" if what == "model" else None)


@pytest.mark.parametrize("how", ["wrapped", "in place", "inside of DataParallel", "other", "other of torch's own"])
def test_signature_and_autocast_where_torch_compile_is_in_use(recorder, how):
    recorder.start()
    torch._dynamo.reset()
    X, y = data()
    model = compiled = net() if "own" in how else Net()
    if how == "in place":
        model.compile(backend="eager")
    elif "other" in how:
        torch.compile(copy.deepcopy(model), backend="eager")(X)
    else:
        compiled = torch.compile(model, backend="eager")
    if how == "inside of DataParallel":
        compiled = nn.DataParallel(compiled)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    classes = nn.Module, torch._dynamo.eval_frame.OptimizedModule, Net, nn.Sequential
    before = [vars(each).get("__call__") for each in classes]
    called = vars(model).get("_compiled_call_impl")
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.mse_loss(compiled(X).float(), y)
        loss.backward()
        optimizer.step()
    # What was looked through for one iteration is as it was.
    assert [vars(each).get("__call__") for each in classes] == before
    assert vars(model).get("_compiled_call_impl") is called
    autolog.disable()
    torch._dynamo.reset()
    assert recorder.run().data.params["autocast"] == "bfloat16"
    (logged,) = recorder.models()
    signature = mlflow.models.get_model_info(logged.model_uri).signature
    assert signature.inputs.to_dict() == [
        {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": (-1, 4)}},
    ]


def test_whole_compiled_step_trains_as_bare_and_records_what_is_certain(recorder):
    def train():
        X, y = data()
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        @torch.compile(backend="eager")
        def step():
            optimizer.zero_grad()
            loss = F.mse_loss(model(X), y)
            loss.backward()
            optimizer.step()
            return loss

        losses = [step().item() for _ in range(3)]
        return losses, [parameter.detach().clone() for parameter in model.parameters()]

    bare, weights = train()
    torch._dynamo.reset()
    recorder.start()
    losses, recorded = train()
    autolog.disable()
    torch._dynamo.reset()
    assert losses == bare
    assert all(torch.equal(one, other) for one, other in zip(recorded, weights, strict=True))
    for run in recorder.runs():
        # Whatever could be seen is true.
        assert set(recorder.history(run, "loss")) <= set(enumerate(bare))


@pytest.mark.parametrize("average", ["swa", "ema"])
def test_averaged_weights_are_untouched(recorder, average):
    def train():
        X, y = data()
        model = net()
        extra = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)} if average == "ema" else {}
        averaged = AveragedModel(model, **extra)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.mse_loss(model(X), y)
            loss.backward()
            optimizer.step()
            averaged.update_parameters(model)
            losses.append(loss.item())
        copied = copy.deepcopy(averaged)
        return losses, [*averaged.state_dict().values(), *copied.state_dict().values()]

    bare, weights = train()
    recorder.start()
    losses, recorded = train()
    autolog.disable()
    assert losses == bare
    assert all(torch.equal(one, other) for one, other in zip(recorded, weights, strict=True))
    run = recorder.run()
    assert recorder.history(run, "loss") == list(enumerate(bare))
    # The model is the one that is trained, not its average.
    assert run.data.params["model_class"] == "Sequential"
    assert run.data.params["total_parameters"] == "19"


def resident():
    """MiB of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_long_training_is_bounded(recorder):
    recorder.start(max_points=2000)
    X, y = data()
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    count, before = 60_000, 0.0
    for i in range(count):
        optimizer.zero_grad()
        loss = F.mse_loss(model(X), y)
        loss.backward()
        optimizer.step()
        if i == count // 10:
            before = resident()
    grown = resident() - before
    autolog.disable()
    assert grown < 25
    run = recorder.run()
    points = recorder.history(run, "loss")
    assert 2000 < len(points) < 20_000
    assert points[-1] == (count - 1, loss.item())


def test_an_optimizer_that_wraps_another_is_no_second_one(recorder):
    """As SAM does, which never steps itself: names need no variable to tell the two apart."""

    class Sharpness(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"rho": 0.05})
            self.base_optimizer = torch.optim.SGD(self.param_groups, lr=0.1)
            self.param_groups = self.base_optimizer.param_groups

        @torch.no_grad()
        def second_step(self):
            self.base_optimizer.step()

    recorder.start(log_models=False)
    model = nn.Linear(4, 1)
    optimizer = Sharpness(model.parameters())
    X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        optimizer.second_step()
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "learning_rate") == [(0, 0.1), (1, 0.1), (2, 0.1)]
    assert {"loss", "grad_norm", "learning_rate"} >= set(run.data.metrics)
