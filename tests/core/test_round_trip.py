"""Whatever is said, in whatever order, by whatever name: what goes into the spool is what plain MLflow reads."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from autolog import runtime
from autolog.batches import LONG_PARAMS, clean_key, clean_text
from autolog.delivery import Delivery
from autolog.records import EndRun, OpenRun, Params, Points, Record, Tags, Text, now
from autolog.spool import Spool

# Also what no encoding has: a half of a surrogate pair.
texts = st.text(st.characters(), max_size=40) | st.sampled_from(
    ["", "\0", "\ud800", "x" * 9000, "../..", "a//b", "/", "."]
)
names = st.text(st.characters(), min_size=1, max_size=30) | st.sampled_from(
    ["m", "M", "k" * 300, "..", "a/../b", "@", "ß/名"]
)
numbers = st.floats() | st.sampled_from([0.0, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan])
steps = st.integers(-(2**62), 2**62) | st.integers(0, 3)

said = st.lists(
    st.one_of(
        st.tuples(st.just("points"), st.dictionaries(names, numbers, min_size=1, max_size=3), steps),
        st.tuples(st.just("params"), st.dictionaries(names, texts, min_size=1, max_size=3)),
        st.tuples(st.just("tags"), st.dictionaries(names, texts, min_size=1, max_size=3)),
        st.tuples(st.just("text"), texts),
    ),
    min_size=1,
    max_size=12,
)


def stored(value: float) -> str:
    """A number as MLflow keeps it: infinities as the largest float; zero has no sign in a database."""
    if math.isinf(value):
        value = math.copysign(1.7976931348623157e308, value)
    return repr(value + 0.0)


def stored_key(name: str, said: dict[str, str]) -> str:
    """The key of a name; one that is the same only in MLflow's alphabet has its hash behind it."""
    key = clean_key(name)
    if said.setdefault(key, name) == name:
        return key
    mark = hashlib.blake2b(name.encode("utf-8", "backslashreplace"), digest_size=3).hexdigest()
    return (key if len(key) <= 243 else key[:240] + "...") + "_" + mark


@settings(
    max_examples=int(os.environ.get("AUTOLOG_TEST_EXAMPLES", "8")),
    database=None,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(said=said, rows=st.integers(1, 5), again=st.booleans())
def test_what_goes_in_comes_out(said, rows: int, again: bool, store_uri: str, tmp_path: Path) -> None:
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir(mode=0o700)
    (folder / "blobs").mkdir()
    spool = Spool(folder, new=True)
    run_key, at = uuid.uuid4().hex, now()
    records: list[Record] = [OpenRun(run_key, at, store_uri, "round-trip", None, str(folder))]
    points: dict[str, set[tuple[int, int, str]]] = {}
    metric_names: dict[str, str] = {}
    param_names: dict[str, str] = {}
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    texts: dict[str, str] = {}
    for i, (kind, *what) in enumerate(said):
        if kind == "points":
            values, step = what
            records.append(Points(run_key, step, at + i, values))
            for name, value in values.items():
                points.setdefault(stored_key(name, metric_names), set()).add((at + i, step, stored(value)))
        elif kind == "params":
            # A parameter is said once: the store lets none change, and says so (test_delivery.py).
            fresh = {stored_key(clean_text(name), param_names): name for name in what[0]}
            fresh = {key: name for key, name in fresh.items() if key not in params}
            records.append(Params(run_key, {name: what[0][name] for name in fresh.values()}))
            params |= {key: what[0][name] for key, name in fresh.items()}
        elif kind == "tags":
            records.append(Tags(run_key, what[0]))
            tags |= {clean_key(name): text for name, text in what[0].items()}
        else:
            records.append(Text(run_key, f"t{i}.txt", what[0]))
            texts[f"t{i}.txt"] = what[0]
    records.append(EndRun(run_key, "FINISHED", at + 1000))
    for start in range(0, len(records), rows):
        spool.append(records[start : start + rows])
    sender = Delivery(spool, own_process=False)
    sender.send(spool.pending(len(records)))
    if again:  # As after a crash: what was sent is sent again.
        for start in range(0, len(records), rows):
            spool.append(records[start : start + rows])
        last = spool.pending(10_000)[-1].seq
        spool.set_meta("attempted", str(last))
        Delivery(spool, own_process=False).send(spool.pending(10_000))
    assert spool.problems() == []
    assert spool.backlog() == 0
    client = MlflowClient(tracking_uri=store_uri)
    run = client.get_run(spool.lookup(f"run:{run_key}").remote)
    spool.close()
    assert run.info.status == "FINISHED"
    for key, expected in points.items():
        history = client.get_metric_history(run.info.run_id, key)
        assert {(p.timestamp, p.step, stored(p.value)) for p in history} == expected
        assert len(history) == len(expected)
    whole = {key: clean_text(text) for key, text in params.items()}
    assert run.data.params == {k: v if len(v) <= 6000 else v[:5997] + "..." for k, v in whole.items()}
    for key, text in tags.items():
        kept = clean_text(text)
        assert run.data.tags[key] == (kept if len(kept) <= 8000 else kept[:7997] + "...")
    for path, text in texts.items():
        local = client.download_artifacts(run.info.run_id, path, str(folder))
        assert Path(local).read_bytes().decode() == clean_text(text)
    if any(len(text) > 6000 for text in whole.values()):
        long = json.loads(Path(client.download_artifacts(run.info.run_id, LONG_PARAMS, str(folder))).read_text())
        assert {stored_key(key, param_names) for key in long} >= {k for k, text in whole.items() if len(text) > 6000}


def test_names_that_mlflow_writes_alike_stay_two_curves(recorder) -> None:
    recorder.start()
    run = runtime.open_run("torch")
    long = "k" * 249
    run.metrics({"loss[0]": 0.0, "loss(0)": 1.0, long + "ab": 2.0, long + "cd": 3.0}, step=0)
    run.params({"a[0]": "x", "a(0)": "y"})
    run.metrics({"loss(0)": 1.5, "loss[0]": 0.5}, step=1)
    run.end()
    runtime.closed(run)
    found = recorder.run()
    curves = {key: recorder.history(found, key) for key in found.data.metrics}
    assert curves.pop("loss_0_") == [(0, 0.0), (1, 0.5)]
    (second,) = (key for key in curves if key.startswith("loss_0__"))
    assert curves.pop(second) == [(0, 1.0), (1, 1.5)]
    assert sorted(curves.values()) == [[(0, 2.0)], [(0, 3.0)]]
    assert found.data.params.pop("a_0_") == "x"
    assert list(found.data.params.values()) == ["y"]
