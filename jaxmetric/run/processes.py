"""A process of a job: starting it, connecting it to the others, and ending it with its launcher."""

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from jaxmetric.run.console import find_devices, first_line, stop_unread
from jaxmetric.run.errors import ConfigError
from jaxmetric.training.loop import tell

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
_PATIENCE = 300  # seconds within which all processes of a job must have joined
_QUIET = 10  # seconds before a process reports that it waits
FOLLOWS = "JAXMETRIC_FOLLOWS_LAUNCHER"  # set for processes whose stdin ends with the launcher


def python_command(program: str) -> list[str]:
    """Returns the arguments that start a command in another process in the same way as this process was started.

    Example:
      >>> python_command("jaxmetric train")[1:], python_command("python -m experiments.train")[1:]
      (['-u', '-m', 'jaxmetric', 'train'], ['-u', '-m', 'experiments.train'])
    """
    return [sys.executable, "-u", "-m", *program.removeprefix("python -m ").split()]


def join_processes() -> None:
    """Joins the other processes of the job; must be called before anything uses jax devices.

    Raises:
      ConfigError: if they cannot be found or do not answer.
    """
    given = [name for name in VARIABLES if os.environ.get(name)]
    if given and len(given) < len(VARIABLES):
        missing = ", ".join(name for name in VARIABLES if name not in given)
        raise ConfigError(f"distributed: {', '.join(given)} set, but not {missing}")
    arguments: dict[str, Any] = {}
    who, where = "this process", ""
    if given:
        address, count, index = (os.environ[name] for name in VARIABLES)
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            what = f"JAX_PROCESS_ID is {index} and JAX_NUM_PROCESSES {count}"
            raise ConfigError(f"distributed: {what}, expected whole numbers, 0 <= id < number")
        if not (re.fullmatch(r".+:\d{1,5}", address) and 0 < int(address.rpartition(":")[2]) < 2**16):
            raise ConfigError(f"distributed: JAX_COORDINATOR_ADDRESS is {address}, expected host:port")
        arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
        who, where = f"process {index} of {count}", f" at {address}"
    # Its handler would replace that of `stop_on_signals`, which also handles Ctrl-C and ends steps that take too long.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _watching_the_wait(who, where):
            jax.distributed.initialize(
                **arguments,
                heartbeat_timeout_seconds=HEARTBEAT,
                initialization_timeout=2 * _PATIENCE,  # after that, it aborts the process with pages of output
            )
    except (RuntimeError, ValueError) as error:
        hint = "" if given else f" (elsewhere than on TPU pods, Slurm and Open MPI set {', '.join(VARIABLES)})"
        raise ConfigError(f"distributed: {first_line(error)}{hint}") from error
    find_devices()
    here, everywhere, count = jax.local_device_count(), jax.device_count(), jax.process_count()
    if here * count != everywhere:
        raise ConfigError(
            f"distributed: this one of {count} processes has {here} of {everywhere} devices, expected as many in each"
        )


@contextmanager
def _watching_the_wait(who: str, where: str) -> Iterator[None]:
    """Reports that this process waits for the others, and gives up after a while."""
    met = threading.Event()

    def watch() -> None:
        if met.wait(_QUIET):
            return
        tell(f"{who} waits for the others{where}, up to {_PATIENCE} s", sys.stdout)
        if not met.wait(_PATIENCE - _QUIET):
            tell(f"error: {who} waited {_PATIENCE} s for the others{where}; not all came")
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        met.set()


def follow_launcher() -> None:
    """Stops this process, as SIGTERM does, when its launcher is gone."""
    if os.environ.pop(FOLLOWS, None) is None:
        return

    def follow() -> None:
        while os.read(0, 1):  # nothing is ever written to it
            pass
        stop_unread(1, 2)

    threading.Thread(target=follow, daemon=True).start()
