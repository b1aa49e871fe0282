"""Epochs, evaluations and accuracy of plain PyTorch loops over data loaders."""

from __future__ import annotations

import itertools
import json
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

import autolog
from autolog import Checkpoints
from flavors.torch import datasets

F = nn.functional


def dataset(rows=20, classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(rows, 4, generator=generator), torch.randint(0, classes, (rows,), generator=generator)
    )


def net(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))


def train_pass(model, optimizer, loader, criterion=nn.CrossEntropyLoss()):
    """One epoch; returns (mean loss over batches, accuracy of the predictions that the loss saw)."""
    model.train()
    losses, right, seen = 0.0, 0, 0
    for X, y in loader:
        optimizer.zero_grad()
        scores = model(X)
        loss = criterion(scores, y)
        loss.backward()
        optimizer.step()
        losses += loss.item()
        right += int((scores.argmax(1) == y).sum())
        seen += len(y)
    return losses / len(loader), right / seen


def evaluate(model, loader, criterion=nn.CrossEntropyLoss()):
    model.eval()
    total, right, seen = 0.0, 0, 0
    with torch.no_grad():
        for X, y in loader:
            scores = model(X)
            total += criterion(scores, y).item() * len(y)
            right += int((scores.argmax(1) == y).sum())
            seen += len(y)
    return total / seen, right / seen


@pytest.mark.parametrize("workers", [0, 1])
def test_epochs_and_validation(recorder, workers):
    recorder.start()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    extra = {"num_workers": workers, "persistent_workers": True} if workers else {}
    loader = DataLoader(dataset(), batch_size=8, shuffle=True, **extra)
    val_loader = DataLoader(dataset(10, seed=2), batch_size=4, **extra)
    trained, validated = [], []
    for _ in range(3):
        trained.append(train_pass(model, optimizer, loader))
        validated.append(evaluate(model, val_loader))
    autolog.disable()
    run = recorder.run()
    at = [2, 5, 8]  # The last update of each epoch.
    assert recorder.history(run, "epoch") == list(zip(at, [0, 1, 2], strict=True))
    assert recorder.history(run, "loss_epoch") == [(s, loss) for s, (loss, _) in zip(at, trained, strict=True)]
    assert recorder.history(run, "accuracy") == [(s, share) for s, (_, share) in zip(at, trained, strict=True)]
    assert recorder.history(run, "val_loss") == [(s, loss) for s, (loss, _) in zip(at, validated, strict=True)]
    assert recorder.history(run, "val_accuracy") == [(s, share) for s, (_, share) in zip(at, validated, strict=True)]
    assert len(recorder.history(run, "loss")) == 9
    for _, share in recorder.history(run, "data_wait_share"):
        assert 0 < share <= 1
    assert all(rate > 0 for _, rate in recorder.history(run, "samples_per_second"))
    params = run.data.params
    assert (params["dataset_class"], params["dataset_length"], params["batch_size"]) == ("TensorDataset", "20", "8")


def test_evaluations_are_told_apart(recorder):
    recorder.start()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_loader = DataLoader(dataset(), batch_size=10)
    valid_loader = DataLoader(dataset(8, seed=2), batch_size=8)
    test_loader = DataLoader(dataset(6, seed=3), batch_size=4)
    train_pass(model, optimizer, train_loader)
    known = evaluate(model, valid_loader)
    test = evaluate(model, test_loader)
    again = evaluate(model, train_loader)
    autolog.disable()
    run = recorder.run()
    # Within the function they are all called `loader`.
    assert recorder.history(run, "val_loss") == [(1, known[0])]
    assert recorder.history(run, "train_eval_loss") == [(1, again[0])]
    assert recorder.history(run, "train_eval_accuracy") == [(1, again[1])]
    others = {name for name in run.data.metrics if name.endswith("_loss")} - {"val_loss", "train_eval_loss"}
    (other,) = others
    assert recorder.history(run, other) == [(1, test[0])]


def test_steps_without_a_whole_pass_are_no_epochs(recorder):
    recorder.start()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(dataset(), batch_size=4)
    for _ in range(3):
        X, y = next(iter(loader))
        F.cross_entropy(model(X), y).backward()
        optimizer.step()
    autolog.disable()
    run = recorder.run()
    assert len(recorder.history(run, "loss")) == 3
    assert "epoch" not in run.data.metrics
    assert not {name for name in run.data.metrics if name.startswith("val_")}


