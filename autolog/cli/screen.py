"""How the commands look: one console, sparklines, numbers, times. Quiet, and the same text where there is no colour."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Where output is not a terminal nothing is cut to fit: whoever reads it there may search it.
UNCUT = 1000
_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.-=+*#@"


def console(*, stderr: bool = False) -> Console:
    """Return the console of standard output or error: without any style where that is no terminal or NO_COLOR is set.

    The width is the terminal's, or COLUMNS.
    """
    from rich.console import Console

    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    made = Console(stderr=stderr, highlight=False, color_system=None if plain else "auto")
    if not made.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        made = Console(stderr=stderr, highlight=False, color_system=None, width=UNCUT)
    return made


def grid(*columns: str, right: Sequence[int] = (), keep: Sequence[int] = ()) -> Table:
    """Return a table without lines. right: columns aligned so; keep: columns of one line each, where others fold."""
    from rich.table import Table

    table = Table(box=None, show_header=any(columns), pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, name in enumerate(columns):
        table.add_column(
            name,
            justify="right" if index in right else "left",
            no_wrap=index in keep,
            overflow="ellipsis" if index in keep else "fold",
        )
    return table


def sparkline(values: Sequence[float], width: int, *, encoding: str | None = None) -> str:
    """Return `values` as a curve of at most `width` characters, each the mean of what it stands for.

    What is not finite is left out; a stretch that has nothing else is a space.
    """
    marks = _BLOCKS if "utf" in (encoding or sys.stdout.encoding or "").lower() else _ASCII
    count = min(width, len(values))
    heights = []
    for i in range(count):
        part = [v for v in values[i * len(values) // count : (i + 1) * len(values) // count] if math.isfinite(v)]
        heights.append(sum(part) / len(part) if part else math.nan)
    finite = [height for height in heights if math.isfinite(height)]
    if not finite:
        return " " * count
    low, high = min(finite), max(finite)
    if not math.isfinite(high - low) or high == low:
        return "".join(marks[3] if math.isfinite(height) else " " for height in heights)
    scale = (len(marks) - 1) / (high - low)
    return "".join(marks[round((h - low) * scale)] if math.isfinite(h) else " " for h in heights)


def number(value: float) -> str:
    """Return `value` in six significant digits at most."""
    return f"{value:.6g}"


def duration(milliseconds: float) -> str:
    """Return a length of time for people, such as "12.4 s" or "1 h 05 min"."""
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds // 60)
    return f"{minutes} min {int(seconds % 60):02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(milliseconds: int) -> str:
    """Return a point in time, in the local time zone."""
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")
