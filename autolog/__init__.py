"""One line, and unmodified training code is recorded in MLflow.

>>> import autolog
>>> autolog.autolog()
"""

from autolog.api import Checkpoints, LastRun, autolog, disable, flush, last_run, paused, status
from autolog.carry import carry
from autolog.resuming import Resumed, resume

__version__ = "0.1.0"

__all__ = [
    "Checkpoints",
    "LastRun",
    "Resumed",
    "autolog",
    "carry",
    "disable",
    "flush",
    "last_run",
    "paused",
    "resume",
    "status",
]
