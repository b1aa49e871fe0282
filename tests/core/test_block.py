"""A block of metric values that grows while it waits: every step once, whoever takes it, whenever."""

from __future__ import annotations

import math
import struct
import sys
import threading
import time

import numpy as np
import pytest

from autolog import runtime
from autolog.records import Block, Points, decode, encode
from autolog.testing import capture


def stored(records):
    return [record for row in encode(records) for record in decode(*row)]


def test_block_is_read_back_as_the_points_of_its_steps():
    times, losses = [100, 200], [0.5, 0.25]
    block = Block("r", 3, times, {"loss": losses}, 0)
    losses.append(0.125)
    times.append(300)
    assert stored([block]) == [
        Points("r", 3, 100, {"loss": 0.5}),
        Points("r", 4, 200, {"loss": 0.25}),
        Points("r", 5, 300, {"loss": 0.125}),
    ]


def test_taken_block_keeps_what_it_had():
    times, losses = [1, 2], [0.5, 0.25]
    block = Block("r", 0, times, {"loss": losses}, 0)
    assert (block.taken, block.take()) == (None, ([1, 2], {"loss": [0.5, 0.25]}))
    losses[:] = [9.0]
    times.append(3)
    assert block.taken == 2
    # Written again after a failure of the disk: the same rows.
    assert stored([block]) == stored([block]) == [Points("r", 0, 1, {"loss": 0.5}), Points("r", 1, 2, {"loss": 0.25})]


def test_order_among_other_records_is_kept():
    before, after = Points("r", 0, 1, {"a": 1.0}), Points("r", 9, 9, {"a": 2.0})
    found = stored([before, Block("r", 1, [5], {"a": [3.0]}, 0), after])
    assert [(point.step, point.values["a"]) for point in found] == [(0, 1.0), (1, 3.0), (9, 2.0)]


def test_numbers_of_every_kind_are_the_same_bits():
    values = [0.1, -0.0, math.inf, math.nan, 5e-324, 1, np.float32(0.1), np.float64(1 / 3), True]
    found = stored([Block("r", 0, [2**41 + i for i in range(len(values))], {"a": values}, 0)])
    assert [point.time for point in found] == [2**41 + i for i in range(len(values))]
    assert [struct.pack("d", point.values["a"]) for point in found] == [struct.pack("d", value) for value in values]


@pytest.mark.parametrize("value", ["0.5", None, [1.0]])
def test_what_is_no_number_is_refused(value):
    with pytest.raises((TypeError, struct.error)):
        stored([Block("r", 0, [1], {"a": [value]}, 0)])


@pytest.fixture
def eager_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_threads")
def test_each_step_is_in_one_block_while_two_threads_work():
    times: list[int] = []
    losses: list[float] = []
    blocks: list[Block] = []
    done = threading.Event()

    def writer():
        while not done.is_set():
            if blocks:
                blocks[-1].take()

    thread = threading.Thread(target=writer)
    thread.start()
    step, deadline = 0, time.monotonic() + 30
    while len(blocks) < 20 and time.monotonic() < deadline:
        losses.append(float(step))
        times.append(step)
        if not blocks or blocks[-1].taken is not None:
            first = blocks[-1].taken if blocks else 0
            blocks.append(Block("r", first, times, {"loss": losses}, first))
        step += 1
    done.set()
    thread.join()
    blocks[-1].take()
    blocks.append(Block("r", blocks[-1].taken, times, {"loss": losses}, blocks[-1].taken))
    found = [(point.step, point.values["loss"]) for point in stored(blocks)]
    assert found == [(number, float(number)) for number in range(step)]
    assert len(blocks) >= 20


def test_long_block_is_split_into_rows_of_the_spool():
    block = Block("r", 0, list(range(1200)), {"a": [float(i) for i in range(1200)]}, 0)
    rows = list(encode([block]))
    assert len(rows) == 3
    assert [record.step for row in rows for record in decode(*row)] == list(range(1200))


def test_a_block_closed_before_it_is_written_leaves_the_users_names_to_the_user():
    """Closed by the training, as at its end, it has its values in another place than one that still grows."""
    times, losses, rates = [1, 2], [0.5, 0.25], [0.1, 0.1]
    with capture() as captured:
        run = runtime.open_run("sklearn")
        run.claim(["loss"])
        block = run.block(times, {"loss": losses, "learning_rate": rates})
        block.take()
        run.end("FINISHED")
    assert captured.runs[0].metrics == [("learning_rate", 0, 0.1), ("learning_rate", 1, 0.1)]
    assert captured.runs[0].tags["autolog.logged_by_hand"] == '["loss"]'
