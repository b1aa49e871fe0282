"""Put on the import path by ``autolog run``: switches autologging on before the user's script starts.

This way the script runs as ``python script.py`` does, with the interpreter's own ``__main__``, traceback and exit code.
AUTOLOG_RUNNER says which processes are meant. Where it is the id of one, only that process is switched on; the folder
leaves the path again, so that processes which that one starts are not. Where it is "any", all Python processes below a
command such as ``torchrun`` are, but for those that a library starts as workers of a training.
"""

import contextlib
import os
import sys


def _is_worker() -> bool:
    """Return whether this is a worker of multiprocessing, joblib or Spark: it works for a process that records."""
    words = iter(sys.orig_argv[1:])
    for word in words:
        if word == "-m":
            module = next(words, "")
            return module in ("pyspark.daemon", "pyspark.worker") or ".loky." in module
        if word == "-c":
            return next(words, "").startswith("from multiprocessing.")
        if word in ("-W", "-X"):
            next(words, None)
        elif not word.startswith("-"):
            break
    return False


def _leave_path(here: str) -> None:
    rest = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != here]
    if rest:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)
    os.environ.pop("AUTOLOG_RUNNER", None)


def _start() -> None:
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - before anything else is imported
    sys.path[:] = [entry for entry in sys.path if entry != here]
    runner = os.environ.get("AUTOLOG_RUNNER", "")
    if runner != "any":
        _leave_path(here)
    me = sys.modules.pop("sitecustomize")
    with contextlib.suppress(ImportError):
        import sitecustomize  # noqa: F401 - the one that this one stood in front of
    sys.modules.setdefault("sitecustomize", me)
    if runner in (str(os.getpid()), str(os.getppid())) or (runner == "any" and not _is_worker()):
        try:
            import autolog
        except ImportError as error:
            # Another Python than that of `autolog run`: it trains all the same.
            sys.stderr.write(f"mlflow-autolog: {sys.executable} cannot import it ({error}); nothing is recorded\n")
            return
        autolog.autolog()


_start()
