"""Reads a command line: a preset by name or from a file, and a flag for every field of its configuration."""

import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from jaxmetric.run.config import Config
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.names import did_you_mean
from jaxmetric.run.presets import DEFAULT, Preset

_TERMS = ("quadruplet", "soft-triple", "softmax", "triplet")
_RENAMED_FLAGS = {
    "--colour": "--color",
    "--pictures-per-class": "--images-per-class",
    **{f"--{term}-weight": """--loss, as in --loss '2*quadruplet(margin=0.3) + triplet'""" for term in _TERMS},
}


def parse(
    argv: Sequence[str],
    presets: Mapping[str, Preset],
    *,
    program: str,
    purpose: str,
    command: Callable[[str, Config], Callable[..., Any]],
) -> tuple[str, Any]:
    """Reads `[PRESET] [--field value]`, and the flags that a command adds.

    Args:
      argv: the command line without the program.
      presets: the presets by name. Instead of a name, the command line may give a Python file that defines `config()`.
      program: how the command was called, for the help text.
      purpose: the purpose of the command, for the help text.
      command: maps a preset's name and configuration to the function whose arguments are the flags.

    Returns:
      The preset's name (the stem of its file), and the result of the function.

    Raises:
      SystemExit: after --help, or for a preset or field that does not exist.
    """
    for flag in (word.split("=")[0].replace("_", "-") for word in argv):
        if flag in _RENAMED_FLAGS:
            sys.exit(f"error: {flag} is now {_RENAMED_FLAGS[flag]}")
    named = bool(argv) and not argv[0].startswith("-")
    word, rest = (argv[0], argv[1:]) if named else (DEFAULT, argv)
    try:
        name, preset = find_preset(word, presets)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    lines = "\n".join(f"  {preset}: {_first_line(function)}" for preset, function in presets.items())
    description = (
        f"{purpose}:\n{program} [PRESET] [--field value]\n\n"
        f"Presets (without one, {DEFAULT}), or a Python file that defines config():\n{lines}\n\n"
        f"The values below are those of {word}."
    )
    parsed = tyro.cli(
        command(name, preset),
        args=rest,
        prog=f"{program} {word}",
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return name, parsed


def find_preset(word: str, presets: Mapping[str, Preset]) -> tuple[str, Config]:
    """Returns the name and the configuration of a preset, given its name or a Python file that defines `config()`.

    Raises:
      ConfigError: if there is none, or the file fails; one line.
    """
    if word.endswith(".py"):
        return Path(word).stem, _config_of_file(word)
    if word not in presets:
        raise ConfigError(f"no preset is called {word!r}{did_you_mean(word, presets)}; there are {', '.join(presets)}")
    return word, presets[word]()


def _config_of_file(path: str) -> Config:
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location("__preset__", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As Python does for a script: it may import its neighbors, and dataclasses look up the module of their types.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        spec.loader.exec_module(module)
        function = getattr(module, "config", None)
        config = function() if callable(function) else None
    except Exception as error:
        line = _line_in(str(spec.origin), error)
        raise ConfigError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    if not hasattr(module, "config"):
        raise ConfigError(f"{path} defines no config(), a function that returns a jaxmetric.run.config.Config")
    if not callable(function):
        kind = type(function).__name__
        raise ConfigError(f"config of {path} has type {kind}, expected a function that returns a Config")
    if not isinstance(config, Config):
        kind = type(config).__name__
        raise ConfigError(f"config() of {path} returned a value of type {kind}, expected jaxmetric.run.config.Config")
    return config


def _line_in(path: str, error: Exception) -> int:
    """Returns the last line of a file in the traceback of an error, or the line that Python could not parse."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return lines[-1] or 1 if lines else 1


def _first_line(function: Preset) -> str:
    return (function.__doc__ or "").split("\n")[0]
