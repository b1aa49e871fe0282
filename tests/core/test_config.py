"""Settings: arguments, variables, defaults, and clear errors at the call."""

from __future__ import annotations

import subprocess
import sys

import pytest

import autolog
from autolog.config import Config, resolve


def test_arguments_win_over_variables_win_over_defaults() -> None:
    assert resolve({}, {}).log_models is True
    assert resolve({}, {"AUTOLOG_LOG_MODELS": "false"}).log_models is False
    assert resolve({"log_models": True}, {"AUTOLOG_LOG_MODELS": "false"}).log_models is True


def test_every_setting_has_a_variable() -> None:
    config = resolve(
        {},
        {
            "AUTOLOG_FLAVORS": "sklearn, torch",
            "AUTOLOG_EXPERIMENT": "e",
            "AUTOLOG_TRACKING_URI": "sqlite:///x.db",
            "AUTOLOG_EXTRA_TAGS": "team=a,stage=b",
            "AUTOLOG_EXIT_TIMEOUT": "2.5",
            "AUTOLOG_CHECKPOINTS": "every=500 steps,keep_last=none,keep_best=2,mode=max,monitor=acc",
            "AUTOLOG_SENDER": "thread",
        },
    )
    assert config.flavors == ("sklearn", "torch")
    assert config.extra_tags == {"team": "a", "stage": "b"}
    assert config.exit_timeout == 2.5
    assert config.checkpoints == autolog.Checkpoints(
        every="500 steps", keep_last=None, keep_best=2, mode="max", monitor="acc"
    )
    assert config.checkpoints.interval == (500.0, "step")


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"log_model": True}, TypeError, "log_model"),
        ({"log_models": "yes"}, TypeError, "log_models must be True or False"),
        ({"sender": "carrier pigeon"}, ValueError, "process"),
        ({"exclude_flavors": "sklearn"}, TypeError, "list"),
        ({"flavors": ("torch",), "exclude_flavors": ("torch",)}, ValueError, "asked for and excluded"),
        ({"log_models": False, "registered_model_name": "m"}, ValueError, "needs log_models"),
        ({"extra_tags": ["a"]}, TypeError, "extra_tags"),
        ({"exit_timeout": -1}, ValueError, "seconds"),
        ({"experiment": ""}, TypeError, "experiment"),
        ({"checkpoints": "epoch"}, TypeError, "Checkpoints"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(given: dict, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        resolve(given, {})


def test_bad_variable_names_the_variable() -> None:
    with pytest.raises(ValueError, match="AUTOLOG_LOG_MODELS must be true or false"):
        resolve({}, {"AUTOLOG_LOG_MODELS": "maybe"})
    with pytest.raises(ValueError, match="AUTOLOG_EXIT_TIMEOUT"):
        resolve({}, {"AUTOLOG_EXIT_TIMEOUT": "soon"})


def test_unknown_argument_of_the_call_itself() -> None:
    with pytest.raises(TypeError, match="log_everything"):
        autolog.autolog(log_everything=True)  # type: ignore[call-arg]


def test_unknown_flavor_names_the_known_ones() -> None:
    with pytest.raises(LookupError, match="pyspark, sklearn, torch, xgboost"):
        autolog.autolog("tensorflow")


def test_flavor_asked_for_and_not_installed_says_how_to_install_it() -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Gone(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'xgboost': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "import autolog\n"
        "autolog.autolog()\n"
        "try: autolog.autolog('xgboost')\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "mlflow-autolog[xgboost]"' in done.stdout
    assert done.stderr == ""


def test_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().log_models = False  # type: ignore[misc]


@pytest.mark.parametrize("every", ["0 steps", "sometimes", "", "-1 steps", "5 parsecs"])
def test_checkpoints_refuse_what_means_nothing(every: str) -> None:
    with pytest.raises(ValueError, match="every must be"):
        autolog.Checkpoints(every=every)
