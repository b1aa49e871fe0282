"""Pictures: drawn by the sender, readable whatever the names are, kept as numbers where they cannot be drawn."""

from __future__ import annotations

import builtins
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autolog import figures, pages, runtime

PNG = b"\x89PNG\r\n\x1a\n"


def size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == PNG
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def test_few_and_many_bars_are_equally_high_each(tmp_path: Path) -> None:
    figures.draw("bars", {"title": "t", "names": list("abcde"), "values": [5, -4, 3, 2, 1]}, tmp_path / "few.png")
    many = {"title": "t", "names": [f"feature number {i} with a very long name" for i in range(5000)]}
    figures.draw("bars", {**many, "values": [math.sin(i) for i in range(5000)]}, tmp_path / "many.png")
    assert size(tmp_path / "few.png")[0] == size(tmp_path / "many.png")[0] == 770
    assert size(tmp_path / "few.png")[1] < 300 < 1200 < size(tmp_path / "many.png")[1] < 1400


@pytest.mark.parametrize("name", ["$x_1$ costs $5", "", "펭귄", "a\nb", "\\frac{", "%s"])
def test_names_of_any_kind_are_drawn_as_text(name: str, tmp_path: Path) -> None:
    figures.draw("bars", {"title": name, "names": [name], "values": [1]}, tmp_path / "bars.png")
    figures.draw("lines", {"title": name, "series": {name: [[0, 1], [1, 2]]}}, tmp_path / "lines.png")
    assert size(tmp_path / "lines.png") == (770, 495)


def test_few_colors_are_the_colors_that_were_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [[200 - 9 * i + 40 * j for j in range(6)] for i in range(6)]
    for kind, data in {
        "bars": {"title": "t", "names": list("abc"), "values": [3, -2, 1]},
        "residuals": {
            "title": "t",
            "number": 300,
            "predicted": [math.sin(i) for i in range(300)],
            "residual": [math.cos(7 * i) for i in range(300)],
        },
        "confusion_matrix": {"title": "t", "labels": list("abcdef"), "counts": counts, "classes": 6},
    }.items():
        figures.draw(kind, data, tmp_path / "few.png")
        with monkeypatch.context() as patch:
            patch.setattr(pages, "_few_colors", lambda pixels: None)
            figures.draw(kind, data, tmp_path / "all.png")
        few, drawn = Image.open(tmp_path / "few.png"), Image.open(tmp_path / "all.png")
        assert (few.mode, drawn.mode) == ("P", "RGB")
        shown, meant = (np.asarray(each.convert("RGB")).astype(int) for each in (few, drawn))
        assert np.abs(shown - meant).max() < 24
        assert (shown[(meant == 255).all(axis=2)] == 255).all()
        assert (tmp_path / "few.png").stat().st_size < (tmp_path / "all.png").stat().st_size
    figures.draw("lines", {"title": "t", "series": {"a": [[0, 1], [1, 2]]}}, tmp_path / "lines.png")
    assert Image.open(tmp_path / "lines.png").mode == "RGB"  # Curves have ten colors, each with its shades.


