"""Records that the store fails at while it takes others: kept on disk, out of their way, and tried again later."""

from __future__ import annotations

from collections.abc import Iterable

from autolog.records import (
    DeclareModel,
    Derive,
    DropModels,
    EndRun,
    ModelFailed,
    ModelFiles,
    OpenRun,
    Points,
    Record,
    Tags,
)


class Held:
    """What is held back, and hence what must wait with it: records mean something only after those before them."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._runs: set[str] = set()
        self._models: set[str] = set()
        self._files: set[str] = set()
        self._tags: set[tuple[str, str]] = set()
        for record in records:
            self.add(record)

    def __bool__(self) -> bool:
        return bool(self._runs or self._models or self._files or self._tags)

    def add(self, record: Record) -> None:
        """Hold `record` back."""
        if isinstance(record, OpenRun):
            self._runs.add(record.run)
        elif isinstance(record, DeclareModel):
            self._models.add(record.model)
        elif isinstance(record, ModelFiles):
            self._files.add(record.model)
        elif isinstance(record, Tags):
            self._tags.update((record.run, name) for name in record.values)

    def holds(self, record: Record) -> bool:
        """Return whether `record` must wait."""
        if record.run in self._runs or (isinstance(record, OpenRun) and record.parent in self._runs):
            return True
        if isinstance(record, Points | Derive | ModelFiles | ModelFailed):
            return record.model in self._models
        if isinstance(record, DropModels):
            return not self._models.isdisjoint(record.models) or not self._files.isdisjoint(record.models)
        # The later of two values of a tag is the one that stands.
        return isinstance(record, Tags) and any((record.run, name) in self._tags for name in record.values)


def named(record: Record) -> str:
    """Return what `record` is, for people."""
    if isinstance(record, OpenRun):
        return "a run"
    if isinstance(record, DeclareModel | ModelFiles):
        return "a model"
    if isinstance(record, EndRun):
        return "the end of a run"
    return {
        "Points": "metrics",
        "Params": "parameters",
        "Tags": "tags",
        "DatasetInput": "a dataset",
        "Text": "a text",
        "Figure": "a picture",
        "Derive": "derived metrics",
    }.get(type(record).__name__, f"a {type(record).__name__} record")
