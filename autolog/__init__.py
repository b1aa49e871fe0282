"""One line, and unmodified training code is recorded in MLflow.

>>> import autolog
>>> autolog.autolog()
"""

from autolog.api import Checkpoints, LastRun, autolog, disable, flush, last_run, paused, status

__version__ = "0.1.0"

__all__ = ["Checkpoints", "LastRun", "autolog", "disable", "flush", "last_run", "paused", "status"]
