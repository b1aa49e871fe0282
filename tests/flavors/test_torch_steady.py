"""Long loops, whose updates are each like the last: what the shortest way records is the same as any other way does."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path

import mlflow
import pytest
import torch
from torch import nn
from torch._dynamo import eval_frame
from torch.utils.data import DataLoader, TensorDataset

import autolog
from autolog import Checkpoints
from flavors.torch.losses import Compiled, Recent, Threads

mse = nn.functional.mse_loss


def data(rows=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator), torch.randn(rows, 1, generator=generator)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))


@pytest.fixture
def compiler():
    """Leave nothing that a test compiled to the next one."""
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def steps(values):
    return list(enumerate(values))


def train(model, count, make=torch.optim.SGD, on_step=lambda step: None):
    X, y = data()
    optimizer = make(model.parameters(), lr=0.1)
    losses = []
    for step in range(count):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        on_step(step)
    return losses


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("clips", [False, True])
def test_every_update_of_a_long_loop_is_recorded(recorder, groups, clips):
    recorder.start()
    model = net()
    X, y = data()
    parts = [model.parameters()] if groups == 1 else [model[0].parameters(), model[2].parameters()]
    optimizer = torch.optim.SGD([{"params": part} for part in parts], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
    losses, rates, norms = [], [], []
    for _ in range(300):
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        if clips:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        rates.append(optimizer.param_groups[-1]["lr"])
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(losses)
    assert recorder.history(run, "learning_rate" if groups == 1 else "learning_rate_1") == steps(rates)
    if clips:
        assert recorder.history(run, "grad_norm") == steps(norms)


def test_training_is_bit_identical_however_long(recorder):
    expected = train(net(), 200, torch.optim.Adam)
    recorder.start()
    model = net()
    assert train(model, 200, torch.optim.Adam) == expected
    assert recorder.history(recorder.run(), "loss") == steps(expected)


def test_checkpoints_by_steps_come_at_their_steps(recorder):
    recorder.start(checkpoints=Checkpoints(every="30 steps", keep_last=None))
    losses = train(net(), 100)
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(losses)
    found = {model.name: {m.key: (m.step, m.value) for m in model.metrics}["loss"] for model in recorder.models()}
    expected = {f"checkpoint-{step}": (step, losses[step]) for step in (29, 59, 89)} | {"model": (99, losses[99])}
    assert found == expected


def test_another_line_has_its_own_name(recorder):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = {"loss": [], "penalty": []}
    for step in range(60):
        optimizer.zero_grad()
        if step % 20 < 18:
            loss = mse(model(X), y)
            loss.backward()
            expected["loss"].append((step, loss.item()))
        else:
            penalty = mse(model(X), -y)
            penalty.backward()
            expected["penalty"].append((step, penalty.item()))
        optimizer.step()
    autolog.disable()
    run = recorder.run()
    assert {name: recorder.history(run, name) for name in expected} == expected
    assert recorder.history(run, "learning_rate") == steps([0.1] * 60)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_failures_between_updates_like_the_last(recorder, set_to_none):
    """A backward that raises, one whose gradients are thrown away, and one that goes on accumulating."""
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = []
    for step in range(80):
        parts = []
        for attempt in range(3):
            loss = mse(model(X), y) * (1.0 if step < 70 else 2.0) + attempt
            if step in (30, 31) and attempt == 0:
                loss.register_hook(lambda gradient: 1 / 0)
            try:
                loss.backward()
            except ZeroDivisionError:
                continue
            if step in (40, 41) and attempt == 0:
                optimizer.zero_grad(set_to_none)
                continue
            parts.append(loss.item())
            if step not in (50, 51) or attempt:
                break
        optimizer.step()
        optimizer.zero_grad(set_to_none)
        expected.append(sum(parts) / len(parts))
    autolog.disable()
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert recorder.history(run, "loss") == steps(expected)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_first_attempt_at_the_first_step_is_dropped(recorder, set_to_none):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mse(model(X), 3 * y).backward()
    optimizer.zero_grad(set_to_none)
    loss = mse(model(X), y)
    loss.backward()
    optimizer.step()
    autolog.disable()
    assert recorder.history(recorder.run(), "loss") == [(0, loss.item())]


def test_two_optimizers_in_turn(recorder):
    recorder.start()
    one, two = net(0), net(1)
    X, y = data()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (one, two)]
    expected = {"first": [], "second": []}
    for _ in range(60):
        optimizers[0].zero_grad()
        first = mse(one(X), y)
        first.backward()
        optimizers[0].step()
        optimizers[1].zero_grad()
        second = mse(two(X), -y)
        second.backward()
        optimizers[1].step()
        expected["first"].append(first.item())
        expected["second"].append(second.item())
    autolog.disable()
    run = recorder.run()
    assert {name: recorder.history(run, name) for name in expected} == {n: steps(v) for n, v in expected.items()}


def test_trainings_one_after_the_other_at_the_same_line(recorder):
    recorder.start()
    expected = []
    for seed in range(3):
        expected.append(train(net(seed), 40))
        gc.collect()
    runs = sorted(recorder.runs(), key=lambda run: run.info.start_time)
    assert [recorder.history(run, "loss") for run in runs] == [steps(losses) for losses in expected]


def test_epochs_of_a_long_training(recorder):
    recorder.start()
    model = net()
    X, y = data(120)
    loader = DataLoader(TensorDataset(X, y), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, means = [], []
    for _ in range(4):
        total = 0.0
        for features, target in loader:
            optimizer.zero_grad()
            loss = mse(model(features), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            total += loss.item()
        means.append(total / len(loader))
    autolog.disable()
    run = recorder.run()
    assert recorder.history(run, "loss") == steps(losses)
    assert recorder.history(run, "loss_epoch") == list(zip([29, 59, 89, 119], means, strict=True))


def test_paused_updates_are_left_out(recorder):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def update():
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    expected = [update() for _ in range(30)]
    with autolog.paused():
        for _ in range(5):
            update()
    expected += [update() for _ in range(30)]
    autolog.disable()
    assert recorder.history(recorder.run(), "loss") == steps(expected)


def test_closure_that_searches_among_plain_steps(recorder):
    """LBFGS records its first loss, and leaves nothing behind for the next optimizer."""
    recorder.start()
    model = net()
    X, y = data()
    plain = torch.optim.SGD(model.parameters(), lr=0.01)
    search = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    expected = {"plain": [], "search": []}
    for step in range(60):
        if step % 20 == 19:

            def closure():
                search.zero_grad()
                loss = mse(model(X), y)
                loss.backward()
                return loss

            expected["search"].append(search.step(closure).item())
            plain.zero_grad()
            continue
        plain.zero_grad()
        parts = []
        for _ in range(2 if step % 20 == 0 else 1):
            loss = mse(model(X), y)
            loss.backward()
            parts.append(loss.item())
        plain.step()
        expected["plain"].append(sum(parts) / len(parts))
    autolog.disable()
    run = recorder.run()
    # It trains the same parameters, so that it goes on counting where it joins.
    searched = [(19 + i, loss) for i, loss in enumerate(expected["search"])]
    assert sorted(recorder.history(run, "loss")) == sorted([*steps(expected["plain"]), *searched])


# -- facts that only show as it trains -----------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 4])
def test_accumulated_micro_batches_are_a_parameter(recorder, batches):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for _ in range(batches):
            (mse(model(X), y) / batches).backward()
        optimizer.step()
        optimizer.zero_grad()
    autolog.disable()
    assert recorder.run().data.params.get("gradient_accumulation_steps") == (str(batches) if batches > 1 else None)


@pytest.mark.parametrize("enabled", [False, True])
def test_autocast_is_a_parameter(recorder, enabled):
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = mse(model(X).float(), y)
        loss.backward()
        optimizer.step()
    autolog.disable()
    assert recorder.run().data.params.get("autocast") == ("bfloat16" if enabled else None)


def test_what_an_epoch_showed_is_recorded_at_its_last_step(recorder):
    """What an epoch showed is recorded at its step and time, and waits for the next one's first step."""
    recorder.start()
    model = net()
    X, y = data()
    loader = DataLoader(TensorDataset(X, y), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        for features, target in loader:
            optimizer.zero_grad()
            mse(model(features), target).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            for features, target in loader:
                mse(model(features), target)
        model.train()
    run = recorder.run()
    assert [step for step, _ in recorder.history(run, "epoch")] == [2, 5]
    assert [step for step, _ in recorder.history(run, "train_eval_loss")] == [2, 5]


def test_what_the_user_logs_each_epoch_is_not_mixed_with_ours(recorder):
    """Under a name of ours, at the number of the epoch: as one curve with ours, at steps, it would be neither."""
    mlflow.set_tracking_uri(recorder.store_uri)
    recorder.start()
    model = net()
    X, y = data()
    loader = DataLoader(TensorDataset(X, y), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        for features, target in loader:
            optimizer.zero_grad()
            mse(model(features), target).backward()
            optimizer.step()
        with torch.no_grad():
            for features, target in loader:
                mse(model(features), target)
        mlflow.log_metric("train_eval_loss", 10.0 + epoch, step=epoch)
    run = recorder.run()
    assert recorder.history(run, "train_eval_loss") == [(0, 10.0), (1, 11.0), (2, 12.0)]
    assert [step for step, _ in recorder.history(run, "epoch")] == [2, 5, 8]
    assert run.data.tags["autolog.logged_by_hand"] == '["train_eval_loss"]'


@pytest.mark.usefixtures("compiler")
def test_steps_that_torch_compile_has_swallowed_are_said_once(recorder, caplog):
    """It may leave them to Python, too, as it does on Python 3.13: then they are recorded."""
    recorder.start()
    torch._dynamo.utils.counters.clear()
    model = net()
    X, y = data()
    optimizer = torch.optim.Adam(model.parameters())

    @torch.compile(backend="eager")
    def step():
        optimizer.zero_grad()
        loss = mse(model(X), y)
        loss.backward()
        optimizer.step()
        return loss

    losses = [step().item() for _ in range(4)]
    autolog.disable()
    assert losses[-1] < losses[0]
    swallowed = any("_in_wrapper_" in name for name in torch._dynamo.utils.counters["resumes"])
    assert swallowed or sys.version_info >= (3, 13)
    assert caplog.text.count("torch.compile has compiled its step()") == swallowed
    assert [recorder.history(run, "loss") for run in recorder.runs()] == ([] if swallowed else [[*enumerate(losses)]])


@pytest.mark.usefixtures("compiler")
def test_losses_of_steps_that_torch_compile_has_swallowed_are_nobody_elses(recorder, caplog):
    """Its backwards are left to Python all the same; the optimizer keeps no state by which its steps could be told."""
    recorder.start()
    torch._dynamo.utils.counters.clear()
    model, other = net(), net()
    X, y = data()
    optimizer, another = (torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, other))

    @torch.compile(backend="eager")
    def step():
        hidden = mse(model(X), y)
        hidden.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return hidden

    first, losses = [], []
    for _ in range(2):
        first += [step().item(), step().item()]
        another.zero_grad()
        shown = mse(other(X), y)
        shown.backward()
        losses.append(shown.item())
        another.step()
    autolog.disable()
    swallowed = any("_in_wrapper_" in name for name in torch._dynamo.utils.counters["resumes"])
    run = recorder.run()
    found = {key: recorder.history(run, key) for key in run.data.metrics if key in ("loss", "hidden", "shown")}
    # What dynamo has made of a function has no names.
    theirs = {} if swallowed else {"loss": first}
    told = {**theirs, "shown": losses}
    assert found == {key: [*enumerate(values)] for key, values in told.items()}
    assert caplog.text.count("torch.compile has compiled its step()") == swallowed


@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(not hasattr(eval_frame, "set_code_exec_strategy"), reason="this torch cannot be told")
def test_losses_of_what_torch_compile_has_compiled_up_to_the_step(recorder):
    """Forward and backward in it, the step outside: a backward is never compiled, and is left to Python."""
    recorder.start()
    model = net()
    X, y = data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile(backend="eager")
    def differentiate():
        loss = mse(model(X), y)
        loss.backward()
        return loss

    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(differentiate().item())
        optimizer.step()
    autolog.disable()
    assert recorder.history(recorder.run(), "loss") == [*enumerate(losses)]


@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(not hasattr(eval_frame, "set_code_exec_strategy"), reason="this torch cannot be told")
def test_torch_compile_looks_into_nothing_that_records(recorder):
    """Of what it compiles it follows all Python: into the writer and the reading of bytecode, for seconds."""
    from torch._dynamo.convert_frame import input_codes

    recorder.start()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(*data()), batch_size=2)

    @torch.compile(backend="eager")
    def epoch():
        for X, y in loader:
            optimizer.zero_grad()
            mse(model(X), y).backward()
            optimizer.step()

    epoch()
    epoch()
    autolog.disable()
    seen = [code for code in (reference() for reference in input_codes.seen) if code is not None]
    files = {Path(code.co_filename) for code in seen}
    ours = {file.name for file in files if file.match("autolog/*.py") or file.match("flavors/torch/*.py")}
    assert "flavor.py" in ours  # What stands in front of torch's own functions is followed.
    assert not ours & {"guard.py", "passes.py", "recorder.py", "training.py", "run.py", "writer.py", "patching.py"}


def test_losses_kept_by_threads_that_are_gone_are_nobodys():
    compiled = Compiled()
    recent = Recent()
    threads = Threads(torch.Tensor, lambda: False, compiled, recent)
    mine = threads.pending
    assert mine.thread == threading.get_ident()
    kept = []

    def other():
        kept.append(threads.pending)
        recent.pending = kept[0]

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    # Another thread may get its number, also while somebody still knows what it had.
    assert (kept[0].thread, recent.pending) == (0, None)
    kept.clear()
    gc.collect()
    assert set(compiled.pending) == {mine}
