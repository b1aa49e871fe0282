"""How the training process ends, so that runs which are open then close with the status that is true.

============================  =========  ==========================================================================
the process                   status     known by
============================  =========  ==========================================================================
runs to its end               FINISHED
uncaught exception            FAILED     ``sys.last_value``, which the interpreter sets where it printed a traceback
Ctrl-C                        KILLED     the same
``sys.exit(n)``, ``exit(n)``  FINISHED   its argument, where the outermost frame was left by an exception, so that
                              or FAILED  nobody caught the SystemExit
``raise SystemExit(n)``       the same   the exit code, which the C library writes into a file; the sender reads it
SIGTERM, SIGHUP               KILLED     a file that faulthandler writes; the sender reads it
SIGKILL, ``os._exit``         FAILED     nothing was said; the sender sees that the process is gone
a notebook's cell             as above   IPython's ``post_run_cell`` event
a thread                      as above   ``threading.excepthook``, for the runs of that thread
============================  =========  ==========================================================================

Python forgets the argument of ``raise SystemExit(n)`` before it calls anybody. Where the C library is not glibc, or the
sender is a thread of the process, such an end counts as FINISHED.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from autolog import guard

#: Signals whose default action ends the process, and that a person or a scheduler sends.
_SIGNALS = ("SIGTERM", "SIGHUP")
#: The status of a run whose process ends by a SystemExit that nobody saw being raised: what the exit code says.
AS_EXIT_CODE = "EXIT CODE"
#: The file in the spool's folder that the exit code is written to.
_EXIT_CODE = "exit.code"

_outermost: FrameType | None = None
_last_exit: list[object] = []
_files: list[IO[bytes]] = []


def watch() -> None:
    """Find the main thread's outermost frame, which tells at exit how it was left."""
    global _outermost
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    _outermost = frame


