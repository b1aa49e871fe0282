"""Loops that accelerate, Lightning and skorch run: recorded once, through the same seams."""

from __future__ import annotations

import warnings

import mlflow
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autolog

mse = nn.functional.mse_loss
accelerate = pytest.importorskip("accelerate")
pl = pytest.importorskip("pytorch_lightning")
skorch = pytest.importorskip("skorch")


def data(rows=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 1, generator=generator)


def test_accelerate_loop_with_accumulation(recorder):
    recorder.start()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    loader = DataLoader(TensorDataset(*data()), batch_size=3)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    losses, rates = [], []
    for X, y in loader:
        with accelerator.accumulate(model):
            loss = mse(model(X), y)
            losses.append(loss.item())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    autolog.disable()
    run = recorder.run()
    expected = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2]
    assert recorder.history(run, "loss") == [(i, pytest.approx(value, rel=1e-6)) for i, value in enumerate(expected)]
    assert [step for step, _ in recorder.history(run, "loss")] == [0, 1]
    assert recorder.history(run, "learning_rate") == list(enumerate(rates))
    assert run.data.params["optimizer_name"] == "SGD"
    (logged,) = recorder.models()
    assert logged.tags["autolog.training_state"] == "optimizer,scheduler"


class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.losses = []

    def training_step(self, batch, _):
        loss = mse(self.layer(batch[0]), batch[1])
        self.losses.append(loss.item())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("val_loss", mse(self.layer(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, model, **arguments):
    loader = DataLoader(TensorDataset(*data()), batch_size=4)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, loader, loader)
    return trainer


@pytest.mark.parametrize("logger", [False, True])
def test_lightning_is_recorded_once_with_what_it_logs(recorder, tmp_path, logger):
    recorder.start()
    torch.manual_seed(0)
    model = Lit()
    trainer = fit(tmp_path, model, logger=logger, enable_checkpointing=False, log_every_n_steps=1)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    losses = list(model.losses)
    del trainer, model
    autolog.disable()
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert recorder.history(run, "loss") == list(enumerate(losses))
    assert run.data.params["model_class"] == "Lit"
    # What Lightning has logged, at its own steps: validation after each of two epochs of three steps.
    found = recorder.history(run, "val_loss")
    assert [step for step, _ in found] == [2, 5]
    assert found[-1][1] == pytest.approx(logged["val_loss"])
    if logger:
        assert recorder.history(run, "train_loss") == [(i, pytest.approx(v)) for i, v in enumerate(losses)]
    assert "model" in [one.name for one in recorder.models()]


def test_best_checkpoint_by_what_lightning_evaluates(recorder, tmp_path, monkeypatch):
    """Each improvement of the monitored metric is a checkpoint, ranked by it; a share of time allows for each here."""
    monkeypatch.setattr("autolog.checkpoints.AUTO_SHARE", 0.0)
    recorder.start(checkpoints=autolog.Checkpoints(keep_last=1, keep_best=1))
    torch.manual_seed(0)
    model = Lit()
    trainer = fit(tmp_path, model, logger=False, enable_checkpointing=False)
    weights = model.layer.weight.detach().clone()
    del trainer, model
    autolog.disable()
    run = recorder.run()
    (_, first), (_, second) = recorder.history(run, "val_loss")
    assert second < first
    ranked = recorder.client.search_logged_models(
        [recorder.experiment_id], order_by=[{"field_name": "metrics.val_loss", "ascending": True}]
    )
    # The last model is the same as the best. The checkpoint before is no longer kept.
    assert sorted(one.name for one in ranked) == ["checkpoint-5", "model"]
    best = next(one for one in ranked if one.name == "checkpoint-5")
    assert [{metric.key: metric.value for metric in one.metrics}["val_loss"] for one in ranked] == [second, second]
    mlflow.set_tracking_uri(recorder.store_uri)
    assert torch.equal(mlflow.pytorch.load_model(f"models:/{best.model_id}").layer.weight, weights)


def test_skorch_fit_is_one_run(recorder):
    recorder.start()
    X, y = (part.numpy() for part in data())
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    net = skorch.NeuralNetRegressor(module, lr=0.1, max_epochs=2, batch_size=4, train_split=None, verbose=0)
    net.fit(X, y.astype(np.float32))
    losses = [batch["train_loss"] for row in net.history for batch in row["batches"]]
    del net
    autolog.disable()
    (run,) = recorder.runs()
    assert recorder.history(run, "loss") == [(i, pytest.approx(v)) for i, v in enumerate(losses)]
