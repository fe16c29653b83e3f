"""What a person sees of a command: warnings and errors in one line each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*words, **options):
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("platform", ["cuda", pytest.param("nonsense", marks=pytest.mark.slow)])
def test_a_device_that_is_not_there_is_one_line(platform, tmp_path):
    words = ["jaxmetric", "train", "debug", "--workdir", str(tmp_path / "run")]
    done = run(*words, env={**os.environ, "JAX_PLATFORMS": platform})
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: JAX_PLATFORMS is {platform}: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_not_there_is_one_line_of_several_processes():
    done = run("experiments.hosts", "2", "debug", env={**os.environ, "JAX_PLATFORMS": "cuda"})
    assert done.returncode == 1
    assert done.stderr.startswith("error: JAX_PLATFORMS is cuda: ")
    assert done.stderr.count("\n") == 1
