"""Recorded numbers -> pictures, drawn by the sender with matplotlib, never in the training thread.

A picture is a *kind* and its *data*, made of JSON values. Kinds:

* ``bars``: title, names, values, and optionally xlabel and ranked; one horizontal bar each, the :data:`BARS` largest
  drawn, or, where they are `ranked`, the first ones in the order given.
* ``lines``: title, series (name -> [x values, y values]), and optionally xlabel and ylabel.
* ``confusion_matrix``: title, labels, counts (rows are true classes), classes (how many there are in all).
* ``roc_curve``, ``precision_recall_curve``, ``calibration_curve``, ``predicted_vs_actual``, ``residuals``: as
  :mod:`autolog.charts` makes them.

They are painted on :mod:`autolog.pages`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autolog.pages import COLOR, NAME, QUIET, Page, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Bars that one picture shows.
BARS = 50
#: Points of one line.
POINTS = 1000

_WIDTH, _HEIGHT = 7.0, 4.5
#: Points above axes whose numbers may have a factor such as 1e6, which is written there.
_OFFSET = 16.0
_drawing = threading.Lock()

Painter = Callable[[Mapping[str, Any]], "Page"]


def draw(kind: str, data: Mapping[str, Any], path: Path) -> None:
    """Draw a picture into the file `path`, a PNG.

    Raises: LookupError for an unknown kind; KeyError where `data` lacks a field; ImportError without matplotlib.
    """
    painter = _PAINTERS.get(kind)
    if painter is None:
        raise LookupError(f"no picture is called {kind!r}")
    with _drawing:
        try:
            painter(data).save(path)
        except BaseException:
            # A page that was left half painted is not used again.
            _page.cache_clear()
            raise


def thin(count: int, limit: int = POINTS) -> list[int]:
    """Return at most `limit` evenly spaced indices below `count`, the first and the last among them."""
    if count <= limit:
        return list(range(count))
    return [round(i * (count - 1) / (limit - 1)) for i in range(limit)]


@cache
def _page(kind: str) -> Page:
    """Return the page that pictures of this kind, or of this group of kinds, are painted on."""
    return Page()


def _bars(data: Mapping[str, Any]) -> Page:
    names: Sequence[Any] = data["names"]
    values = [float(value) for value in data["values"]]
    ranked = data.get("ranked", False)
    order = list(range(len(values))) if ranked else sorted(range(len(values)), key=lambda i: -abs(values[i]))
    order = order[:BARS]
    page = _page("bars")
    axes = page.axes
    axes.yaxis.set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    which = "first" if ranked else "largest"
    page.title(data["title"], f"the {len(order)} {which} of {len(values):,}" if len(values) > len(order) else "")
    page.labels(data.get("xlabel", ""), "")
    width = page.rows([names[i] for i in order], NAME, 8)
    # The height follows the number of bars, so that every name stays readable.
    bottom, row = 0.55 if data.get("xlabel") else 0.35, 0.21
    height = bottom + 0.4 + row * max(len(order), 4)
    page.size(_WIDTH, height, left=max(width + 0.12, 0.3), bottom=bottom, right=0.2, top=0.4)
    axes.hlines(range(len(order)), 0.0, [values[i] for i in order], color=COLOR, linewidth=0.7 * row * 72)
    # Bars that are all alike still begin at zero.
    reach = [0.0, *(values[i] for i in order if math.isfinite(values[i]))]
    low, high = min(reach), max(reach)
    space = 0.04 * (high - low) or 0.5
    axes.set_xlim(low - space if low < 0 else 0.0, high + space if high > 0 or low == high else 0.0)
    axes.set_ylim(max(len(order), 4) - 0.4, -0.6)
    axes.axvline(0, color=QUIET, linewidth=0.8)
    return page


def _lines(data: Mapping[str, Any]) -> Page:
    page = _page("lines")
    page.colorful = True
    page.size(_WIDTH, _HEIGHT, left=0.85, bottom=0.55, right=0.2, top=0.5)
    page.title(data["title"], pad=_OFFSET)
    page.labels(data.get("xlabel", ""), data.get("ylabel", ""))
    for name, (xs, ys) in data["series"].items():
        kept = thin(len(xs))
        marker = "o" if len(kept) <= 20 else ""
        page.axes.plot([xs[i] for i in kept], [ys[i] for i in kept], label=shorten(name), marker=marker, markersize=3)
    page.axes.grid(alpha=0.25)
    if 0 < len(data["series"]) <= 12:
        page.legend()
    return page


@cache
def _scale(page: Page) -> Axes:
    """Return the second axes of a page, which say what the shades of blue mean."""
    axes = page.figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow([[i / 100] for i in range(101)], cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", extent=(0, 1, 1, 0))
    axes.set_ylim(0, 1)
    axes.xaxis.set_visible(False)
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_ylabel("share of the true class", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[:].set_visible(False)
    return axes


def _confusion_matrix(data: Mapping[str, Any]) -> Page:
    counts: Sequence[Sequence[float]] = data["counts"]
    number = len(counts)
    page = _page("confusion_matrix")
    axes = page.axes
    axes.xaxis.set_ticks([])
    axes.yaxis.set_ticks([])
    page.title(data["title"], f"the {number} most frequent of {data['classes']:,}" if data["classes"] > number else "")
    page.labels("predicted class", "true class")
    # Every class keeps a cell that can be seen, and a name that can be read up to some dozens.
    longest = max((len(str(label)) for label in data["labels"]), default=0)
    steep = number > 6 or longest > 8
    size = 8 if number <= 30 else 5
    left = page.rows(data["labels"], 24, size)
    below = page.columns(data["labels"], 24, size, steep=steep)
    side = max(2.6, 0.55 * min(number, 6) + (0.27 if number <= 30 else 0.12) * max(number - 6, 0))
    numbered = number <= 20
    left, bottom, right = left + 0.5, below + 0.5, 0.5 if numbered else 1.1
    width, height = left + side + right, bottom + side + 0.4
    page.size(width, height, left=left, bottom=bottom, right=right, top=0.4)
    # Cells with numbers in them need no scale, which takes as long as all the rest.
    if not numbered:
        _scale(page).set_position(((left + side + 0.2) / width, bottom / height, 0.12 / width, side / height))
    page.show_other_axes(not numbered)
    shares = [[value / (sum(row) or 1.0) for value in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    if numbered:
        for i, row in enumerate(shares):
            for j, share in enumerate(row):
                if counts[i][j]:
                    style: dict[str, Any] = {"color": "white" if share > 0.5 else "black", "align": "center"}
                    style |= {"middle": True, "size": 7 if number > 6 else 9}
                    page.write(f"{share:.2f}", (j, i), **style, shift=(0.0, 0.0 if number > 6 else 5.5))
                    if number <= 6:
                        page.write(f"{counts[i][j]:g}", (j, i), **style, shift=(0.0, -5.5))
    return page


def _square(data: Mapping[str, Any], xlabel: str, ylabel: str) -> Page:
    """Return a page with axes from 0 to 1 both ways."""
    page = _page("square")
    page.same_axes = True
    page.size(5.2, 5.0, left=0.8, bottom=0.55, right=0.2, top=0.4)
    page.title(data["title"])
    page.labels(xlabel, ylabel)
    page.axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    page.axes.grid(alpha=0.25)
    return page


def _roc_curve(data: Mapping[str, Any]) -> Page:
    page = _square(data, "false positive rate", "true positive rate")
    page.axes.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1)
    page.axes.plot(data["false_positive_rate"], data["true_positive_rate"], color=COLOR)
    curve = f"class {shorten(data['positive'], 20)}, area {data['area']:.3f}"
    page.key([(curve, COLOR), ("- - chance", QUIET)], corner="lower right")
    return page


def _precision_recall_curve(data: Mapping[str, Any]) -> Page:
    page = _square(data, "recall", "precision")
    page.axes.axhline(data["prevalence"], color=QUIET, linestyle="--", linewidth=1)
    page.axes.plot(data["recall"], data["precision"], color=COLOR, drawstyle="steps-post")
    curve = f"class {shorten(data['positive'], 20)}, average precision {data['average_precision']:.3f}"
    page.key([(curve, COLOR), ("- - chance", QUIET)], corner="lower left")
    return page


def _calibration_curve(data: Mapping[str, Any]) -> Page:
    page = _square(data, "mean predicted probability", "share that is of the class")
    page.axes.plot([0, 1], [0, 1], color=QUIET, linestyle="--", linewidth=1)
    page.axes.plot(data["predicted"], data["observed"], color=COLOR, linewidth=1)
    most = max(data["rows"])
    sizes = [12 + 160 * rows / most for rows in data["rows"]]
    page.axes.scatter(data["predicted"], data["observed"], s=sizes, color=COLOR, alpha=0.7, zorder=3)
    points = f"class {shorten(data['positive'], 20)}, area of a point: rows"
    page.key([(points, COLOR), ("- - perfectly calibrated", QUIET)], corner="upper left")
    return page


def _points(data: Mapping[str, Any], x: str, y: str, ylabel: str) -> Page:
    page = _page("points")
    page.size(5.4, 5.2, left=0.85, bottom=0.55, right=0.2, top=0.5)
    drawn = len(data[x])
    page.title(data["title"], f"{drawn:,} of {data['number']:,} rows" if data["number"] > drawn else "", pad=_OFFSET)
    page.labels(f"{x} value", ylabel)
    # Markers of a line are stamped, those of a scatter plot are drawn one by one.
    alpha = 0.35 if drawn > 100 else 0.7
    page.axes.plot(data[x], data[y], "o", markersize=3.8, color=COLOR, alpha=alpha, markeredgewidth=0)
    page.axes.grid(alpha=0.25)
    return page


def _predicted_vs_actual(data: Mapping[str, Any]) -> Page:
    page = _points(data, "actual", "predicted", "predicted value")
    page.axes.axline((data["actual"][0],) * 2, slope=1, color=QUIET, linestyle="--", linewidth=1, zorder=0)
    return page


def _residuals(data: Mapping[str, Any]) -> Page:
    page = _points(data, "predicted", "residual", "actual - predicted value")
    page.axes.axhline(0, color=QUIET, linestyle="--", linewidth=1, zorder=0)
    return page


_PAINTERS: dict[str, Painter] = {
    "bars": _bars,
    "lines": _lines,
    "confusion_matrix": _confusion_matrix,
    "roc_curve": _roc_curve,
    "precision_recall_curve": _precision_recall_curve,
    "calibration_curve": _calibration_curve,
    "predicted_vs_actual": _predicted_vs_actual,
    "residuals": _residuals,
}
