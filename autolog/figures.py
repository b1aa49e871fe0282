"""Recorded numbers -> pictures, drawn by the sender with matplotlib, never in the training thread.

A picture is a *kind* and its *data*, made of JSON values. Kinds:

* ``bars``: title, names, values, and optionally xlabel and ranked; one horizontal bar each, the :data:`BARS` largest
  drawn, or, where they are `ranked`, the first ones in the order given.
* ``lines``: title, series (name -> [x values, y values]), and optionally xlabel and ylabel.
* ``confusion_matrix``: title, labels, counts (rows are true classes), classes (how many there are in all).
* ``roc_curve``, ``precision_recall_curve``, ``calibration_curve``, ``predicted_vs_actual``, ``residuals``: as
  :mod:`autolog.charts` makes them.

matplotlib's object interface is used, without pyplot and without its global settings: where the sender is a thread,
these are the user's. Axes are kept and used again, since making them with their ticks takes longer than all the rest;
names are texts rather than tick labels for the same reason, and those beside bars are written by Pillow, which takes
a tenth of the time that matplotlib lays out and renders thirty of them in.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

#: Bars that one picture shows, and characters of a name.
BARS, NAME = 50, 40
#: Points of one line.
POINTS = 1000

_WIDTH, _HEIGHT, _DPI = 7.0, 4.5, 110
#: Points above axes whose numbers may have a factor such as 1e6, which is written there.
_OFFSET = 14.0
#: Inches between axes and names, and how much larger these are written at first.
_GAP, _FINE = 0.06, 3
_COLOR, _QUIET = "#1f6fb2", "#8a8f98"
#: The part of a color, of 255, above which it is white.
_NEARLY_WHITE = 248
#: Tried after matplotlib's own font, for names in scripts that it lacks.
_FALLBACK = ("Noto Sans CJK KR", "Noto Sans CJK JP", "NanumGothic", "Malgun Gothic", "AppleGothic", "Noto Sans")
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


def shorten(name: object, limit: int = NAME) -> str:
    """Return the text of a name in at most `limit` characters, its middle left out."""
    text = str(name)
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[-(limit - 1 - head) :]}"


class Page:
    """A figure with one pair of axes, which is painted, saved, wiped and painted again. Sizes are in inches."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(dpi=_DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes: Axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.tick_params(labelsize=9)
        #: Names that are written to the left of the axes when the picture is saved, and their size in points.
        self._beside: tuple[list[str], float] = ([], 0.0)
        #: Whether all pictures on this page have the same axes, in size, limits and ticks: they are then drawn once.
        self.same_axes = False
        #: Whether what is painted has more than a color or two, besides black and gray.
        self.colorful = False
        self._empty: Any = None

    def size(self, width: float, height: float, *, left: float, bottom: float, right: float, top: float) -> None:
        """Set the size of the picture and the margins around its axes."""
        self.figure.set_size_inches(width, height)
        inside = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
        self.axes.set_position(inside)
        # Labels stand at the picture's edge, wherever the numbers at the ticks end.
        self.axes.xaxis.set_label_coords(inside[0] + inside[2] / 2, 0.17 / height, self.figure.transFigure)
        self.axes.yaxis.set_label_coords(0.2 / width, inside[1] + inside[3] / 2, self.figure.transFigure)

    def show_other_axes(self, shown: bool) -> None:
        """Show or hide the axes that stand beside the page's own, where there are any."""
        for axes in self.figure.axes[1:]:
            axes.set_visible(shown)

    def title(self, title: str, note: str = "", *, pad: float = 6.0) -> None:
        """Write a title on the left and a quiet note on the right; pad: points between them and the axes."""
        text = shorten(title, 80)
        self.axes.set_title(text, loc="left", fontsize=11, y=1.0, pad=pad, **_plain(text))
        self.axes.set_title(note, loc="right", fontsize=9, y=1.0, pad=pad, color=_QUIET)

    def labels(self, xlabel: str, ylabel: str) -> None:
        """Write what the axes show."""
        self.axes.set_xlabel(xlabel, fontsize=10, **_plain(xlabel))
        self.axes.set_ylabel(ylabel, fontsize=10, **_plain(ylabel))

    def legend(self, **where: Any) -> None:
        """Name what has a label."""
        legend = self.axes.legend(frameon=False, fontsize=8, **where)
        for text in legend.get_texts():
            text.set(**_plain(text.get_text()))

    def key(self, lines: Sequence[tuple[str, str]], *, corner: str) -> None:
        """Write texts, each with its color, into a corner: in a third of the time that a legend takes."""
        up, across = corner.split()
        spot = (0.97 if across == "right" else 0.03, 0.97 if up == "upper" else 0.04)
        for i, (text, color) in enumerate(lines):
            below = i if up == "upper" else i + 1 - len(lines)
            style: dict[str, Any] = {
                "color": color,
                "fontsize": 8.5,
                "ha": across,
                "va": "top" if up == "upper" else "bottom",
            }
            height = spot[1] - below * 0.045
            self.axes.text(spot[0], height, text, transform=self.axes.transAxes, **style, **_plain(text))

    def rows(self, names: Sequence[Any], limit: int, size: float) -> float:
        """Write `names` to the left of the axes, one at each of 0, 1, 2 ... on the y axis; return their width."""
        shown = [_line(name, limit) for name in names]
        if all(name.isascii() for name in shown):
            self._beside = (shown, size)
            return max((_font(size).getlength(name) for name in shown), default=0.0) / _FINE / _DPI
        # Pillow looks in one font only.
        place = self.axes.get_yaxis_transform() + self._moved(-_GAP, 0.0)
        style = {"fontsize": size, "transform": place, "ha": "right", "va": "center"}
        return self._extent([self.axes.text(0.0, i, name, **style, **_plain(name)) for i, name in enumerate(shown)])[0]

    def columns(self, names: Sequence[Any], limit: int, size: float, *, steep: bool) -> float:
        """Write `names` below the axes, one at each of 0, 1, 2 ... on the x axis; return their height."""
        place = self.axes.get_xaxis_transform() + self._moved(0.0, -_GAP)
        style = {"fontsize": size, "transform": place, "ha": "center", "va": "top", "rotation": 90.0 if steep else 0.0}
        shown = [_line(name, limit) for name in names]
        return self._extent([self.axes.text(i, 0.0, name, **style, **_plain(name)) for i, name in enumerate(shown)])[1]

    def _moved(self, right: float, up: float) -> Any:
        from matplotlib.transforms import ScaledTranslation

        return ScaledTranslation(right, up, self.figure.dpi_scale_trans)

    def _extent(self, texts: Sequence[Text]) -> tuple[float, float]:
        """Return the width of the widest and the height of the highest of `texts`; 0.0 where there are none."""
        boxes = [text.get_window_extent(self.canvas.get_renderer()) for text in texts]  # type: ignore[no-untyped-call]
        return max((box.width for box in boxes), default=0.0) / _DPI, max(
            (box.height for box in boxes), default=0.0
        ) / _DPI

    def _write_beside(self, picture: Image) -> None:
        """Write the names of the rows."""
        from PIL import Image, ImageDraw

        names, size = self._beside
        self._beside = ([], 0.0)
        if not names:
            return
        # Written larger and made smaller: Pillow fits letters to whole pixels, which makes small ones uneven and bold.
        right = self.axes.bbox.x0 - _GAP * _DPI
        strip = Image.new("L", (math.ceil(right) * _FINE, picture.height * _FINE))
        pen = ImageDraw.Draw(strip)
        heights = self.axes.transData.transform([(0.0, i) for i in range(len(names))])[:, 1]
        for name, height in zip(names, heights, strict=True):
            spot = (right * _FINE, (picture.height - height) * _FINE)
            pen.text(spot, name, fill=255, font=_font(size), anchor="rm")
        picture.paste("black", (0, 0), strip.reduce(_FINE))

    def save(self, path: Path) -> None:
        """Write the picture as a PNG, and take away what was painted."""
        from PIL import Image

        if self.same_axes:
            self._draw_on_the_same_axes()
        else:
            self.canvas.draw()  # type: ignore[no-untyped-call]
        size = self.canvas.get_width_height()
        pixels = self.canvas.buffer_rgba()  # type: ignore[no-untyped-call]
        picture = Image.frombuffer("RGBA", size, pixels, "raw", "RGBA", 0, 1)
        opaque = picture.convert("RGB")
        self._write_beside(opaque)
        shown = opaque if self.colorful else _few_colors(opaque)
        shown.save(path, "PNG", compress_level=3, dpi=(_DPI, _DPI))
        axes = self.axes
        for artist in (*axes.lines, *axes.collections, *axes.patches, *axes.texts, *axes.images):
            artist.remove()
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
        axes.relim()
        axes.autoscale(True)
        axes.set_prop_cycle(None)

    def _draw_on_the_same_axes(self) -> None:
        """Draw what was painted on a copy of the empty axes, whose ticks take half the time of a picture."""
        from matplotlib.axis import Axis
        from matplotlib.spines import Spine

        axes = self.axes
        painted = [
            each for each in axes.get_children() if not isinstance(each, Axis | Spine) and each is not axes.patch
        ]
        painted += [axes.xaxis.label, axes.yaxis.label]
        if self._empty is None:
            for artist in painted:
                artist.set_visible(False)
            self.canvas.draw()  # type: ignore[no-untyped-call]
            self._empty = self.canvas.copy_from_bbox(self.figure.bbox)  # type: ignore[no-untyped-call]
            for artist in painted:
                artist.set_visible(True)
        else:
            self.canvas.restore_region(self._empty)  # type: ignore[no-untyped-call]
        for artist in sorted(painted, key=lambda each: each.get_zorder()):
            axes.draw_artist(artist)


