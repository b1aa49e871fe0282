"""Which line of the user's code made a call, and under which name it holds what it called.

Names are read off the bytecode in front of the call: no source file is opened, and notebooks, ``exec`` and compiled
files work alike.
"""

from __future__ import annotations

import dis
import re
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

from autolog import patching


class _Step(NamedTuple):
    """An instruction: what it does, and with which name or value."""

    opname: str
    argval: Any
    argrepr: str = ""


#: Instructions that do two things with a local variable each (Python 3.13).
_TWO = re.compile("((?:LOAD|STORE)_FAST(?:_BORROW)?)_((?:LOAD|STORE)_FAST(?:_BORROW)?)")

#: Instructions that carry no operand of the expression.
_SILENT = {"CACHE", "PRECALL", "EXTENDED_ARG", "PUSH_NULL", "KW_NAMES", "RESUME", "NOT_TAKEN"}


class Site:
    """One call in the user's code, the instruction at `offset` of `code`.

    names: what its operands are called there, outermost first; may be empty.
    direct: whether the call is made there itself, not by a library that was called there.
    divisor: the number of micro-batches that this site is known to divide its loss by.
    plain: how many of its losses were seen to be neither a quotient nor a product; negative once one was.
    """

    __slots__ = ("_parts", "code", "direct", "divisor", "names", "offset", "plain")

    def __init__(self, code: CodeType, offset: int, names: tuple[str, ...]) -> None:
        self.code = code
        self.offset = offset
        self.names = names
        self.direct = False
        self.divisor = 0
        self.plain = 0
        self._parts: list[Site] = [self]

    @property
    def name(self) -> str:
        """The first operand's name; "" where it has none."""
        return self.names[0] if self.names else ""

    def part(self, index: int) -> Site:
        """Return the site that stands for the operand number `index` of a call with several."""
        while len(self._parts) <= index:
            self._parts.append(Site(self.code, self.offset, self.names[len(self._parts) : len(self._parts) + 1]))
        return self._parts[index]


# Keys are identities; the values keep the code objects alive, so that no identity is used twice.
known_sites: dict[tuple[int, int], Site] = {}
_library: dict[int, tuple[CodeType, bool]] = {}


def find(frame: FrameType, attribute: str, *, method: bool) -> Site:
    """Return the call in the user's code that led to `frame`.

    frame: the caller; library frames are left upwards.
    attribute: name of the method called there, such as "backward".
    method: whether the object of interest is what the method belongs to (``loss.backward()``), where no library
        stands in between; otherwise it is the argument (``accelerator.backward(loss)``).
    """
    at: FrameType | None = frame
    while at is not None:
        known = known_sites.get((id(at.f_code), at.f_lasti))
        if known is not None:
            return known
        if not is_library(at.f_code, at.f_globals.get("__name__", "")):
            break
        at = at.f_back
    at = at or frame
    names = _names(at.f_code, at.f_lasti, attribute, method and at is frame)
    made = known_sites[(id(at.f_code), at.f_lasti)] = Site(at.f_code, at.f_lasti, names)
    return made


def is_library(code: CodeType, module: str) -> bool:
    """Return whether `code` belongs to an installed package or to the standard library."""
    known = _library.get(id(code))
    if known is None:
        inside = module != "__main__" and patching.is_library(code.co_filename)
        known = _library[id(code)] = (code, inside or module.partition(".")[0] in ("autolog", "flavors"))
    return known[1]


def user_frames(frame: FrameType | None, limit: int = 10) -> Iterator[FrameType]:
    """Yield the frames of the user's own code, innermost first."""
    while frame is not None and limit:
        if not is_library(frame.f_code, frame.f_globals.get("__name__", "")):
            limit -= 1
            yield frame
        frame = frame.f_back


def _names(code: CodeType, offset: int, attribute: str, method: bool) -> tuple[str, ...]:
    found = list(_steps(code, offset))
    call = len(found) - 1
    at = next((i for i in range(call, max(-1, call - 60), -1) if _loaded(found[i]) == attribute), None)
    if at is None:
        return ()
    if method:
        name = _before(found, at)
        return (name,) if name else ()
    return tuple(name for name in map(_name, found[at + 1 : call]) if name)


def _steps(code: CodeType, offset: int) -> Iterator[_Step]:
    """Yield what `code` does up to the instruction at `offset`."""
    for step in dis.get_instructions(code):
        if step.offset > offset:
            return
        two = _TWO.fullmatch(step.opname)
        if two:
            yield from map(_Step, two.groups(), step.argval)
        elif step.opname not in _SILENT:
            yield _Step(step.opname, step.argval, step.argrepr)


def _before(found: list[_Step], at: int) -> str | None:
    """Return the name of the operand whose evaluation ends in front of instruction `at`."""
    last = found[at - 1] if at else None
    if last is None:
        return None
    if last.opname.startswith("CALL"):
        # scaler.scale(loss).backward() is about `loss`.
        return _name(found[at - 2]) if at > 2 and _loaded(found[at - 3]) == "scale" else None
    if last.opname.startswith("BINARY_SUBSCR"):
        key = found[at - 2].argval if at > 1 else None
        return key if isinstance(key, str) and key.isidentifier() else None
    if last.opname.startswith("BINARY_"):
        # (loss / 4).backward() is about `loss`; (a + b).backward() about neither.
        if last.argrepr not in ("/", "*") and last.opname not in ("BINARY_TRUE_DIVIDE", "BINARY_MULTIPLY"):
            return None
        return _name(found[at - 3]) if at > 2 else None
    return _name(last)


def _loaded(step: _Step) -> str | None:
    value = step.argval
    return value if isinstance(value, str) and step.opname.startswith("LOAD_") and step.opname != "LOAD_CONST" else None


def _name(step: _Step) -> str | None:
    value = step.argval
    if not isinstance(value, str) or not step.opname.startswith("LOAD_") or step.opname == "LOAD_CONST":
        return None
    name = value.strip("_")
    return name if name.isidentifier() and name != "self" else None
