"""Which columns of a frame does a pipeline really take?

The question is asked on the worker thread, of plain values that :func:`steps` read on the training thread, since the
user may change the estimator as soon as ``fit`` has returned.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from autolog import guard
from flavors.pyspark import stages
from flavors.pyspark.stages import ParamMap

_INPUTS = (
    "inputCol",
    "inputCols",
    "featuresCol",
    "features_cols",
    "userCol",
    "itemCol",
    "itemsCol",
    "offsetCol",
    "base_margin_col",
)
_OUTPUTS = (
    "outputCol",
    "outputCols",
    "predictionCol",
    "probabilityCol",
    "rawPredictionCol",
    "linkPredictionCol",
    "quantilesCol",
    "leafCol",
    "topicDistributionCol",
    "pred_contrib_col",
)
#: Read by ``fit`` only.
_TRAINING = ("labelCol", "weightCol", "ratingCol", "censorCol", "validationIndicatorCol", "foldCol", "qid_col")

#: What a formula calls a column (``org.apache.spark.ml.feature.RFormulaParser.columnRef``), or all of them.
_REFERENCE = re.compile(r"(?:[a-zA-Z]|\.[a-zA-Z_])[a-zA-Z0-9._]*|\.")

_UNRESOLVED = "org.apache.spark.sql.catalyst.analysis.UnresolvedAttribute"
_ALIAS = "org.apache.spark.sql.catalyst.expressions.Alias"


@dataclass(frozen=True, slots=True)
class Step:
    """One stage that data goes through: its class name and its params."""

    kind: str
    values: dict[str, Any]


#: Parses the statement of a SQLTransformer into the JSON form of Spark's logical plan.
ParseSQL = Callable[[str], str]


def steps(estimator: Any, extra: ParamMap | None = None) -> list[Step]:
    """Return the stages that data goes through when `estimator` or its model predicts, in order."""
    return [Step(type(stage).__name__, stages.param_values(stage, extra)) for stage in stages.flow(estimator, extra)]


def consumed(taken: Iterable[Step], available: list[str], parse: ParseSQL) -> list[str] | None:
    """Return those of the `available` columns that the steps read when they predict, in their order.

    Where a step may read any column, that is all but those that only ``fit`` reads (labels, weights, folds). None
    where none is left.

    parse: asked for each SQL statement among them; where it raises, the statement may read any column.
    """
    follow = _Follow(available, parse)
    taken = list(taken)
    for step in taken:
        follow.step(step)
    found = follow.found([name for step in taken for name in _columns(step.values, _TRAINING)])
    return found or None


class _Follow:
    """Walks along the stages. Names are compared as Spark resolves them by default, regardless of case."""

    def __init__(self, available: list[str], parse: ParseSQL) -> None:
        self._available = {name.lower(): name for name in available}
        self._parse = parse
        self._inputs: list[str] = []
        self._outputs: set[str] = set()
        self._training: list[str] = []
        self._indexed: dict[str, str] = {}
        self._anything = False

    def step(self, step: Step) -> None:
        values = step.values
        self._training += [name for name in _columns(values, _TRAINING) if name.lower() not in self._outputs]
        taken = list(_columns(values, _INPUTS))
        made = list(_columns(values, _OUTPUTS))
        if step.kind.startswith("RFormula"):
            response, taken = self._formula(str(values.get("formula") or ""))
            self._training += response
            # Its featuresCol and labelCol are what it makes.
            made = [str(values["featuresCol"]), str(values["labelCol"])]
        elif step.kind == "SQLTransformer":
            taken, made = self._statement(str(values.get("statement") or ""))
        elif values.get("features_cols"):
            taken = list(values["features_cols"])  # XGBoost's estimators have the default of featuresCol all the same.
        elif not taken and step.kind not in ("CrossValidator", "TrainValidationSplit"):
            self._anything = True
        if step.kind.startswith("StringIndexer"):
            several = "inputCols" in values
            taken = list(values["inputCols"]) if several else taken
            made = list(values.get("outputCols") or ()) if several else made
            # A fitted indexer is content with a frame that lacks its input: what it makes of a label is no input.
            pairs = zip(taken, made, strict=False)
            self._indexed.update({out: name for name, out in pairs if name.lower() not in self._outputs})
        else:
            self._inputs += [name for name in taken if name.lower() not in self._outputs]
            self._inputs += [self._indexed.pop(name) for name in taken if name in self._indexed]
        self._outputs |= {name.lower() for name in made}

    def found(self, training: list[str]) -> list[str]:
        self._training += [self._indexed.pop(name) for name in sorted(set(training)) if name in self._indexed]
        wanted = {name.lower() for name in (*self._inputs, *self._indexed.values())}
        if wanted and not self._anything and wanted <= self._available.keys():
            return [name for key, name in self._available.items() if key in wanted]
        unwanted = {name.lower() for name in self._training} - wanted
        return [name for key, name in self._available.items() if key not in unwanted]

    def _formula(self, formula: str) -> tuple[list[str], list[str]]:
        """Return the response and the terms of an R formula, as far as these are columns of the frame or made of it."""
        left, _, right = formula.partition("~")
        response = [name for name in _REFERENCE.findall(left) if name != "."]
        if re.search(r"[*^()]", right):  # Only adds terms, and what takes some away again is rare: take them all.
            names = set(_REFERENCE.findall(right))
        else:
            terms: list[frozenset[str]] = []
            for sign, term in re.findall(r"([+-]?)([^+-]+)", right):
                of = frozenset(_REFERENCE.findall(term))
                if sign != "-":
                    terms.append(of)
                elif frozenset(".") in terms:
                    # All columns, less this one: spell them out.
                    every = [frozenset([name]) for name in self._available.values() if name not in response]
                    terms = [each for each in (*terms, *every) if each not in (of, frozenset("."))]
                else:
                    terms = [each for each in terms if each != of]
            names = set().union(*terms)
        if "." in names:
            names = names - {"."} | {name for name in self._available.values() if name not in response}
        return response, sorted(names)

    def _statement(self, statement: str) -> tuple[list[str], list[str]]:
        """Return the columns that a SELECT refers to, and those that it makes; what ``*`` lets through is neither."""
        taken: list[str] = []
        made: list[str] = []
        plan = guard.attempt(self._parse, statement.replace("__THIS__", "this_frame"))
        if plan.value is None:  # No public API of Spark's: it may not be there.
            self._anything = True
            return taken, made
        for node in _nodes(json.loads(plan.value)):
            if node.get("class") == _UNRESOLVED:
                parts = str(node["nameParts"])[1:-1].split(", ")
                # Qualified by a table before, by fields of a struct after: the column is whichever there is.
                known = self._available.keys() | self._outputs
                taken += [part for part in parts if part.lower() in known]
            elif node.get("class") == _ALIAS:
                made.append(str(node["name"]))
        return taken, made


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for each in tree:
            yield from _nodes(each)


def _columns(values: dict[str, Any], kinds: tuple[str, ...]) -> Iterator[str]:
    for kind in kinds:
        value = values.get(kind)
        for name in value if isinstance(value, list | tuple) else (value,):
            if isinstance(name, str) and name:
                yield name
