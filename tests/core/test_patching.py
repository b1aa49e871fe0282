"""Patched functions pickle, copy and unwrap like the originals."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
import subprocess
import sys
import weakref

import cloudpickle
import pytest
import sklearn.metrics
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression

import autolog
from autolog import guard, runtime, scope
from autolog.patching import Wrapper, training, variable_name

ORIGINAL_FIT = LogisticRegression.fit
ORIGINAL_METRIC = sklearn.metrics.accuracy_score


def implementation(function):
    """What a public function of scikit-learn calls once its arguments are checked."""
    return inspect.getclosurevars(function).nonlocals["func"]


def test_metric_function_pickles_as_mlflow_6268_could_not(recorder) -> None:
    recorder.start()
    assert sklearn.metrics.accuracy_score is ORIGINAL_METRIC
    assert isinstance(implementation(ORIGINAL_METRIC), Wrapper)
    data = pickle.dumps(sklearn.metrics.accuracy_score)
    assert b"autolog" not in data
    assert pickle.loads(data) is sklearn.metrics.accuracy_score
    autolog.disable()
    assert not isinstance(implementation(ORIGINAL_METRIC), Wrapper)


def test_name_bound_earlier_is_rebound_and_bound_back(recorder) -> None:
    globals()["bound_early"] = before = pytest.importorskip("xgboost").cv  # As `from xgboost import cv` above does.
    assert not isinstance(before, Wrapper)
    recorder.start()
    assert isinstance(globals()["bound_early"], Wrapper)
    autolog.disable()
    assert globals()["bound_early"] is before


def test_bound_methods_pickle_and_copy(recorder) -> None:
    recorder.start()
    model = LogisticRegression(C=3.0)
    for made in (pickle.loads(pickle.dumps(model.fit)), copy.deepcopy(model.fit), copy.copy(model.fit)):
        assert made.__self__.C == 3.0
    assert copy.deepcopy(LogisticRegression.fit) is not None
    assert b"autolog" not in pickle.dumps(model.fit)


def test_estimators_pickle_to_the_same_bytes(recorder) -> None:
    model = LogisticRegression(C=3.0)
    bare = pickle.dumps(model)
    recorder.start()
    assert pickle.dumps(model) == bare
    assert vars(model) == vars(LogisticRegression(C=3.0))


def test_class_pickled_by_value_comes_out_unpatched(recorder) -> None:
    recorder.start()
    namespace: dict = {"BaseEstimator": BaseEstimator, "ClassifierMixin": ClassifierMixin, "__name__": "__main__"}
    exec(
        "class Mine(ClassifierMixin, BaseEstimator):\n"
        "    def fit(self, X, y): self.n_ = len(X); return self\n"
        "    def predict(self, X): return [0] * len(X)\n",
        namespace,
    )
    data = cloudpickle.dumps(namespace["Mine"]())
    code = (
        "import sys, pickle; model = pickle.loads(sys.stdin.buffer.read()); model.fit([1, 2], [0, 0]); "
        "print(model.n_, 'autolog' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.split() == [b"2", b"False"]


def test_wrapper_that_outlives_its_patch_pickles_beside_the_next(recorder) -> None:
    """As a module keeps it that took the name while recording was on."""
    xgboost = pytest.importorskip("xgboost")
    original = xgboost.train
    recorder.start()
    kept = xgboost.train
    assert isinstance(kept, Wrapper)
    autolog.disable()
    assert pickle.loads(pickle.dumps(kept)) is original
    recorder.start()
    assert xgboost.train is not kept
    assert pickle.loads(pickle.dumps(kept)) is xgboost.train
    data = pickle.dumps(kept)
    autolog.disable()
    assert pickle.loads(data) is original


def test_wrapper_that_outlives_its_patch_pickles_as_the_original(recorder) -> None:
    recorder.start()
    kept = LogisticRegression.fit
    autolog.disable()
    assert LogisticRegression.fit is ORIGINAL_FIT
    assert pickle.loads(pickle.dumps(kept)) is ORIGINAL_FIT
    assert kept(LogisticRegression(), [[0], [1]], [0, 1]).predict([[1]]) == [1]


def test_disable_restores_everything(recorder) -> None:
    recorder.start()
    assert LogisticRegression.fit is not ORIGINAL_FIT
    autolog.disable()
    assert LogisticRegression.fit is ORIGINAL_FIT
    assert vars(LogisticRegression)["fit"] is ORIGINAL_FIT
    assert "__init_subclass__" not in vars(BaseEstimator)
    for name in sklearn.metrics.__all__:
        function = getattr(sklearn.metrics, name)
        assert not isinstance(function, Wrapper), name
        if "func" in getattr(getattr(function, "__code__", None), "co_freevars", ()):
            assert not isinstance(implementation(function), Wrapper), name


def test_introspection_is_unharmed(recorder) -> None:
    bare = inspect.signature(LogisticRegression.fit), LogisticRegression.fit.__doc__, LogisticRegression.fit.__name__
    recorder.start()
    patched = LogisticRegression.fit
    assert (inspect.signature(patched), patched.__doc__, patched.__name__) == bare
    assert inspect.isfunction(inspect.unwrap(patched))


def drive(hook, function, *args):
    """Call `function` under `hook` as a patched training call would."""
    wrapper = training("sklearn", hook)
    return wrapper(function, None, args, {})


@pytest.fixture
def on(recorder):
    recorder.start()
    assert runtime.enabled
    return recorder


def test_hook_that_fails_before_changes_nothing(on) -> None:
    def hook(call):
        call.args = ("changed",)
        raise RuntimeError("before")
        yield

    assert drive(hook, operator.itemgetter(0), "abc") == "a"
    assert [str(error) for _, error in guard.swallowed] == ["before"]
    guard.swallowed.clear()


def test_hook_that_fails_after_keeps_the_result_and_the_status(on) -> None:
    def hook(call):
        call.run.params({"a": 1})
        yield
        raise RuntimeError("after")

    assert drive(hook, operator.itemgetter(0), "abc") == "a"
    guard.swallowed.clear()
    assert on.run().info.status == "FINISHED"  # MLflow marks such a run FAILED.


def test_users_exception_is_the_same_object_without_context(on) -> None:
    error = ValueError("the user's")

    def hook(call):
        call.run.params({"a": 1})
        yield

    def fails():
        raise error

    with pytest.raises(ValueError) as caught:
        drive(hook, fails)
    assert caught.value is error
    assert error.__context__ is None
    assert error.__cause__ is None
    run = on.run()
    assert run.info.status == "FAILED"
    assert "traceback.txt" in on.artifacts(run)


def test_keyboard_interrupt_is_killed(on) -> None:
    def hook(call):
        call.run.params({"a": 1})
        yield

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(hook, interrupted)
    assert on.run().info.status == "KILLED"


def test_paused_nests_as_mlflow_does_not(on) -> None:
    with autolog.paused():
        with autolog.paused():
            assert not runtime.recording()
        assert not runtime.recording()
    assert runtime.recording()
    assert scope.current() is None


def test_every_patched_function_and_method_pickles_and_copies(recorder) -> None:
    xgboost = pytest.importorskip("xgboost")
    recorder.start()
    functions = [getattr(sklearn.metrics, name) for name in sklearn.metrics.__all__]
    functions = [each for each in functions if inspect.isfunction(inspect.unwrap(each))]
    assert len(functions) > 50
    for function in [*functions, xgboost.train, xgboost.cv]:
        assert pickle.loads(pickle.dumps(function)) is function
        assert cloudpickle.loads(cloudpickle.dumps(function)) is function
        assert copy.deepcopy(function) is function
    patched = 0
    for cls in walk(BaseEstimator):
        for name in ("fit", "fit_transform", "fit_predict", "predict", "predict_proba"):
            if isinstance(vars(cls).get(name), Wrapper) and cls.__module__.startswith("sklearn."):
                method = getattr(cls, name)
                assert pickle.loads(pickle.dumps(method))._self_parent is method._self_parent, (cls, name)
                assert copy.deepcopy(method)._self_parent is method._self_parent, (cls, name)
                patched += 1
    assert patched > 50


class Big:
    pass


def test_looking_a_name_up_keeps_nothing_alive() -> None:
    big = Big()
    gone = weakref.ref(big)
    assert variable_name(big, sys._getframe()) == "big"
    del big
    assert gone() is None


def test_looking_a_name_up_leaves_the_users_locals_alone() -> None:
    big = Big()
    mine = locals()
    assert variable_name(big, sys._getframe()) == "big"
    assert mine["big"] is big


def walk(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from walk(sub)


def test_a_call_that_a_signature_refuses_is_told_only_where_the_function_takes_it() -> None:
    def hook(call):
        assert call.arguments
        yield

    def train(X):
        return X

    def lying(*args):
        return args

    lying.__signature__ = inspect.signature(train)
    drive = training("sklearn", hook)
    autolog.autolog("sklearn")
    with pytest.raises(TypeError, match="positional"):
        drive(train, None, (1, 2), {})
    assert guard.swallowed == []
    assert drive(lying, None, (1, 2), {}) == (1, 2)
    ((_, error),) = guard.swallowed
    assert isinstance(error, TypeError)
    guard.swallowed.clear()
