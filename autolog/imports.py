"""Calling back when a module has been imported.

wrapt has this, too, but importing wrapt takes longer than everything else that ``autolog()`` does (it pulls asyncio
in). So that one line stays cheap in a process that trains nothing, wrapt waits until there is something to patch.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from autolog import guard

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

Callback = Callable[[ModuleType], object]

_callbacks: dict[str, list[Callback]] = {}
_local = threading.local()


class _Finder:  # Not importlib.abc's, which takes milliseconds to import and adds nothing.
    """Finds nothing itself: asks the other finders, and has the loader of a watched module call back."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _callbacks or fullname in getattr(_local, "finding", ()):
            return None
        _local.finding = {*getattr(_local, "finding", ()), fullname}
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            _local.finding = _local.finding - {fullname}
        if spec is None or spec.loader is None or not hasattr(spec.loader, "exec_module"):
            return None
        guard.attempt(_call_back_after, spec.loader, fullname)
        return spec


def _call_back_after(loader: Any, name: str) -> None:
    # On the loader object, which is this module's own, and only until it is used: afterwards the module's __loader__
    # and __spec__ are what they would be without us.
    original = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        original(module)
        _notify(name, module)

    loader.exec_module = exec_module


def _notify(name: str, module: ModuleType) -> None:
    for callback in list(_callbacks.get(name, ())):
        # An error here would break the user's import.
        guard.run(f"look at the import of {name}", callback, module)


_finder = _Finder()


def when_imported(name: str, callback: Callback) -> None:
    """Have `callback(module)` called once `name` is imported: now if it was, else right after its code has run."""
    module = sys.modules.get(name)
    importing = module is not None and getattr(getattr(module, "__spec__", None), "_initializing", False)
    if module is not None and not importing:
        guard.run(f"look at the import of {name}", callback, module)
        return
    _callbacks.setdefault(name, []).append(callback)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def forget(name: str, callback: Callback) -> None:
    """Take a callback back; harmless when it was not registered."""
    registered = _callbacks.get(name, [])
    if callback in registered:
        registered.remove(callback)
    if not registered:
        _callbacks.pop(name, None)
    if not _callbacks and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
