"""Runs the suite on eight CPU devices, with one compilation cache for the tests and the processes they start."""

import gc
import math
import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
if "XLA_FLAGS" not in os.environ:  # with flags, or none, of one's own the suite runs what users run
    # Programs are small here and run a few times: optimizing them takes longer than they ever run.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if version("jaxlib").startswith("0.10."):  # a process ends at a flag that its XLA does not know
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # these take a third of the suite's time
os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit that of the process that starts them
    _CACHE = tempfile.TemporaryDirectory(prefix="jaxmetric-cache-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.0"

import jax
import pytest
from hypothesis import settings

# Processes that tests start inherit this; a shell lets what it starts in the background ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Compilations make single examples slow and uneven; the seed is fixed so that a run is repeatable.
settings.register_profile("jaxmetric", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("jaxmetric")

THROUGH_LOSSES = (
    "test_loss_conformance.py",
    "test_loss_transformations.py",
    "test_large_numbers.py",
    "test_parallel.py",
)
ROOM = 2 * 2**30  # bytes, of each worker


def pytest_collection_modifyitems(items):
    """Keeps together what shares compiled programs, and refuses names that differ from worker to worker."""
    unstable = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if unstable:
        raise pytest.UsageError(f"{unstable[0]} is named by an address in memory; give its parameters ids")
    items.sort(key=group_of)


def pytest_collection_finish():
    """Has the collector of garbage look less often, and never at what stays: it took a quarter of all tracing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_runtest_teardown(item, nextitem):
    """Frees the programs of a file, which would add up to gigabytes, and of a loss where they already do."""
    if nextitem is None or nextitem.path != item.path or (group_of(nextitem) != group_of(item) and resident() > ROOM):
        jax.clear_caches()


def resident():
    """Bytes of memory that this process takes; without end where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return math.inf


def group_of(item):
    """The file, and where its tests run through all losses, the loss as well."""
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    runs_through_losses = item.path.name in THROUGH_LOSSES
    return item.path.name, parameters.get("name", "") if runs_through_losses else ""
