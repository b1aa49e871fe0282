"""The numbers of consecutive updates of one optimizer, in one flat list that another thread picks up.

In the steady state, where each update is like the last, all that is needed stands in one object, and an update extends
a list by its numbers and its time: no record, no dict and no lock. No other thread sees a part of a row. See
:mod:`flavors.torch.hot` for why.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import CodeType

    from autolog.records import Block
    from autolog.run import Run
    from flavors.torch.losses import Pending
    from flavors.torch.sites import Site


class Series:
    """Metrics that are recorded together, one row for each of consecutive steps.

    names: of the metrics; rows: their values and the time in milliseconds, one row of `width` after the other.
    number: id of the optimizer, 0 where the next update cannot be like the last, whose only loss was at `site`.
    """

    __slots__ = (
        "_first",
        "_run",
        "block",
        "code",
        "counted",
        "due",
        "kept",
        "left",
        "names",
        "number",
        "offset",
        "rows",
        "short",
        "site",
        "width",
    )

    def __init__(self, run: Run, names: Sequence[str], step: int) -> None:
        self._run = run
        self.names = tuple(names)
        self.width = len(self.names) + 1
        #: Whether it is of one loss and one learning rate: where `number` is not 0, each update has one loss.
        self.short = self.width == 3
        #: What is under way to the other thread; None where nothing is.
        self.block: Block | None = None
        self.rows: list[Any] = []
        #: The step that the first of them is of.
        self._first = step
        #: The step of the first row that :meth:`uncounted` is to return.
        self.counted = step
        self.number = 0
        self.site: Site | None = None
        #: Where `site` calls ``Tensor.backward``; None where it calls something else.
        self.code: CodeType | None = None
        self.offset = -1
        #: Until when, in milliseconds, and for how many updates there is nothing to do but to add a row.
        self.due = 0.0
        self.left: int | None = None
        #: The loss at :attr:`site`, where that is all that was differentiated since the last step.
        self.kept: float | None = None

    # -- the steady state -----------------------------------------------------------------------------------------

    def expect(self, number: int, site: Site, due: float, left: int | None) -> None:
        """Say that the next updates of optimizer `number` are like the last, until `due` or so many updates later."""
        self.number, self.site, self.due, self.left = number, site, due, left
        self.code, self.offset = (site.code, site.offset) if site.direct else (None, -1)

    def expect_nothing(self) -> None:
        """Say that the next update is not like the last."""
        self.number, self.site, self.code, self.kept = 0, None, None, None

    def look_soon(self) -> None:
        """Say that there is more to do at the next update."""
        self.due = 0.0

    def step(self, optimizer: Any, pending: Pending) -> bool:
        """Record an update like the last: one loss, learning rates, perhaps a norm; return False where it is not.

        What it does for one loss and one learning rate stands in :func:`flavors.torch.hot.step_hooks` once more.
        """
        loss = self.kept
        if loss is None or self.number != pending.stepping:
            return False
        at = time_ns() // 1_000_000
        if at >= self.due:
            return False
        if self.left is not None:
            self.left -= 1
            if self.left < 1:
                return False
        row = [loss, *[group.get("lr") for group in optimizer.param_groups]]
        norm = pending.clipped
        if norm is not None and norm.is_cpu:
            row.append(norm.item())
        if len(row) + 1 != self.width or not all(type(value) is float for value in row):
            return False
        pending.clipped = None
        self.rows.extend((*row, at))
        self.kept = None
        block = self.block
        if block is None or block.taken is not None:
            self.go_on()
        pending.stepped += 1
        return True

    # -- rows -----------------------------------------------------------------------------------------------------

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

    def uncounted(self) -> list[float]:
        """Return the first value of each row since the last call; rows are kept until then."""
        found: list[float] = self.rows[(self.counted - self._first) * self.width :: self.width]
        self.counted += len(found)
        return found

    def close(self) -> None:
        """Have every row taken: the last may have come while the block was closed on the other side."""
        if self.block is not None:
            self.block.take()
            self.go_on()

    def go_on(self) -> None:
        """Begin a block with what the last one has not taken.

        In a new list, so that what is recorded and counted is let go of, all but the last row.
        """
        width = self.width
        taken = (0 if self.block is None else self.block.taken) or 0
        gone = max(0, min(taken, self.counted - self._first, len(self.rows) // width - 1))
        self.rows = self.rows[gone * width :]
        self._first += gone
        first = taken - gone
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
