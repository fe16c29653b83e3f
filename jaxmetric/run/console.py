"""The output of a command: one line per warning or error, and an exit code."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxmetric.data import InputError
from jaxmetric.run.errors import ConfigError
from jaxmetric.training import CheckpointError, NonFiniteLossError
from jaxmetric.training.loop import discard_output, tell

LOST = "lost another process of the job"
GOES_ON = "the same command goes on from the last checkpoint, if there is one"
LOST_CODE = 75  # for a process that ends because another one failed: EX_TEMPFAIL of sysexits.h


def say(text: str) -> None:
    """Prints from one process of a job. If the reader is gone, as after `| head`, the process stops as on SIGTERM."""
    if jax.process_index() == 0:
        try:
            tell(text, sys.stdout)
        except BrokenPipeError:
            stop_unread(1)


def stop_unread(*descriptors: int) -> None:
    """Stops this process as SIGTERM does, and discards what it writes to these file descriptors."""
    discard_output(*descriptors)
    os.kill(os.getpid(), signal.SIGTERM)


def start_jax() -> None:
    """Finds the devices, and caches compiled programs in the user's cache directory for the next start.

    Raises:
      ConfigError: see `find_devices`.
    """
    find_devices()
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "programs"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def cache_folder() -> Path:
    """Returns the folder in the user's cache directory for what can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmetric"


def find_devices() -> None:
    """Lets jax look for devices.

    Raises:
      ConfigError: if there is none of the requested kind.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # which one depends on the installed plugins
        platforms = jax.config.values["jax_platforms"]
        asked = f"JAX_PLATFORMS is {platforms}: " if platforms else ""
        raise ConfigError(f"{asked}{first_line(error) or 'jax has nothing to run it on'}") from error


def run_command(command: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit code.

    Errors that a user can fix (in values, files and training) become one line on stderr. Others are bugs and keep their
    traceback.
    """
    # Threads of orbax and tensorstore also print tracebacks of errors that are raised here as exceptions.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    sys.unraisablehook = _report_unraisable
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: tell(f"warning: {message}")
        try:
            return command() or 0
        except BrokenPipeError:  # handled by `jaxmetric.__main__.leave`
            raise
        except (
            ValueError,
            TypeError,
            OverflowError,
            OSError,
            CheckpointError,
            InputError,
            NonFiniteLossError,
            jax.errors.JaxRuntimeError,
        ) as error:
            line = _line(error)
            tell(f"error: {line}")
            return LOST_CODE if line.startswith(LOST) else 1
        except KeyboardInterrupt:
            tell("interrupted")
            return 130


def _report_unraisable(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error; those of jax have many."""
    return str(error).split("\n")[0]


def _line(error: BaseException) -> str:
    first = first_line(error)
    of_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if of_jax and first.startswith("RESOURCE_EXHAUSTED"):
        return f"the devices ran out of memory ({first}); --remat needs less, as smaller batches and --chunks do"
    # If a process notices a broken connection at once, jax raises a ValueError.
    if "Gloo" in first or (of_jax and "coordination" in first.lower()):
        return f"{LOST} ({first}); {GOES_ON}"
    if of_jax:
        raise error
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