def _few_colors(picture: Image) -> Image:
    """Return a picture of a color or two with 256 colors, none of them further from its own than can be seen.

    A byte for each of its points rather than three is written in half the time, and into a third of the space.
    """
    from PIL import Image

    few = picture.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    # The colors are means of similar ones, that of white and of the edges of letters among them.
    few.putpalette([255 if value > _NEARLY_WHITE else value for value in few.getpalette() or ()])
    return few


@cache
def _page(kind: str) -> Page:
    """Return the page that pictures of this kind, or of this group of kinds, are painted on."""
    return Page()


def _plain(text: str) -> dict[str, Any]:
    """Return how a text of the user's is drawn: a dollar sign in it is no formula, and its script may need a font."""
    return {"parse_math": False, "fontfamily": "DejaVu Sans" if text.isascii() else _fonts()}


def _line(name: object, limit: int) -> str:
    return shorten(name, limit).replace("\n", " ")


@cache
def _font(size: float) -> FreeTypeFont:
    """Return matplotlib's own font for Pillow, in `size` points of a picture that is `_FINE` times as large."""
    from matplotlib.font_manager import findfont
    from PIL import ImageFont

    return ImageFont.truetype(findfont("DejaVu Sans"), size=size * _FINE * _DPI / 72)


@cache
def _fonts() -> list[str]:
    from matplotlib import font_manager

    known = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _FALLBACK if name in known)]


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
    axes.hlines(range(len(order)), 0.0, [values[i] for i in order], color=_COLOR, linewidth=0.7 * row * 72)
    # Bars that are all alike still begin at zero.
    reach = [0.0, *(values[i] for i in order if math.isfinite(values[i]))]
    low, high = min(reach), max(reach)
    space = 0.04 * (high - low) or 0.5
    axes.set_xlim(low - space if low < 0 else 0.0, high + space if high > 0 or low == high else 0.0)
    axes.set_ylim(max(len(order), 4) - 0.4, -0.6)
    axes.axvline(0, color=_QUIET, linewidth=0.8)
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
                    text = f"{share:.2f}" if number > 6 else f"{share:.2f}\n{counts[i][j]:g}"
                    color = "white" if share > 0.5 else "black"
                    axes.text(j, i, text, ha="center", va="center", fontsize=7 if number > 6 else 9, color=color)
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
    page.axes.plot([0, 1], [0, 1], color=_QUIET, linestyle="--", linewidth=1)
    page.axes.plot(data["false_positive_rate"], data["true_positive_rate"], color=_COLOR)
    curve = f"class {shorten(data['positive'], 20)}, area {data['area']:.3f}"
    page.key([(curve, _COLOR), ("- - chance", _QUIET)], corner="lower right")
    return page


