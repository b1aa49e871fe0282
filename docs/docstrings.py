"""A griffe extension: what our docstrings say of arguments and other names becomes a list in the API reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

#: "name: what it is" or "name, other: what they are" at the beginning of a line.
_NAMES = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*)(?: --|:) (?=\S)", re.M)
_SECTIONS = ("Raises:", "Returns:", "Example:")
#: Roles of Sphinx, which editors show as they are: :func:`autolog.flush`.
_ROLES = re.compile(r":(?:func|class|meth|mod|attr):(`~?[^`]+`)")


def to_markdown(text: str) -> str:
    """Return a docstring in which each "name: ..." is an item of a list."""
    paragraphs = []
    for paragraph in _ROLES.sub(r"\1", text).split("\n\n"):
        if not _NAMES.match(paragraph) or paragraph.startswith(_SECTIONS):
            paragraphs.append(paragraph)
            continue
        lines = []
        for line in paragraph.split("\n"):
            item = _NAMES.match(line)
            if item:
                names = ", ".join(f"`{name}`" for name in item[1].split(", "))
                lines.append(f"* {names}: {line[item.end() :]}")
            else:
                lines.append(f"    {line.strip()}" if line.startswith(" ") else f"\n{line}")
        paragraphs.append("\n".join(lines))
    return "\n\n".join(paragraphs)


class Docstrings(griffe.Extension):
    """Applies :func:`to_markdown` to every docstring."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