class Stream(IterableDataset):
    def __iter__(self):
        torch_rows = dataset()
        for i in range(20):
            yield torch_rows[i]


@pytest.mark.parametrize("how", ["break", "islice", "stream", "zip", "nested"])
def test_shapes_of_loops(recorder, how):
    recorder.start()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(Stream() if how == "stream" else dataset(), batch_size=5)
    other = DataLoader(dataset(seed=5), batch_size=5)
    expected = []

    def step(X, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(X), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    for _ in range(2):
        losses = []
        if how == "break":
            for i, (X, y) in enumerate(loader):
                if i == 2:
                    break
                step(X, y)
        elif how == "islice":
            for X, y in itertools.islice(loader, 2):
                step(X, y)
        elif how == "zip":
            for (X, y), _ in zip(loader, other, strict=True):
                step(X, y)
        elif how == "nested":
            for X, y in loader:
                step(X, y)
                with torch.no_grad():
                    for V, w in other:
                        F.cross_entropy(model(V), w)
        else:
            for X, y in loader:
                step(X, y)
        expected.append(sum(losses) / len(losses))
    autolog.disable()
    run = recorder.run()
    per_epoch = len(losses)
    assert recorder.history(run, "loss_epoch") == [(per_epoch - 1, expected[0]), (2 * per_epoch - 1, expected[1])]
    assert recorder.history(run, "epoch") == [(per_epoch - 1, 0), (2 * per_epoch - 1, 1)]
    assert len(recorder.history(run, "val_loss")) == (2 * per_epoch if how == "nested" else 0)


def test_validation_with_another_loss_is_not_called_val_loss(recorder):
    recorder.start()
    model = net(1)
    rows = TensorDataset(torch.randn(8, 4), torch.randn(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_loader, val_loader = DataLoader(rows, batch_size=4), DataLoader(TensorDataset(*rows.tensors), batch_size=4)
    for X, y in train_loader:
        F.mse_loss(model(X), y).backward()
        optimizer.step()
    total = 0.0
    with torch.inference_mode():
        for X, y in val_loader:
            total += F.l1_loss(model(X), y).item() * 4
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "val_l1_loss") == [(1, total / 8)]
    assert "val_loss" not in run.data.metrics


def test_ignored_targets_do_not_count(recorder):
    recorder.start()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rows = dataset()
    rows.tensors[1][::2] = -100
    for X, y in DataLoader(rows, batch_size=20):
        scores = model(X)
        F.cross_entropy(scores, y).backward()
        optimizer.step()
    autolog.disable()
    right = (scores.argmax(1) == y)[1::2].float().mean().item()
    assert recorder.history(recorder.run(), "accuracy") == [(0, pytest.approx(right))]


def test_checkpoint_every_epoch_is_linked_to_its_validation(recorder):
    recorder.start(checkpoints=Checkpoints(every="epoch", keep_last=1, keep_best=1))
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader, val_loader = DataLoader(dataset(), batch_size=10), DataLoader(dataset(8, seed=2), batch_size=8)
    validated = []
    for _ in range(3):
        train_pass(model, optimizer, loader)
        validated.append(evaluate(model, val_loader)[0])
        assert autolog.flush(60)  # One that is still being written would make the next be left out.
    autolog.disable()
    linked = {
        model.name: metric.value
        for model in recorder.models()
        for metric in model.metrics
        if metric.key == "val_loss" and model.name.startswith("checkpoint")
    }
    assert linked["checkpoint-5"] == validated[2]
    assert min(linked.values()) == min(validated)


def test_best_epoch_is_kept_though_its_validation_is_over_before_it_is_written(recorder):
    recorder.start(checkpoints=Checkpoints(every="epoch", keep_last=1, keep_best=1))
    model = net()
    loader, val_loader = DataLoader(dataset(), batch_size=10), DataLoader(dataset(), batch_size=20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    validated = []
    for rate in (0.1, -0.5, -0.5):  # The first epoch is the best: the others climb.
        optimizer.param_groups[0]["lr"] = rate
        train_pass(model, optimizer, loader)
        validated.append(evaluate(model, val_loader)[0])
        assert autolog.flush(60)
    autolog.disable()
    assert min(validated) == validated[0]
    assert {model.name for model in recorder.models()} == {"checkpoint-1", "checkpoint-5", "model"}


def test_loss_functions_of_an_earlier_training_do_not_count(recorder):
    recorder.start()
    for criterion, rows in ((nn.CrossEntropyLoss(), dataset()), (nn.L1Loss(), TensorDataset(*[torch.ones(8, 4)] * 2))):
        model = net(4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader, val_loader = DataLoader(rows, batch_size=10), DataLoader(TensorDataset(*rows.tensors), batch_size=8)
        for X, y in loader:
            criterion(model(X), y).backward()
            optimizer.step()
        with torch.no_grad():
            total = sum(criterion(model(X), y).item() * len(y) for X, y in val_loader)
        del optimizer
        run = recorder.runs()[-1]
        step = len(loader) - 1
        assert recorder.history(run, "val_loss") == [(step, pytest.approx(total / len(rows)))]


# -- gradient norms -------------------------------------------------------------------------------------------------


def test_gradient_norm_is_the_users_where_they_clip(recorder):
    recorder.start()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = dataset().tensors
    norms = []
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.01).item())
        optimizer.step()
    autolog.disable()
    assert recorder.history(recorder.run(), "grad_norm") == list(enumerate(norms))


def test_gradient_norm_of_scaled_gradients_is_not_recorded(recorder):
    recorder.start()
    model = net()
    X, y = dataset().tensors
    for unscale in (False, True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(F.cross_entropy(model(X), y)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
        measured = norm if unscale else norm / 1024
        scaler.step(optimizer)
        optimizer.zero_grad()
        autolog.flush()
        run = recorder.runs()[-1]
        ((_, value),) = [point for point in recorder.history(run, "grad_norm") if point[0] == int(unscale)]
        assert value == pytest.approx(measured, rel=1e-6)


def test_gradient_norm_is_measured_where_nobody_clips(recorder):
    recorder.start()
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    X, y = dataset().tensors
    F.cross_entropy(model(X), y).backward()
    expected = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()])).item()
    optimizer.step()
    autolog.disable()
    assert recorder.history(recorder.run(), "grad_norm") == [(0, pytest.approx(expected, rel=1e-6))]


# -- nothing of the user's is touched -------------------------------------------------------------------------------


def scripted(x, y):
    return F.mse_loss(x, y)


def test_patched_losses_script_and_pickle(recorder):
    original = F.cross_entropy, F.mse_loss, DataLoader.__iter__
    recorder.start()
    assert F.mse_loss is not original[1]
    assert pickle.loads(pickle.dumps(F.cross_entropy)) is F.cross_entropy
    x, y = torch.randn(3, 2), torch.randn(3, 2)
    assert torch.equal(torch.jit.script(scripted)(x, y), ((x - y) ** 2).mean())
    assert torch.jit.script(nn.CrossEntropyLoss())(x, torch.tensor([0, 1, 0])).dim() == 0
    loader = DataLoader(dataset(), batch_size=4)
    iterator = iter(loader)
    assert type(iterator).__module__ == "torch.utils.data.dataloader"
    assert len(iterator) == 5
    pickle.dumps(loader)
    autolog.disable()
    assert (F.cross_entropy, F.mse_loss, DataLoader.__iter__) == original


def test_checkpoint_metrics_are_linked_to_the_data_that_they_are_of(recorder):
    recorder.start(checkpoints=Checkpoints(every="epoch"))
    train_data, val_data = dataset(), dataset(rows=8, seed=2)
    train_loader = DataLoader(train_data, batch_size=4)
    val_loader = DataLoader(torch.utils.data.Subset(val_data, range(6)), batch_size=4)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        mean, _ = train_pass(model, optimizer, train_loader)
        validation, _ = evaluate(model, val_loader)
    del optimizer
    run = recorder.run()
    inputs = {each.dataset.name: each for each in run.inputs.dataset_inputs}
    # A dataset that has no variable is called as its loader is.
    assert {name: each.tags[0].value for name, each in inputs.items()} == {"train_data": "train", "val": "eval"}
    assert json.loads(inputs["train_data"].dataset.profile) == {
        "num_rows": 20,
        "features_shape": [20, 4],
        "targets_shape": [20],
    }
    specs = json.loads(inputs["train_data"].dataset.schema)["mlflow_tensorspec"]
    assert json.loads(specs["features"])[0]["tensor-spec"] == {"dtype": "float32", "shape": [-1, 4]}
    assert json.loads(specs["targets"])[0]["tensor-spec"] == {"dtype": "int64", "shape": [-1]}
    last = max(recorder.models(), key=lambda each: (each.name == "checkpoint-9", each.creation_timestamp))
    linked = {each.key: (each.value, each.dataset_name, each.dataset_digest) for each in last.metrics}
    assert linked["loss_epoch"] == (pytest.approx(mean), "train_data", inputs["train_data"].dataset.digest)
    assert linked["val_loss"] == (pytest.approx(validation), "val", inputs["val"].dataset.digest)


def test_data_of_the_run_under_the_step_of_a_checkpoint(recorder):
    recorder.start(checkpoints=Checkpoints(every="2 steps"))
    train_data = dataset(rows=12)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_pass(model, optimizer, DataLoader(train_data, batch_size=4))
    del optimizer
    run = recorder.run()
    assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["train_data"]
    for logged in recorder.models():
        names = {metric.key: metric.dataset_name for metric in logged.metrics}
        assert names["loss"] == "train_data", logged.name


class Pictures(torch.utils.data.Dataset):
    """A dataset of the user's own: pictures as arrays, labels as a list, something on no device at all."""

    asked = 0

    def __init__(self, pixels, labels):
        self.pixels, self.labels, self.transform = pixels, labels, lambda picture: picture * 2
        self.elsewhere = torch.empty(3, device="meta")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        Pictures.asked += 1
        return self.transform(torch.from_numpy(self.pixels[index])), self.labels[index]


def test_digest_of_a_dataset_covers_what_it_holds_without_asking_for_items():
    import numpy as np

    pixels = np.arange(40 * 3 * 32 * 32, dtype="float32").reshape(40, 3, 32, 32)
    labels = [i % 3 for i in range(40)]
    changed = pixels.copy()
    changed[39, 0, 0, 0] = -1

    def digest(made):
        return datasets.describe(made, "x", len(made)).digest

    Pictures.asked = 0
    one = digest(Pictures(pixels, labels))
    assert one == digest(Pictures(pixels.copy(), list(labels)))
    others = [
        digest(Pictures(changed, labels)),
        digest(Pictures(pixels, [*labels[:-1], 7])),
        digest(Pictures(pixels[:39], labels[:39])),
        digest(torch.utils.data.Subset(Pictures(pixels, labels), range(40))),
        digest(torch.utils.data.Subset(Pictures(pixels, labels), [*range(39), 38])),
        digest(torch.utils.data.ConcatDataset([Pictures(pixels, labels)] * 2)),
        digest([(torch.tensor([float(i)]), i) for i in range(40)]),
        digest([(torch.tensor([float(i)]), i) for i in range(39, -1, -1)]),
        digest(TensorDataset(torch.zeros(40, 2, dtype=torch.bfloat16))),
        digest(TensorDataset(torch.ones(40, 2, dtype=torch.bfloat16))),
    ]
    assert len({one, *others}) == 11 and Pictures.asked == 0


def test_data_that_cannot_be_told_apart_is_no_dataset():
    class Endless(IterableDataset):
        def __init__(self):
            self.source = object()

        def __iter__(self):
            yield torch.zeros(2)

    assert datasets.describe(Endless(), "x", None) is None


@pytest.mark.parametrize("as_batches", [False, True])
def test_folds_of_one_dataset_by_samplers_are_different_data(recorder, as_batches):
    """``SubsetRandomSampler`` over a dataset that both loaders share: what is held out is not the training's."""

    def loader(indices):
        sampler = SubsetRandomSampler(indices)
        if as_batches:
            return DataLoader(whole, batch_sampler=BatchSampler(sampler, 5, drop_last=False))
        return DataLoader(whole, batch_size=5, sampler=sampler)

    recorder.start()
    whole, model = dataset(), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training, held_out = list(range(15)), list(range(15, 20))
    expected = []
    for _ in range(2):
        train_pass(model, optimizer, loader(training))
        expected.append((evaluate(model, loader(held_out)), evaluate(model, loader(training[::-1]))))
    autolog.disable()
    run = recorder.run()
    for i, name in enumerate(("val", "train_eval")):
        for j, metric in enumerate(("loss", "accuracy")):
            found = [value for _, value in recorder.history(run, f"{name}_{metric}")]
            assert found == [pytest.approx(each[i][j], rel=1e-6) for each in expected], (name, metric)
    inputs = {each.tags[0].value: json.loads(each.dataset.profile) for each in run.inputs.dataset_inputs}
    assert {role: profile["num_rows"] for role, profile in inputs.items()} == {"train": 15, "eval": 5}
    assert run.data.params["dataset_length"] == "20"


def test_parts_that_samplers_draw_anew_for_each_epoch_are_one_curve(recorder):
    """By the name of their loader; and the run does not get an input for each epoch."""
    recorder.start(log_models=False)
    whole, model = dataset(60), net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(12):
        rows = torch.randperm(60, generator=generator)
        train_loader = DataLoader(whole, batch_size=10, sampler=SubsetRandomSampler(rows[:40]))
        train_pass(model, optimizer, train_loader)
        val_loader = DataLoader(whole, batch_size=10, sampler=SubsetRandomSampler(rows[40:]))
        with torch.no_grad():
            for X, y in val_loader:
                F.cross_entropy(model(X), y)
    autolog.disable()
    run = recorder.run()
    assert [step for step, _ in recorder.history(run, "val_loss")] == list(range(3, 48, 4))
    assert not [name for name in run.data.metrics if name.startswith(("eval", "train_eval"))]
    assert len(run.inputs.dataset_inputs) == 8


class Scored(nn.Module):
    """A loss around a function of torch's. KINDS: how it is made of that, and what an evaluation is called then."""

    KINDS = (
        ("plain", "val_loss"),
        ("scaled", "val_loss"),
        ("averaged", "val_loss"),
        ("penalised", "val_cross_entropy"),
        ("twice", "val_cross_entropy"),
        ("smoothed", "val_loss"),
        ("smoothed and penalised", "val_cross_entropy"),
    )

    def __init__(self, kind, model):
        super().__init__()
        self.kind, self.model = kind, [model]

    def forward(self, scores, y):
        loss = F.cross_entropy(scores, y, label_smoothing=0.1 if "smoothed" in self.kind else 0.0)
        if self.kind == "twice":
            return loss + F.cross_entropy(scores, y)
        if self.kind == "scaled":
            return loss / 4
        if self.kind == "averaged":
            return loss.double().reshape(1).mean()
        if "penalised" in self.kind:
            return loss + 0.01 * self.model[0][0].weight.square().sum()
        return loss


@pytest.mark.parametrize(("kind", "name"), Scored.KINDS)
def test_part_of_a_loss_is_not_called_the_loss_of_an_evaluation(recorder, kind, name):
    """``val_loss`` is the mean of what is minimised; of a sum of which only a part is seen, the part's name is said."""
    recorder.start(log_models=False)
    model = net()
    criterion = Scored(kind, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_pass(model, optimizer, DataLoader(dataset(), batch_size=5), criterion)
    evaluate(model, DataLoader(dataset(10, seed=2), batch_size=5), criterion)
    autolog.disable()
    run = recorder.run()
    assert [key for key in run.data.metrics if key.startswith("val_") and key != "val_accuracy"] == [name]


def test_another_function_looked_at_while_training_is_not_the_loss(recorder):
    """A loss of the user's own formula, and one of torch's for the eye."""
    recorder.start(log_models=False)
    model = net(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = lambda scores, y: (scores[:, 0] - y).square().mean()  # noqa: E731
    training, held_out = DataLoader(dataset(), batch_size=5), DataLoader(dataset(10, seed=2), batch_size=5)
    for X, y in training:
        optimizer.zero_grad()
        scores = model(X)
        own(scores, y.float()).backward()
        F.l1_loss(scores[:, 0], y.float())
        optimizer.step()
    total = 0.0
    with torch.no_grad():
        for X, y in held_out:
            total += F.l1_loss(model(X)[:, 0], y.float()).item() * len(y)
    autolog.disable()
    run = recorder.run()
    assert "val_loss" not in run.data.metrics
    assert run.data.metrics["val_l1_loss"] == pytest.approx(total / 10)