def _precision_recall_curve(data: Mapping[str, Any]) -> Page:
    page = _square(data, "recall", "precision")
    page.axes.axhline(data["prevalence"], color=_QUIET, linestyle="--", linewidth=1)
    page.axes.plot(data["recall"], data["precision"], color=_COLOR, drawstyle="steps-post")
    curve = f"class {shorten(data['positive'], 20)}, average precision {data['average_precision']:.3f}"
    page.key([(curve, _COLOR), ("- - chance", _QUIET)], corner="lower left")
    return page


def _calibration_curve(data: Mapping[str, Any]) -> Page:
    page = _square(data, "mean predicted probability", "share that is of the class")
    page.axes.plot([0, 1], [0, 1], color=_QUIET, linestyle="--", linewidth=1)
    page.axes.plot(data["predicted"], data["observed"], color=_COLOR, linewidth=1)
    most = max(data["rows"])
    sizes = [12 + 160 * rows / most for rows in data["rows"]]
    page.axes.scatter(data["predicted"], data["observed"], s=sizes, color=_COLOR, alpha=0.7, zorder=3)
    points = f"class {shorten(data['positive'], 20)}, area of a point: rows"
    page.key([(points, _COLOR), ("- - perfectly calibrated", _QUIET)], corner="upper left")
    return page


def _points(data: Mapping[str, Any], x: str, y: str, ylabel: str) -> Page:
    page = _page("points")
    page.size(5.4, 5.2, left=0.85, bottom=0.55, right=0.2, top=0.5)
    drawn = len(data[x])
    page.title(data["title"], f"{drawn:,} of {data['number']:,} rows" if data["number"] > drawn else "", pad=_OFFSET)
    page.labels(f"{x} value", ylabel)
    # Markers of a line are stamped, those of a scatter plot are drawn one by one.
    alpha = 0.35 if drawn > 100 else 0.7
    page.axes.plot(data[x], data[y], "o", markersize=3.8, color=_COLOR, alpha=alpha, markeredgewidth=0)
    page.axes.grid(alpha=0.25)
    return page


def _predicted_vs_actual(data: Mapping[str, Any]) -> Page:
    page = _points(data, "actual", "predicted", "predicted value")
    page.axes.axline((data["actual"][0],) * 2, slope=1, color=_QUIET, linestyle="--", linewidth=1, zorder=0)
    return page


def _residuals(data: Mapping[str, Any]) -> Page:
    page = _points(data, "predicted", "residual", "actual - predicted value")
    page.axes.axhline(0, color=_QUIET, linestyle="--", linewidth=1, zorder=0)
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
