"""scikit-learn models: which format, what is trusted, and that plain MLflow loads them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import mlflow
import numpy as np
import pytest
import skops.io
from sklearn._loss._loss import CyHalfSquaredError
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.cluster import Birch, KMeans
from sklearn.datasets import load_iris
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from autolog import guard, pickles
from flavors.sklearn import skops_format


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(autouse=True)
def _store(recorder):
    mlflow.set_tracking_uri(recorder.store_uri)


def files(recorder, logged) -> dict[str, Path]:
    """The model's files in its own folder, by name."""
    folder = Path(mlflow.artifacts.download_artifacts(logged.model_uri))
    return {path.name: path for path in folder.iterdir()}


def config_of(logged) -> dict:
    return mlflow.models.get_model_info(logged.model_uri).flavors["sklearn"]


OWN = [
    LogisticRegression(max_iter=200),
    make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), LogisticRegression()),
    RandomForestClassifier(n_estimators=5),
    GradientBoostingClassifier(n_estimators=3),
    HistGradientBoostingClassifier(max_iter=3),
    MLPClassifier(hidden_layer_sizes=(4,), max_iter=3, random_state=np.random.RandomState(0)),
    KNeighborsClassifier(algorithm="kd_tree"),
    GridSearchCV(RandomForestClassifier(n_estimators=2), {"max_depth": [1, 2]}, cv=2),
    KMeans(3, n_init=1),
]


#: The losses of boosting do not say where they are from, before scikit-learn 1.6: skops cannot find them again.
NAMELESS = CyHalfSquaredError.__module__ == "_loss"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", OWN, ids=lambda each: type(each).__name__)
def test_models_of_own_types_are_skops_and_give_the_same_predictions(recorder, iris, estimator):
    X, y = iris
    X = np.abs(X)
    recorder.start()
    model = clone(estimator).fit(X, y)
    logged, *_ = recorder.models()  # A search's best estimator is a model besides.
    assert logged.name == "model"
    if NAMELESS and "Boosting" in type(model).__name__:
        assert config_of(logged)["serialization_format"] == "cloudpickle"
        assert "_loss." in logged.tags["autolog.not_skops"]
        return
    assert config_of(logged)["serialization_format"] == "skops", logged.tags
    found = files(recorder, logged)
    assert "model.skops" in found
    assert "model.pkl" not in found
    loaded = mlflow.sklearn.load_model(logged.model_uri)
    assert skops_format.identical(loaded, model)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(logged.model_uri).predict(X), model.predict(X))
    lines = found["requirements.txt"].read_text().splitlines()
    assert f"skops=={skops.__version__}" in lines
    assert not [line for line in lines if line.startswith("cloudpickle")]
    assert all("==" in line for line in lines)


def test_only_types_of_the_three_packages_are_trusted(recorder, iris):
    recorder.start()
    RandomForestClassifier(n_estimators=2).fit(*iris)
    (logged,) = recorder.models()
    trusted = config_of(logged)["skops_trusted_types"]
    assert trusted == ["sklearn.tree._tree.Tree"]
    assert set(trusted) == set(skops.io.get_untrusted_types(file=files(recorder, logged)["model.skops"]))


class Majority(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_, counts = np.unique(y, return_counts=True)
        self.most_ = self.classes_[counts.argmax()]
        return self

    def predict(self, X):
        return np.full(len(X), self.most_)


def halve(X):
    return X / 2


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (Majority(), "Majority"),
        (make_pipeline(FunctionTransformer(halve), LogisticRegression()), "halve"),
        (Birch(n_clusters=2), "Birch"),
    ],
    ids=["own class", "own function", "unknown to skops"],
)
def test_other_models_are_cloudpickle_and_say_why(recorder, iris, estimator, reason):
    recorder.start()
    model = estimator.fit(*iris)
    (logged,) = recorder.models()
    assert config_of(logged)["serialization_format"] == "cloudpickle"
    assert reason in logged.tags["autolog.not_skops"]
    loaded = mlflow.sklearn.load_model(logged.model_uri)
    np.testing.assert_array_equal(loaded.predict(iris[0]), model.predict(iris[0]))
    assert {"model.pkl"} <= set(files(recorder, logged))


class Touchy(Majority):
    """Loading it would be seen: the sender must not."""

    path = ""

    def __setstate__(self, state):
        Path(state["path"]).write_text("loaded")
        self.__dict__.update(state)


def test_the_senders_process_never_loads_what_the_user_defined(recorder, iris, tmp_path):
    recorder.start()
    model = Touchy()
    model.path = str(tmp_path / "loaded")
    model.fit(*iris)
    (logged,) = recorder.models()
    assert logged.status == "READY"
    assert not (tmp_path / "loaded").exists()
    pickle.loads(pickle.dumps(model))
    assert (tmp_path / "loaded").exists()


