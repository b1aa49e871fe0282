"""wrapt wrappers that pickle, copy and unwrap cleanly, and the driver of a flavor's generator hooks.

A hook is a generator function of one :class:`Call`. What it does before ``yield`` happens before the user's function
runs, what it does after happens afterwards with the function's result; both halves are guarded, the user's function in
between is not. A hook holds neither the function nor its exception: it cannot swallow, repeat or replace anything.
"""

from __future__ import annotations

import inspect
import operator
import site
import sys
import sysconfig
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack
from types import CellType, FrameType, ModuleType
from typing import Any

import wrapt

from autolog import endings, guard, runtime, scope
from autolog.run import Run

Hook = Callable[["Call"], Generator[None, Any, None]]


class TrainingFailed(Exception):
    """Thrown into a hook at its ``yield`` where the user's function raised. `cause` is the user's exception."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(repr(cause))
        self.cause = cause


class WrongCall(TypeError):
    """A call does not fit the signature of the function. Where the function agrees, it is the user's error alone."""


class Call:
    """One call of a patched function, as its hook sees it.

    function: the original (bound, for methods); instance: what it is bound to, or None.
    args, kwargs: what the user passed. A hook may put other objects in, never change the user's.
    """

    __slots__ = ("_arguments", "_open", "args", "function", "instance", "keep_open", "kwargs", "scope")

    def __init__(
        self, function: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any], open_run: Callable[[], Run]
    ) -> None:
        self.function = function
        self.instance = instance
        self.args = args
        self.kwargs = kwargs
        self.scope: scope.Scope | None = None
        #: Set by a hook whose run goes on after the call.
        self.keep_open = False
        self._open = open_run
        self._arguments: dict[str, Any] | None = None

    @property
    def run(self) -> Run:
        """The run that this call belongs to, opened when first asked for."""
        return self._open()

    @property
    def arguments(self) -> dict[str, Any]:
        """What the user passed, by parameter name, defaults included.

        Raises: WrongCall where the call does not fit the function's signature.
        """
        if self._arguments is None:
            signature = inspect.signature(self.function)
            try:
                bound = signature.bind(*self.args, **self.kwargs)
            except TypeError as error:
                raise WrongCall(str(error)) from error
            bound.apply_defaults()
            self._arguments = dict(bound.arguments)
        return self._arguments

    def name_of(self, value: object) -> str | None:
        """Return the name of the variable in the user's code that holds `value`, or None."""
        return variable_name(value, user_frame())


# -- wrappers -------------------------------------------------------------------------------------------------------


