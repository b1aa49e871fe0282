"""Garbage collection while the sender imports: put off there, untouched in the user's process."""

from __future__ import annotations

import gc
import subprocess
import sys

from autolog import garbage

SENDER = """
import gc
from autolog import garbage
garbage.own_process()
before = gc.get_freeze_count()
with garbage.uncollected():
    assert not gc.isenabled()
assert gc.isenabled() and gc.get_freeze_count() == before
with garbage.uncollected(before_a_store=True):
    assert not gc.isenabled()
assert gc.isenabled()
frozen = gc.get_freeze_count()
assert frozen > before + 1000
kept = [[] for _ in range(100_000)]
with garbage.uncollected(before_a_store=True):
    pass
assert gc.get_freeze_count() <= frozen, "what came after a store was opened can be collected"
gc.disable()
with garbage.uncollected():
    pass
assert not gc.isenabled(), "it was off before"
try:
    gc.enable()
    with garbage.uncollected():
        raise ImportError
except ImportError:
    assert gc.isenabled()
print("done")
"""


def test_the_users_process_collects_as_before() -> None:
    before = gc.get_freeze_count()
    with garbage.uncollected(before_a_store=True):
        assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_the_senders_own_process_looks_for_none_while_it_imports() -> None:
    done = subprocess.run([sys.executable, "-c", SENDER], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