@pytest.mark.parametrize(
    ("wish", "file"), [("cloudpickle", "model.pkl"), ("pickle", "model.pkl"), ("skops", "model.skops")]
)
def test_serialization_format_is_obeyed(recorder, iris, wish, file):
    recorder.start(serialization_format=wish)
    model = LogisticRegression(max_iter=200).fit(*iris)
    (logged,) = recorder.models()
    assert config_of(logged)["serialization_format"] == wish
    assert file in files(recorder, logged)
    np.testing.assert_array_equal(mlflow.sklearn.load_model(logged.model_uri).predict(iris[0]), model.predict(iris[0]))


def test_text_model_travels_whole(recorder):
    texts, y = ["good film", "bad film", "good play", "bad play"], [1, 0, 1, 0]
    recorder.start()
    model = make_pipeline(TfidfVectorizer(), SGDClassifier(random_state=0)).fit(texts, y)
    (logged,) = recorder.models()
    assert config_of(logged)["serialization_format"] == "skops"
    np.testing.assert_array_equal(mlflow.sklearn.load_model(logged.model_uri).predict(texts), model.predict(texts))


def test_class_of_main_loads_elsewhere(recorder, tmp_path):
    """In MLflow, too; but what loads it must not need the script."""
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import autolog, numpy as np
            autolog.autolog()
            from sklearn.base import BaseEstimator, ClassifierMixin
            HIGH = 2
            class Mine(ClassifierMixin, BaseEstimator):
                def fit(self, X, y):
                    self.classes_ = np.unique(y)
                    return self
                def predict(self, X):
                    return np.full(len(X), HIGH)
            Mine().fit(np.eye(3), [0, 1, 2])
            assert autolog.flush(60)
            """
        )
    )
    env = {**os.environ, "AUTOLOG_SPOOL_DIR": str(tmp_path / "spool"), "MLFLOW_TRACKING_URI": recorder.store_uri}
    env["MLFLOW_EXPERIMENT_NAME"] = recorder.experiment
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path, env=env, timeout=180)
    (logged,) = recorder.models()
    # Here, where __main__ is another.
    for module in (mlflow.sklearn, mlflow.pyfunc):
        assert module.load_model(logged.model_uri).predict(np.eye(3)).tolist() == [2, 2, 2]


class Unpicklable(Majority):
    def fit(self, X, y):
        self.lock_ = threading.Lock()
        return super().fit(X, y)


def test_failing_model_loses_no_metrics_as_in_mlflow_it_does(recorder, iris):
    """In MLflow's autologging the model comes first, and where it fails all metrics are lost."""
    recorder.start()
    Unpicklable().fit(*iris)
    run = recorder.run()
    assert run.info.status == "FINISHED"
    assert run.data.metrics["training_accuracy_score"] == pytest.approx(1 / 3)
    assert recorder.models() == []
    assert [what for what, _ in guard.swallowed] == ["take a snapshot of the model"]
    guard.swallowed.clear()


# -- the parts --------------------------------------------------------------------------------------------------------


def test_names_of_a_pickle_are_read_without_loading_it(tmp_path):
    model = Touchy()
    model.path = str(tmp_path / "loaded")
    model.fit(np.eye(3), [0, 1, 1])
    found = pickles.names(pickle.dumps([model, {halve: {1, 2}}, np.float64(1), Path("/a"), frozenset({halve})]))
    assert (Touchy.__module__, "Touchy") in found
    assert (Touchy.__module__, "halve") in found
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_names_are_found_in_every_protocol(protocol, iris):
    model = make_pipeline(StandardScaler(), RandomForestClassifier(n_estimators=2)).fit(*iris)
    found = {name for _, name in pickles.names(pickle.dumps(model, protocol))}
    assert {"Pipeline", "StandardScaler", "RandomForestClassifier", "DecisionTreeClassifier", "Tree"} <= found


def test_standard_and_cloud_pickles_load_alike():
    local = type("Local", (), {"value": 3})  # Reachable under no name.
    assert pickle.loads(pickles.dumps(local())).value == 3
    assert pickle.loads(pickles.dumps(lambda: 5))() == 5
    data = np.arange(10_000.0)
    np.testing.assert_array_equal(pickle.loads(pickles.dumps(data)), data)


def test_identical_sees_what_equality_does_not(iris):
    one = RandomForestClassifier(n_estimators=2, random_state=0).fit(*iris)
    assert skops_format.identical(one, pickle.loads(pickle.dumps(one)))
    other = pickle.loads(pickle.dumps(one))
    other.estimators_[0].tree_.threshold[0] = np.nextafter(other.estimators_[0].tree_.threshold[0], 10)
    assert not skops_format.identical(one, other)
    assert not skops_format.identical({"a": 1}, {"a": True})
    assert not skops_format.identical([1.0], [1])
    assert skops_format.identical(float("nan"), np.float64("nan").item())
