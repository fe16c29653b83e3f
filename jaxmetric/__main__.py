"""The command line: `jaxmetric COMMAND ...` or `python -m jaxmetric COMMAND ...`."""

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax

import jaxmetric
from jaxmetric._extras import TRAIN, require
from jaxmetric.run.names import did_you_mean

# Each is a file of `jaxmetric.run` with a function `main(argv, *, program)`.
COMMANDS = {
    "train": "train on labeled images, evaluate on held-out ones, and write a report",
    "evaluate": "evaluate a trained run again, or on another list of images",
    "compare": "print the mean and spread of evaluated runs side by side",
    "compile": "compile the training step for a TPU slice without having one",
    "hosts": "train in several processes, on one host or on many",
    "losses": "list the losses with their options and defaults, or explain one",
}
_LIGHT = ("losses",)  # need only jax and numpy


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the command named by the first word, and ends the process with its exit code."""
    words = sys.argv[1:] if argv is None else argv
    name, rest = (words[0], words[1:]) if words else ("", ())
    if name in COMMANDS:
        run(name, rest, program=f"jaxmetric {name}")
    leave(lambda: _without_command(name))


def run(name: str, argv: Sequence[str] | None = None, *, program: str, presets: str = "") -> NoReturn:
    """Runs one command, and ends the process with its exit code.

    Args:
      name: the command.
      argv: the words after it; those of this process if not given.
      program: how the command was called, for its help text and for processes that it starts.
      presets: a module whose `PRESETS` replace the built-in ones.
    """
    # Importing a command takes a second, and jax swallows exceptions that Ctrl-C raises during garbage collection.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    words = list(sys.argv[1:] if argv is None else argv)
    leave(lambda: _run(name, words, program, presets))


def _run(name: str, words: Sequence[str], program: str, presets: str) -> int:
    if name not in _LIGHT:
        try:
            require(program, *TRAIN)
        except ModuleNotFoundError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    command = importlib.import_module(f"jaxmetric.run.{name}").main
    own = {"presets": importlib.import_module(presets).PRESETS} if presets else {}
    return int(command(words, program=program, **own))


def _without_command(name: str) -> int:
    if name == "--version":
        print(f"jaxmetric {jaxmetric.__version__}, jax {jax.__version__}")
        return 0
    if name not in ("", "-h", "--help"):
        known = ", ".join(COMMANDS)
        print(f"error: no command is called {name!r}{did_you_mean(name, COMMANDS)}; there are {known}", file=sys.stderr)
        return 2
    lines = "\n".join(f"  {command:10}{what}" for command, what in COMMANDS.items())
    print(f"usage: jaxmetric COMMAND ...\n\n{lines}\n\njaxmetric COMMAND --help explains a command.")
    return 0 if name else 2


def leave(command: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process; at once if the command failed, without waiting for other processes."""
    try:
        try:
            code = command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader is gone, as after `| head`
        os._exit(1)
    except Exception:  # at a normal exit jax would wait for the other processes, which wait for this one
        traceback.print_exc()
        code = 1
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
