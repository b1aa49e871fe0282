"""Starts the sender of a spool, wakes it where something waits, and starts it again where it died.

A process of its own, which outlives the training, or a thread where that is asked for or no process can be started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from autolog import guard

#: How the folders are called that packages are installed in.
_PACKAGES = ("site-packages", "dist-packages")
#: How often a sender that dies by itself is started again.
_RESTARTS = 5

_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from autolog.sender import main; main(sys.argv[1])"


class Launcher:
    """The sender of one writer. kind: "process" or "thread"; closing: set when no more records will come."""

    def __init__(self, kind: str, closing: threading.Event) -> None:
        self.kind = kind
        self._closing = closing
        self._process: subprocess.Popen[bytes] | None = None
        #: What a process is woken through, and tells by that its owner is gone.
        self._pipe: IO[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._starts = 0
        #: Whether the pipe has no reader any more.
        self._unheard = False

    @property
    def pid(self) -> int | None:
        """The id of the sender's process; None where there is none."""
        return self._process.pid if self._process is not None else None

    def died(self) -> bool:
        """Return whether there was a process and it is gone."""
        return self._process is not None and self._process.poll() is not None

    @property
    def wanted(self) -> bool:
        """Whether :meth:`ensure` has something to do, as far as is known without asking the system."""
        if self.kind == "process":
            return self._process is None or self._unheard
        return self._thread is None or not self._thread.is_alive()

    def ensure(self, folder: Path) -> None:
        """Have a sender at work on the spool in `folder`."""
        if self.kind == "process" and (self._process is None or self.died()):
            self._unheard = False
            if self._starts >= _RESTARTS:
                guard.say_once(
                    "sender",
                    "mlflow-autolog: the sender stopped %d times (see %s). Training is not affected and records "
                    "are kept on disk; deliver them with: autolog sync",
                    self._starts,
                    folder / "sender.log",
                )
                return
            self._starts += 1
            started = guard.attempt(self._spawn, folder)
            if started.error is not None:
                guard.report("start its sender process (a thread sends instead)", started.error)
                self.kind = "thread"
        if self.kind == "thread" and self.wanted:
            self._thread = threading.Thread(target=self._send_here, args=(folder,), name="autolog-sender", daemon=True)
            self._thread.start()

    def _spawn(self, folder: Path) -> None:
        if not sys.executable:
            raise OSError("this Python does not know its own executable")
        with (folder / "sender.log").open("ab") as log:
            # -I: neither the working folder nor PYTHON* variables choose what the sender imports; it gets the
            # training process's own import path, less the script's folder, whose files may bear any name; unless that
            # is where packages are, as of a notebook's kernel.
            script = Path(sys.argv[0]).resolve().parent if sys.argv and sys.argv[0] else None
            apart = str(script) if script is not None and script.name not in _PACKAGES else ""
            path = [entry for entry in sys.path if entry and entry != apart]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT, str(folder), json.dumps(path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # Ctrl-C and the terminal's hang-up are for the training; the sender leaves when all is delivered.
                start_new_session=True,
            )
        self._pipe = self._process.stdin
        if self._pipe is not None and hasattr(os, "set_blocking"):
            guard.attempt(os.set_blocking, self._pipe.fileno(), False)

    def _send_here(self, folder: Path) -> None:
        from autolog.sender import ThreadHost, deliver  # The thread host imports mlflow here, so not before.

        guard.run("deliver from a thread", deliver, folder, ThreadHost(self._wake, self._hurry, self._closing))

    def poke(self, *, hurry: bool = False) -> None:
        """Tell the sender that something waits; hurry: that it is not to be collected with what may come."""
        if self.kind == "thread":
            if hurry:
                self._hurry.set()
            self._wake.set()
        elif self._pipe is not None:
            # A full pipe or a dead sender: either way it is not waiting for this byte.
            poked = guard.attempt(os.write, self._pipe.fileno(), b"!" if hurry else b".")
            self._unheard = isinstance(poked.error, BrokenPipeError)

    def leave(self) -> None:
        """Let go of a sender's process, which sees that by its pipe: it delivers what there is and goes."""
        self.disown()
        self._wake.set()

    def renew(self) -> None:
        """Leave the sender's process to its spool; :meth:`ensure` starts another."""
        self.leave()
        self._pipe = self._process = None

    def join(self, timeout: float) -> None:
        """Wait up to `timeout` seconds for a sender that is a thread; a process goes on by itself."""
        if self._thread is not None:
            self._thread.join(timeout)

    def disown(self) -> None:
        """Let go of the sender's process without waking a thread; also for a forked child, where it is the parent's."""
        if self._pipe is not None:
            # The owner's death must close the pipe, so no child may keep its end open.
            guard.attempt(self._pipe.close)
        if self._process is not None:
            # It outlives us by design, and is not a forked child's at all: Popen must neither wait for it nor warn.
            self._process.returncode = 0


__all__ = ["Launcher"]
