"""``autolog run | sync | status``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import autolog
from autolog import guard, registry
from autolog.config import Config, resolve
from autolog.sender import sync
from autolog.spool import describe, root, spools

_BOOTSTRAP = Path(__file__).parent / "bootstrap"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status: 0 done, 1 something remains, 2 bad usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    sys.exit(options.command(parser, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autolog",
        description="Record unmodified training code in MLflow.",
        epilog="Settings can be given as options of 'run', as AUTOLOG_* variables, or to autolog.autolog().",
    )
    parser.add_argument("--version", action="version", version=f"mlflow-autolog {autolog.__version__}")
    commands = parser.add_subparsers(required=True, metavar="run | sync | status")

    run = commands.add_parser(
        "run",
        help="run a script or module with autologging on",
        description="Run a script, or a module with -m, exactly as python would, with autologging switched on.",
        usage="autolog run [options] script.py [args ...]\n       autolog run [options] -m module [args ...]",
    )
    for item in fields(Config):
        if item.name != "disable":
            run.add_argument(f"--{item.name.replace('_', '-')}", metavar=_metavar(str(item.type)), dest=item.name)
    run.add_argument("-m", dest="module", metavar="MODULE", help="run a module as __main__")
    run.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.set_defaults(command=_run)

    deliver = commands.add_parser(
        "sync",
        help="deliver what earlier trainings could not",
        description="Deliver every spool on this machine whose training process is dead.",
    )
    deliver.add_argument(
        "--patience", type=float, default=5.0, metavar="SECONDS", help="per spool, while the store is away (default 5)"
    )
    deliver.set_defaults(command=_sync)

    state = commands.add_parser("status", help="what is supported, and what waits to be delivered")
    state.set_defaults(command=_status)
    return parser


def _metavar(kind: str) -> str:
    return {"bool": "true|false", "float": "SECONDS"}.get(kind, "TEXT" if kind.startswith("str") else "A,B")


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    command = list(options.rest)
    if options.module:
        command = ["-m", options.module, *command]
    elif not command:
        parser.error("run needs a script, or -m and a module")
    environ = dict(os.environ)
    for item in fields(Config):
        value = getattr(options, item.name, None)
        if value is not None:
            environ[f"AUTOLOG_{item.name.upper()}"] = value
    checked = guard.attempt(resolve, {}, environ)
    if checked.error is not None:
        parser.error(str(checked.error))
    path = [str(_BOOTSTRAP), environ.get("PYTHONPATH", "")]
    environ["PYTHONPATH"] = os.pathsep.join(entry for entry in path if entry)
    environ["AUTOLOG_RUNNER_PID"] = str(os.getpid())
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(sys.executable, [sys.executable, *command], environ)
    return subprocess.run([sys.executable, *command], env=environ, check=False).returncode


def _sync(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    waiting = spools()
    if not waiting:
        print(f"Nothing waits to be delivered in {root()}.")
        return 0
    delivered = sync(patience=options.patience)
    for folder, done, problems in delivered:
        print(f"{'delivered' if done else 'waiting  '}  {folder}")
        for problem in problems:
            print(f"           {problem}")
    alive = len(waiting) - len(delivered)
    if alive > 0:
        print(f"{alive} more belong to trainings that still run.")
    return 0 if all(done for _, done, _ in delivered) else 1


def _status(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    print(f"mlflow-autolog {autolog.__version__}, Python {sys.version.split()[0]}")
    print()
    for name in sorted(registry.entry_points()):
        distribution, supported = registry.supported(name)
        problem = registry.version_problem(name)
        installed = registry.installed_version(name)
        state = "not installed" if installed is None else (problem or f"{distribution} {installed}")
        print(f"  {name:<10} {state:<40} supported {supported}")
    print()
    folders = spools()
    print(f"Spools in {root()}: {len(folders) or 'none'}")
    for folder in folders:
        read = guard.attempt(describe, folder)
        if read.value is None:
            print(f"  {folder.name}  cannot be read: {read.error}")
            continue
        owner = "training runs" if read.value["owner_alive"] else "training is over; run: autolog sync"
        print(f"  {folder.name}  {read.value['backlog']} records wait, {owner}")
        for problem in read.value["problems"]:
            print(f"    {problem}")
    return 0


if __name__ == "__main__":
    main()
