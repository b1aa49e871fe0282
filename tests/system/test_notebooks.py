"""In a real Jupyter kernel: cells that are run again, interrupted or fail, and what is shown below them."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator

import pytest

client_module = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

SETUP = """
import autolog
autolog.autolog(exit_timeout=60)
import torch, time
def build():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)
def train(model, optimizer, steps, pause=0.0):
    for step in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(torch.ones(4, 2)), torch.zeros(4, 1))
        loss.backward()
        optimizer.step()
        time.sleep(pause)
"""


class Cell:
    """What came of one: its text, the HTML shown below it, and how it ended."""

    def __init__(self) -> None:
        self.text = ""
        self.html: list[str] = []
        self.error = ""


class Kernel:
    def __init__(self, place) -> None:
        self.manager = client_module.KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(place.folder), env=place.environ)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, *, interrupt_after: float | None = None) -> Cell:
        """Run a cell; interrupt_after: seconds after which it gets the interrupt of the stop button."""
        asked = self.client.execute(code)
        cell = Cell()
        began = time.monotonic()
        while True:
            if interrupt_after is not None and time.monotonic() - began > interrupt_after:
                self.manager.interrupt_kernel()
                interrupt_after = None
            try:
                message = self.client.get_iopub_msg(timeout=0.1)
            except queue.Empty:  # Nothing was said meanwhile.
                assert time.monotonic() - began < 60, "the cell does not end"
                continue
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                cell.text += content["text"]
            elif kind == "display_data" and "text/html" in content["data"]:
                cell.html.append(content["data"]["text/html"])
            elif kind == "error":
                cell.error = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return cell

    def stop(self) -> None:
        if not self.manager.has_kernel:
            return
        self.client.stop_channels()
        self.manager.shutdown_kernel()


@pytest.fixture
def kernel(place) -> Iterator[Kernel]:
    made = Kernel(place)
    yield made
    made.stop()


def test_a_loop_that_is_run_again_interrupted_and_failed(place, kernel) -> None:
    assert kernel.run(SETUP).html == []  # Nothing was trained.
    first = kernel.run("model, optimizer = build(); train(model, optimizer, 3)")
    assert (first.error, first.text) == ("", "")
    (block,) = first.html
    assert "3 points" in block or "loss" in block
    assert "Traceback" not in block
    assert kernel.run("1 + 1").html == []

    interrupted = kernel.run("model, optimizer = build(); train(model, optimizer, 1000, 0.05)", interrupt_after=2.0)
    assert interrupted.error == "KeyboardInterrupt"
    assert "KILLED" in interrupted.html[0]

    failed = kernel.run("model, optimizer = build(); train(model, optimizer, 2); 1 / 0")
    assert (failed.error, len(failed.html)) == ("ZeroDivisionError", 1)
    assert "FAILED" in failed.html[0]

    kernel.run("model, optimizer = build(); train(model, optimizer, 4)")
    assert kernel.run("print(autolog.flush(60), autolog.status()['errors'])").text == "True []\n"
    kernel.stop()  # The last run is open until then.
    place.wait_for(lambda: not place.spools(), 60)
    runs = place.runs()
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED", "FAILED", "FINISHED"]
    steps = [len(place.history(run, "loss")) for run in runs]
    assert (steps[0], steps[2], steps[3]) == (3, 2, 4)
    assert 2 < steps[1] < 1000


def test_estimators_are_a_run_for_each_cell_that_fits(place, kernel) -> None:
    kernel.run("import autolog; autolog.autolog(exit_timeout=60)\nfrom sklearn.linear_model import Ridge")
    for alpha in (1, 2):
        cell = kernel.run(f"Ridge(alpha={alpha}).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]);")
        assert cell.error == ""
        (block,) = cell.html
        assert "params" in block
    many = kernel.run("for alpha in range(8): Ridge(alpha=alpha).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])")
    assert len(many.html) == 1
    assert "<b>8 runs</b>" in many.html[0]
    kernel.run("autolog.autolog(silent=True)")
    assert kernel.run("Ridge().fit([[0.0], [1.0]], [0.0, 1.0]);").html == []
    kernel.run("assert autolog.flush(60)")
    assert [run.data.params["alpha"] for run in place.runs()] == ["1", "2", *map(str, range(8)), "1.0"]
