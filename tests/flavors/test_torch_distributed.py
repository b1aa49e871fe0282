"""Trainings of several processes: one run, recorded by rank 0; no collective of ours, nothing hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import mlflow
import pytest
import torch
import torch.distributed.fsdp
from torch import nn

import autolog
from autolog import guard

mse = nn.functional.mse_loss

SCRIPT = """
    import os, sys
    import autolog
    autolog.autolog(tracking_uri={uri!r}, experiment={experiment!r}, checkpoints=autolog.Checkpoints(every="2 steps"))
    import torch, torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    counted = []
    for name in ("all_reduce", "all_gather", "broadcast", "barrier", "gather", "reduce", "all_gather_object"):
        def count(*args, _name=name, _original=getattr(dist, name), **kwargs):
            counted.append(_name)
            return _original(*args, **kwargs)
        setattr(dist, name, count)

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    {body}
"""

DDP = """
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = torch.full((2, 4), 1.0 + rank), torch.ones(2, 1)
    before, losses = list(counted), []
    for step in range(4):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(X), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        {middle}
    assert counted == before, counted
    if rank == 0:
        torch.save((losses, model.module.state_dict()), sys.argv[1])
    {end}
"""


@pytest.fixture
def torchrun(recorder, tmp_path):
    """Runs a script in two processes and returns (losses, weights) of rank 0."""

    def run(body, code=0):
        script, out = tmp_path / "train.py", tmp_path / "out.pt"
        source = textwrap.dedent(SCRIPT).format(
            uri=recorder.store_uri, experiment=recorder.experiment, body=textwrap.dedent(body)
        )
        script.write_text(source)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "AUTOLOG_SPOOL_DIR": str(tmp_path / "spool")}
        done = subprocess.run(
            [*command, str(script), str(out)], capture_output=True, text=True, timeout=300, env=environ, check=False
        )
        assert (done.returncode != 0) == bool(code), done.stderr[-3000:]
        assert "could not" not in done.stderr, done.stderr[-3000:]
        _settled(tmp_path / "spool")
        return torch.load(out) if out.exists() else None, done.stderr

    return run


def _settled(spool):
    """Wait until the senders, which outlive the processes, have delivered everything, and sync what has no sender."""
    command = [sys.executable, "-m", "autolog", "sync"]
    deadline = time.monotonic() + 120
    while any(spool.glob("*/spool.db")) and time.monotonic() < deadline:
        subprocess.run(command, env={**os.environ, "AUTOLOG_SPOOL_DIR": str(spool)}, capture_output=True, check=False)
        time.sleep(0.1)
    assert not any(spool.glob("*/spool.db"))


def test_ddp_is_one_run_recorded_by_rank_0_without_collectives(recorder, torchrun):
    """Rank 1 leaves without a farewell once its last step is made, which hangs nothing."""
    (losses, weights), _ = torchrun(DDP.format(middle="pass", end="os._exit(0) if rank else None"))
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert recorder.history(run, "loss") == list(enumerate(losses))
    assert (run.data.params["model_class"], run.data.params["world_size"]) == ("Sequential", "2")
    logged = {model.name: model for model in recorder.models()}
    assert sorted(logged) == ["checkpoint-1", "checkpoint-3", "model"]
    mlflow.set_tracking_uri(recorder.store_uri)
    stored = mlflow.pytorch.load_model(f"models:/{logged['model'].model_id}")
    assert type(stored) is nn.Sequential  # Unwrapped.
    assert all(torch.equal(value, weights[name]) for name, value in stored.state_dict().items())


def test_rank_that_dies_ends_the_run_as_failed(recorder, torchrun):
    body = DDP.format(middle='(__import__("time").sleep(2), os._exit(3)) if rank and step == 1 else None', end="pass")
    torchrun(body, code=1)
    run = recorder.run()
    assert run.info.status in ("FAILED", "KILLED")
    assert [step for step, _ in recorder.history(run, "loss")][:1] == [0]


FSDP = """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.device_mesh import init_device_mesh
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if rank == 0:
        torch.save((losses, {}), sys.argv[1])
    dist.destroy_process_group()
"""


@pytest.mark.skipif(not hasattr(torch.distributed.fsdp, "fully_shard"), reason="before 2.6 it shards on GPUs only")
def test_sharded_model_is_not_gathered_and_that_is_said_once(recorder, torchrun):
    (losses, _), said = torchrun(FSDP)
    run = recorder.run()
    assert recorder.history(run, "loss") == list(enumerate(losses))
    assert recorder.models() == []
    assert said.count("its parameters are spread over several processes") == 1


# -- wrappers in one process ----------------------------------------------------------------------------------------


class Outer(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_wrapped_parts_are_unwrapped_in_the_snapshot_and_restored_into(recorder):
    recorder.start()

    def make(seed):
        torch.manual_seed(seed)
        return Outer(torch.compile(nn.DataParallel(nn.Linear(4, 1)), backend="eager"))

    model = make(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    X = torch.randn(6, 4)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        optimizer.step()
    autolog.disable()
    (logged,) = recorder.models()
    mlflow.set_tracking_uri(recorder.store_uri)
    stored = mlflow.pytorch.load_model(f"models:/{logged.model_id}")
    assert (type(stored.inner), list(stored.state_dict())) == (nn.Linear, ["inner.weight", "inner.bias"])
    recorder.start()
    fresh = make(9)
    again = torch.optim.Adam(fresh.parameters(), lr=0.5)
    autolog.resume(fresh, again)
    expected, found = list(model.parameters()), list(fresh.parameters())
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    plain = nn.Module()
    plain.inner = nn.Linear(4, 1)
    assert guard.swallowed == []
