"""What is said at the end: counted from the records, with what the sender told the spool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autolog.config import Config
from autolog.records import Block, DeclareModel, DropModels, EndRun, Figure, OpenRun, Params, Points
from autolog.spool import Spool
from autolog.summary import Ledger, describe, to_html


@pytest.fixture
def spool(tmp_path: Path):
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    (folder / "blobs").mkdir()
    made = Spool(folder, new=True)
    yield made
    made.close()


def opened(run: str = "r", **more: object) -> OpenRun:
    return OpenRun(run, 0, None, "exp", None, "/nowhere", **more)  # type: ignore[arg-type]


def test_facts_are_counted(spool) -> None:
    book = Ledger()
    book.add([opened(), Params("r", {"a": "1", "b": "2"}), Params("r", {"b": "3"})])
    book.add([Points("r", step, 0, {"val_loss": loss, "lr": 0.1}) for step, loss in enumerate([0.9, 0.2, 0.5])])
    book.add([Points("r", 9, 0, {"val_loss": float("nan")})])
    book.add([Block("r", 10, [1, 2, 3], {"acc": [0.1, 0.7, 0.3]}, 1)])
    book.add([DeclareModel("r", key, f"checkpoint-{key}", 1, {}, {}) for key in "xyz"])
    book.add([DropModels("r", ("x",)), Figure("r", "a.png", "bars", {}), EndRun("r", "FAILED", 5)])
    book.add([opened("child", parent="r"), Points("unknown", 0, 0, {"a": 1.0})])
    (facts,) = book.tops()
    assert facts.metrics == {"val_loss": (1, 0.2), "lr": (2, 0.1), "acc": (10, 0.7)}
    said = describe(facts, spool, book.parts(facts), Config())
    assert said.recorded == "2 params, 9 points, 2 checkpoints, 1 picture, 1 child run"
    assert said.best == "val_loss 0.2 at step 1"  # By which checkpoints are chosen, though there is an accuracy.
    assert (said.status, said.experiment, said.run_id, said.model) == ("FAILED", "exp", None, None)
    assert said.look == ("autolog show latest", "autolog ui")


def test_names_and_ids_are_the_senders(spool, monkeypatch) -> None:
    monkeypatch.delenv("AUTOLOG_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    book = Ledger()
    uri = "https://me:secret@example.org"
    book.add([OpenRun("r", 0, uri, None, None, "/nowhere"), DeclareModel("r", "m", "model", 1, {}, {})])
    spool.bind("run:r", "0123456789abcdef", "me", {"name": "kind-fox-1", "experiment_id": "7"})
    spool.bind("model:m", "m-1", "me", {})
    spool.set_meta("derived:r", json.dumps({"training_score": [0, 0.75]}))
    (facts,) = book.tops()
    said = describe(facts, spool, 0, Config())
    assert (said.name, said.model, said.best) == ("kind-fox-1", "models:/m-1", "training_score 0.75")
    assert said.recorded == "1 point, 1 model"

    assert said.link == "https://example.org/#/experiments/7/runs/0123456789abcdef"
    assert said.look[0] == "autolog show 01234567 --tracking-uri https://example.org"
    assert "secret" not in to_html([said])
    assert '<a href="https://example.org/#/experiments/7/runs/0123456789abcdef"' in to_html([said])


def test_of_a_search_the_model_is_the_search(spool) -> None:
    book = Ledger()
    names = {"m": "model", "b": "best_estimator", "c": "checkpoint-3"}
    book.add([opened(), *(DeclareModel("r", key, name, 1, {}, {}) for key, name in names.items())])
    book.add([Points("r", 0, 0, {"best_cv_score": 0.5})])
    for key in names:
        spool.bind(f"model:{key}", f"m-{key}", "me", {})
    (facts,) = book.tops()
    said = describe(facts, spool, 0, Config())
    assert said.model == "models:/m-m"
    assert said.what("<", ">") == "1 point, 1 checkpoint, 2 models; <best_cv_score 0.5>"


def test_html_is_escaped(spool) -> None:
    book = Ledger()
    book.add([opened(name="<script>"), Points("r", 0, 0, {"<b>_loss": 1.0})])
    (facts,) = book.tops()
    shown = to_html([describe(facts, spool, 0, Config())])
    assert "<script>" not in shown
    assert "&lt;b&gt;_loss 1" in shown
