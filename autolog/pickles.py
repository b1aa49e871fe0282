"""Pickles: written so that they load elsewhere, and read without running anything of what they hold."""

from __future__ import annotations

import io
import pickle
from typing import Any

#: Protocol 5 writes arrays without copying them first; every Python that we support reads it.
PROTOCOL = 5


def dumps(value: object) -> bytes:
    """Pickle `value` so that it loads elsewhere: by reference, and what ``__main__`` defines by value.

    Raises: what pickling raises, where neither the standard pickler nor cloudpickle can.
    """
    import cloudpickle

    # The standard pickler is faster, but refers to what only this process has: what ``__main__`` defines, or a module
    # that the user had cloudpickle take by value.
    if not cloudpickle.list_registry_pickle_by_value():
        try:
            data = pickle.dumps(value, PROTOCOL)
        except (pickle.PicklingError, AttributeError, TypeError):
            data = b"__main__"  # A lambda, a local class: cloudpickle may still be able to.
        if b"__main__" not in data:
            return data
    buffer = io.BytesIO()
    cloudpickle.Pickler(buffer, protocol=PROTOCOL).dump(value)
    return buffer.getvalue()


def names(data: bytes) -> set[tuple[str, str]]:
    """Return (module, qualified name) of all that a pickle refers to. Nothing is imported, nothing of it is called.

    Raises: pickle.UnpicklingError and the like for bytes that are no pickle.
    """
    reader = _Names(io.BytesIO(data))
    reader.load()
    return reader.found


class _Settable(type):
    def __setitem__(cls, key: object, value: object) -> None:
        pass


class _Blank(metaclass=_Settable):
    """Stands for every class and function that a pickle refers to, and for all that is made with these: itself.

    An unpickler insists on a class where one that the pickle makes is used.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls

    @staticmethod
    def _take(*args: Any) -> None:
        pass

    __setstate__ = append = extend = add = _take


class _Names(pickle.Unpickler):
    """An unpickler at C speed that makes blanks only."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.found: set[tuple[str, str]] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.found.add((module, name))
        return _Blank

    def persistent_load(self, pid: Any) -> Any:
        return _Blank()
