"""FlavorContract: what holds for every flavor, checked on a real training of its framework."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import random
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import autolog
from autolog import guard, patching, registry, run, runtime

#: Where faults are put in: the methods of a run by which flavors speak.
_SPEECH = ("params", "tags", "metrics", "block", "dataset", "text", "figure", "declare_model", "save_model", "derive")
_SECRET = "hunter2-and-some-more"


#: Modules of the way to the store, which a flavor has no business with: it notes, through its run.
_SENDING = ("spool", "sender", "delivery", "opening", "batches", "logged_models", "mlmodel")


class FlavorContract:
    """Base class of a pytest class that checks a flavor: its test says what to train, the contract does the rest.

    Example::

        class TestLightGBM(FlavorContract):
            flavor = "lightgbm"

            def train(self):
                return lightgbm.train({"verbose": -1, "seed": 1}, data(), num_boost_round=3)

            def state(self, result):
                return result.model_to_string()

            def fail(self, error):
                def raise_it(env):
                    raise error

                lightgbm.train({"verbose": -1}, data(), num_boost_round=3, callbacks=[raise_it])

    The flavor is found by its entry point: its distribution must be installed. Autologging must be off when a test
    begins.
    """

    #: Name of the flavor, which is its framework's import name.
    flavor: ClassVar[str]
    #: Whether a training records a model.
    records_models: ClassVar[bool] = True
    #: Whether two trainings may go on in two threads of one process.
    trains_in_threads: ClassVar[bool] = True

    # -- what the flavor's test says ------------------------------------------------------------------------------

    def train(self) -> Any:
        """Train something small from fixed seeds by one call of the framework; return the result."""
        raise NotImplementedError

    def state(self, result: Any) -> Any:
        """Return all of a result that training determines, comparable by ``==``: bytes, text, numbers."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """Train so that code of the user's inside the training call raises `error`, as a callback may."""
        raise NotImplementedError

    def train_nested(self) -> Any:
        """Make a training call that makes others, as a search does. Without one, :meth:`train` will do."""
        return self.train()

    # -- the contract ---------------------------------------------------------------------------------------------

    def setup_method(self) -> None:
        """Import the framework, and forget what other tests left to say."""
        __import__(self.flavor)
        assert not runtime.enabled, "autologging is on: a test before this one did not switch it off"
        guard.reset()

    def teardown_method(self) -> None:
        """Fail on what was swallowed, and leave the framework as it was."""
        autolog.disable()
        errors = [(what, repr(error)) for what, error in guard.swallowed]
        guard.reset()
        assert not errors, f"swallowed: {errors}"

    def test_one_training_is_one_complete_run(self) -> None:
        """The run ends FINISHED, names the flavor, has parameters and, where there are models, one that is ready."""
        from autolog.testing import capture

        with capture(self.flavor) as seen:
            self.train()
        recorded = seen.run
        assert recorded.status == "FINISHED"
        assert recorded.tags["mlflow.autologging"] == self.flavor
        assert recorded.params
        assert any(model.status == "READY" and model.files for model in recorded.models) == self.records_models

    def test_nested_calls_are_one_run(self) -> None:
        """What a training call calls in turn opens no runs, but for children of its own."""
        from autolog.testing import capture

        with capture(self.flavor) as seen:
            self.train_nested()
        assert len([recorded for recorded in seen.runs if recorded.parent is None]) == 1

    def test_result_random_states_and_output_are_the_same(self, capfd: Any) -> None:
        """Bit for bit: the result, the global random states afterwards, and what went to stdout."""
        from autolog.testing import capture

        self.train()  # What a framework does or says once.
        capfd.readouterr()
        with _seeded() as bare:
            result = self.state(self.train())
        said = capfd.readouterr().out
        with capture(self.flavor) as seen, _seeded() as recorded:
            again = self.state(self.train())
        assert seen.runs
        assert capfd.readouterr().out == said
        assert again == result
        assert recorded == bare

    def test_nothing_stays_on_the_result(self) -> None:
        """A recorded model pickles, where it does at all, without a trace of this package."""
        from autolog.testing import capture

        with capture(self.flavor) as seen:
            result = self.train()
            while_on = guard.attempt(pickle.dumps, result).value or b""
        assert seen.runs
        assert b"autolog" not in while_on
        assert b"autolog" not in (guard.attempt(pickle.dumps, result).value or b"")

    def test_an_exception_passes_as_it_is(self) -> None:
        """The same object, with the context and cause that it has without autologging; its run is FAILED."""
        import pytest

        from autolog.testing import capture

        with pytest.raises(Exception) as bare:
            self.fail(ValueError("of the user's own"))
        error = ValueError("of the user's own")
        with capture(self.flavor) as seen, pytest.raises(Exception) as raised:
            self.fail(error)
        assert error in _chain(raised.value), "not the object that the user's code raised"
        assert [type(each) for each in _chain(raised.value)] == [type(each) for each in _chain(bare.value)]
        assert [recorded.status for recorded in seen.runs if recorded.parent is None] == ["FAILED"]

    def test_secrets_are_not_recorded(self) -> None:
        """Passwords and tokens in what is said are replaced before they are written anywhere."""
        import pytest

        from autolog.testing import capture

        message = f"cannot reach postgresql://me:{_SECRET}@host/db?password={_SECRET}"
        with capture(self.flavor) as seen, pytest.raises(Exception, match="cannot reach"):
            self.fail(OSError(message))
        text = seen.run.texts["traceback.txt"]
        assert "cannot reach" in text
        assert _SECRET not in repr(seen.records)

    def test_a_fault_of_the_flavor_harms_nothing(self, monkeypatch: Any) -> None:
        """Whatever a hook fails at, the training ends with the same result and no exception."""
        from autolog.testing import capture

        expected = self.state(self.train())
        struck: set[str] = set()

        def fault(name: str) -> Callable[..., Any]:
            def raise_it(*args: Any, **kwargs: Any) -> Any:
                struck.add(name)
                raise RuntimeError(f"a fault put into {name}")

            return raise_it

        for owner, name in ((runtime, "open_run"), *((run.Run, name) for name in _SPEECH)):
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, fault(name))
                with capture(self.flavor):
                    assert self.state(self.train()) == expected, name
        assert "open_run" in struck and len(struck) > 1, f"faults struck at {sorted(struck)} only"
        swallowed = {str(error) for _, error in guard.swallowed}
        assert all(message.startswith("a fault put into") for message in swallowed), swallowed
        guard.reset()

    def test_off_and_paused_record_nothing(self) -> None:
        """``autolog.paused()`` holds the flavor, too, and so does :func:`autolog.disable`."""
        from autolog.testing import capture

        with capture(self.flavor) as seen:
            with autolog.paused():
                self.train()
            autolog.disable()
            self.train()
        assert seen.runs == []

    def test_threads_are_separate_runs(self) -> None:
        """Trainings that go on at once are recorded each by itself, complete."""
        from autolog.testing import capture

        if not self.trains_in_threads:
            import pytest

            pytest.skip(f"{self.flavor} does not train in threads")
        with capture(self.flavor) as seen:
            self.train()
            threads = [threading.Thread(target=self.train) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        told = [sorted((name, step) for name, step, _ in recorded.metrics) for recorded in seen.runs]
        assert len(told) == 3
        assert told[0] == told[1] == told[2]
        assert {recorded.status for recorded in seen.runs} == {"FINISHED"}

    def test_unpatching_restores_everything(self) -> None:
        """After :func:`autolog.disable` every attribute of the framework is the object that it was."""
        from autolog.testing import capture

        with capture(self.flavor):
            self.train()  # What is imported or made at the first use.
        before = dict(_attributes(self.flavor))
        with capture(self.flavor):
            during = dict(_attributes(self.flavor))
            self.train()
        after = dict(_attributes(self.flavor))
        assert any(during[place] is not held for place, held in before.items()), "the flavor patches nothing"
        assert [place for place, held in before.items() if after.get(place) is not held] == []

    def test_patched_functions_pickle_copy_and_look_like_the_originals(self) -> None:
        """Name, documentation and signature are the original's; what could be pickled and copied still can."""
        from autolog.testing import capture

        before = dict(_attributes(self.flavor))
        picklable = {place for place in before if _pickles(getattr(*place))}
        # As text: a default that is NaN equals not even itself.
        signatures = {place: str(guard.attempt(inspect.signature, getattr(*place)).value) for place in before}
        seen = 0
        with capture(self.flavor):
            for place, held in _attributes(self.flavor):
                if not isinstance(held, patching.Wrapper):
                    continue
                seen += 1
                original = held.__wrapped__
                assert held.__doc__ == original.__doc__, place
                assert getattr(held, "__name__", None) == getattr(original, "__name__", None), place
                assert copy.copy(held) is held and copy.deepcopy(held) is held, place
                if place not in before:  # An inherited method, wrapped where it is called.
                    continue
                looked_up = getattr(*place)  # As the user reaches it: a method through its class.
                assert str(guard.attempt(inspect.signature, looked_up).value) == signatures[place], place
                if place in picklable:
                    assert pickle.loads(pickle.dumps(looked_up)) in (looked_up, original), place
        assert seen, "the flavor wraps nothing"

    def test_the_flavor_keeps_to_itself(self) -> None:
        """Its code imports neither mlflow nor the spool nor the sender, and no framework when it is imported."""
        module = sys.modules[type(registry.load_flavor(self.flavor)).__module__]
        source = Path(inspect.getfile(module))
        files = sorted(source.parent.glob("*.py")) if module.__package__ else [source]
        for file in files:
            tree = ast.parse(file.read_text())
            everywhere = {name for node in ast.walk(tree) for name in _imported(node)}
            assert not any(name.partition(".")[0] == "mlflow" for name in everywhere), f"{file} imports mlflow"
            inner = {f"autolog.{module}" for module in _SENDING}
            assert not everywhere & inner, f"{file} imports {sorted(everywhere & inner)}"
            at_import = {name.partition(".")[0] for node in tree.body for name in _imported(node)}
            assert self.flavor not in at_import, f"{file} imports {self.flavor} before it is needed"


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module


def _chain(error: BaseException | None) -> list[BaseException]:
    """Return an exception and all that its tracebacks would show as its causes and contexts."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


@contextmanager
def _seeded() -> Iterator[list[Any]]:
    """Seed the global random states there are; yield a list that has them afterwards."""
    states: list[Any] = []
    kept = random.getstate()
    random.seed(7)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed(7)
    if torch is not None:
        torch.manual_seed(7)
    yield states
    states.append(random.getstate())
    if numpy is not None:
        states.append([str(part) for part in numpy.random.get_state()] + [numpy.random.random()])
    if torch is not None:
        states.append(torch.get_rng_state().tolist())
    random.setstate(kept)


def _attributes(package: str) -> Iterator[tuple[tuple[Any, str], Any]]:
    """Yield ((owner, name), object) of the functions in the modules and classes of a package that are loaded."""
    kinds = (types.FunctionType, types.BuiltinFunctionType, staticmethod, classmethod, property, patching.Wrapper)
    classes: dict[int, type] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != package or not isinstance(module, types.ModuleType):
            continue
        for attribute, held in list(vars(module).items()):
            if isinstance(held, type) and held.__module__.partition(".")[0] == package:
                classes[id(held)] = held
            elif isinstance(held, kinds):
                yield (module, attribute), held
    for cls in classes.values():
        for attribute, held in list(vars(cls).items()):
            if isinstance(held, kinds):
                yield (cls, attribute), held


def _pickles(held: Any) -> bool:
    return guard.attempt(pickle.dumps, held).error is None
