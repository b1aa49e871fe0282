"""Which flavors there are: entry points of the group ``autolog.flavors``, loaded when their framework is imported.

The name of an entry point is the import name of the framework that it records. The supported versions of a framework
are those of the distribution's extra of the same name, written in its metadata and nowhere else.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import importlib.metadata

    from autolog.flavor import Flavor

GROUP = "autolog.flavors"
#: Distributions whose name is not that of the module.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "yaml": "PyYAML", "PIL": "pillow", "cv2": "opencv-python"}
_loaded: dict[str, Flavor] = {}


@cache
def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Return the installed flavors by name."""
    import importlib.metadata

    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def load_flavor(name: str) -> Flavor:
    """Return the flavor called `name`, importing it the first time.

    Raises: LookupError for a name that no distribution provides.
    """
    flavor = _loaded.get(name)
    if flavor is None:
        point = entry_points().get(name)
        if point is None:
            raise LookupError(f"no flavor is called {name!r}; installed are {', '.join(sorted(entry_points()))}")
        flavor = _loaded[name] = point.load()()
    return flavor


def loaded() -> list[Flavor]:
    """Return the flavors that are loaded so far."""
    return list(_loaded.values())


def install_hint(name: str) -> str:
    """Return the command that installs what flavor `name` needs."""
    point = entry_points().get(name)
    owner = point.dist.name if point is not None and point.dist is not None else "mlflow-autolog"
    return f'pip install "{owner}[{name}]"'


def supported(name: str) -> tuple[str, str]:
    """Return (distribution, version range) of the framework of flavor `name`, such as ("scikit-learn", ">=1.5,<2").

    Read from the metadata of the distribution that provides the flavor; ("", "") where it names none.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    point = entry_points().get(name)
    if point is None or point.dist is None:
        return "", ""
    distribution = canonicalize_name(DISTRIBUTIONS.get(name, name))
    for text in point.dist.requires or ():
        requirement = Requirement(text)
        # An extra may ask for more than the framework, such as what draws its pictures.
        if canonicalize_name(requirement.name) != distribution or requirement.marker is None:
            continue
        if requirement.marker.evaluate({"extra": name}) and not requirement.marker.evaluate({"extra": ""}):
            # Its lower end first, as people write it.
            return requirement.name, ",".join(sorted(str(requirement.specifier).split(","), reverse=True))
    return "", ""


def installed_version(name: str) -> str | None:
    """Return the installed version of the framework of flavor `name`, None where it is not installed."""
    import importlib.metadata

    distribution, _ = supported(name)
    try:
        return importlib.metadata.version(distribution) if distribution else None
    except importlib.metadata.PackageNotFoundError:
        return None  # Or installed under another name, such as a vendor's build: nothing can be said of it.


def version_problem(name: str) -> str | None:
    """Return a sentence where the installed framework is outside the supported range, else None."""
    from packaging.specifiers import SpecifierSet

    distribution, specifier = supported(name)
    installed = installed_version(name)
    if installed is None:
        return None
    if SpecifierSet(specifier).contains(installed, prereleases=True):
        return None
    return f"{distribution} {installed} is outside the supported range {specifier}"
