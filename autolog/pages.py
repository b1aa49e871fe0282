"""Pages: what pictures are painted on, lettered and written as PNG files.

matplotlib's object interface is used, without pyplot and without its global settings: where the sender is a thread,
these are the user's. Axes are kept and used again, since making them with their ticks takes longer than all the rest.
matplotlib paints, Pillow writes: a line of text takes matplotlib a millisecond, half the time of a whole picture, and
Pillow a tenth of that. Only scripts that matplotlib's own font lacks, which Pillow would have to be told one by one,
and legends are left to matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.transforms import Transform
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

COLOR, QUIET = "#1f6fb2", "#8a8f98"
#: Characters of a name.
NAME = 40

_DPI = 110
#: Points of the letters at ticks, and between them and the axes.
_TICK_SIZE, _TICK_PAD = 9.0, 7.0
#: Points between axes and names.
_GAP = 4.5
#: How high a capital letter and a digit is, as a share of the size of the letters, in matplotlib's own font.
_CAPITAL = 0.73
#: How much larger letters are written at first: Pillow fits them to whole pixels, which makes small ones uneven.
_FINE = 3
#: Letters from here on may be missing in matplotlib's own font, but for a minus sign and for what stands for the rest.
_FOREIGN = "\u0250"
#: Tried after matplotlib's own font, for names in scripts that it lacks.
_FALLBACK = ("Noto Sans CJK KR", "Noto Sans CJK JP", "NanumGothic", "Malgun Gothic", "AppleGothic", "Noto Sans")
_ALONG = {"left": 0.0, "center": 0.5, "right": 1.0}


def shorten(name: object, limit: int = NAME) -> str:
    """Return the text of a name in at most `limit` characters, its middle left out."""
    text = str(name)
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[-(limit - 1 - head) :]}"


class _Line(NamedTuple):
    """A line of text that Pillow is to write.

    place, spot, shift: where it is: `spot` in the coordinates of `place`, moved by `shift` points.
    along: the part of it that is in front of that place.
    """

    text: str
    place: Transform
    spot: tuple[float, float]
    shift: tuple[float, float]
    size: float
    color: str
    along: float
    upright: bool


class Page:
    """A figure with one pair of axes, which is painted, saved, wiped and painted again. Sizes are in inches."""

    def __init__(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import ScalarFormatter
        from matplotlib.transforms import blended_transform_factory

        self.figure = Figure(dpi=_DPI)
        self.canvas = FigureCanvasAgg(self.figure)
        self.axes: Axes = self.figure.add_axes((0.0, 0.0, 1.0, 1.0))
        self.axes.spines[["top", "right"]].set_visible(False)
        self.axes.tick_params(labelsize=_TICK_SIZE, labelbottom=False, labelleft=False)
        for axis in (self.axes.xaxis, self.axes.yaxis):
            formatter = ScalarFormatter(useMathText=False, useLocale=False)
            if hasattr(formatter, "set_usetex"):  # Not in matplotlib before 3.10.
                formatter.set_usetex(False)
            axis.set_major_formatter(formatter)
        #: Whether all pictures on this page have the same axes, in size, limits and ticks: they are then drawn once.
        self.same_axes = False
        #: Whether what is painted has more than a color or two, besides black and gray.
        self.colorful = False
        self._empty: Any = None
        self._lines: list[_Line] = []
        self._at_ticks: list[_Line] = []
        #: Half way along an axis, and inches from the picture's edge.
        self._below = blended_transform_factory(self.axes.transAxes, self.figure.dpi_scale_trans)
        self._beside = blended_transform_factory(self.figure.dpi_scale_trans, self.axes.transAxes)

    def size(self, width: float, height: float, *, left: float, bottom: float, right: float, top: float) -> None:
        """Set the size of the picture and the margins around its axes."""
        self.figure.set_size_inches(width, height)
        self.axes.set_position(
            (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
        )

    def show_other_axes(self, shown: bool) -> None:
        """Show or hide the axes that stand beside the page's own, where there are any."""
        for axes in self.figure.axes[1:]:
            axes.set_visible(shown)

    # -- texts ----------------------------------------------------------------------------------------------------

    def write(
        self,
        text: object,
        spot: tuple[float, float],
        place: Transform | None = None,
        *,
        size: float,
        shift: tuple[float, float] = (0.0, 0.0),
        color: str = "black",
        align: str = "left",
        middle: bool = False,
        upright: bool = False,
    ) -> float:
        """Write a line of text; return its length in inches.

        spot: where it is, in the coordinates of `place`, which are those of the data by default.
        shift: points that it is moved by, to the right and up. size: of the letters, in points.
        align: "left", "center" or "right", along the text. middle: whether the middle of the letters is there rather
        than the line that they stand on. upright: whether it is read from below.
        """
        line = str(text).replace("\n", " ")
        place = self.axes.transData if place is None else place
        if any(letter >= _FOREIGN and letter not in "…−" for letter in line):
            return self._write_foreign(line, spot, place, size, shift, color, align, middle, upright)
        if middle:
            down = size * _CAPITAL / 2
            shift = (shift[0] + down, shift[1]) if upright else (shift[0], shift[1] - down)
        self._lines.append(_Line(line, place, spot, shift, size, color, _ALONG[align], upright))
        return float(_font(size).getlength(line)) / _FINE / _DPI

    def _write_foreign(
        self,
        line: str,
        spot: tuple[float, float],
        place: Transform,
        size: float,
        shift: tuple[float, float],
        color: str,
        align: str,
        middle: bool,
        upright: bool,
    ) -> float:
        from matplotlib.transforms import ScaledTranslation

        text = self.axes.text(
            *spot,
            line,
            transform=place + ScaledTranslation(shift[0] / 72, shift[1] / 72, self.figure.dpi_scale_trans),
            color=color,
            fontsize=size,
            ha=align,
            va="center" if middle else "baseline",
            rotation=90.0 if upright else 0.0,
            rotation_mode="anchor",
            **_plain(line),
        )
        box = text.get_window_extent(self.canvas.get_renderer())  # type: ignore[no-untyped-call]
        return float(box.height if upright else box.width) / _DPI

    def title(self, title: str, note: str = "", *, pad: float = 6.0) -> None:
        """Write a title on the left and a quiet note on the right; pad: points between them and the axes."""
        above = self.axes.transAxes
        self.write(shorten(title, 80), (0.0, 1.0), above, size=11, shift=(0.0, pad))
        if note:
            self.write(note, (1.0, 1.0), above, size=9, shift=(0.0, pad), color=QUIET, align="right")

    def labels(self, xlabel: str, ylabel: str) -> None:
        """Write what the axes show, at the picture's edges, wherever the numbers at the ticks end."""
        if xlabel:
            self.write(xlabel, (0.5, 0.07), self._below, size=10, align="center")
        if ylabel:
            self.write(ylabel, (0.17, 0.5), self._beside, size=10, align="center", upright=True)

    def legend(self, **where: Any) -> None:
        """Name what has a label."""
        legend = self.axes.legend(frameon=False, fontsize=8, **where)
        for text in legend.get_texts():
            text.set(**_plain(text.get_text()))

    def key(self, lines: Sequence[tuple[str, str]], *, corner: str) -> None:
        """Write texts, each with its color, into a corner, such as "upper left": in a tenth of the time of a legend."""
        up, across = corner.split()
        spot = (0.97 if across == "right" else 0.03, 0.94 if up == "upper" else 0.04)
        for i, (text, color) in enumerate(lines):
            below = i if up == "upper" else i + 1 - len(lines)
            height = spot[1] - below * 0.045
            self.write(text, (spot[0], height), self.axes.transAxes, size=8.5, color=color, align=across)

    def rows(self, names: Sequence[Any], limit: int, size: float) -> float:
        """Write `names` to the left of the axes, one at each of 0, 1, 2 ... on the y axis; return their width."""
        place = self.axes.get_yaxis_transform()
        style: dict[str, Any] = {"size": size, "shift": (-_GAP, 0.0), "align": "right", "middle": True}
        lengths = [self.write(shorten(name, limit), (0.0, i), place, **style) for i, name in enumerate(names)]
        return max(lengths, default=0.0)

    def columns(self, names: Sequence[Any], limit: int, size: float, *, steep: bool) -> float:
        """Write `names` below the axes, one at each of 0, 1, 2 ... on the x axis; return their height."""
        place = self.axes.get_xaxis_transform()
        style: dict[str, Any] = {"size": size, "shift": (0.0, -_GAP - size), "align": "center"}
        if steep:
            style |= {"shift": (0.0, -_GAP), "align": "right", "middle": True, "upright": True}
        lengths = [self.write(shorten(name, limit), (i, 0.0), place, **style) for i, name in enumerate(names)]
        return max(lengths, default=0.0) if steep else 1.2 * size / 72

    def _write_at_ticks(self) -> None:
        """Write the numbers at the ticks."""
        if self.same_axes and self._at_ticks:
            self._lines += self._at_ticks
            return
        before = len(self._lines)
        axes = self.axes
        down = _TICK_PAD + _CAPITAL * _TICK_SIZE
        style: dict[str, Any] = {"size": _TICK_SIZE, "align": "center", "shift": (0.0, -down)}
        for at, text in _ticks(axes.xaxis):
            self.write(text, (at, 0.0), axes.get_xaxis_transform(), **style)
        style = {"size": _TICK_SIZE, "align": "right", "shift": (-_TICK_PAD, 0.0), "middle": True}
        for at, text in _ticks(axes.yaxis):
            self.write(text, (0.0, at), axes.get_yaxis_transform(), **style)
        # A factor such as 1e6 that all of them share.
        if factor := axes.xaxis.get_major_formatter().get_offset():
            below = -down - 1.25 * _TICK_SIZE
            self.write(factor, (1.0, 0.0), axes.transAxes, size=_TICK_SIZE, shift=(0.0, below), align="right")
        if factor := axes.yaxis.get_major_formatter().get_offset():
            self.write(factor, (0.0, 1.0), axes.transAxes, size=_TICK_SIZE, shift=(0.0, 3.0))
        self._at_ticks = self._lines[before:]

    # -- the file -------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the picture as a PNG, and take away what was painted."""
        import numpy as np
        from PIL import Image

        self._write_at_ticks()
        if self.same_axes:
            self._draw_on_the_same_axes()
        else:
            self.canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(self.canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        for line in self._lines:
            self._stamp(pixels, line)
        picture = None if self.colorful else _few_colors(pixels)
        if picture is None:
            picture = Image.fromarray(pixels).convert("RGB")
        picture.save(path, "PNG", compress_level=3, dpi=(_DPI, _DPI))
        self._wipe()

    def _stamp(self, pixels: np.ndarray, line: _Line) -> None:
        """Put a line of text into the picture, as far as it is inside."""
        letters, foot = _letters(line.text, line.size, line.upright)
        height, width = letters.shape
        x, y = line.place.transform(line.spot)
        x += line.shift[0] / 72 * _DPI
        y = len(pixels) - y - line.shift[1] / 72 * _DPI
        if line.upright:
            left, top = round(x) - foot, round(y - height * (1 - line.along))
        else:
            left, top = round(x - width * line.along), round(y) - foot
        letters = letters[max(0, -top) :, max(0, -left) :]
        under = pixels[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width), :3]
        share = letters[: under.shape[0], : under.shape[1], None]
        under[:] = under + (_rgb(line.color) - under) * share

    def _painted(self) -> list[Artist]:
        """Return what was painted on the axes, a legend apart."""
        axes = self.axes
        return [*axes.lines, *axes.collections, *axes.patches, *axes.texts, *axes.images]

    def _wipe(self) -> None:
        self._lines.clear()
        axes = self.axes
        for artist in self._painted():
            artist.remove()
        legend = axes.get_legend()
        if legend is not None:
            legend.remove()
        axes.relim()
        axes.autoscale(True)
        axes.set_prop_cycle(None)

    def _draw_on_the_same_axes(self) -> None:
        """Draw what was painted on a copy of the empty axes, whose ticks take half the time of a picture."""
        axes = self.axes
        painted = self._painted()
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


