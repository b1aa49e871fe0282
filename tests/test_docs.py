"""The documentation says what is so: its tables come from real trainings, its two READMEs are in step."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
assert _spec is not None and _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.mark.parametrize("framework", generate.EXAMPLES)
def test_the_tables_of_what_is_recorded_are_true(framework: str) -> None:
    if framework == "pyspark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    written = (ROOT / "docs" / "generated" / f"{framework}.md").read_text(encoding="utf-8")
    assert generate.generate(framework) == written, f"run: python docs/generate.py {framework}"


def test_every_setting_is_explained() -> None:
    from dataclasses import fields

    from autolog.config import Config

    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    missing = [item.name for item in fields(Config) if f"`{item.name}`" not in page and item.name != "flavors"]
    assert missing == []


def test_every_argument_of_mlflows_autolog_is_on_the_page_of_moving() -> None:
    import inspect

    import mlflow
    from mlflow import sklearn, spark, xgboost

    page = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
    functions = (mlflow.autolog, sklearn.autolog, xgboost.autolog, spark.autolog)
    names = {name for function in functions for name in inspect.signature(function).parameters}
    assert sorted(name for name in names if f"`{name}`" not in page) == []


def _shape(text: str) -> dict[str, object]:
    """What two READMEs in different languages have in common: levels of headings, code, numbers in tables, targets."""
    code = re.findall(r"^```.*?^```", text, re.S | re.M)
    comment = re.compile(r"\s*#.*")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    tables = [line for line in prose.splitlines() if line.startswith("|")]
    return {
        "headings": [len(found) for found in re.findall(r"^(#+) ", prose, re.M)],
        "code": [comment.sub("", block) for block in code],
        "rows": [line.count("|") for line in tables],
        "numbers": [re.findall(r"\d+(?:[.,]\d+)*", line) for line in tables],
        "names in tables": [re.findall(r"`([^`]+)`", line) for line in tables],
        "links": sorted(set(re.findall(r"\]\(([^)#]+)\)", prose)) - {"README.md", "README.ko.md"}),
    }


def test_the_korean_readme_is_in_step() -> None:
    english, korean = (_shape((ROOT / name).read_text(encoding="utf-8")) for name in ("README.md", "README.ko.md"))
    for part in english:
        assert korean[part] == english[part], part


@pytest.mark.parametrize("readme", generate.READMES, ids=lambda path: path.name)
def test_the_figures_of_the_readmes_are_those_of_the_bench(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    assert "autolog.autolog() with its import" in text
    assert generate.with_figures(text) == text, "run: python docs/generate.py figures"


@pytest.mark.parametrize("name", ["README.md", "README.ko.md"])
def test_links_of_the_readme_lead_somewhere(name: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8"))
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").glob("*"))
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > 300_000] == []


def _messages() -> dict[str, str]:
    """Every message that is said to users: its text with "..." for what is filled in -> where it is said."""
    found = {}
    for path in sorted([*(ROOT / "autolog").rglob("*.py"), *(ROOT / "flavors").rglob("*.py")]):
        if "cli" in path.parts:
            continue  # Answers to a command, which need no page.
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            position = {"say_once": 1, "problem": 1, "warning": 0}.get(node.func.attr)
            if position is None or len(node.args) <= position:
                continue
            said = node.args[position]
            parts = said.values if isinstance(said, ast.JoinedStr) else [said]
            text = "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "..."
                for part in parts
            )
            found[re.sub(r"%[\w.]+", "...", text)] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def test_every_message_is_explained() -> None:
    page = " ".join((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split())
    messages = _messages()
    assert len(messages) > 15
    missing = {}
    for text, where in messages.items():
        words = [fragment.split() for fragment in text.removeprefix("mlflow-autolog").strip(": ").split("...")]
        known = any(
            " ".join(run[i : i + 4]).strip(" .,:;") in page
            for run in words
            if len(run) >= 2
            for i in range(max(1, len(run) - 3))
        )
        if any(len(run) >= 2 for run in words) and not known:
            missing[where] = text
    assert missing == {}


def test_pages_include_what_they_quote() -> None:
    # A formatter that takes an include for Python would break it, and the page would still build.
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]
    assert [line for page in pages for line in page.splitlines() if re.match(r"--8 +<|--8<-- *[^\" ]", line)] == []
    assert '--8<-- "plugin/autolog_lightgbm/__init__.py"' in (ROOT / "docs" / "plugin.md").read_text(encoding="utf-8")
