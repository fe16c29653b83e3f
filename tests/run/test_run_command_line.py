"""Presets by name and by file, and what is said of those that are none."""

import re
import sys
from pathlib import Path

import pytest

from experiments import presets as papers
from jaxmetric.run.command_line import find_preset
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.presets import BUILT_IN, PRESETS
from jaxmetric.run.train import read_command_line

PRESET = """
import dataclasses
from jaxmetric.run.presets import PRESETS

def config():
    return dataclasses.replace(PRESETS["debug"], steps=7)
"""


@pytest.fixture
def preset(tmp_path, monkeypatch):
    """Writes a file `mine.py` in the current directory, and returns a function that reads it as a preset."""
    monkeypatch.chdir(tmp_path)

    def read(text):
        (tmp_path / "mine.py").write_text(text)
        return find_preset("mine.py", BUILT_IN)

    return read


def test_a_file_is_a_preset_with_flags_and_a_directory_of_its_own(preset):
    preset(PRESET)
    name, (config, _, workdir) = read_command_line(["mine.py", "--log-every", "3"])
    assert (name, config.steps, config.log_every, str(workdir)) == ("mine", 7, 3, "runs/mine")
    assert config.network == PRESETS["debug"].network


def test_a_preset_of_the_same_name_is_another(preset, tmp_path):
    (tmp_path / "debug.py").write_text(PRESET)
    assert find_preset("debug.py", BUILT_IN)[1].steps == 7
    assert find_preset("debug", BUILT_IN)[1] == PRESETS["debug"]


def test_a_file_may_import_its_neighbors_and_declare_dataclasses(preset, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_steps_of_a_preset.py").write_text("STEPS = 11\n")
    text = """
from __future__ import annotations
import dataclasses
import my_steps_of_a_preset
from jaxmetric.run.config import Config

@dataclasses.dataclass
class Mine:
    steps: int = my_steps_of_a_preset.STEPS

def config():
    return Config(steps=Mine().steps)
"""
    assert preset(text)[1].steps == 11


def test_the_preset_in_the_docs_is_one(preset):
    page = (Path(__file__).parents[2] / "docs" / "running.md").read_text()
    _, config = preset(re.search(r"^```python\n(# my_preset\.py\n.*?)^```$", page, re.DOTALL | re.MULTILINE)[1])
    assert (config.steps, config.loss) == (200, "supcon(on='role') + 5*quadruplet")


def test_a_missing_file_is_a_one_line_error():
    with pytest.raises(ConfigError, match=r"^nowhere/mine\.py: no such file$"):
        find_preset("nowhere/mine.py", BUILT_IN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nx = 1 / 0\n", r"mine\.py:2: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", r"mine\.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = (\n", r"mine\.py:1: SyntaxError: '\(' was never closed.*"),
        (
            "def config():\n    return helper()\n\ndef helper():\n    raise KeyError('a')\n",
            r"mine\.py:5: KeyError: 'a'",
        ),
        (
            "from jaxmetric.run.config import Config\ndef config():\n    return Config(stepz=3)\n",
            r"mine\.py:3: TypeError: .*unexpected keyword argument 'stepz'.*",
        ),
        ("", r"mine\.py defines no config\(\), a function that returns a jaxmetric\.run\.config\.Config"),
        ("config = 3", r"config of mine\.py has type int, expected a function that returns a Config"),
        ("config = None", r"config of mine\.py has type NoneType, expected a function that returns a Config"),
        (
            "config = dict",
            r"config\(\) of mine\.py returned a value of type dict, expected .*Config",
        ),
        (
            "def config(): pass",
            r"config\(\) of mine\.py returned a value of type NoneType, expected .*Config",
        ),
    ],
)
def test_a_file_without_a_configuration_is_a_one_line_error(text, message, preset):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        preset(text)


@pytest.mark.parametrize(("word", "near"), [("debgu", " (did you mean debug?)"), ("xyz", "")])
def test_an_unknown_preset_is_a_one_line_error_with_the_nearest_name(word, near):
    with pytest.raises(SystemExit) as stopped:
        read_command_line([word])
    assert stopped.value.code == f"error: no preset is called {word!r}{near}; there are {', '.join(BUILT_IN)}"


def test_the_experiments_have_the_built_in_presets_too():
    assert {**BUILT_IN, **papers.PAPERS} == papers.PRESETS
