"""A few trials of each row of ``benchmarks/chaos.py``; the table of many is in ``docs/chaos.md``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"


@pytest.mark.parametrize("framework", ["torch", "xgboost", "sklearn"])
def test_no_trial_loses_doubles_hangs_or_mislabels(framework: str) -> None:
    done = subprocess.run(
        [sys.executable, CHAOS, "--trials", "1", "--seed", "100", "--frameworks", framework],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if framework in line]
    assert len(rows) == 6
    assert sum(int(row.split("|")[4].replace(",", "")) for row in rows) > 200, "nothing was compared"
