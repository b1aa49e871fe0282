"""What stands at each place of a feature vector: the raw columns, followed through assemblers, scalers and encoders.

Spark keeps names of its own in the metadata of vector columns (``org.apache.spark.ml.attribute.AttributeGroup``), but
scalers drop them and indexers put theirs in place of the raw column's. So fitted stages are walked along, and Spark's
names serve where a stage is not known here. Whatever disagrees with the size that Spark states is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from flavors.pyspark import stages
from flavors.pyspark.schemas import Field, is_vector

#: Stages whose output has the places of their input, one for one.
_SAME = (
    "StringIndexer",
    "Bucketizer",
    "QuantileDiscretizer",
    "Binarizer",
    "Imputer",
    "TargetEncoder",
    "MinMaxScaler",
    "StandardScaler",
    "MaxAbsScaler",
    "RobustScaler",
    "Normalizer",
    "ElementwiseProduct",
    "IDF",
    "VectorSizeHint",
)
_SELECTORS = ("ChiSqSelector", "UnivariateFeatureSelector", "VarianceThresholdSelector")

#: A longer vocabulary is not fetched: its terms are then told by their number.
_VOCABULARY = 20_000


@dataclass(frozen=True, slots=True)
class Places:
    """The places of a column: `size` of them (1 for a plain column), each named by `name`."""

    size: int
    name: Callable[[int], str]

    def names(self) -> list[str]:
        """Return all names, in order."""
        return [self.name(index) for index in range(self.size)]


def follow(model: Any, fields: list[Field]) -> dict[str, Places]:
    """Return column -> its places, for the columns of a frame that `model`'s stages have gone over.

    model: fitted; fields: of the frame as its last stage met it, metadata included. Calls to the JVM, but no job.
    """
    by_name = {field["name"]: field for field in fields}
    known: dict[str, Places] = {}

    def of(column: str) -> Places | None:
        return known.get(column) or _stated(by_name.get(column))

    for stage in stages.flat(model):
        values = stages.param_values(stage)
        inputs = list(values.get("inputCols") or ([values["inputCol"]] if "inputCol" in values else []))
        outputs = list(values.get("outputCols") or ()) if values.get("inputCols") else []
        outputs = outputs or ([values["outputCol"]] if "outputCol" in values else [])
        for output, places in _made(stage, values, inputs, outputs, of, by_name):
            stated = _stated(by_name.get(output))
            if places is not None and (stated is None or stated.size == places.size):
                known[output] = places
            else:
                known.pop(output, None)  # The column is another one from here on.
    return {name: places for name in by_name if (places := of(name)) is not None}


def numbered(name: str, size: int) -> Places:
    """Return places that have nothing but a number: ``features_0``."""
    return Places(size, lambda index: f"{name}_{index}")


def _made(
    stage: Any,
    values: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
    of: Callable[[str], Places | None],
    fields: dict[str, Field],
) -> Iterable[tuple[str, Places | None]]:
    """Yield the columns that `stage` made, with their places where these are known otherwise than from metadata."""
    kind = type(stage).__name__.removesuffix("Model")
    if kind == "VectorAssembler" and outputs:
        yield outputs[0], _joined([(name, of(name)) for name in inputs], _stated(fields.get(outputs[0])))
    elif kind in _SAME:
        for source, output in zip(inputs, outputs, strict=False):
            yield output, of(source)
    elif kind == "OneHotEncoder":
        for source, output in zip(inputs, outputs, strict=False):
            yield output, _encoded(of(source), fields.get(output))
    elif kind == "VectorSlicer" and inputs and outputs:
        whole = of(inputs[0])
        yield outputs[0], _picked(whole, values.get("indices") or ()) if not values.get("names") else None
    elif kind in _SELECTORS and outputs:
        whole = of(values["featuresCol"])
        yield outputs[0], _picked(whole, stage._call_java("selectedFeatures"))
    elif kind == "CountVectorizer" and inputs and outputs:
        stated = _stated(fields.get(outputs[0]))
        if stated is not None and stated.size <= _VOCABULARY:
            terms = list(stage._call_java("vocabulary"))
            yield outputs[0], Places(len(terms), lambda index: f"{inputs[0]}_{terms[index]}")
    else:
        for output in outputs:
            yield output, None


def _joined(inputs: list[tuple[str, Places | None]], stated: Places | None) -> Places | None:
    """Return the places of several columns, one after the other.

    stated: what Spark says of the whole. It tells how large a vector is that carries no metadata: its places are named
    ``<column>_0``, ``<column>_1`` and so on there.
    """
    parts: list[Places] = []
    start = 0
    for column, places in inputs:
        if places is None:
            if stated is None:
                return None
            size = 0
            while start + size < stated.size and stated.name(start + size) == f"{column}_{size}":
                size += 1
            places = numbered(column, size)
        parts.append(places)
        start += places.size

    def name(index: int) -> str:
        for part in parts:
            if index < part.size:
                return part.name(index)
            index -= part.size
        raise IndexError(index)

    return Places(start, name)


def _picked(whole: Places | None, indices: Iterable[int]) -> Places | None:
    chosen = [int(index) for index in indices]
    if whole is None:
        return None
    return Places(len(chosen), lambda index: whole.name(chosen[index]))


def _encoded(source: Places | None, field: Field | None) -> Places | None:
    """Return the places of a one-hot vector: ``Island_Biscoe``, by the raw column and Spark's name of the category."""
    stated = _stated(field)
    if source is None or stated is None or field is None:
        return None
    categories = _attributes(field)
    return Places(stated.size, lambda index: f"{source.name(0)}_{categories.get(index, index)}")


def _stated(field: Field | None) -> Places | None:
    """Return what the metadata of a column say of its places; None where they do not say how many there are."""
    if field is None:
        return None
    if not is_vector(field["type"]):
        return Places(1, lambda index: str(field["name"])) if isinstance(field["type"], str) else None
    size = _group(field).get("num_attrs")
    if size is None:
        return None
    named = _attributes(field)
    return Places(int(size), lambda index: named.get(index) or f"{field['name']}_{index}")


def _group(field: Field) -> dict[str, Any]:
    group: dict[str, Any] = (field.get("metadata") or {}).get("ml_attr") or {}
    return group


def _attributes(field: Field) -> dict[int, str]:
    kinds = _group(field).get("attrs") or {}
    return {int(each["idx"]): str(each["name"]) for kind in kinds.values() for each in kind if "name" in each}


def categories(field: Field | None) -> list[str] | None:
    """Return the values of a nominal column, as an indexer left them in its metadata, by their index."""
    values = _group(field).get("vals") if field is not None else None
    return [str(value) for value in values] if values else None
