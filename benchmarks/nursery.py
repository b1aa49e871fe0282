"""Processes that have imported a framework already: forked from one that did so once.

Most of the processor time of a small training is its imports. A trial of ``chaos.py`` that begins in a forked process
costs a tenth of one that begins with the interpreter, and from then on is a process like any other: it executes its
script as ``__main__``, imports autolog itself, ends by itself with the interpreter's own exit code.

As a program, ``python nursery.py MODULE...``: reads orders from standard input, a JSON object a line, and says on
standard output which process began (``began ORDER PID``) and which ended how (``ended PID CODE``).
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Process(Protocol):
    """What a trial needs of a process, forked or not."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int) -> None: ...


class Forked:
    """A process that a nursery forked, seen from the process that ordered it."""

    def __init__(self) -> None:
        self.pid = 0
        self.began = threading.Event()
        self.ended = threading.Event()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self.ended.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


class Nursery:
    """A process that has imported `modules` and forks others."""

    def __init__(self, modules: Sequence[str], environ: Mapping[str, str]) -> None:
        command = [sys.executable, __file__, *modules]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True, bufsize=1
        )
        self._lock = threading.Lock()
        self._ordered: list[Forked] = []
        self._running: dict[int, Forked] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, argv: Sequence[str], cwd: Path, environ: Mapping[str, str]) -> Forked:
        """Run `argv`, a script or ``-m`` and a module, with its arguments; what it says goes to files in `cwd`."""
        made = Forked()
        with self._lock:
            self._ordered.append(made)
            order = {"number": len(self._ordered) - 1, "argv": list(argv), "cwd": str(cwd), "environ": dict(environ)}
            assert self._server.stdin is not None
            self._server.stdin.write(json.dumps(order) + "\n")
        if not made.began.wait(120):
            raise TimeoutError("the nursery does not answer")
        return made

    def _listen(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            word, first, second = line.split()
            if word == "began":
                made = self._running[int(second)] = self._ordered[int(first)]
                made.pid = int(second)
                made.began.set()
            else:
                made = self._running.pop(int(first))
                made.returncode = int(second)
                made.ended.set()

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def orders() -> Any:
    """Yield what a forked process is to do, in that process; return when no more is ordered and all have ended."""
    children = 0
    text = b""
    open_ = True
    while open_ or children:
        ready, _, _ = select.select([0] if open_ else [], [], [], 0.01 if children else None)
        if ready:
            read = os.read(0, 65536)
            open_ = bool(read)
            text += read
        *lines, text = text.split(b"\n")
        for line in lines:
            order = json.loads(line)
            child = os.fork()
            if child == 0:
                yield order
                return
            children += 1
            say("began", order["number"], child)
        while children:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if not ended:
                break
            children -= 1
            say("ended", ended, os.waitstatus_to_exitcode(status))


def become(order: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Make this forked process the one that was ordered; return its program and the names it runs in."""
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environ"])
    for number, name, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, "stdout.txt", os.O_WRONLY),
        (2, "stderr.txt", os.O_WRONLY),
    ):
        file = os.open(name, mode | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    program, *arguments = order["argv"]
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    if program == "-m":
        sys.argv = arguments
        sys.path.insert(0, order["cwd"])
        return f"import runpy; runpy.run_module({arguments[0]!r}, run_name='__main__', alter_sys=True)", names
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).parent)
    return Path(program).read_text(), {**names, "__file__": program}


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for order in orders():
        code, names = become(order)
        # Not in a function: the script's frames are what the interpreter's own would be, but for one below them.
        sys.modules["__main__"].__dict__.update(names)
        exec(compile(code, sys.argv[0], "exec", dont_inherit=True), sys.modules["__main__"].__dict__)
