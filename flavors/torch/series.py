"""The numbers of consecutive updates of one optimizer, in one flat list that another thread picks up.

Between two updates the training's own code and data have pushed ours out of the processor's caches, so that each thing
touched costs several times what it costs in a loop by itself. In the steady state an update is therefore one call that
extends a list by its numbers and its time: no record, no dict and no lock, and no other thread sees a part of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autolog.records import Block
    from autolog.run import Run


class Series:
    """Metrics that are recorded together, one row for each of consecutive steps.

    names: of the metrics. rows: their values and the time in milliseconds, one row of `width` after the other.
    """

    __slots__ = ("_first", "_run", "block", "names", "rows", "width")

    def __init__(self, run: Run, names: Sequence[str], step: int) -> None:
        self._run = run
        self.names = tuple(names)
        self.width = len(self.names) + 1
        #: What is under way to the other thread; None where nothing is.
        self.block: Block | None = None
        self.rows: list[Any] = []
        #: The step that the first of them is of.
        self._first = step

    @property
    def next(self) -> int:
        """The step that the next row is of."""
        return self._first + len(self.rows) // self.width

    @property
    def last(self) -> tuple[dict[str, float], int, int]:
        """(values, step, time) of the last row."""
        *values, at = self.rows[-self.width :]
        return dict(zip(self.names, values, strict=True)), self.next - 1, at

    def add(self, row: tuple[Any, ...]) -> None:
        """Record the row of step :attr:`next`: the values in the order of :attr:`names`, and the time."""
        self.rows.extend(row)
        if self.block is None or self.block.taken is not None:
            self.go_on()

    def close(self) -> None:
        """Have every row taken: the last may have come while the block was closed on the other side."""
        if self.block is not None:
            self.block.take()
            self.go_on()

    def go_on(self) -> None:
        """Begin a block with what the last one has not taken.

        In a new list, so that what is recorded is let go of, all but the last row.
        """
        width = self.width
        taken = (0 if self.block is None else self.block.taken) or 0
        kept = max(0, min(taken, len(self.rows) // width - 1))
        self.rows = self.rows[kept * width :]
        self._first += kept
        first = taken - kept
        self.block = None
        if len(self.rows) // width > first:
            times = Column(self.rows, width - 1, width)
            values = {name: Column(self.rows, i, width) for i, name in enumerate(self.names)}
            self.block = self._run.block(times, values, step=self._first + first, first=first)


class Column(Sequence[Any]):
    """One column of a list that holds `width` of them row by row; as long as there are complete rows."""

    __slots__ = ("_at", "_rows", "_width")

    def __init__(self, rows: list[Any], at: int, width: int) -> None:
        self._rows, self._at, self._width = rows, at, width

    def __len__(self) -> int:
        return len(self._rows) // self._width

    def __getitem__(self, which: Any) -> Any:
        return self._rows[self._at :: self._width][which]


__all__ = ["Series"]
