"""The example of a third-party flavor: built, installed beside us, and tested by its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "plugin"


@pytest.mark.slow
def test_the_example_plugin_installs_and_passes_its_tests(tmp_path):
    site = tmp_path / "site"
    install = ["pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site), str(PLUGIN)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    environ = {**os.environ, "PYTHONPATH": str(site), "MLFLOW_DISABLE_TELEMETRY": "true"}
    # By itself, without the fixtures and settings of this project, as its author would run it.
    test = ["pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={tmp_path}", str(PLUGIN / "tests")]
    done = subprocess.run([sys.executable, "-m", *test], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
