"""Put on the import path by ``autolog run``: switches autologging on before the user's script starts.

This way the script runs as ``python script.py`` does, with the interpreter's own ``__main__``, traceback and exit code.
Only the process that ``autolog run`` started is switched on; the folder leaves the path again, so that processes
which that one starts are not.
"""

import contextlib
import os
import sys


def _start() -> None:
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - before anything else is imported
    sys.path[:] = [entry for entry in sys.path if entry != here]
    rest = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != here]
    if rest:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)
    runner = os.environ.pop("AUTOLOG_RUNNER_PID", "")
    me = sys.modules.pop("sitecustomize")
    with contextlib.suppress(ImportError):
        import sitecustomize  # noqa: F401 - the one that this one stood in front of
    sys.modules.setdefault("sitecustomize", me)
    if runner in (str(os.getpid()), str(os.getppid())):
        import autolog

        autolog.autolog()


_start()
