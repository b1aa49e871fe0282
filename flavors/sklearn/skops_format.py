"""From a pickled estimator to skops, in the sender: a format that runs no code when it is loaded.

Only where every type of the model is scikit-learn's, numpy's or scipy's own, and the file loads back to exactly the
same model. The pickle is opened under the same restriction, so that the sender never runs code of the user's.
"""

from __future__ import annotations

import io
import pickle
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

from autolog import garbage, guard, pickles

FORMAT, FILE, PICKLE = "skops", "model.skops", "model.pkl"

#: Above this many bytes a model stays pickled: skops builds a file in memory, several times over.
LARGEST = 256 * 2**20

#: Packages whose types are trusted, and what else of the standard library their pickles refer to.
_OWN = ("sklearn", "numpy", "scipy")
_STANDARD = {
    "builtins": {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"),
        *("set", "slice", "str", "tuple", "type", "Ellipsis", "NotImplemented"),
    },
    "collections": {"OrderedDict", "defaultdict"},
    "copyreg": {"_reconstructor", "__newobj__", "__newobj_ex__"},
    "_codecs": {"encode"},
    "functools": {"partial"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
}
#: Parts of these packages that are tools rather than models, among them some that run what they are given.
_TOOLS = {"testing", "_testing", "tests", "f2py", "distutils", "conftest", "_build_utils"}


class Refused(Exception):
    """Why a model stays pickled."""


def convert(folder: Path, package: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write the estimator that is pickled in `folder` as skops; return the package description that then holds.

    package: as of :meth:`autolog.models.ModelSnapshot.write`; where the model stays pickled it comes back as it is, but
        for the reason, which becomes the model's tag ``autolog.not_skops``.
    """
    done = guard.attempt(_convert, folder, package)
    if done.value is None:
        return {**package, "tags": {"autolog.not_skops": str(done.error)}}
    trusted, version = done.value
    requirements = [each for each in package["requirements"] if not each.startswith("cloudpickle==")]
    config = {"pickled_model": FILE, "serialization_format": FORMAT, "skops_trusted_types": trusted or None}
    pyfunc = {**package["pyfunc_config"], "model_path": FILE} if package["loader_module"] else {}
    return {
        **package,
        "flavor_config": {**package["flavor_config"], **config},
        "pyfunc_config": pyfunc,
        "requirements": sorted([*requirements, f"skops=={version}"], key=str.lower),
    }


class _Missing(MetaPathFinder):
    """Finds nothing of some packages, for one thread only."""

    def __init__(self, packages: tuple[str, ...]) -> None:
        self._packages = packages
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self._packages and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is not wanted here", name=name)


@contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Have `packages` look as if they were not installed, to what this thread imports meanwhile.

    skops imports every module of scikit-learn, among them adapters that import whole frameworks where they are
    installed: seconds, and hundreds of megabytes in the sender.
    """
    finder = _Missing(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _convert(folder: Path, package: Mapping[str, Any]) -> tuple[list[str], str]:
    """Replace the pickle by a skops file; return the types that loading it must trust, and the version of skops.

    Raises: Refused, ImportError without skops, and what skops raises for types that it does not know.
    """
    import sklearn

    with _without("torch", "cupy", "dask"), garbage.uncollected():
        import skops
        from skops import io as skops_io

    source, target = folder / PICKLE, folder / FILE
    if source.exists():
        if package["flavor_config"]["sklearn_version"] != sklearn.__version__:
            raise Refused(f"it is delivered under scikit-learn {sklearn.__version__}")
        if source.stat().st_size > LARGEST:
            raise Refused(f"its pickle is larger than {LARGEST // 2**20} MiB")
        estimator = load(source.read_bytes())
        draft = folder / f"{FILE}.new"
        try:
            skops_io.dump(estimator, draft)
            trusted = _trusted(skops_io.get_untrusted_types(file=draft))
            if not identical(estimator, skops_io.load(draft, trusted=trusted)):
                raise Refused("skops does not give back exactly the same model")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        source.unlink()
    else:  # A sender before this one got this far.
        trusted = _trusted(skops_io.get_untrusted_types(file=target))
    return trusted, str(skops.__version__)


def load(data: bytes) -> Any:
    """Load a pickle that refers to the trusted packages only.

    Raises: Refused, naming what else it refers to, before anything is loaded.
    """
    foreign = sorted(f"{module}.{name}" for module, name in pickles.names(data) if not _is_own(module, name))
    if foreign:
        raise Refused(f"it refers to {', '.join(foreign[:5])}")
    return _OwnTypes(io.BytesIO(data)).load()


class _OwnTypes(pickle.Unpickler):
    """Loads nothing but what :func:`_is_own` allows, whatever was found before."""

    def find_class(self, module: str, name: str) -> Any:
        if not _is_own(module, name):
            raise Refused(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def _is_own(module: str, name: str) -> bool:
    parts = module.split(".")
    if parts[0] in _OWN:
        return not _TOOLS & {*parts, *name.split(".")}
    return name in _STANDARD.get(module, ())


def _trusted(types: Iterable[str]) -> list[str]:
    """Return `types`, all of which must be of the packages that are trusted; nothing else is ever listed."""
    found = list(types)
    foreign = [name for name in found if name.partition(".")[0] not in _OWN]
    if foreign:
        raise Refused(f"loading it would need trust in {', '.join(foreign[:5])}")
    return found


def identical(one: Any, other: Any) -> bool:
    """Return whether two objects consist of the same types with the same values, bit for bit in their arrays."""
    return _identical(one, other, {})


def _identical(one: Any, other: Any, seen: dict[tuple[int, int], tuple[Any, Any]]) -> bool:
    import numpy as np

    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, str | bytes | int | float | complex | np.generic | np.dtype):
        return bool(one == other) or bool(one != one and other != other)
    if (id(one), id(other)) in seen:
        return True
    seen[id(one), id(other)] = one, other  # Kept alive, or their ids would come again.
    if isinstance(one, np.ma.MaskedArray):
        return _identical(one.data, other.data, seen) and _identical(one.mask, other.mask, seen)
    if isinstance(one, np.ndarray):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if one.dtype.hasobject:
            return _identical(one.ravel().tolist(), other.ravel().tolist(), seen)
        if one.dtype.names:  # Between the fields of a tree's nodes lie bytes that mean nothing.
            return all(_identical(one[name], other[name], seen) for name in one.dtype.names)
        return bool(one.tobytes() == other.tobytes())
    if isinstance(one, np.random.RandomState):  # Its seed sequence, which is lost, has no further part in it.
        return _identical(one.get_state(legacy=False), other.get_state(legacy=False), seen)
    if isinstance(one, dict):
        return _identical(list(one.items()), list(other.items()), seen)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_identical(a, b, seen) for a, b in zip(one, other, strict=True))
    if isinstance(one, set | frozenset):
        return bool(one == other)
    # Anything else is what its pickle would be made of.
    parts, others = one.__reduce_ex__(pickles.PROTOCOL), other.__reduce_ex__(pickles.PROTOCOL)
    if isinstance(parts, str):
        return bool(parts == others)
    return _identical(tuple(parts[:3]), tuple(others[:3]), seen)
