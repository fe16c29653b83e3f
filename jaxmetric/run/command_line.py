"""Reads a command line: a preset by name, and a flag for every field of its configuration."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from jaxmetric.run.config import Config

_TERMS = ("quadruplet", "soft-triple", "softmax", "triplet")
_RENAMED_FLAGS = {
    "--colour": "--color",
    "--pictures-per-class": "--images-per-class",
    **{f"--{term}-weight": """--loss, as in --loss '2*quadruplet(margin=0.3) + triplet'""" for term in _TERMS},
}


def parse(
    presets: dict[str, Config],
    about: dict[str, str],
    default: str,
    argv: Sequence[str],
    *,
    program: str,
    purpose: str,
    command: Callable[[str, Config], Callable[..., Any]],
) -> tuple[str, Any]:
    """Reads `[PRESET] [--field value]` and what else a command takes.

    Args:
      presets: by name.
      about: a line on each, for the help text.
      default: the preset taken where none is named.
      argv: the command line without the program.
      program: the module that is run.
      purpose: what it does, for the help text.
      command: makes of a preset the function whose arguments are the flags, the configuration among them.

    Returns:
      The preset's name, and what the function returned.

    Raises:
      SystemExit: after --help, or for an unknown preset or field.
    """
    for flag in (word.split("=")[0].replace("_", "-") for word in argv):
        if flag in _RENAMED_FLAGS:
            sys.exit(f"error: {flag} is now {_RENAMED_FLAGS[flag]}")
    named = bool(argv) and not argv[0].startswith("-")
    name, rest = (argv[0], argv[1:]) if named else (default, argv)
    if name not in presets:
        sys.exit(f"error: no preset is called {name!r}; there are {', '.join(presets)}")
    lines = "\n".join(f"  {preset}: {line}" for preset, line in about.items())
    description = (
        f"{purpose}:\npython -m {program} [PRESET] [--field value]\n\n"
        f"Presets (without one, {default}):\n{lines}\n\nThe values below are those of {name}."
    )
    parsed = tyro.cli(
        command(name, presets[name]),
        args=rest,
        prog=f"python -m {program} {name}",
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    return name, parsed
