"""What was recorded, said once at the end to whoever watches: on a terminal's stderr, or below a notebook's cell.

The facts are counted by the writer thread as records go to the disk; names and ids are the sender's, as far as the
spool has them already. So nothing is waited for, and MLflow is not imported. Where nobody watches, nothing is counted.
"""

from __future__ import annotations

import html
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from autolog.endings import AS_EXIT_CODE
from autolog.ranking import Direction, direction, held_out
from autolog.records import Block, DeclareModel, DropModels, EndRun, Figure, OpenRun, Params, Points, Record
from autolog.uris import absolute_uri, without_credentials

if TYPE_CHECKING:
    from autolog.config import Config
    from autolog.spool import Spool
    from autolog.writer import Writer

#: Runs that are named one by one at the end of a process.
NAMED = 5
#: Seconds that the end of a notebook's cell waits for the disk at most.
CELL = 2.0
#: Seconds of waiting after which a terminal is told of it.
PATIENT = 0.5


@dataclass(slots=True)
class Facts:
    """What was said about one run."""

    opened: OpenRun
    params: set[str] = field(default_factory=set)
    points: int = 0
    #: Metric -> (step, value) of its best point; of its last where its name does not say what is better.
    metrics: dict[str, tuple[int, float]] = field(default_factory=dict)
    #: Keys of the models that are kept, oldest first, with their names.
    models: dict[str, str] = field(default_factory=dict)
    pictures: int = 0
    status: str = ""
    #: Whether anything was trained since it was shown last.
    changed: bool = True

    def add(self, name: str, step: int, value: float) -> None:
        """Note a point."""
        self.points += 1
        known = self.metrics.get(name)
        if known is None or not _keeps(name, known[1], value):
            self.metrics[name] = (step, value)


_ways: dict[str, Direction | None] = {}


def _keeps(name: str, known: float, value: float) -> bool:
    """Return whether the `known` value of a metric stays its best."""
    if name not in _ways:
        _ways[name] = direction(name)
    way = _ways[name]
    if way is None or not math.isfinite(known):
        return False
    return known <= value or math.isnan(value) if way == "min" else known >= value or math.isnan(value)


class Ledger:
    """The facts of all runs of a process, oldest first. Records are added by the writer thread."""

    def __init__(self) -> None:
        self.runs: dict[str, Facts] = {}
        #: Ends that wait for a model to be saved, by run: how it ended is known before.
        self.ending: dict[str, EndRun] = {}

    def add(self, records: Iterable[Record]) -> None:
        """Count records that are on the disk now."""
        for record in records:
            if isinstance(record, OpenRun):
                self.runs.setdefault(record.run, Facts(record))
                continue
            facts = self.runs.get(record.run)
            if facts is not None:
                self._count(facts, record)

    def _count(self, facts: Facts, record: Record) -> None:
        if isinstance(record, Points):
            facts.changed = True
            for name, value in record.values.items():
                facts.add(name, record.step, float(value))
        elif isinstance(record, Block):
            facts.changed = True
            times, columns = record.take()
            for name, column in columns.items():
                for i in range(len(times)):
                    facts.add(name, record.step + i, float(column[i]))
        elif isinstance(record, Params):
            facts.changed = True
            facts.params.update(record.values)
        elif isinstance(record, DeclareModel):
            facts.models[record.model] = record.name
        elif isinstance(record, DropModels):
            for model in record.models:
                facts.models.pop(model, None)
        elif isinstance(record, Figure):
            facts.pictures += 1
        elif isinstance(record, EndRun):
            facts.status = record.status if record.status != AS_EXIT_CODE else "FINISHED"
            self.ending.pop(record.run, None)

    def tops(self) -> list[Facts]:
        """Return the runs that are no part of another one of this process."""
        return [facts for facts in list(self.runs.values()) if facts.opened.parent not in self.runs]

    def parts(self, facts: Facts) -> int:
        """Return how many child runs there are of a run."""
        return sum(other.opened.parent == facts.opened.run for other in list(self.runs.values()))


def is_terminal(stream: IO[str] | None) -> bool:
    """Return whether somebody watches `stream`."""
    return stream is not None and not stream.closed and stream.isatty()