@pytest.mark.parametrize("axis", ["actual", "predicted"])
def test_a_factor_that_numbers_at_the_ticks_share_is_written(axis: str, tmp_path: Path) -> None:
    data = {"title": "t", "number": 3, "actual": [1.0, 2.0, 3.0], "predicted": [1.0, 2.0, 3.0]}
    large = {**data, axis: [1e7, 2e7, 3e7]}
    names = {"few": data, "many": large}
    for name, values in names.items():
        figures.draw("residuals", {**values, "residual": values["actual"]}, tmp_path / f"{name}.png")
    few, many = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in names)
    other = (few != many).any(axis=2)
    height, width = other.shape
    # "1e7", above the y axis, along which the actual values are, or at the end of the x axis.
    where = np.s_[: height // 10, : width // 4] if axis == "actual" else np.s_[-height // 10 :, -width // 7 :]
    assert other[where].sum() > 50
    assert other.sum() - other[where].sum() < 10  # A tick may be a pixel further.


def test_letters_stand_where_they_are_said_to(tmp_path: Path) -> None:
    page = pages.Page()
    page.size(2.0, 1.0, left=0.0, bottom=0.0, right=0.0, top=0.0)
    page.axes.set_axis_off()
    page.axes.set(xlim=(0, 200), ylim=(0, 100))
    assert 0.2 < page.write("HH", (100, 50), size=10, color="#ff0000") < 0.25
    page.write("HH", (100, 20), size=10, align="right")
    page.write("HH", (20, 50), size=10, align="center", upright=True)
    page.write("HH", (150, 50), size=10, align="center", middle=True, color="#0000ff")
    page.write("far outside", (500, 500), size=10)
    page.write("half outside", (195, 99), size=10, color="#00ff00")
    page.colorful = True
    page.save(tmp_path / "a.png")
    shown = np.asarray(Image.open(tmp_path / "a.png")).astype(int)

    def box(drawn: np.ndarray) -> tuple[int, int, int, int]:
        rows, columns = np.nonzero(drawn)
        return columns.min(), columns.max() + 1, rows.min(), rows.max() + 1

    # 110 pixels an inch: 1.1 for each unit. A capital letter of 10 points is 11 pixels high.
    red = box((shown[..., 0] > 250) & (shown[..., 1] < 128))
    assert red[0] in range(110, 113) and red[3] in (55, 56) and red[3] - red[2] in (11, 12)
    black = (shown < 128).all(axis=2)
    right = box(black & (np.arange(220) > 60))
    assert right[1] in range(107, 112) and right[3] in (87, 88, 89)
    upright = box(black & (np.arange(220) < 60))
    assert upright[1] in (21, 22, 23) and upright[1] - upright[0] in (11, 12)
    assert abs((upright[2] + upright[3]) / 2 - 55) <= 1
    blue = box((shown[..., 2] > 250) & (shown[..., 0] < 128))
    assert abs((blue[0] + blue[1]) / 2 - 165) <= 1 and abs((blue[2] + blue[3]) / 2 - 55) <= 1
    green = box((shown[..., 1] > 250) & (shown[..., 0] < 128))
    assert green[1] >= 216  # As far as it is inside.


def test_nothing_to_draw_is_an_empty_picture(tmp_path: Path) -> None:
    figures.draw("bars", {"title": "none", "names": [], "values": []}, tmp_path / "bars.png")
    figures.draw("lines", {"title": "none", "series": {}}, tmp_path / "lines.png")
    assert size(tmp_path / "bars.png")[0] == 770


def test_thin_keeps_first_and_last() -> None:
    kept = figures.thin(123_456)
    assert len(kept) == 1000 and kept[0] == 0 and kept[-1] == 123_455 and kept == sorted(set(kept))
    assert figures.thin(3) == [0, 1, 2]


def test_shorten_keeps_both_ends() -> None:
    assert figures.shorten("x" * 100 + "end", 11) == "xxxxx…xxend"
    assert figures.shorten("short") == "short"


def test_a_picture_becomes_an_artifact_of_the_run(recorder) -> None:
    recorder.start()
    run = runtime.open_run("sklearn")
    run.figure("charts/a.png", "lines", {"title": "t", "series": {"loss": [[0, 1], [1.0, 0.5]]}})
    run.end()
    stored = recorder.run()
    assert recorder.artifacts(stored) == ["charts"]
    path = recorder.client.download_artifacts(stored.info.run_id, "charts/a.png")
    assert Path(path).read_bytes().startswith(PNG)


def test_an_unknown_kind_is_said_and_costs_nothing_else(recorder) -> None:
    recorder.start()
    run = runtime.open_run("sklearn")
    run.figure("a.png", "no such kind", {})
    run.params({"a": 1})
    run.end()
    stored = recorder.run()
    assert stored.data.params == {"a": "1"} and stored.info.status == "FINISHED"
    (problem,) = recorder.take_problems()
    assert "a.png" in problem and "no such kind" in problem


def test_without_matplotlib_the_numbers_are_kept(recorder, monkeypatch) -> None:
    from autolog.delivery import Delivery
    from autolog.records import EndRun, Figure, OpenRun, now
    from autolog.spool import Spool, make_folder, remove

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *args, **kwargs)

    folder = make_folder()
    spool = Spool(folder, new=True)
    opened = OpenRun("r1", now(), recorder.store_uri, recorder.experiment, None, str(Path.cwd()))
    spool.append([opened, Figure("r1", "a.png", "bars", {"title": "t", "names": ["x"], "values": [1]})])
    spool.append([EndRun("r1", "FINISHED", now())])
    delivery = Delivery(spool, own_process=False)
    figures._page.cache_clear()  # A page that was painted before needs nothing of matplotlib any more.
    monkeypatch.setattr(builtins, "__import__", without)
    delivery.send(spool.pending())
    monkeypatch.undo()
    problems = [message for _, _, message in spool.problems()]
    spool.close()
    remove(folder)
    assert len(problems) == 1 and "pip install matplotlib" in problems[0]
    assert recorder.artifacts(recorder.run()) == ["a.png.json"]


def test_pictures_on_the_same_axes_have_nothing_of_each_other(tmp_path: Path) -> None:
    first = {
        "title": "first",
        "positive": "a",
        "area": 0.9,
        "false_positive_rate": [0, 1],
        "true_positive_rate": [0, 1],
    }
    second = {**first, "title": "second", "area": 0.5, "true_positive_rate": [0.5, 1]}
    precision = {"title": "p", "positive": "a", "average_precision": 0.5, "prevalence": 0.3, "recall": [1, 0]}
    alone = {}
    for name, kind, data in (
        ("first", "roc_curve", first),
        ("second", "roc_curve", second),
        ("precision", "precision_recall_curve", {**precision, "precision": [0.5, 1]}),
    ):
        figures._page.cache_clear()
        figures.draw(kind, data, tmp_path / f"{name}.png")
        alone[name] = pixels(tmp_path / f"{name}.png")
    assert len({value.tobytes() for value in alone.values()}) == 3
    # In any order, on a page that is used again.
    for name, kind, data in (
        ("first", "roc_curve", first),
        ("second", "roc_curve", second),
        ("first", "roc_curve", first),
    ):
        figures.draw(kind, data, tmp_path / f"{name}.png")
        assert (pixels(tmp_path / f"{name}.png") == alone[name]).all()


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)
