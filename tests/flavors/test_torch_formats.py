"""The pickle-free form of PyTorch models, loaded with plain MLflow."""

from __future__ import annotations

import copy
from pathlib import Path

import mlflow
import numpy as np
import torch
from torch import nn

import autolog
from autolog import Checkpoints
from flavors.torch import export

mse = nn.functional.mse_loss


def train(model, inputs, steps, make=torch.optim.Adam):
    optimizer = make(model.parameters(), lr=0.1)
    weights = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = mse(model(*inputs), torch.ones(12, 1))
        loss.backward()
        optimizer.step()
        weights.append(copy.deepcopy(model.state_dict()))
    return weights


def outputs(model, weights, *inputs):
    model.load_state_dict(weights)
    model.eval()
    with torch.no_grad():
        return model(*inputs)


def test_pt2_is_pickle_free_and_holds_each_checkpoints_weights(recorder, monkeypatch):
    recorder.start(serialization_format="pt2", checkpoints=Checkpoints(every="2 steps", keep_last=None))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
    weights = train(model, (torch.randn(12, 4),), 4)
    logged = {one.name: one for one in recorder.models()}
    mlflow.set_tracking_uri(recorder.store_uri)
    # MLflow cannot tell of an older torch whether its archives are free of pickles.
    certain = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false" if certain else "true")
    fresh, other = copy.deepcopy(model), torch.randn(5, 4)  # Another batch size than in training.
    for name, step in (("checkpoint-1", 1), ("checkpoint-3", 3), ("model", 3)):
        uri = f"models:/{logged[name].model_id}"
        folder = Path(mlflow.artifacts.download_artifacts(uri))
        assert sorted(path.name for path in (folder / "data").iterdir()) == ["model.pt2"]
        assert not (folder / export.REQUEST).exists()
        expected = outputs(fresh, weights[step], other)
        assert torch.equal(mlflow.pytorch.load_model(uri)(other), expected)
        np.testing.assert_array_equal(mlflow.pyfunc.load_model(uri).predict(other.numpy()), expected.numpy())
        assert "cloudpickle" not in (folder / "requirements.txt").read_text()
    assert recorder.run().info.status == "FINISHED"


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(5, 1)

    def forward(self, tokens, *, extra):
        return self.head(torch.cat([self.embedding(tokens).mean(1), extra], 1))


class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Two()

    def forward(self, tokens, extra):
        return self.inner(tokens, extra=extra)


def test_pt2_of_several_inputs(recorder):
    recorder.start(serialization_format="pt2")
    torch.manual_seed(0)
    model = Wrapper()
    inputs = (torch.randint(0, 7, (12, 3)), torch.randn(12, 1))
    weights = train(model, inputs, 2)[-1]  # The second forward shows the signature.
    (logged,) = recorder.models()
    mlflow.set_tracking_uri(recorder.store_uri)
    loaded = mlflow.pytorch.load_model(f"models:/{logged.model_id}")
    assert torch.equal(loaded(*inputs), outputs(model, weights, *inputs))
    info = mlflow.models.get_model_info(f"models:/{logged.model_id}")
    assert "python_function" not in info.flavors  # As with MLflow's own save_model.


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(x) if x.sum() > -1e9 else self.head(-x)


def test_what_cannot_be_exported_is_said_once_and_pickled(recorder):
    recorder.start(serialization_format="pt2", checkpoints=Checkpoints(every="1 step", keep_last=None))
    model, inputs = Branching(), (torch.randn(12, 4),)
    weights = train(model, inputs, 2)
    logged = {one.name: one for one in recorder.models()}
    assert {str(one.status).rpartition(".")[2] for one in logged.values()} == {"READY"}
    mlflow.set_tracking_uri(recorder.store_uri)
    loaded = mlflow.pytorch.load_model(f"models:/{logged['checkpoint-0'].model_id}")
    assert torch.equal(loaded.head.weight, weights[0]["head.weight"])
    (problem,) = recorder.take_problems()
    assert problem.startswith("models stay in their first format, as they cannot be converted: ")


def test_training_goes_on_from_an_exported_checkpoint(recorder):
    recorder.start(serialization_format="pt2")
    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 1), (torch.randn(12, 4),)
    expected = train(copy.deepcopy(model), inputs, 4)
    recorder.run()
    train(model, inputs, 2)
    recorder.runs()
    fresh = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(fresh.parameters(), lr=0.5)
    assert autolog.resume(fresh, optimizer).step == 2
    train(fresh, inputs, 2, lambda parameters, lr: optimizer)
    assert all(torch.equal(value, expected[3][name]) for name, value in fresh.state_dict().items())
    autolog.disable()
