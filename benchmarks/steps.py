"""What recording adds to a step of a training that goes on, in one process.

    python steps.py torch-step|torch-2ms [TURNS]

Two processes that do the very same differ by more than what is asked for here, by where their memory came to lie, and
so does one process from a second to the next. So one process trains on and on, and what ``autolog()`` has put into
torch is taken out and put back every few steps. Prints the seconds of a bare step and those that recording adds,
medians of all turns; the standard error of what is added; and the processor time of the thread that writes it down, per
step: that works beside bare and recorded steps alike. What a training costs once is in none of them: the whole
trainings of ``bench.py torch`` have that.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from typing import Any

from workloads import TORCH_SIZES, torch_step

import autolog

#: Seconds of each turn, about: the shorter, the more alike the machine is in two of them.
BLOCK = 0.005
#: Steps in front of it that are not timed.
WARM = 2


class Switch:
    """Takes what autolog has put into torch out and puts it back."""

    def __init__(self) -> None:
        import torch
        from torch.optim import optimizer

        self._hooks = [optimizer._global_optimizer_pre_hooks, optimizer._global_optimizer_post_hooks]
        functional = torch.nn.functional
        places = [
            (torch.autograd, "backward"),
            (torch.optim.Optimizer, "zero_grad"),
            *((functional, name) for name in dir(functional) if callable(getattr(functional, name))),
        ]
        self._before = [(owner, name, getattr(owner, name)) for owner, name in places]
        #: (owner, name, what was there, autolog's).
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        self._our_hooks: list[dict[Any, Any]] = []

    def learn(self) -> None:
        """Note what is there now as autolog's."""
        now = [(owner, name, bare, getattr(owner, name)) for owner, name, bare in self._before]
        # Only those: what is put anywhere has the interpreter look things up anew that it had found before.
        self._replaced = [each for each in now if each[2] is not each[3]]
        self._our_hooks = [dict(hooks) for hooks in self._hooks]
        assert all(self._our_hooks)
        assert len(self._replaced) > 2

    def put(self, recording: bool) -> None:
        """Have the next steps be recorded, or bare."""
        for owner, name, bare, ours in self._replaced:
            setattr(owner, name, ours if recording else bare)
        for hooks, ours in zip(self._hooks, self._our_hooks, strict=True):
            hooks.clear()
            if recording:
                hooks.update(ours)


def standard_error(values: list[float]) -> float:
    """Return that of the median, as of a normal distribution with the quartiles of `values`; 0 for a single one."""
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4)
    return math.sqrt(math.pi / 2) * (upper - lower) / 1.349 / math.sqrt(len(values))


def main() -> None:
    """Measure, and print the figures."""
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 6000
    switch = Switch()
    autolog.autolog()
    step = torch_step(*TORCH_SIZES[sys.argv[1]])
    switch.learn()

    def block(recording: bool, steps: int) -> float:
        switch.put(recording)
        step(WARM)
        start = time.perf_counter()
        step(steps)
        return (time.perf_counter() - start) / steps

    steps = int(BLOCK / block(True, 500)) + 1
    took: dict[bool, list[float]] = {False: [], True: []}
    beside = time.process_time() - time.thread_time()
    for _ in range(turns):
        for recording in random.sample([False, True], 2):
            took[recording].append(block(recording, steps))
    beside = (time.process_time() - time.thread_time() - beside) / (2 * turns * (steps + WARM))
    pairs = [ours - bare for bare, ours in zip(took[False], took[True], strict=True)]
    print(statistics.median(took[False]), statistics.median(pairs), standard_error(pairs), beside)


main()
