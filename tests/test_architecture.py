"""The rules of the house that a reader of the code may rely on, checked on the syntax tree."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "autolog").rglob("*.py"))
FLAVORS = sorted((ROOT / "flavors").rglob("*.py"))
FRAMEWORKS = {"sklearn", "torch", "xgboost", "pyspark", "py4j"}
HEAVY = FRAMEWORKS | {"numpy", "pandas", "scipy", "mlflow"}
# system_metrics.py: in the sender, with MLflow's own monitors.
# resuming.py: a call of the user's own, which waits for the store. reading.py: for the commands, in their own process.
SENDING = ("delivery", "opening", "batches", "logged_models", "mlmodel", "uploads")
MLFLOW_ALLOWED = {
    *(f"{module}.py" for module in SENDING),
    "faults.py",
    "sender.py",
    "resuming.py",
    "reading.py",
    "system_metrics.py",
}
#: Compute metrics and what pictures show in the sender, for every flavor with estimators, by scikit-learn's functions.
SKLEARN_ALLOWED = {"scores.py", "charts.py"}


def imports(tree: ast.AST, *, top_only: bool) -> Iterator[str]:
    """Absolute names of what a module imports; `top_only`: what runs at its import."""
    for node in module_level(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def module_level(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from module_level(node)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", CORE, ids=name)
def test_core_knows_no_flavor_and_no_framework(path: Path) -> None:
    roots = {module.partition(".")[0] for module in imports(parse(path), top_only=False)}
    allowed = {"sklearn"} if path.name in SKLEARN_ALLOWED else set()
    assert not roots & (FRAMEWORKS - allowed | {"flavors"})


@pytest.mark.parametrize("path", CORE, ids=name)
def test_core_imports_nothing_heavy_at_import(path: Path) -> None:
    if path.name in MLFLOW_ALLOWED:
        pytest.skip("runs in the sender")
    assert not {module.partition(".")[0] for module in imports(parse(path), top_only=True)} & HEAVY


@pytest.mark.parametrize("path", CORE + FLAVORS, ids=name)
def test_only_the_delivery_imports_mlflow(path: Path) -> None:
    if path.name not in MLFLOW_ALLOWED:
        assert "mlflow" not in {module.partition(".")[0] for module in imports(parse(path), top_only=False)}


@pytest.mark.parametrize("path", FLAVORS, ids=name)
def test_a_flavor_keeps_to_itself(path: Path) -> None:
    own = path.relative_to(ROOT / "flavors").parts[0]
    for module in imports(parse(path), top_only=False):
        parts = module.split(".")
        assert parts[0] != "flavors" or parts[1] == own, f"imports another flavor: {module}"
        assert module not in {f"autolog.{inner}" for inner in ("spool", "sender", *SENDING)}


@pytest.mark.parametrize("path", FLAVORS, ids=name)
def test_a_flavor_imports_no_framework_at_import(path: Path) -> None:
    assert not {module.partition(".")[0] for module in imports(parse(path), top_only=True)} & HEAVY


@pytest.mark.parametrize("path", CORE + FLAVORS, ids=name)
def test_one_broad_except(path: Path) -> None:
    broad = []
    for node in ast.walk(parse(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"BaseException"}
        reraises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
        if names & {"Exception", "BaseException"} and not reraises:
            broad.append(node.lineno)
    assert len(broad) == (1 if name(path) == "autolog/guard.py" else 0), broad


@pytest.mark.parametrize("path", FLAVORS, ids=name)
def test_nothing_is_left_on_a_users_object(path: Path) -> None:
    """A flavor sets attributes on itself and on what it patches, never on what the user made."""
    users = {"estimator", "model", "optimizer", "booster", "frame", "df"}
    for node in ast.walk(parse(path)):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name):
                assert target.value.id not in users, f"line {node.lineno}: sets {ast.unparse(target)}"


def test_importing_autolog_loads_nothing_heavy() -> None:
    unwanted = sorted(HEAVY | {"wrapt", "asyncio", "sqlite3"})
    code = f"import sys, autolog; autolog.autolog(); print([m for m in {unwanted!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_supported_versions_are_written_once() -> None:
    for path in CORE + FLAVORS:
        for line in path.read_text().splitlines():
            assert not any(
                f"{dist}{op}" in line for dist in ("scikit-learn", "xgboost", "pyspark") for op in (">=", "<")
            )
