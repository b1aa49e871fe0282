"""Flavor: what to patch in one framework, and what to say about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from autolog import imports, patching
from autolog.patching import Call, Hook
from autolog.scope import Scope


@dataclass(frozen=True, slots=True)
class Derived:
    """What a flavor makes of stored arrays in the sender.

    metrics: name -> value.
    figures: path -> (kind, data), as of ``Run.figure``.
    texts: path -> text of an artifact.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


class Flavor:
    """Base class of all flavors. An entry point of the group ``autolog.flavors`` names the subclass.

    A flavor implements :meth:`patch` with the ``wrap_*`` methods, and writes hooks (see :mod:`autolog.patching`).
    It imports its framework only inside functions, and neither mlflow nor another flavor.
    """

    #: Import name of the framework, and name of the extra that installs it.
    name: ClassVar[str]
    #: Top-level packages whose classes this flavor records itself, though another flavor could, too.
    claims: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.patched = False

    def patch(self, module: ModuleType) -> None:
        """Patch the framework; `module` is its top-level module, completely imported."""
        raise NotImplementedError

    def unpatch(self) -> None:
        """Undo :meth:`patch`."""
        self._stack.close()
        self.patched = False

    def finish(self, status: str, error: BaseException | None) -> None:
        """End the runs that stay open between calls, as when the interpreter exits. Most flavors have none."""

    def finish_here(self, status: str, error: BaseException | None) -> None:
        """End the runs that stay open between calls of the calling thread, which ends by `error`."""

    def finish_adopted(self, run_id: str) -> None:
        """Say what is left to say about run `run_id`, which is about to end.

        run_id: id of the user's own MLflow run, or key of a carried call's run, the ``host`` of what is recorded in it.
        """

    def derive(self, what: str, blob: Path) -> Derived:
        """Make metrics and pictures of the arrays in `blob`, an ``.npz``; called in the sender. See ``Run.derive``."""
        raise NotImplementedError

    def finish_model(self, folder: Path, package: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete the files of a model in `folder`, in the sender; return the package description that then holds.

        For models whose snapshot names this flavor as ``finish``. After a crash it is called on the same folder again.
        """
        raise NotImplementedError

    def model_class(self, model: Any) -> str:
        """Return the name of the class of `model`, unwrapped, where :meth:`resume` can restore it; "" where not."""
        return ""

    def resume(
        self,
        folder: Path,
        model: Any,
        optimizers: Sequence[Any],
        schedulers: Sequence[Any],
        scaler: Any,
        generators: Sequence[Any],
        tags: Mapping[str, str],
    ) -> tuple[int, int]:
        """Restore the user's objects from a model's files in `folder`; return (steps made, epochs complete).

        tags: for the run that the training then goes on in.
        """
        raise NotImplementedError

    # -- for patch() ----------------------------------------------------------------------------------------------

    def wrap_training(
        self,
        owner: Any,
        name: str,
        hook: Hook,
        *,
        opens: Callable[[Call], bool] | None = None,
        joins: Callable[[Call, Scope], bool] | None = None,
        rebind: bool = False,
        also: tuple[str, ...] = (),
    ) -> None:
        """Wrap ``owner.name`` as a training call: see :func:`autolog.patching.training`."""
        wrapper = patching.training(self.name, hook, opens=opens, joins=joins)
        patching.install(self._stack, owner, name, wrapper, rebind=rebind, also=also)

    def wrap_call(
        self,
        owner: Any,
        name: str,
        hook: Hook,
        *,
        inside: bool = True,
        rebind: bool = False,
        also: tuple[str, ...] = (),
    ) -> None:
        """Wrap ``owner.name`` as a call to look at: see :func:`autolog.patching.observing`."""
        wrapper = patching.observing(self.name, hook, inside=inside)
        patching.install(self._stack, owner, name, wrapper, rebind=rebind, also=also)

    def follow_subclasses(self, base: Any, patch: Callable[[type], object]) -> None:
        """Call `patch` with every subclass of `base`: those that exist, and while patched those defined later.

        By ``__init_subclass__`` of `base`, after the class's own chain of it has run.
        """

        def init_subclass(cls: Any, /, **kwargs: Any) -> None:
            super(base, cls).__init_subclass__(**kwargs)
            if self.patched:
                patch(cls)

        for cls in _subclasses(base):
            patch(cls)
        original = vars(base).get("__init_subclass__")
        base.__init_subclass__ = classmethod(init_subclass)

        def undo() -> None:
            if original is not None:
                base.__init_subclass__ = original
            else:
                del base.__init_subclass__

        self.on_unpatch(undo)

    def when_imported(self, module: str, patch: Callable[[ModuleType], object]) -> None:
        """Call `patch` with a submodule of the framework now, or when it is imported while patched."""
        imports.when_imported(module, patch)
        self.on_unpatch(imports.forget, module, patch)

    def on_unpatch(self, undo: Callable[..., object], *args: Any) -> None:
        """Have `undo` called by :meth:`unpatch`, last registered first."""
        self._stack.callback(undo, *args)


def _subclasses(cls: Any) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)
