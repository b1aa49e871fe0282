"""Signatures as MLflow infers them; datasets described at a cost that does not depend on size."""

from __future__ import annotations

import datetime
import time

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
from mlflow.models import infer_signature
from mlflow.models.signature import ModelSignature

from autolog.datasets import describe
from autolog.models import pickled_modules, requirements_for
from autolog.pickles import dumps
from autolog.signature import example, schema, signature

FRAME = pd.DataFrame(
    {
        "i64": np.arange(3),
        "i32": np.arange(3, dtype="int32"),
        "u8": np.arange(3, dtype="uint8"),
        "f64": [0.5, 1.5, 2.5],
        "f32": np.array([0.5, 1.5, 2.5], dtype="float32"),
        "flag": [True, False, True],
        "text": ["a", "b", "c"],
        "when": pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]),
        "missing": [1.0, None, 3.0],
    }
)


@pytest.mark.parametrize(
    "data",
    [
        FRAME,
        np.zeros((4, 3)),
        np.zeros((4,), dtype="float32"),
        np.zeros((4, 2, 2), dtype="int32"),
        np.array(["ab", "c"]),
        scipy.sparse.csr_matrix(np.eye(3)),
    ],
    ids=["frame", "float64", "float32", "int32", "text", "sparse"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_schema_is_the_one_that_mlflow_infers(data) -> None:
    ours = ModelSignature.from_dict(signature(schema(data), schema(np.zeros(3))))
    theirs = infer_signature(data, np.zeros(3))
    assert ours == theirs


def test_schema_of_polars_is_that_of_pandas() -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": [0.5, None], "c": ["x", "y"], "d": [datetime.date(2020, 1, 1)] * 2})
    assert [(spec["name"], spec["type"], spec["required"]) for spec in schema(frame)] == [
        ("a", "long", True),
        ("b", "double", False),
        ("c", "string", True),
        ("d", "datetime", True),
    ]


def test_schema_of_texts_and_lists() -> None:
    assert schema(["some text", "more"]) == [{"type": "string", "required": True}]
    assert schema([[1.0, 2.0], [3.0, 4.0]])[0]["tensor-spec"] == {"dtype": "float64", "shape": [-1, 2]}
    assert schema(object()) is None


def test_example_round_trips() -> None:
    made = example(FRAME[["i64", "f64"]])
    assert made == {"kind": "dataframe", "columns": ["i64", "f64"], "data": [[0, 0.5], [1, 1.5], [2, 2.5]]}
    assert example(np.eye(2))["data"] == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a,
        lambda a: pd.DataFrame(a),
        lambda a: pl.DataFrame(a, schema=[f"c{i}" for i in range(a.shape[1])]),
        lambda a: scipy.sparse.csr_matrix(a),
        lambda a: a.tolist(),
    ],
    ids=["numpy", "pandas", "polars", "sparse", "list"],
)
def test_digest_tells_data_apart(make) -> None:
    data = np.random.default_rng(0).normal(size=(50, 4))
    other = data.copy()
    other[-1, -1] += 1
    digests = {describe(make(values)).digest for values in (data, other, data[:49], data[:, :3])}
    assert len(digests) == 4
    assert describe(make(data)).digest == describe(make(data.copy())).digest


def test_datasets_that_agree_in_the_first_10000_values_differ_as_in_mlflow_11560() -> None:
    a = np.zeros((20_000, 2))
    b = a.copy()
    b[15_000:] = 1
    assert describe(a).digest != describe(b).digest


def test_sparse_is_never_densified() -> None:
    # 80 TB if it were dense.
    wide = scipy.sparse.csr_matrix(([1.0, 2.0], ([0, 999_999], [5, 9_999_999])), shape=(1_000_000, 10_000_000))
    other = scipy.sparse.csr_matrix(([1.0, 2.0], ([0, 999_999], [5, 9_999_998])), shape=wide.shape)
    assert describe(wide).digest != describe(other).digest


def test_cost_does_not_depend_on_size() -> None:
    data = np.zeros((1_000_000, 20))
    describe(data, data[:, 0])
    took = []
    for _ in range(5):
        start = time.perf_counter()
        describe(data, data[:, 0])
        schema(data)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.005


def test_requirements_are_what_the_pickle_references() -> None:
    from sklearn.linear_model import LogisticRegression

    data = dumps(LogisticRegression(C=1.0).fit(np.eye(4), [0, 1, 0, 1]))
    modules = pickled_modules(data)
    assert {"sklearn", "numpy"} <= modules
    assert "pandas" not in modules
    import sklearn

    pinned = requirements_for(modules)
    assert f"scikit-learn=={sklearn.__version__}" in pinned
    assert f"numpy=={np.__version__}" in pinned