# -- what is said of a run --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """One run in words. name, run_id, model: None while the store has not told them."""

    name: str | None
    run_id: str | None
    experiment: str
    status: str
    recorded: str
    best: str | None
    model: str | None
    look: tuple[str, ...]
    link: str | None

    def what(self, on: str = "", off: str = "") -> str:
        """Return what was recorded, with the best metric between the marks `on` and `off`."""
        if not self.best:
            return self.recorded
        return f"{self.recorded}; {'' if self.best.startswith('best') else 'best '}{on}{self.best}{off}"


def describe(facts: Facts, spool: Spool, parts: int, config: Config) -> Said:
    """Return what is to be said of a run, with what the sender knows of it."""
    opened = facts.opened
    known = spool.lookup(f"run:{opened.run}")
    run_id = opened.adopt or (known.remote if known is not None else None)
    derived = json.loads(spool.meta(f"derived:{opened.run}") or "{}")
    metrics = {**facts.metrics, **{name: (int(step), float(value)) for name, (step, value) in derived.items()}}
    checkpoints = [name for name in facts.models.values() if name.startswith("checkpoint")]
    counts = (
        (len(facts.params), "param"),
        (facts.points + len(derived), "point"),
        (len(checkpoints), "checkpoint"),
        (len(facts.models) - len(checkpoints), "model"),
        (facts.pictures, "picture"),
        (parts, "child run"),
    )
    recorded = ", ".join(f"{count:,} {what}{'s' if count > 1 else ''}" for count, what in counts if count)
    # What was trained, rather than what is recorded besides, such as the best estimator of a search.
    trained = [model for model, name in facts.models.items() if name == "model"]
    last = next(reversed(trained or list(facts.models)), None)
    model = spool.lookup(f"model:{last}") if last else None
    uri = absolute_uri(opened.tracking_uri, opened.cwd)
    link = None
    if run_id and known is not None and uri.startswith(("http://", "https://")):
        link = f"{without_credentials(uri).rstrip('/')}/#/experiments/{known.detail.get('experiment_id')}/runs/{run_id}"
    return Said(
        name=opened.name or (known.detail.get("name") if known is not None else None),
        run_id=run_id,
        experiment=opened.experiment or "",
        status=facts.status if facts.status != "FINISHED" else "",
        recorded=recorded or "nothing yet",
        best=_best(metrics, config),
        model=f"models:/{model.remote}" if model is not None and model.remote else None,
        look=_look(opened, run_id, uri),
        link=link,
    )


def _best(metrics: Mapping[str, tuple[int, float]], config: Config) -> str | None:
    """Return the metric that one looks at first: what checkpoints are chosen by, else of data held out, else any."""
    name = config.checkpoints.monitor
    if name not in metrics:
        ranked = [name for name in metrics if direction(name)]
        if not ranked:
            return None
        name = min(ranked, key=lambda name: (not held_out(name), direction(name) != "max", len(name), name))
    step, value = metrics[name]
    return f"{name} {value:.6g}" + (f" at step {step}" if step else "")


