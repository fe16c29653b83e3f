"""Times candidates in turns in one process, so that other load on the host affects all of them.

`compiled` and `torch_step` make candidates from functions; `compare` times them and prints a table.
"""

import ctypes
import importlib.util
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxmetric

# After a call, PyTorch's threads would spin on both cores while other candidates run.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HAVE_PEERS = all(importlib.util.find_spec(name) for name in ("torch", "pytorch_metric_learning"))
NO_PEERS = "PyTorch and pytorch-metric-learning are not installed: pip install -e '.[parity]' adds their rows."


class Candidate(NamedTuple):
    """A computation to time.

    Attributes:
      name: the name of the row.
      run: computes the result and waits for it.
      temporary: bytes that the compiled program allocates beside arguments and results, if known.
      compilation: seconds of tracing and compiling without a cache, if it was compiled.
      peak: bytes of arguments, results and temporary memory, if known.
    """

    name: str
    run: Callable[[], Any]
    temporary: int | None = None
    compilation: float | None = None
    peak: int | None = None


def compiled(name: str, function: Callable[..., Any], *arguments: Any) -> Candidate:
    """Makes a candidate that runs a JAX function, compiled beforehand."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    compilation = time.perf_counter() - start
    arguments = jax.device_put(arguments)
    memory = program.memory_analysis()
    temporary = memory.temp_size_in_bytes if memory else None
    peak = temporary + memory.argument_size_in_bytes + memory.output_size_in_bytes if memory else None
    return Candidate(name, lambda: jax.block_until_ready(program(*arguments)), temporary, compilation, peak)


def torch_step(name: str, loss: Callable[[], Any], parameters: Sequence[Any]) -> Candidate:
    """Makes a candidate that computes a PyTorch loss and its gradients."""

    def run() -> Any:
        for parameter in parameters:
            parameter.grad = None
        value = loss()
        value.backward()
        return value.item()

    return Candidate(name, run)


class Measurement(NamedTuple):
    """The cost of a candidate: seconds of its calls, and growth of the process in bytes during a call, if known."""

    seconds: list[float]
    resident: int | None


def measure(candidates: Sequence[Candidate], *, rounds: int = 15, seconds: float = 20.0) -> list[Measurement]:
    """Runs the candidates in turns.

    Args:
      candidates: the candidates.
      rounds: largest number of runs of each.
      seconds: time after which a candidate skips the remaining rounds (it runs at least twice).

    Returns:
      One measurement per candidate.
    """
    resident = [_resident_growth(candidate.run) for candidate in candidates]  # warms up as well
    times: list[list[float]] = [[] for _ in candidates]
    for _ in range(rounds):
        for spent, candidate in zip(times, candidates, strict=True):
            if len(spent) < 2 or sum(spent) < seconds:
                start = time.perf_counter()
                candidate.run()
                spent.append(time.perf_counter() - start)
    return [Measurement(*each) for each in zip(times, resident, strict=True)]


def compare(title: str, candidates: Sequence[Candidate], *, rounds: int = 15, seconds: float = 20.0) -> None:
    """Times the candidates in turns and prints a table of ratios to the first; see `measure` for the arguments."""
    measured = measure(candidates, rounds=rounds, seconds=seconds)
    medians = [float(np.median(each.seconds)) for each in measured]
    print(f"\n{title}")
    print(f"{'':52}{'median':>11}{'fastest':>11}{'ratio':>9}{'temporary':>12}{'resident':>11}")
    for candidate, median, (spent, resident) in zip(candidates, medians, measured, strict=True):
        print(
            f"  {candidate.name:50}{_milliseconds(median)}{_milliseconds(min(spent))}"
            f"{median / medians[0]:>8.2f}x{megabytes(candidate.temporary):>12}{megabytes(resident):>11}"
        )


def print_environment() -> None:
    """Prints versions, devices and the meaning of the columns."""
    print_versions()
    print("ratio: median time divided by that of the first row, in this run. temporary: what the compiled program")
    print("allocates beside arguments and results. resident: growth of the process's memory during one call.")
    if not HAVE_PEERS:
        print(NO_PEERS)


def print_versions() -> None:
    """Prints versions and devices."""
    packages = ("jax", "jaxlib", "numpy", *(("torch", "pytorch-metric-learning") if HAVE_PEERS else ()))
    versions = [f"jaxmetric {jaxmetric.__version__}", *(f"{package} {version(package)}" for package in packages)]
    print(", ".join(versions))
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPUs, Python {platform.python_version()}, float32")


def _resident_growth(run: Callable[[], Any]) -> int | None:
    """Returns the peak growth of this process's resident memory during a second call, in bytes; None if unknown."""
    run()
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # returns memory freed by earlier calls to the system
        reset.write_text("5")  # resets the peak
        before = _kilobytes(status.read_text(), "VmRSS")
        run()
        return 1024 * max(_kilobytes(status.read_text(), "VmHWM") - before, 0)
    except OSError:
        return None


def _kilobytes(status: str, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found.group(1)) if found else 0


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:>8.2f} ms"


def megabytes(size: int | None) -> str:
    """Formats a size in bytes for a table; "" if unknown."""
    return "" if size is None else f"{size / 1e6:.1f} MB"
