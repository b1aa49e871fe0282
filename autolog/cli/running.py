"""``autolog run``: Python, or a command that starts Python itself, with autologging switched on by the environment."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from autolog import guard
from autolog.config import Config, resolve

BOOTSTRAP = Path(__file__).parent.parent / "bootstrap"
#: The value of AUTOLOG_RUNNER for a command whose Python processes are not known beforehand.
ANY = "any"
_SCRIPTS = (".py", ".pyc", ".pyw", ".pyz", ".zip", ".ipy")


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Become the command; returns only where the system cannot replace a process, and then its exit code."""
    rest = list(options.rest)
    if rest[:1] == ["--"]:
        del rest[0]
    if not options.module and not rest:
        parser.error("run needs a script, -m and a module, or a command")
    environ = dict(os.environ)
    for item in fields(Config):
        value = getattr(options, item.name, None)
        if value is not None:
            environ[f"AUTOLOG_{item.name.upper()}"] = value
    checked = guard.attempt(resolve, {}, environ)
    if checked.error is not None:
        parser.error(str(checked.error))
    if options.module:
        command, runner = [sys.executable, "-m", options.module, *rest], str(os.getpid())
    elif is_script(rest[0]):
        command, runner = [sys.executable, *rest], str(os.getpid())
    else:
        found = shutil.which(rest[0])
        if found is None:
            parser.error(f"there is neither a script nor a command called {rest[0]!r}")
        # Whoever the command starts, it starts later: a launcher's workers, a driver.
        command, runner = [found, *rest[1:]], ANY
    path = [str(BOOTSTRAP), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(entry for entry in path if entry)
    environ["AUTOLOG_RUNNER"] = runner
    return _become(command, environ)


def is_script(name: str) -> bool:
    """Return whether `name` is for Python to run: by its suffix, or as a file that is no program."""
    path = Path(name)
    if path.suffix.lower() in _SCRIPTS or path.is_dir():
        return True
    return path.is_file() and not os.access(path, os.X_OK) and shutil.which(name) is None


def _become(command: Sequence[str], environ: dict[str, str]) -> int:
    sys.stdout.flush()
    if os.name == "posix":
        # Signals, terminal and exit code are the command's own.
        os.execve(command[0], list(command), environ)
    return subprocess.run(command, env=environ, check=False).returncode
