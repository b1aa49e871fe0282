"""``autolog sync`` and ``autolog status``: what waits on this machine, and what is supported."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import autolog
from autolog import guard, registry, sender
from autolog.cli.screen import console, grid
from autolog.spool import Lease, Spool, describe, root, spools


def sync(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Deliver what dead trainings left; return 1 where something remains."""
    out = console()
    waiting = spools()
    if not waiting:
        out.print(f"Nothing waits to be delivered in {root()}.")
        return 0
    sender.own_environment()
    with _progress([folder for folder in waiting if Lease.is_free(folder / "owner.lock")]):
        delivered = sender.sync(patience=options.patience)
    for folder, done, problems in delivered:
        out.print(f"{'[green]delivered[/]' if done else '[yellow]waiting  [/]'}  {folder}", soft_wrap=True)
        for problem in problems:
            out.print(f"           {problem}", markup=False, soft_wrap=True)
    alive = len(waiting) - len(delivered)
    if alive > 0:
        out.print(f"{alive} more belong to trainings that still run.")
    return 0 if all(done for _, done, _ in delivered) else 1


@contextmanager
def _progress(folders: Sequence[Path]) -> Iterator[None]:
    """Show on a terminal how much of the spools in `folders` is delivered, while the block delivers."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    total = _left(folders)
    bar = Progress(
        TextColumn("delivering"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("[dim]{task.completed:,.0f} of {task.total:,.0f} records[/]"),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
    )
    done = threading.Event()

    def follow(task: Any) -> None:
        while not done.wait(0.2):
            bar.update(task, completed=total - _left(folders))

    with bar:
        task = bar.add_task("", total=max(total, 1))
        thread = threading.Thread(target=follow, args=(task,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _left(folders: Sequence[Path]) -> int:
    return sum(guard.attempt(_backlog, folder).value or 0 for folder in folders)


def _backlog(folder: Path) -> int:
    spool = Spool(folder)  # Refused where it is delivered, and deleted.
    try:
        return spool.backlog()
    finally:
        spool.close()


def status(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Say versions, supported ranges, settings of the environment, what waits and what went wrong."""
    out = console()
    out.print(f"mlflow-autolog {autolog.__version__}, Python {sys.version.split()[0]}")
    out.print()
    table = grid("framework", "installed", "supported", "")
    for name in sorted(registry.entry_points()):
        distribution, supported = registry.supported(name)
        problem = registry.version_problem(name)
        installed = registry.installed_version(name)
        state = "[dim]not installed[/]" if installed is None else installed
        table.add_row(
            distribution or name,
            state,
            supported,
            "[yellow]outside the supported range[/]" if problem else "",
        )
    out.print(table)
    settings = sorted(name for name in os.environ if name.startswith("AUTOLOG_"))
    if settings:
        out.print()
        out.print("Set in the environment:")
        for name in settings:
            out.print(f"  {name}={os.environ[name]}", markup=False, soft_wrap=True)
    out.print()
    folders = spools()
    out.print(f"Waiting to be delivered, in {root()}: {len(folders) or 'none'}", soft_wrap=True)
    for folder in folders:
        read = guard.attempt(describe, folder)
        if read.value is None:
            out.print(f"  {folder.name}  cannot be read: {read.error}", markup=False, soft_wrap=True)
            continue
        waits = f"{read.value['backlog']} records wait"
        if read.value["aside"]:
            waits += f", {read.value['aside']} set aside"
        owner = "training runs" if read.value["owner_alive"] else "training is over; run: autolog sync"
        out.print(f"  {folder.name}  {waits}, {owner}", soft_wrap=True)
        for message in read.value["problems"]:
            out.print(f"    {message}", markup=False, soft_wrap=True)
    return 0
