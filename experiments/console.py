"""What a person sees of a command: warnings and errors in one line each, and an exit code."""

import logging
import sys
import warnings
from collections.abc import Callable

from jaxmetric.training import CheckpointError, NonFiniteLossError


def run_command(command: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code.

    Errors that a user can mend (of values, files and training) become one line on stderr; others keep their traceback,
    as they are mistakes in the program.
    """
    for name in ("absl", "asyncio"):  # orbax's threads log tracebacks of errors that arrive here as exceptions
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            return command() or 0
        except (ValueError, TypeError, OverflowError, OSError, CheckpointError, NonFiniteLossError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
