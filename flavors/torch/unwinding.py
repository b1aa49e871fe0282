"""Whether what dies now was held by an exception alone: by the frames of its traceback, which it has left.

A loop that raises, in a function whose caller catches that: its optimizer lives on in the traceback until the handler
is over, and then ``sys.exc_info()`` says nothing any more. What is executing then does: the instruction that ends a
handler, or one of those that CPython's compiler puts after it for ``except ... as name``: ``name = None; del name``
(``Python/compile.c``, ``compiler_try_except``). No other code makes these sequences.
"""

from __future__ import annotations

import dis
from types import CodeType, FrameType

#: What an exception's handler ends with.
_END = "POP_EXCEPT"


def by_exception(frame: FrameType | None) -> bool:
    """Return whether `frame` is executing the end of an exception's handler."""
    if frame is None or frame.f_lasti < 0:
        return False
    return _ends_handler(frame.f_code, frame.f_lasti)


def _ends_handler(code: CodeType, offset: int) -> bool:
    steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "EXTENDED_ARG", "NOP")]
    at = next((i for i, step in enumerate(steps) if step.offset == offset), None)
    if at is None:
        return False
    if steps[at].opname == _END:
        return True
    if at < 2 or at + 1 >= len(steps) or not steps[at].opname.startswith("STORE_"):
        return False
    ended, none, store, delete = steps[at - 2 : at + 2]
    return (
        (ended.opname, none.opname, none.argval) == (_END, "LOAD_CONST", None)
        and delete.opname.startswith("DELETE_")
        and delete.argval == store.argval
    )


__all__ = ["by_exception"]
