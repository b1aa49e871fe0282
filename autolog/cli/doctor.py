"""``autolog doctor``: is everything set up, from the store to Java, and if not, what to do."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import autolog
from autolog import guard, registry
from autolog.cli.screen import console
from autolog.cli.showing import store_of
from autolog.config import resolve
from autolog.spool import SpoolError, check_private, describe, root, spools
from autolog.uris import without_credentials

if TYPE_CHECKING:
    from autolog.reading import Answer

#: The versions of Java that Spark runs on, by its first number; as its documentation says ("Spark runs on Java ...").
_JAVA = {3: (8, 11, 17), 4: (17, 21)}
#: Bytes that a spool should find on its disk.
_ROOM = 500 * 1024**2


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. problem: what is wrong with it; fix: what to do; advice: whether it can also stay so."""

    name: str
    found: str = ""
    problem: str | None = None
    fix: str = ""
    advice: bool = False


def doctor(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Print each check and the fix of each finding; return 1 where there is one that keeps something from working."""
    from rich.markup import escape

    out = console()
    out.print(f"mlflow-autolog {autolog.__version__}, Python {sys.version.split()[0]}")
    out.print()
    findings = 0
    for check in checks(options):
        if check.problem is None:
            out.print(f"[green]ok[/]    {check.name}  [dim]{escape(check.found)}[/]", soft_wrap=True)
            continue
        findings += not check.advice
        word = "[yellow]note[/]" if check.advice else "[red]fix[/] "
        out.print(f"{word}  {check.name}: {escape(check.problem)}", soft_wrap=True)
        out.print(f"      [bold]{escape(check.fix)}[/]", soft_wrap=True)
    out.print()
    out.print("Everything is set up." if not findings else f"{findings} to fix.")
    return 1 if findings else 0


def checks(options: argparse.Namespace) -> Iterator[Check]:
    """Yield what was looked at, one after the other, as it is known."""
    settings = guard.attempt(resolve, {})
    if settings.error is not None:
        yield Check(
            "settings", problem=str(settings.error), fix="correct or unset the AUTOLOG_* variable that it names"
        )
        # What follows reads them, too.
        return
    yield from _frameworks()
    yield from _packages()
    yield from _spool()
    yield from _store(options)


# -- packages ---------------------------------------------------------------------------------------------------------


def _frameworks() -> Iterator[Check]:
    some = False
    for name in sorted(registry.entry_points()):
        distribution, supported = registry.supported(name)
        installed = registry.installed_version(name)
        if installed is None:
            continue
        some = True
        problem = registry.version_problem(name)
        if problem is not None:
            yield Check(name, problem=problem, fix=f'pip install "{distribution}{supported}"')
        else:
            yield Check(name, f"{distribution} {installed}, supported {supported}")
        loaded = guard.attempt(registry.load_flavor, name)
        if loaded.error is not None:
            yield Check(name, problem=f"its flavor cannot be loaded: {loaded.error}", fix=registry.install_hint(name))
        if name == "pyspark":
            yield _java(installed)
    if not some:
        names = " | ".join(sorted(registry.entry_points()))
        yield Check(
            "frameworks",
            problem="none of them is installed",
            fix=f'pip install "mlflow-autolog[{names}]", one of these',
        )


def _java(pyspark: str) -> Check:
    wanted = _JAVA.get(int(pyspark.partition(".")[0]), (17,))
    fix = (
        f"install Java {wanted[-1] if 17 not in wanted else 17} and have JAVA_HOME name its folder "
        "(Debian: apt-get install openjdk-17-jre-headless; macOS: brew install openjdk@17)"
    )
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    if java is None:
        where = f"in JAVA_HOME ({home})" if home else "on the PATH, and JAVA_HOME is not set"
        return Check("java", problem=f"Spark needs it, and there is none {where}", fix=fix)
    said = guard.attempt(subprocess.run, [java, "-version"], capture_output=True, text=True, timeout=60, check=False)
    text = "" if said.value is None else f"{said.value.stderr}{said.value.stdout}"
    found = re.search(r'version "(?:1\.)?(\d+)', text)
    if found is None:
        return Check("java", problem=f"{java} does not say its version", fix=fix)
    if int(found[1]) not in wanted:
        named = ", ".join(map(str, wanted))
        return Check("java", problem=f"{java} is version {found[1]}; Spark {pyspark} needs {named}", fix=fix)
    return Check("java", f"{java}, version {found[1]}")


def _packages() -> Iterator[Check]:
    yield _package("matplotlib", "pictures are not drawn, their numbers are kept as JSON", "mlflow-autolog[figures]")
    if registry.installed_version("sklearn") is not None:
        yield _package(
            "skops", "scikit-learn models are saved with cloudpickle, which runs code when it is loaded", "skops>=0.11"
        )
    if resolve({}).log_system_metrics:
        yield _package("psutil", "system metrics are not recorded", "mlflow-autolog[system]", advice=False)


def _package(name: str, without: str, requirement: str, *, advice: bool = True) -> Check:
    # Imported by another interpreter: it may crash, and nothing of it should stay here.
    code = f"import {name}, importlib.metadata as m; print(m.version({name!r}))"
    if importlib.util.find_spec(name) is None:
        return Check(name, problem=f"it is missing: {without}", fix=f'pip install "{requirement}"', advice=advice)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it crashed"])[-1]
        return Check(name, problem=f"it does not import ({last})", fix=f'pip install --force-reinstall "{requirement}"')
    return Check(name, done.stdout.strip())


# -- the spool --------------------------------------------------------------------------------------------------------


def _spool() -> Iterator[Check]:
    folder = root()
    made = guard.attempt(_try_spool, folder)
    if isinstance(made.error, SpoolError):
        # Its own advice is that of the fix.
        yield Check("spool", problem=str(made.error).partition("; run:")[0], fix=_spool_fix(folder))
        return
    if made.error is not None:
        yield Check(
            "spool",
            problem=f"{folder} cannot be written ({made.error}); the temporary folder is used, which may be emptied",
            fix="set AUTOLOG_SPOOL_DIR to a folder of your own",
        )
        return
    free = shutil.disk_usage(folder).free
    if free < _ROOM:
        yield Check(
            "spool",
            problem=f"{folder} is on a disk with {free / 1e6:,.0f} MB left; models wait there to be delivered",
            fix="free some space, or set AUTOLOG_SPOOL_DIR to a folder on another disk",
        )
    else:
        yield Check("spool", f"{folder}, yours alone, {free / 1e9:,.0f} GB free")
    dead = []
    for each in spools():
        read = guard.attempt(describe, each)
        if read.value is None or not read.value["owner_alive"]:
            dead.append(each)
    if dead:
        yield Check(
            "backlog",
            problem=f"{len(dead)} earlier training(s) left something that is not delivered",
            fix="autolog sync",
            advice=True,
        )


def _try_spool(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        file.write(b"0" * 4096)
        file.flush()


def _spool_fix(folder: Path) -> str:
    if folder.is_dir() and sys.platform != "win32" and folder.stat().st_uid == os.getuid():
        return f"chmod 700 {folder}"
    return "set AUTOLOG_SPOOL_DIR to a folder of your own"


# -- the store --------------------------------------------------------------------------------------------------------


def _store(options: argparse.Namespace) -> Iterator[Check]:
    from autolog import reading, sender

    sender.own_environment()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    uri = store_of(options)
    shown = without_credentials(uri)
    yield Check("mlflow", f"mlflow-skinny {importlib.metadata.version('mlflow-skinny')}")
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        yield _new_store(shown, Path(uri.removeprefix("sqlite:///")).parent)
        return
    reached = reading.reach(uri)
    yield _answer("store", shown, reached)
    if reached.problem is not None:
        return
    trial = reading.Trial(uri, options.experiment or resolve({}).experiment)
    steps: tuple[tuple[str, str, Callable[[], Answer]], ...] = (
        ("write and read back", "a run with a param and a metric", trial.write),
        ("artifact", "written, read back", trial.artifact),
    )
    for name, found, step in steps:
        answer = step()
        yield _answer(name, found, answer)
        if answer.problem is not None:
            break
    if trial.begun:
        yield _answer("delete", "the run of this check", trial.delete())


def _new_store(shown: str, folder: Path) -> Check:
    if folder.is_dir() and os.access(folder, os.W_OK):
        return Check("store", f"{shown}, which the first run makes")
    return Check(
        "store",
        problem=f"{shown} cannot be made: {folder} {'cannot be written' if folder.is_dir() else 'does not exist'}",
        fix=f"mkdir -p {folder}" if not folder.exists() else "set MLFLOW_TRACKING_URI to a store that you can write",
    )


def _answer(name: str, found: str, answer: Answer) -> Check:
    return Check(name, found, answer.problem, answer.fix)