def _look(opened: OpenRun, run_id: str | None, uri: str) -> tuple[str, ...]:
    # In the folder of the training, and with its environment, the commands find the store by themselves.
    named = os.environ.get("AUTOLOG_TRACKING_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    where = "" if opened.tracking_uri in (None, named) else f" --tracking-uri {without_credentials(uri)}"
    return f"autolog show {run_id[:8] if run_id else 'latest'}{where}", f"autolog ui{where}"


# -- on a terminal ----------------------------------------------------------------------------------------------------


def at_exit(writer: Writer, config: Config) -> None:
    """Say on stderr what this process recorded: a block for one run, a line for each of a few, one line for many."""
    book = writer.ledger
    stream = sys.stderr
    if book is None or config.silent or not is_terminal(stream) or writer.folder is None:
        return
    tops = book.tops()
    if not tops:
        return
    bold, dim, off = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if _styled() else ("", "", "")
    said = _all(book, tops if len(tops) <= NAMED else tops[-1:], writer, config)
    lines = []
    if len(tops) == 1:
        (one,) = said
        head = [
            f"{bold}{one.name or 'a run'}{off}",
            one.status,
            f"{dim}{one.experiment}{off}" if one.experiment else "",
        ]
        lines.append("mlflow-autolog recorded " + "  ".join(part for part in head if part))
        lines.append(f"  {one.what(bold, off)}")
        lines += [f"  {text}" for text in (one.model, one.link) if text]
        lines.append(f"  {dim}look: {'  |  '.join(one.look)}{off}")
    elif len(tops) <= NAMED:
        lines.append(f"mlflow-autolog recorded {len(tops)} runs")
        for one in said:
            parts = [f"{bold}{one.name or 'a run'}{off}", one.status, one.best or one.recorded, one.model or ""]
            lines.append("  " + "  ".join(part for part in parts if part))
        lines.append(f"  {dim}look: {said[-1].look[1]}{off}")
    else:
        failed = sum(facts.status in ("FAILED", "KILLED") for facts in tops)
        more = f", {failed} of them failed" if failed else ""
        lines.append(f"mlflow-autolog recorded {bold}{len(tops):,} runs{off}{more}  {dim}look: {said[-1].look[1]}{off}")
    stream.write("\n".join(lines) + "\n")
    stream.flush()


def _all(book: Ledger, wanted: Iterable[Facts], writer: Writer, config: Config) -> list[Said]:
    from autolog.spool import Spool

    assert writer.folder is not None
    spool = Spool(writer.folder)
    try:
        return [describe(facts, spool, book.parts(facts), config) for facts in wanted]
    finally:
        spool.close()


def _styled() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Progress:
    """A line on a terminal's stderr while the process waits for its delivery, gone when that is over."""

    def __init__(self, config: Config) -> None:
        self._since = time.monotonic()
        self._shown = ""
        self._wanted = not config.silent and is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    def __call__(self, left: int | None) -> None:
        """Say how many records are left; None while models are still being saved."""
        if not self._wanted or time.monotonic() - self._since < PATIENT:
            return
        what = "saving models" if left is None else f"delivering, {left:,} to go"
        if what != self._shown:
            self._shown = what
            sys.stderr.write(f"\r\x1b[2Kmlflow-autolog: {what}")
            sys.stderr.flush()

    def close(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


# -- in a notebook ----------------------------------------------------------------------------------------------------


def after_cell(writer: Writer, config: Config) -> None:
    """Show below a notebook's cell what was trained in it."""
    book = writer.ledger
    if book is None or config.silent:
        return
    writer.spooled(CELL, jobs=False)  # A few milliseconds, unless the disk is away.
    book.add(list(book.ending.values()))
    changed = [facts for facts in book.tops() if _take_changed(book, facts)]
    if not changed or writer.folder is None:
        return
    shown = changed if len(changed) <= NAMED else changed[-1:]
    said = _all(book, shown, writer, config)
    count = len(changed) if len(changed) > NAMED else 0
    display = importlib.import_module("IPython.display").display  # There is one: a cell was run.

    display({"text/html": to_html(said, count), "text/plain": _to_text(said, count)}, raw=True)


def _take_changed(book: Ledger, facts: Facts) -> bool:
    family = [facts, *(each for each in list(book.runs.values()) if each.opened.parent == facts.opened.run)]
    changed = any(each.changed for each in family)
    for each in family:
        each.changed = False
    return changed


def _title(one: Said) -> str:
    return one.name or "A run"


def _to_text(said: list[Said], count: int) -> str:
    if count:
        return f"mlflow-autolog recorded {count:,} runs"
    return "\n".join(f"mlflow-autolog recorded {one.name or 'a run'}: {one.what()}" for one in said)


def to_html(said: list[Said], count: int = 0) -> str:
    """Return the small block that stands below a cell; count: of many runs, of which `said` is the last."""
    quiet = '<span style="opacity:.6">{}</span>'
    blocks = []
    for one in said:
        title = f"<b>{html.escape(_title(one))}</b>"
        if one.link:
            title = f'<a href="{html.escape(one.link)}" target="_blank">{title}</a>'
        about = " ".join(part for part in (one.experiment, one.status) if part)
        lines = [
            f"<b>{count:,} runs</b>, the last: {title}" if count else title + " " + quiet.format(html.escape(about)),
            html.escape(one.what("\0", "\1")).replace("\0", "<b>").replace("\1", "</b>"),
            *([f"<code>{html.escape(one.model)}</code>"] if one.model else []),
            quiet.format(f"<code>!{html.escape(one.look[0])}</code>"),
        ]
        blocks.append("<br>".join(lines))
    style = "border-left:3px solid #0194e2;padding:2px 0 2px 10px;margin:4px 0;font-size:90%;line-height:1.5"
    return "".join(f'<div class="mlflow-autolog" style="{style}">{block}</div>' for block in blocks)


__all__ = ["Facts", "Ledger", "Progress", "after_cell", "at_exit", "describe", "to_html"]