class _Bound(wrapt.BoundFunctionWrapper[Any, Any]):
    """A patched method bound to an object or reached through a class; pickles as that lookup."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        holder = self._self_instance
        if holder is None:
            holder = self._self_owner if hasattr(self, "_self_owner") else None
        if holder is None:
            return operator.getitem, ((self.__wrapped__,), 0)
        return getattr, (holder, self._self_parent._self_name)

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        import copy

        # What copy.deepcopy does with a bound method: bind the same function to a copy of its object.
        holder = self._self_instance
        return self if holder is None else getattr(copy.deepcopy(holder, memo), self._self_parent._self_name)

    def __copy__(self) -> Any:
        return self


class Wrapper(wrapt.FunctionWrapper[Any, Any]):
    """A patched function. wrapt's own can be neither pickled nor copied.

    It pickles by reference where the reference leads back to it, so that a process without autologging finds the
    original there. Elsewhere (a class that is pickled by value, a name kept after unpatching) it pickles as the
    original itself.
    """

    __bound_function_wrapper__ = _Bound

    #: The attribute name that it stands under; wrapt keeps attributes so prefixed on the wrapper itself.
    _self_name: str

    def __reduce_ex__(self, protocol: Any) -> Any:
        found: Any = sys.modules.get(getattr(self.__wrapped__, "__module__", None) or "")
        qualname = getattr(self.__wrapped__, "__qualname__", "")
        for part in qualname.split("."):
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
        if found is self and "." not in qualname:
            return qualname
        # The original itself cannot be pickled where its name leads to the wrapper of a later patch.
        same = isinstance(found, Wrapper) and found.__wrapped__ is self.__wrapped__
        # An identity function of the standard library: the pickle must load where this package is not installed.
        return operator.getitem, ((found if same else self.__wrapped__,), 0)

    def __reduce__(self) -> Any:
        return self.__reduce_ex__(2)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __copy__(self) -> Any:
        return self


def install(
    stack: ExitStack,
    owner: Any,
    name: str,
    wrapper: Callable[[Any, Any, Any, Any], Any],
    *,
    also: Iterable[str] = (),
    rebind: bool = False,
) -> None:
    """Replace ``owner.name`` by a wrapper until `stack` is closed.

    owner: a class or a module; or a closure cell in which a function keeps another, `name` being that one's.
    wrapper: as wrapt has it, called with (wrapped, instance, args, kwargs).
    also: names of modules where the same object stands under the same name.
    rebind: replace it, too, wherever the user's own modules bound it before (``from xgboost import train``).
    """
    if isinstance(owner, CellType):
        _install_in_cell(stack, owner, name, wrapper)
        return
    original = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
    made = Wrapper(original, wrapper)
    made._self_name = name
    setattr(owner, name, made)
    stack.callback(_uninstall, owner, name, made)
    homes = [sys.modules[module] for module in also if module in sys.modules]
    if rebind:
        homes += [module for module in _user_modules() if module is not owner]
    for module in homes:
        for bound, value in list(vars(module).items()):
            if value is original:
                setattr(module, bound, made)
                stack.callback(_rebind_back, module, bound, made, original)


def _install_in_cell(stack: ExitStack, cell: CellType, name: str, wrapper: Callable[[Any, Any, Any, Any], Any]) -> None:
    original = cell.cell_contents
    made = Wrapper(original, wrapper)
    made._self_name = name
    cell.cell_contents = made

    def undo() -> None:
        if cell.cell_contents is made:
            cell.cell_contents = original

    stack.callback(undo)


def _uninstall(owner: Any, name: str, made: Wrapper) -> None:
    # Restores inherited methods and wrappers buried under somebody else's; what was replaced meanwhile stays.
    guard.attempt(wrapt.unwrap_object, owner, name, made, missing_ok=True)


def _rebind_back(module: ModuleType, name: str, made: Wrapper, original: Any) -> None:
    if vars(module).get(name) is made:
        setattr(module, name, original)


def rebind(stack: ExitStack, replaced: dict[int, tuple[Any, Any]]) -> None:
    """Replace many objects at once in the user's modules; `replaced` maps id(original) to (original, replacement)."""
    for module in _user_modules():
        for name, value in list(vars(module).items()):
            pair = replaced.get(id(value))
            if pair is not None and pair[0] is value:
                setattr(module, name, pair[1])
                stack.callback(_rebind_back, module, name, pair[1], pair[0])


_LIBRARIES = tuple(
    {
        path
        for path in (
            *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
            *(site.getsitepackages() if hasattr(site, "getsitepackages") else ()),
            getattr(site, "getusersitepackages", lambda: "")(),
        )
        if path
    }
)


def is_library(path: str | None) -> bool:
    """Return whether a source file belongs to Python or an installed distribution, rather than to the user."""
    return path is None or path.startswith(_LIBRARIES) or path.startswith("<frozen")


def _user_modules() -> list[ModuleType]:
    """Return ``__main__`` and every loaded module outside the standard library and site-packages."""
    found = []
    for name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or name.partition(".")[0] in ("autolog", "flavors"):
            continue
        if name == "__main__" or not is_library(getattr(module, "__file__", None)):
            found.append(module)
    return found


def user_frame(depth: int = 2) -> FrameType | None:
    """Return the nearest frame up the stack that is the user's own code, or None."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.partition(".")[0] not in ("autolog", "flavors", "wrapt") and (
            name == "__main__" or not is_library(frame.f_code.co_filename)
        ):
            return frame
        frame = frame.f_back
    return None


def variable_name(value: object, frame: FrameType | None) -> str | None:
    """Return the name under which `value` itself stands in `frame`'s locals or globals; None where it has none."""
    if frame is None:
        return None
    local = frame.f_locals
    try:
        return _key_of(value, local) or _key_of(value, frame.f_globals)
    finally:
        # Up to Python 3.12 the locals of a function are a copy, which its frame keeps until it returns: what the user
        # deletes meanwhile would live on in it. Unless somebody else has it, as locals() gives it out (the three
        # references are the frame's, ours and the argument's).
        if sys.version_info < (3, 13) and frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(local) <= 3:
            local.clear()


