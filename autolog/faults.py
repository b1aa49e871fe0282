"""What an error says about the store, and about the record that met it: whether trying again may help, and when."""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Iterator

from mlflow.exceptions import MlflowException
from requests import HTTPError, RequestException
from requests.exceptions import ChunkedEncodingError, ConnectionError, RetryError, Timeout

#: Seconds between tries while the store does not answer, growing by half each time.
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0
#: The same while it refuses credentials, permission or space, which is not soon over.
DENIED_PAUSE, LONGEST_DENIED_PAUSE = 15.0, 60.0
#: How often the store may fail at the same records before each of them is tried by itself.
TRIES = 3


class Fault(enum.Enum):
    """What became of a request."""

    #: The store was not reached, or asks for time. Nothing is known of the record.
    AWAY = "away"
    #: No credentials, permission, quota or space: as much the store's as the record's, and not soon over.
    DENIED = "denied"
    #: The store failed at it, or answered with what makes no sense: may be its own fault or the record's.
    FAILED = "failed"
    #: The record is refused for good.
    REFUSED = "refused"


#: In what MLflow and urllib3 say of an HTTP status for which they keep nothing else.
_STATUS = re.compile(r"too many (\d{3}) error responses|failed with error code (\d{3})")

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def fault(error: BaseException) -> Fault:
    """Return what `error`, raised by an MLflow client, says."""
    status = status_of(error)
    if status is not None:
        return _of_status(status)
    if isinstance(error, MlflowException):
        # Databricks refuses so what is over a quota; what comes too fast gets status 429.
        if error.error_code == "RESOURCE_EXHAUSTED":
            return Fault.DENIED
        requested = next(_requests(error), None)
        if requested is not None:
            return _of_request(requested)
        return _of_status(error.get_http_status_code())
    raised_by = type(error).__module__.partition(".")[0]
    if isinstance(error, RequestException):
        return _of_request(error)
    if isinstance(error, OSError):
        return Fault.DENIED if error.errno in _NO_SPACE else Fault.FAILED
    # Under a database URI the store is in this process: it may be locked, full, or not complete yet.
    if raised_by in ("sqlalchemy", "alembic", "sqlite3"):
        return Fault.AWAY if raised_by == "alembic" or "Operational" in type(error).__name__ else Fault.FAILED
    # An answer that cannot be read.
    if raised_by in ("json", "google") or isinstance(error, UnicodeDecodeError):
        return Fault.FAILED
    return Fault.REFUSED


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that `error` stands for, None where it stands for none."""
    status = status_of(error)
    if status is None and isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return status


def reason(error: BaseException) -> str:
    """Return in a few words what went wrong, the same ones for the same cause."""
    status = status_of(error)
    if status is not None:
        return f"HTTP status {status}"
    behind = next(_requests(error), None)
    if behind is not None:
        told = behind.args[0] if behind.args else behind
        text = str(getattr(told, "reason", None) or told)
        # Behind the object that it happened to, which has an address.
        return _short(text.rpartition(">: ")[2].rpartition("): ")[2])
    return _short(str(error))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."


def limited(error: BaseException) -> bool:
    """Return whether the store says that too much is asked of it."""
    return status_of(error) == 429


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that `error` tells of, where MLflow has not made an error of its own of it."""
    if isinstance(error, HTTPError) and error.response is not None:
        return int(error.response.status_code)
    for each in (error, *_requests(error)):
        found = _STATUS.search(str(each)) if isinstance(each, MlflowException | RetryError) else None
        if found:
            return int(found.group(1) or found.group(2))
    return None


def _requests(error: BaseException) -> Iterator[RequestException]:
    """Yield the errors of the HTTP library behind `error`: MLflow makes one of its own of them."""
    behind = error.__cause__ or error.__context__
    seen = 0
    while behind is not None and seen < 10:
        if isinstance(behind, RequestException):
            yield behind
        behind = behind.__cause__ or behind.__context__
        seen += 1


def _of_request(error: RequestException) -> Fault:
    # Anything else is an answer, though not one that can be read.
    return Fault.AWAY if isinstance(error, Timeout | ConnectionError | ChunkedEncodingError) else Fault.FAILED


def _of_status(status: int) -> Fault:
    if status in (408, 425, 429, 502, 503, 504):
        return Fault.AWAY
    if status in (401, 402, 403, 507):
        return Fault.DENIED
    # Too large for a proxy in between may be settled there.
    if status == 413 or (status >= 500 and status != 501):
        return Fault.FAILED
    return Fault.REFUSED


class Trouble:
    """How the store has failed since it last took something, and hence what to try next and when."""

    def __init__(self) -> None:
        self._times = 0
        self._pause = FIRST_PAUSE
        #: Whether records are to be tried one by one, so that one which the store fails at does not hold the others.
        self.apart = False

    def over(self) -> None:
        """Note that the store took something."""
        self._times, self._pause, self.apart = 0, FIRST_PAUSE, False

    def tell_apart(self, kind: Fault) -> bool:
        """Note a failure; return whether to find out at once which record it is due to."""
        if kind is Fault.AWAY:
            self.apart = False
            return False
        self._times += 1
        if self.apart or (kind is Fault.FAILED and self._times < TRIES):
            return False
        self.apart = True
        return True

    def pause(self, error: BaseException, took: float) -> float:
        """Return how many seconds to wait before the next try; `took`: seconds until the failure."""
        if fault(error) is Fault.DENIED:
            self._pause = min(max(self._pause * 1.5, DENIED_PAUSE), LONGEST_DENIED_PAUSE)
            return self._pause
        pause = self._pause
        self._pause = min(pause * 1.5, LONGEST_PAUSE)
        # With its answer "too much" the store says how long to wait (Retry-After). MLflow's client does so before its
        # own second try, whose failure is this one; the next try is to wait as long.
        return max(pause, took) if limited(error) else pause
