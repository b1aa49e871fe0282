"""``autolog show`` and ``autolog compare``: runs in the terminal."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autolog import guard
from autolog.cli.screen import UNCUT, console, duration, grid, moment, number, sparkline
from autolog.config import resolve
from autolog.ranking import direction, held_out

if TYPE_CHECKING:
    from rich.console import Console

    from autolog.reading import Curve, Store, StoredRun

#: Rows of a list that are shown without --all.
SOME = 24
_COLOURS = {"FINISHED": "green", "RUNNING": "blue", "FAILED": "red", "KILLED": "yellow", "READY": "green"}


def store_of(options: argparse.Namespace) -> str:
    """Return the tracking URI that a command is about."""
    from autolog import reading

    return reading.store_uri(options.tracking_uri or resolve({}).tracking_uri)


def _open(options: argparse.Namespace) -> Store:
    from autolog import reading, sender

    sender.own_environment()
    return reading.Store(store_of(options))


def _read(options: argparse.Namespace, names: Sequence[str]) -> list[StoredRun] | None:
    """Return the runs called `names`, or say what is wrong and return None."""
    from autolog.faults import reason
    from autolog.reading import NotFoundError
    from autolog.uris import without_credentials

    experiment = options.experiment or resolve({}).experiment

    def read() -> list[StoredRun]:
        store = _open(options)
        return [store.read(store.find(name, experiment)) for name in names]

    done = guard.attempt(read)
    if done.error is None:
        return done.value
    err = console(stderr=True)
    said = str(done.error) if isinstance(done.error, NotFoundError) else reason(done.error)
    err.print(f"autolog: {said}", markup=False, soft_wrap=True)
    if isinstance(done.error, NotFoundError):
        _say_waiting(err)
    else:
        err.print(f"The store is {without_credentials(store_of(options))}; see: autolog doctor", soft_wrap=True)
    return None


def _say_waiting(out: Console) -> None:
    from autolog.spool import spools

    count = len(guard.attempt(spools).value or ())
    if count:
        out.print(f"[dim]Of {count} training(s) on this machine not all is delivered yet; see: autolog status[/]")


# -- show -------------------------------------------------------------------------------------------------------------


def show(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Print one run."""
    read = _read(options, [options.run])
    if read is None:
        return 1
    (run,) = read
    out = console()
    _head(out, run)
    limit = None if options.all else SOME
    if run.params:
        _title(out, "Params", len(run.params))
        _params(out, run.params, limit)
    if run.curves:
        _title(out, "Metrics", len(run.curves))
        _metrics(out, run.curves, limit)
    if run.models:
        _title(out, "Models" if len(run.models) > 1 else "Model", len(run.models))
        _models(out, run, limit)
    if run.children:
        _title(out, "Child runs" if len(run.children) > 1 else "Child run", len(run.children))
        _children(out, run, limit)
    return 0


def _title(out: Console, text: str, count: int) -> None:
    out.print()
    out.print(f"[bold]{text}[/] [dim]{count}[/]" if count > 1 else f"[bold]{text}[/]")


def _more(out: Console, count: int, limit: int | None) -> None:
    if limit is not None and count > limit:
        out.print(f"  [dim]and {count - limit} more: --all[/]")


def _status(status: str) -> str:
    colour = _COLOURS.get(status)
    return f"[{colour}]{status}[/]" if colour else status


def _head(out: Console, run: StoredRun) -> None:
    from rich.markup import escape

    out.print(f"[bold]{escape(run.name)}[/]  {_status(run.status)}", soft_wrap=True)
    parts = [run.run_id, f"experiment {run.experiment}", moment(run.start_time)]
    if run.end_time:
        parts.append(duration(run.end_time - run.start_time))
    line = "  ".join(parts)
    if len(line) <= out.width:
        out.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
    else:
        out.print(f"[dim]{run.run_id}[/]", soft_wrap=True)
        out.print(f"[dim]{escape('  '.join(parts[1:]))}[/]", soft_wrap=True)
    source = run.tags.get("mlflow.source.name")
    if source:
        out.print(f"[dim]{escape(source)}[/]", soft_wrap=True)


