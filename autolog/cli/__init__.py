"""``autolog run | show | compare | ui | sync | status | doctor``: the parser; each command's work is in its module."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import NoReturn

import autolog
from autolog.cli import doctor, running, showing, states, ui
from autolog.config import Config

_DESCRIPTION = """\
Record unmodified training code in MLflow: scikit-learn, PyTorch, XGBoost, Spark ML.

  autolog run train.py           train as ever, recorded
  autolog show                   what the latest run recorded
  autolog compare latest 3f2a    two runs, side by side
  autolog ui                     all of them, in MLflow's own pages
  autolog doctor                 is everything set up? and if not, what to do
"""

_EPILOG = """\
Runs go to the store that MLFLOW_TRACKING_URI names, or --tracking-uri; else to ./mlflow.db, MLflow's own default.
Settings are options of 'run', AUTOLOG_* variables, or arguments of autolog.autolog(); see: autolog run --help
"""

_RUN = """\
Train as ever, recorded: the command runs as it would without 'autolog run', with its own output, signals and exit code.

  autolog run train.py --epochs 3              a script, as python runs it
  autolog run -m package.train                 a module, as python -m runs it
  autolog run torchrun --nproc-per-node 2 train.py
  autolog run accelerate launch train.py       a command that starts Python itself: all that it starts is recorded
  autolog run spark-submit train.py
"""

_RUN_TEXT = "RUN is an id, the beginning of one, a name, or 'latest'."

_Command = Callable[[argparse.ArgumentParser, argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status: 0 done, 1 something remains or is wrong, 2 bad usage."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # What a store that does not answer is worth saying, a command says itself, once.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    try:
        status = options.command(options.parser, options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130  # As a shell says it of a command that Ctrl-C ended.
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autolog",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="autolog COMMAND [options]",
    )
    parser.add_argument("--version", action="version", version=f"mlflow-autolog {autolog.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    run = _add(commands, "run", running.run, "run a training with autologging on", _RUN)
    run.usage = "autolog run [options] script.py|-m module|command [args ...]"
    helps = setting_helps()
    for item in fields(Config):
        if item.name != "disable":
            run.add_argument(
                f"--{item.name.replace('_', '-')}",
                metavar=_metavar(str(item.type)),
                dest=item.name,
                help=helps.get(item.name, "").replace("%", "%%") or None,
            )
    run.add_argument("-m", dest="module", metavar="MODULE", help="run a module as __main__")
    run.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)

    show = _add(
        commands,
        "show",
        showing.show,
        "what a run recorded: params, metrics with their curves, checkpoints",
        f"Show what a run recorded. {_RUN_TEXT}",
    )
    show.add_argument("run", nargs="?", default="latest", metavar="RUN", help="default: latest")
    show.add_argument("--all", action="store_true", help="all of a long list")
    compare = _add(
        commands,
        "compare",
        showing.compare,
        "two runs side by side: what differs, and which is better",
        f"Compare two runs: the params in which they differ, their metrics, their models. {_RUN_TEXT}",
    )
    compare.add_argument("runs", nargs=2, metavar="RUN")
    look = _add(
        commands,
        "ui",
        ui.ui,
        "MLflow's own pages, on the right store",
        "Start MLflow's UI on the store that trainings here record into, or say where it is.",
    )
    look.add_argument("--port", type=int, default=5000, help="default 5000")

    deliver = _add(
        commands,
        "sync",
        states.sync,
        "deliver what earlier trainings could not",
        "Deliver every spool on this machine whose training process is dead.",
    )
    deliver.add_argument(
        "--patience", type=float, default=5.0, metavar="SECONDS", help="per spool, while the store is away (default 5)"
    )
    _add(commands, "status", states.status, "what is supported, and what waits to be delivered")
    check = _add(
        commands,
        "doctor",
        doctor.doctor,
        "check the set-up end to end, and say how to mend it",
        "Check the set-up end to end: the store, by writing, reading back and deleting a run; Python packages; Java; "
        "the spool. The exit status is 1 where something is to be mended.",
    )
    for command in (show, compare, look, check):
        command.add_argument("--tracking-uri", metavar="URI", help="the store; default: MLFLOW_TRACKING_URI")
    for command in (show, compare, check):
        command.add_argument("--experiment", metavar="NAME", help="the experiment; default: any")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    work: _Command,
    help: str,
    text: str | None = None,
) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name, help=help, description=text or f"{help[0].upper()}{help[1:]}.", formatter_class=_formatter(text)
    )
    made.set_defaults(command=work, parser=made)
    return made


def _formatter(text: str | None) -> type[argparse.HelpFormatter]:
    return argparse.RawDescriptionHelpFormatter if text and "\n" in text else argparse.HelpFormatter


def setting_helps() -> dict[str, str]:
    """Return name -> what it does of each setting, as the docstring of :func:`autolog.autolog` says it."""
    helps = {}
    text = re.sub(r"\n {8}", " ", autolog.autolog.__doc__ or "")
    for names, said in re.findall(r"^ {4}([a-z_]+(?:, [a-z_]+)*): (.+)$", text, re.MULTILINE):
        for name in names.split(", "):
            helps[name] = said.replace("``", "").rstrip(".")
    return helps


def _metavar(kind: str) -> str:
    return {"bool": "true|false", "float": "SECONDS"}.get(kind, "TEXT" if kind.startswith("str") else "A,B")


if __name__ == "__main__":
    main()