def _plain(text: str) -> dict[str, Any]:
    """Return how matplotlib draws a text of the user's: a dollar sign in it is no formula, and it may need a font."""
    return {"parse_math": False, "fontfamily": "DejaVu Sans" if text.isascii() else _fonts()}


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    """Return where an axis has ticks, and what stands there."""
    if not axis.get_visible():
        return []
    low, high = sorted(axis.get_view_interval())
    spare = 1e-9 * (high - low)
    places = [float(at) for at in axis.get_majorticklocs()]
    texts = axis.get_major_formatter().format_ticks(places)
    return [(at, text) for at, text in zip(places, texts, strict=True) if low - spare <= at <= high + spare]


@lru_cache(maxsize=512)
def _letters(text: str, size: float, upright: bool) -> tuple[np.ndarray, int]:
    """Return how much of each pixel a line of text covers, and how many pixels the line it stands on is from its edge.

    Titles, the numbers at ticks and the names of features are the same in many pictures.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    font = _font(size)
    above, below = (math.ceil(part / _FINE) * _FINE for part in font.getmetrics())
    width = max(1, math.ceil(font.getlength(text) / _FINE)) * _FINE
    large = Image.new("L", (width, above + below))
    ImageDraw.Draw(large).text((0, above), text, fill=255, font=font, anchor="ls")
    if upright:
        large = large.transpose(Image.Transpose.ROTATE_90)
    return np.asarray(large.reduce(_FINE), np.float32) / 255, above // _FINE


@cache
def _rgb(color: str) -> np.ndarray:
    import numpy as np
    from PIL import ImageColor

    return np.array(ImageColor.getrgb(color), np.float32)


def _few_colors(pixels: np.ndarray) -> Image | None:
    """Return a picture of a color or two with at most 256 colors; None where that many are not enough.

    A byte for each of its points rather than three is written in half the time, and into a third of the space. White is
    white; others become one of those that are nearly the same, no further from it than can be seen.
    """
    import numpy as np
    from PIL import Image

    flat = pixels.view("<u4").ravel()
    (painted,) = np.nonzero(flat != 0xFFFFFFFF)
    colors = flat[painted]
    for bits in (5, 4):
        parts = [(colors >> 8 * place + 8 - bits & (1 << bits) - 1) << place * bits for place in range(3)]
        keys = parts[0] | parts[1] | parts[2]
        one = np.zeros(1 << 3 * bits, "<u4")  # No color is zero: all are opaque.
        one[keys] = colors
        (used,) = np.nonzero(one)
        if len(used) < 256:
            break
    else:
        return None
    numbers = np.zeros(len(one), np.uint8)
    numbers[used] = np.arange(1, len(used) + 1)
    shown = np.zeros(len(flat), np.uint8)
    shown[painted] = numbers[keys]
    few = Image.frombytes("P", pixels.shape[1::-1], shown.tobytes())
    few.putpalette([255, 255, 255, *one[used].view(np.uint8).reshape(-1, 4)[:, :3].ravel().tolist()])
    return few


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
