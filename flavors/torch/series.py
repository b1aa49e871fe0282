"""The numbers of consecutive updates of one optimizer, as columns that another thread picks up.

Between two updates the training's own code and data have pushed ours out of the processor's caches, so that each thing
touched costs several times what it costs in a loop by itself. In the steady state an update is therefore one append
for each number and one for the time: no record, no dict and no lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autolog.records import Block
    from autolog.run import Run


class Series:
    """Metrics that are recorded together, one row for each of consecutive steps.

    names: of the metrics; next: the step that the next row is of.
    """

    __slots__ = ("_block", "_columns", "_run", "_times", "names", "next")

    def __init__(self, run: Run, names: Sequence[str], step: int) -> None:
        self._run = run
        self.names = tuple(names)
        self.next = step
        self._block: Block | None = None
        self._times: list[int] = []
        self._columns: list[list[float]] = [[] for _ in names]

    def add(self, values: Sequence[float], time: int) -> None:
        """Record the row of step :attr:`next`; values: in the order of :attr:`names`; time: in milliseconds."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        # Last: whoever takes the block takes as many rows as there are times.
        self._times.append(time)
        self.next += 1
        if self._block is None or self._block.taken is not None:
            self._begin()

    def close(self) -> None:
        """Have every row taken: the last may have come while the block was closed on the other side."""
        if self._block is not None:
            self._block.take()
            self._begin()

    def _begin(self) -> None:
        """Go on in new lists, so that what is recorded is let go of; rows that were too late begin the next block."""
        taken = 0 if self._block is None else self._block.taken or 0
        self._times = self._times[taken:]
        self._columns = [column[taken:] for column in self._columns]
        self._block = None
        if self._times:
            values = dict(zip(self.names, self._columns, strict=True))
            self._block = self._run.block(self._times, values, step=self.next - len(self._times))


__all__ = ["Series"]