def _key_of(value: object, names: Mapping[str, object]) -> str | None:
    return next((name for name, held in names.items() if held is value and not name.startswith("_")), None)


# -- drivers --------------------------------------------------------------------------------------------------------


def observing(flavor: str, hook: Hook, *, inside: bool = True) -> Callable[[Any, Any, Any, Any], Any]:
    """Return a wrapper that drives `hook` around a call which opens no run of its own.

    inside: whether a training call of this flavor's own may make it for the user. Else it is left alone there, which a
    search does hundreds of times.
    """

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        outer = None if inside else scope.current()
        if (outer is not None and outer.flavor == flavor) or not runtime.recording():
            return wrapped(*args, **kwargs)
        call = Call(wrapped, instance, args, dict(kwargs), _no_run)
        return _drive(flavor, hook, call)

    return wrapper


def _no_run() -> Run:
    raise RuntimeError("this call is observed only; it has no run")


def training(
    flavor: str,
    hook: Hook,
    *,
    opens: Callable[[Call], bool] | None = None,
    joins: Callable[[Call, scope.Scope], bool] | None = None,
) -> Callable[[Any, Any, Any, Any], Any]:
    """Return a wrapper that drives `hook` around a training call and gives it a run.

    The outermost training call of a thread gets a run of its own (or the user's active one). What it calls in turn
    belongs to it and is not recorded by itself.

    opens: whether an outermost call opens a run; where not, nothing inside it does either.
    joins: whether a nested call says something about the outer run.
    """

    def wrapper(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        outer = scope.current()
        if outer is not None:
            run = outer.run
            if run is None or joins is None or not runtime.recording():
                return wrapped(*args, **kwargs)
            call = Call(wrapped, instance, args, dict(kwargs), lambda: run)
            call.scope = outer
            if not guard.run(f"see whose {flavor} call this is", joins, call, outer):
                return wrapped(*args, **kwargs)
            return _drive(flavor, hook, call)
        if not runtime.recording():
            return wrapped(*args, **kwargs)
        here = scope.Scope(flavor, instance)
        call = Call(wrapped, instance, args, dict(kwargs), lambda: _run_of(here))
        call.scope = here
        recorded = guard.run("see whether to record", _opens, flavor, opens, call)
        with scope.entered(here):
            if not recorded:
                return wrapped(*args, **kwargs)
            try:
                result = _drive(flavor, hook, call)
            except BaseException as error:
                _end(here, call, endings.status_of(error), error)
                raise
            _end(here, call, "FINISHED", None)
            return result

    return wrapper


def _opens(flavor: str, opens: Callable[[Call], bool] | None, call: Call) -> bool:
    return runtime.may_record(flavor) and (opens is None or opens(call))


def _run_of(here: scope.Scope) -> Run:
    if here.run is None:
        here.run = runtime.open_run(here.flavor)
    return here.run


def _end(here: scope.Scope, call: Call, status: str, error: BaseException | None) -> None:
    if here.run is not None and not call.keep_open:
        guard.run("end the run", here.run.end, status, error)
        runtime.closed(here.run)


def _drive(flavor: str, hook: Hook, call: Call) -> Any:
    """Run the first half of `hook`, the user's function, and the second half."""
    # Without these the user would pass what a hook that failed halfway had put in.
    args, kwargs = call.args, call.kwargs
    what = f"record {flavor} {getattr(call.function, '__qualname__', 'call')}"
    steps = hook(call)
    begun = guard.attempt(next, steps, None)
    if begun.error is not None:
        if not isinstance(begun.error, WrongCall):
            guard.report(what, begun.error)
            return call.function(*args, **kwargs)
        result = call.function(*args, **kwargs)
        guard.report(what, begun.error)
        return result
    try:
        result = call.function(*call.args, **call.kwargs)
    except BaseException as error:
        failed = guard.attempt(_throw, steps, TrainingFailed(error))
        if failed.error is not None:
            guard.report(what, failed.error)
        raise
    sent = guard.attempt(_send, steps, result)
    if sent.error is not None:
        guard.report(what, sent.error)
    return result


def _send(steps: Generator[None, Any, None], result: Any) -> None:
    try:
        steps.send(result)
    except StopIteration:
        return
    steps.close()


def _throw(steps: Generator[None, Any, None], failure: TrainingFailed) -> None:
    try:
        steps.throw(failure)
    except (StopIteration, TrainingFailed):
        return
    steps.close()