def leave(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    """Wrap ``sys.exit`` and its like: the interpreter keeps no trace of the code once it is on its way out."""
    _last_exit[:] = [args[0] if args else None]
    return wrapped(*args, **kwargs)


def state() -> tuple[str, BaseException | None]:
    """Return the status that the process ends with, `AS_EXIT_CODE` where that is not known yet, and what ended it;
    asked at exit.
    """
    if _shell() is not None or hasattr(sys, "ps1"):
        return "FINISHED", None  # What went wrong in a cell or a line was dealt with there.
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if isinstance(error, BaseException):
        return status_of(error), error
    if not _left_by_exception():
        return "FINISHED", None
    if _last_exit:
        error = SystemExit(_last_exit[0])
        return status_of(error), error if status_of(error) != "FINISHED" else None
    # An error would have been printed.
    return AS_EXIT_CODE, None


def keep_exit_code_in(folder: Path) -> bool:
    """Have the exit code of this process written into the spool `folder` at its very end; return whether it will be.

    glibc tells functions that are registered by on_exit(3) the code; fputc(3) takes just what they are given, and
    writes it as a byte. No Python is left by then.
    """
    import ctypes

    library = ctypes.CDLL(None)
    if sys.platform != "linux" or not hasattr(library, "on_exit"):
        return False
    library.fdopen.restype = ctypes.c_void_p
    number = os.open(folder / _EXIT_CODE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    file = ctypes.c_void_p(library.fdopen(number, b"wb"))
    return bool(file) and library.on_exit(library.fputc, file) == 0


def exit_code_in(folder: Path) -> int | None:
    """Return the exit code of the owner of the spool `folder`, None where it left none; asked by the sender."""
    path = folder / _EXIT_CODE
    written = path.read_bytes() if path.is_file() else b""
    return written[0] if written else None


def keep_exit_code(error: BaseException | None) -> None:
    """Have the interpreter end as it was about to when it called us; call it last.

    After an uncaught KeyboardInterrupt it ends by SIGINT, and knows that by a flag that every ``exec`` of a text resets
    (CPython's ``run_eval_code_obj``): importing a module that defines a dataclass is enough. Only another uncaught
    KeyboardInterrupt in such a text sets it again.
    """
    if isinstance(error, KeyboardInterrupt):
        with suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")


def status_of(error: BaseException) -> str:
    """Return MLflow's status for what `error` ends."""
    if isinstance(error, KeyboardInterrupt):
        return "KILLED"
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return "FINISHED"
    return "FAILED"


def _left_by_exception() -> bool:
    """Return whether the outermost frame is over and did not return: only then has nobody caught the SystemExit."""
    frame = _outermost
    if frame is None or frame.f_lasti < 0:
        return False
    import opcode

    return not opcode.opname[frame.f_code.co_code[frame.f_lasti]].startswith("RETURN_")


# -- signals ----------------------------------------------------------------------------------------------------------


def watch_signals(folder: Path) -> None:
    """Have SIGTERM and SIGHUP leave a file in the spool `folder` before they end the process as ever.

    By faulthandler, whose handler is C: it needs no interpreter, so that a process deep in native code dies as promptly
    as without it, by the same signal, and the file says where it was: the thread that got the signal, which is the main
    one where that exists still. Of other threads, which go on running meanwhile, frames may be gone while they are
    read, and the process would end by a segmentation fault. A signal that the program handles or ignores is left alone.
    """
    import faulthandler

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is None or not hasattr(faulthandler, "register") or signal.getsignal(number) is not signal.SIG_DFL:
            continue
        file = (folder / f"{name}.txt").open("wb", buffering=0)
        _files.append(file)
        faulthandler.register(number, file=file, all_threads=False, chain=True)


def forget_signals() -> None:
    """Take the signal handlers back, as in a forked child, whose end is not its parent's."""
    if _files:
        import faulthandler

        for file in _files:
            faulthandler.unregister(getattr(signal, Path(str(file.name)).stem))
            guard.attempt(file.close)
        _files.clear()


def signal_in(folder: Path) -> tuple[str, str] | None:
    """Return the signal that ended the owner of the spool `folder` and where its threads were; asked by the sender."""
    for name in _SIGNALS:
        path = folder / f"{name}.txt"
        if path.is_file() and (text := path.read_text(errors="replace")):
            return name, text
    return None


# -- threads ----------------------------------------------------------------------------------------------------------


def watch_threads(ended: Callable[[str, BaseException], object]) -> Callable[[], None]:
    """Call `ended` with status and error in a thread that an exception ends; return a function that stops that.

    What the thread's functions hold is still alive then. The hook that was there is called afterwards, in any case.
    """
    original = threading.excepthook

    def excepthook(args: Any) -> None:
        error = args.exc_value
        if watching and error is not None:
            guard.run("end the runs of a thread that failed", ended, status_of(error), error)
        original(args)

    def stop() -> None:
        watching.clear()
        # What somebody has put over it meanwhile stays; it leads through to the original.
        if threading.excepthook is excepthook:
            threading.excepthook = original

    watching = [True]
    threading.excepthook = excepthook
    return stop


# -- notebooks --------------------------------------------------------------------------------------------------------


def _shell() -> Any:
    module = sys.modules.get("IPython")
    found = guard.attempt(module.get_ipython) if module is not None else None
    return found.value if found is not None else None


def in_notebook() -> bool:
    """Return whether this is the process of a notebook, which shows more than text below its cells."""
    return getattr(_shell(), "kernel", None) is not None


def watched() -> bool:
    """Return whether somebody sees what is said at the end: on a terminal, or below a cell."""
    return (sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()) or in_notebook()


def watch_cells(
    ended: Callable[[str, BaseException], object], after: Callable[[], object] = lambda: None
) -> Callable[[], None]:
    """Call `ended` with status and error when a notebook's cell raises, and `after` at the end of each cell; return a
    function that stops that.
    """
    shell = _shell()
    if shell is None:
        return lambda: None

    def post_run_cell(result: Any) -> None:
        error = getattr(result, "error_in_exec", None) or getattr(result, "error_before_exec", None)
        if isinstance(error, BaseException):
            guard.run("end the runs of a cell that failed", ended, status_of(error), error)
        guard.run("show what a cell recorded", after)

    shell.events.register("post_run_cell", post_run_cell)
    return lambda: shell.events.unregister("post_run_cell", post_run_cell)
