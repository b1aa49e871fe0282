"""A store that is away for long: what waits on disk stays within its limit, and nothing is lost but resolution."""

from __future__ import annotations

import sqlite3
from contextlib import closing

CODE = """
    import time
    import autolog
    autolog.autolog(max_points=None, spool_limit=1)
    from autolog import runtime
    run = runtime.open_run("torch")
    count = 0
    for part in range(60):
        for i in range(3000):
            run.metrics({f"metric {k}": float(count) for k in range(4)}, step=count)
            count += 1
        time.sleep(0.1)
    run.end()
    print(count)
"""


def test_metrics_are_coalesced_where_too_much_waits(place) -> None:
    process = place.start(place.script(CODE), AUTOLOG_TRACKING_URI="http://127.0.0.1:9", AUTOLOG_EXIT_TIMEOUT="1")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, "180000\n")
    assert err.count("metrics are coalesced") == 1
    (path,) = place.spools()
    # Unbounded these are 180,000 points of 4 metrics: some 20 MB.
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT sum(length(body)) FROM records").fetchone()[0] < 12_000_000
    place.stop_senders(path.parent)
    place.redirect(path, "http://127.0.0.1:9", place.store)
    place.run("-m", "autolog", "sync")
    (run,) = place.runs()
    points = place.history(run, "metric 0")
    assert points[:100] == [(i, float(i)) for i in range(100)]
    # A mean stands at the first step of its window.
    assert points[-1][0] >= 170_000
    assert place.history(run, "metric 0.last")[-1][1] == 179_999.0
    assert 1_000 < len(points) < 100_000
    assert "autolog.coalesced" in run.data.tags
