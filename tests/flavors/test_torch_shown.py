"""What the user shows while training: progress bars, TensorBoard, torchmetrics."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import autolog

mse = nn.functional.mse_loss


def loop(show, steps=3):
    """Train, and call show(step, loss) after each update."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    X, y = torch.randn(6, 2), torch.randn(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
        show(step, loss)


def test_progress_bar(recorder, capsys):
    tqdm = pytest.importorskip("tqdm")
    recorder.start()
    with tqdm.tqdm(total=3, disable=True) as bar:
        loop(lambda step, loss: bar.set_postfix(loss=9.0, hits=step * 2, rate="0.1", quality=torch.tensor(0.5)))
    run = recorder.run()
    assert recorder.history(run, "hits") == [(0, 0), (1, 2), (2, 4)]
    assert recorder.history(run, "quality") == [(0, 0.5), (1, 0.5), (2, 0.5)]
    assert 9.0 not in [value for _, value in recorder.history(run, "loss")]
    assert "rate" not in run.data.metrics


@pytest.mark.parametrize("package", ["torch.utils.tensorboard", "tensorboardX"])
def test_tensorboard(recorder, tmp_path, package):
    writers = pytest.importorskip(package)
    recorder.start()
    writer = writers.SummaryWriter(str(tmp_path))

    def show(step, loss):
        writer.add_scalar("Loss/train", loss, step * 10)
        if step == 2:
            writer.add_hparams({"width": 7}, {"hparam/score": 0.25})

    loop(show)
    writer.close()
    run = recorder.run()
    assert recorder.history(run, "Loss/train") == [(step * 10, value) for step, value in recorder.history(run, "loss")]
    assert recorder.history(run, "hparam/score") == [(2, 0.25)]
    assert run.data.params["width"] == "7"


def test_torchmetrics(recorder):
    torchmetrics = pytest.importorskip("torchmetrics")
    recorder.start()
    accuracy = torchmetrics.classification.BinaryAccuracy()
    expected = []

    def show(step, loss):
        accuracy(torch.tensor([0.9, 0.1, 0.2]), torch.tensor([1, 0, step % 2]))
        expected.append((step, accuracy.compute().item()))

    loop(show)
    pickle.loads(pickle.dumps(accuracy))
    copy.deepcopy(accuracy)
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "accuracy") + recorder.history(run, "BinaryAccuracy") == expected


def test_metric_functions_on_what_an_evaluation_predicted(recorder):
    """scikit-learn's metric functions, called each epoch on the classes that the evaluation has collected."""
    metrics = pytest.importorskip("sklearn.metrics")
    recorder.start()
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    X, y = torch.randn(30, 4), torch.randint(0, 3, (30,))
    loader = DataLoader(TensorDataset(X, y), batch_size=8)
    val_loader = DataLoader(TensorDataset(torch.randn(20, 4), torch.randint(0, 3, (20,))), batch_size=8)
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    expected = []
    for epoch in range(2):
        for features, target in loader:
            optimizer.zero_grad()
            criterion(model(features), target).backward()
            optimizer.step()
        truth, predicted = [], []
        with torch.no_grad():
            for features, target in val_loader:
                scores = model(features)
                criterion(scores, target)
                truth.extend(target.tolist())
                predicted.extend(scores.argmax(1).tolist())
        expected.append((4 * epoch + 3, metrics.f1_score(truth, predicted, average="macro")))
        metrics.accuracy_score(truth, truth[::-1])  # Of nobody's predictions.
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "f1_score_val") == expected
    assert [name for name in run.data.metrics if "accuracy_score" in name] == []


def after_training(loss_function, outputs, targets, predict, *, rows=50, batch_size=8):
    """Train for an epoch, evaluate; return (truth, what predict() makes of each batch's outputs), as lists."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, outputs)
    X = torch.randn(rows, 4)
    y = targets(X)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    truth, predicted = [], []
    for features, target in DataLoader(TensorDataset(X, y), batch_size=batch_size):
        optimizer.zero_grad()
        loss_function(model(features), target).backward()
        optimizer.step()
    with torch.no_grad():
        for features, target in DataLoader(TensorDataset(X + 0.1, y), batch_size=batch_size):
            scores = model(features)
            loss_function(scores, target)
            truth.extend(target.reshape(-1).tolist())
            predicted.extend(predict(scores).tolist())
    return truth, predicted, optimizer


def positive(X):
    return (X[:, :1] > 0).float()


@pytest.mark.parametrize(
    ("loss_function", "outputs", "targets", "predict", "metric"),
    [
        (nn.MSELoss(), 1, lambda X: X[:, :1] * 3, lambda out: out.squeeze(1), "mean_absolute_error"),
        (nn.L1Loss(), 1, lambda X: X[:, :1] * 3, lambda out: out, "r2_score"),
        (nn.BCEWithLogitsLoss(), 1, positive, lambda out: (torch.sigmoid(out) > 0.5).int().squeeze(1), "f1_score"),
        (nn.BCEWithLogitsLoss(), 1, positive, lambda out: (out > 0).squeeze(1), "precision_score"),
        (nn.BCEWithLogitsLoss(), 1, positive, lambda out: torch.sigmoid(out).squeeze(1), "roc_auc_score"),
        (nn.BCEWithLogitsLoss(), 1, positive, lambda out: out.squeeze(1), "average_precision_score"),
        (
            lambda out, y: nn.functional.cross_entropy(out, y),
            2,
            lambda X: (X[:, 0] > 0).long(),
            lambda out: out.softmax(1)[:, 1],
            "roc_auc_score",
        ),
    ],
)
def test_metric_functions_on_outputs_of_an_evaluation(recorder, loss_function, outputs, targets, predict, metric):
    metrics = pytest.importorskip("sklearn.metrics")
    recorder.start()
    truth, predicted, optimizer = after_training(loss_function, outputs, targets, predict)
    expected = getattr(metrics, metric)(truth, predicted)
    metrics.mean_absolute_error(truth, truth[1:] + truth[:1])  # Of nobody's predictions.
    del optimizer
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, f"{metric}_val") == [(6, expected)]
    assert [name for name in run.data.metrics if name.startswith("mean_absolute_error") and metric not in name] == []