def _params(out: Console, params: dict[str, str], limit: int | None) -> None:
    from rich.markup import escape

    items = sorted(params.items())[:limit]
    cells = [(escape(name), escape(" ".join(value.split()))) for name, value in items]
    widest = max(len(name) + len(value) for name, value in items) + 6
    # Two pairs beside each other where there is room for the widest, filled downwards as one reads them.
    columns = 2 if len(cells) > 4 and widest * 2 <= out.width < UNCUT else 1
    table = grid(*([""] * 2 * columns))
    rows = -(-len(cells) // columns)
    for i in range(rows):
        row: list[str] = []
        for column in range(columns):
            at = i + column * rows
            name, value = cells[at] if at < len(cells) else ("", "")
            row += [f"  [dim]{name}[/]", value]
        table.add_row(*row)
    out.print(table)
    _more(out, len(params), limit)


def _metrics(out: Console, curves: Sequence[Curve], limit: int | None) -> None:
    from rich.markup import escape

    shown = curves[:limit]
    curved = any(len(curve.points) > 1 for curve in shown)
    if not curved:
        table = grid("", "", right=[1], keep=[1])
        for curve in shown:
            table.add_row(f"  {escape(curve.name)}", number(curve.last))
        out.print(table)
        _more(out, len(curves), limit)
        return
    width = 40 if out.width >= 110 else 20
    table = grid("", "curve", "last", "best", "at step", right=[2, 3, 4], keep=[1, 2, 3, 4])
    for curve in shown:
        best = curve.best
        one = len(curve.points) == 1
        table.add_row(
            f"  {escape(curve.name)}",
            "" if one else f"[cyan]{sparkline(curve.values, width)}[/]",
            number(curve.last),
            "" if best is None or one else number(best[1]),
            "" if best is None or one else str(best[0]),
        )
    out.print(table)
    _more(out, len(curves), limit)


def _models(out: Console, run: StoredRun, limit: int | None) -> None:
    from rich.markup import escape

    shown = _telling(out, [model.metrics for model in run.models])
    several = len({model.step for model in run.models}) > 1
    table = grid(
        "  step" if several else "",
        "name",
        *shown,
        "load with" if run.models else "",
        right=[*([0] if several else []), *range(2, 2 + len(shown))],
        keep=[0, *range(2, 3 + len(shown))],
    )
    for model in run.models[-limit:] if limit else run.models:
        state = "" if model.status == "READY" else f"  {_status(model.status)}"
        table.add_row(
            f"  {model.step}" if several else " ",
            escape(model.name) + state,
            *(number(model.metrics[name]) if name in model.metrics else "" for name in shown),
            model.uri,
        )
    out.print(table)
    _more(out, len(run.models), limit)


def _children(out: Console, run: StoredRun, limit: int | None) -> None:
    from rich.markup import escape

    shown = _telling(out, [child.metrics for child in run.children])
    table = grid("  name", *shown, "id", right=range(1, 1 + len(shown)), keep=range(1, 2 + len(shown)))
    for child in run.children[:limit]:
        state = "" if child.status == "FINISHED" else f"  {_status(child.status)}"
        table.add_row(
            f"  {escape(child.name)}{state}",
            *(number(child.metrics[name]) if name in child.metrics else "" for name in shown),
            child.run_id[:8],
        )
    out.print(table)
    _more(out, len(run.children), limit)


def _telling(out: Console, of_each: Sequence[Mapping[str, float]]) -> list[str]:
    """Return the metrics that tell models or runs apart: those that most have, that are ranked, of held-out data."""
    counts = Counter(name for metrics in of_each for name in metrics)
    names = sorted(counts, key=lambda name: (-counts[name], not held_out(name), name))
    ranked = [name for name in names if direction(name)]
    return (ranked or names)[: 3 if out.width >= 110 else 1]


# -- compare ----------------------------------------------------------------------------------------------------------


def compare(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Print two runs side by side."""
    read = _read(options, options.runs)
    if read is None:
        return 1
    a, b = read
    from rich.markup import escape

    out = console()
    table = grid("", "A", "B")
    for title, get in (
        ("run", lambda run: f"[bold]{escape(run.name)}[/]"),
        ("id", lambda run: run.run_id[:12]),
        ("status", lambda run: _status(run.status)),
        ("experiment", lambda run: escape(run.experiment)),
        ("began", lambda run: moment(run.start_time)),
        ("took", lambda run: duration(run.end_time - run.start_time) if run.end_time else ""),
    ):
        table.add_row(f"[dim]{title}[/]", get(a), get(b))
    out.print(table)
    _compare_params(out, a, b)
    _compare_metrics(out, a, b)
    return 0


def _compare_params(out: Console, a: StoredRun, b: StoredRun) -> None:
    from rich.markup import escape

    names = sorted({*a.params, *b.params})
    differ = [name for name in names if a.params.get(name) != b.params.get(name)]
    if not names:
        return
    same = len(names) - len(differ)
    out.print()
    out.print(f"[bold]Params[/] [dim]{len(differ) or 'none'} differ, {same} are the same[/]")
    table = grid("", "A", "B")
    for name in differ:
        values = [escape(" ".join(run.params[name].split())) if name in run.params else "[dim]-[/]" for run in (a, b)]
        table.add_row(f"  [dim]{escape(name)}[/]", *values)
    if differ:
        out.print(table)


def _compare_metrics(out: Console, a: StoredRun, b: StoredRun) -> None:
    from rich.markup import escape

    left, right = ({curve.name: curve for curve in run.curves} for run in (a, b))
    names = [name for name in {**left, **right} if not name.startswith("system/")]
    if not names:
        return
    out.print()
    out.print("[bold]Metrics[/] [dim]best of each where the name says what is better, else the last[/]")
    width = 16 if out.width >= 110 else 0
    drawn = [""] if width else []
    end = 3 + 2 * len(drawn)
    table = grid("", "A", *drawn, "B", *drawn, "B - A", right=[1, 2 + len(drawn), end], keep=range(1, end + 1))
    for name in sorted(names):
        pair = (left.get(name), right.get(name))
        values = [_value(curve) for curve in pair]
        row: list[str] = []
        for i, (curve, value) in enumerate(zip(pair, values, strict=True)):
            text = "[dim]-[/]" if value is None else number(value)
            row.append(f"[green]{text}[/]" if _wins(name, values, i) else text)
            if width:
                row.append(f"[cyan]{sparkline(curve.values, width)}[/]" if curve and len(curve.points) > 1 else "")
        first, second = values
        difference = "" if first is None or second is None else f"{second - first:+.3g}" if second != first else "same"
        table.add_row(f"  {escape(name)}", *row, difference)
    out.print(table)


def _value(curve: Curve | None) -> float | None:
    if curve is None:
        return None
    return curve.best[1] if curve.best else curve.last


def _wins(name: str, values: Sequence[Any], i: int) -> bool:
    mine, other = values[i], values[1 - i]
    way = direction(name)
    if mine is None or other is None or way is None:
        return False
    return bool(mine < other if way == "min" else mine > other)
