"""Runs the suite on eight CPU devices, with one compilation cache for the tests and the processes they start."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Programs are small here and run a few times: optimising them takes longer than they ever run.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers inherit that of the process that starts them
    _CACHE = tempfile.TemporaryDirectory(prefix="jaxmetric-cache-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import pytest
from hypothesis import settings

# Compilations make single examples slow and uneven; the seed is fixed so that a run is repeatable.
settings.register_profile("jaxmetric", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("jaxmetric")


def pytest_collection_modifyitems(config, items):
    """Keeps together what shares compiled programs: the tests of a file, or of a loss in its conformance suite."""
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        group = item.path.name
        if group == "test_loss_conformance.py" and hasattr(item, "callspec"):
            group = f"conformance of {item.callspec.params['name']}"
        item.add_marker(pytest.mark.xdist_group(group))
