"""Work that needs Spark after ``fit`` has returned, and ``SparkContext.stop`` waiting for it.

It runs on the worker's threads, under a job group of its own: with pinned threads, PySpark's default, the group belongs
to these threads alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from autolog import guard
from autolog.patching import Call
from autolog.run import Run

T = TypeVar("T")

JOB_GROUP = "mlflow-autolog"

#: Seconds that stopping Spark waits at most, unless AUTOLOG_SPARK_STOP_TIMEOUT says otherwise.
STOP_TIMEOUT = 60.0


class SparkStopped(Exception):
    """What needs a Spark context came too late for it."""


class SparkFailed(Exception):
    """Spark's own error, without the pages of Java stack trace that py4j puts into its text."""


_changed = threading.Condition()
_held: set[Hold] = set()


class Hold:
    """Keeps Spark from being stopped, until :meth:`release` or until time runs out.

    session: a ``SparkSession``, or None where there is none. What is held, `context`, is its ``SparkContext``, or the
    session itself where it is one of Spark Connect.
    """

    __slots__ = ("_remote", "abandoned", "context")

    def __init__(self, session: Any) -> None:
        self._remote = type(session).__module__.startswith("pyspark.sql.connect")
        self.context = session if self._remote or session is None else session.sparkContext
        self.abandoned = False
        if session is not None:
            with _changed:
                _held.add(self)

    def release(self) -> None:
        """Let the context stop."""
        with _changed:
            _held.discard(self)
            _changed.notify_all()

    def release_after(self, run: Run) -> None:
        """Release once everything that `run` asked the worker thread for is done."""
        run.later("let Spark stop", self.release)

    def call(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Call `function`, which needs Spark, from the worker thread.

        what: the description of its jobs, as the Spark UI shows it.

        Raises: SparkStopped where the context is gone; SparkFailed for an error of Spark's; else what it raises.
        """
        if not self._alive():
            raise self._stopped()
        guard.attempt(self._enter, what)
        done = guard.attempt(function, *args)
        if done.error is None:
            return done.value  # type: ignore[return-value]
        if not self._alive():
            raise self._stopped() from done.error
        if _is_gone(done.error):
            raise SparkStopped("Spark is gone: its JVM does not answer any more") from done.error
        if "\n\tat " in str(done.error):
            raise SparkFailed(_first_lines(str(done.error))) from done.error
        raise done.error

    def ask(self, run: Run, what: str, function: Callable[..., T], *args: Any) -> T | None:
        """Call `function` like :meth:`call`, but return None where Spark is gone.

        That is said once: by the model that could not be saved or, where none was to be, here.
        """
        done = guard.attempt(self.call, what, function, *args)
        if isinstance(done.error, SparkStopped):
            if not run.config.log_models:
                guard.say_once("spark-gone", "mlflow-autolog: not all of a training was recorded: %s", done.error)
            return None
        if done.error is not None:
            raise done.error
        return done.value

    def _alive(self) -> bool:
        if self.abandoned or self.context is None:
            return False
        return not self.context.client.is_closed if self._remote else self.context._jsc is not None

    def _stopped(self) -> SparkStopped:
        return SparkStopped(
            f"the Spark context was stopped before that; stop() waits for it up to {_timeout():g} s, which "
            "AUTOLOG_SPARK_STOP_TIMEOUT sets"
        )

    def _enter(self, what: str) -> None:
        """Prepare this thread: jobs get a name, and Spark Connect knows which session is meant."""
        if self._remote:
            # Models look for the thread's active session; it is set on the thread that made it only.
            type(self.context)._active_session.session = self.context
            self.context.addTag(JOB_GROUP)
            return
        from py4j.clientserver import ClientServer

        # Without pinned threads the JVM's threads, and thus their job groups, are shared with the user's.
        if isinstance(self.context._gateway, ClientServer):
            self.context.setJobGroup(JOB_GROUP, f"mlflow-autolog: {what}")


def _is_gone(error: BaseException) -> bool:
    from py4j.protocol import Py4JNetworkError

    return isinstance(error, Py4JNetworkError | ConnectionError) or "Answer from Java side is empty" in str(error)


def _first_lines(text: str) -> str:
    lines = text.partition("\n\tat ")[0].splitlines()
    return " ".join(line.strip(": ") for line in lines if line.strip())[:500]


def _timeout() -> float:
    text = os.environ.get("AUTOLOG_SPARK_STOP_TIMEOUT", "")
    given = guard.attempt(float, text) if text else None
    return STOP_TIMEOUT if given is None or given.value is None else max(0.0, given.value)


def wait(context: Any | None) -> bool:
    """Wait until nothing holds `context` (any context, for None) any more; return whether that came to be in time.

    What holds it longer than the timeout is abandoned: it raises SparkStopped.
    """

    def holding() -> list[Hold]:
        return [hold for hold in _held if context is None or hold.context is context]

    with _changed:
        if _changed.wait_for(lambda: not holding(), _timeout()):
            return True
        if context is not None:
            for hold in holding():
                hold.abandoned = True
                _held.discard(hold)
        return False


def stop(call: Call) -> Generator[None, Any, None]:
    """Hold ``SparkContext.stop``, or that of a Spark Connect session, back until models are saved."""
    wait(call.instance)
    yield
