"""Tests over Python versions and the lowest and latest supported version of each framework.

    nox -l                              what there is
    nox -s sklearn                      scikit-learn: every Python, lowest and latest
    nox -s "xgboost-3.12(lowest)"       one of them
    nox -s "xgboost-3.12(lowest)" -- tests/flavors/test_xgboost.py -x        only that

Ranges are those of pyproject.toml. A combination for which no wheel exists is skipped. A session installs its own
framework and what the core's tests need, scikit-learn; tests of the core that train in another one skip there.
"""

from __future__ import annotations

from pathlib import Path

import nox

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
VERSIONS = ["lowest", "latest"]
#: Framework -> the distribution that its extra asks for first.
FRAMEWORKS = {
    "sklearn": "scikit-learn",
    "torch": "torch",
    "xgboost": "xgboost",
    "pyspark": "pyspark",
}
#: The last Python that the lowest supported version has wheels for, or runs on, where that is not the last of all.
LAST_OF_LOWEST = {"torch": "3.12", "pyspark": "3.11"}

nox.options.error_on_missing_interpreters = False
nox.options.sessions = list(FRAMEWORKS)
nox.options.reuse_existing_virtualenvs = True


def _range(framework: str) -> str:
    """Return the requirement of a framework's extra, such as ``scikit-learn>=1.5,<2``."""
    extras = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"]
    return str(extras[framework][0])


def _pins(framework: str, version: str) -> list[str]:
    requirement = _range(framework)
    if version == "latest":
        return [requirement]
    lowest = requirement.partition(">=")[2].partition(",")[0]
    return [f"{FRAMEWORKS[framework]}=={lowest}.*"]


def _test(session: nox.Session, framework: str, version: str) -> None:
    if version == "lowest" and _number(str(session.python)) > _number(LAST_OF_LOWEST.get(framework, PYTHONS[-1])):
        session.skip(f"the lowest supported {framework} has no wheels for Python {session.python}")
    pins = _pins(framework, version)
    session.install("-e", f".[test-core,test-{framework}]", *pins)
    tests = sorted(str(path) for path in Path("tests/flavors").glob(f"test_{framework}*.py"))
    session.run("python", "-m", "pytest", "-q", *(session.posargs or ["tests/core", *tests]))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


@nox.session(python=PYTHONS)
@nox.parametrize("version", VERSIONS, ids=VERSIONS)
def sklearn(session: nox.Session, version: str) -> None:
    """The core, and scikit-learn."""
    _test(session, "sklearn", version)


@nox.session(python=PYTHONS)
@nox.parametrize("version", VERSIONS, ids=VERSIONS)
def torch(session: nox.Session, version: str) -> None:
    """The core, and PyTorch."""
    _test(session, "torch", version)


@nox.session(python=PYTHONS)
@nox.parametrize("version", VERSIONS, ids=VERSIONS)
def xgboost(session: nox.Session, version: str) -> None:
    """The core, and XGBoost."""
    _test(session, "xgboost", version)


@nox.session(python=PYTHONS)
@nox.parametrize("version", VERSIONS, ids=VERSIONS)
def pyspark(session: nox.Session, version: str) -> None:
    """The core, and Spark ML; needs Java 17."""
    _test(session, "pyspark", version)


@nox.session(python=PYTHONS[1])
def ui(session: nox.Session) -> None:
    """`autolog ui` with the package mlflow, which has the pages that mlflow-skinny lacks."""
    session.install("-e", ".[test-core]", "mlflow")
    session.run("python", "-m", "pytest", "-q", *(session.posargs or ["tests/ui.py"]))


@nox.session(python=PYTHONS[1])
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what the package depends on; asks the advisory database, so it needs the network."""
    session.install("pip-audit>=2.7")
    session.run("pip-audit", ".", *session.posargs)
