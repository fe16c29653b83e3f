"""What a person sees of a command: warnings and errors in one line each."""

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from jaxmetric.run.console import run_command, say

ROOT = Path(__file__).parents[2]


class Pieces(io.RawIOBase):
    """Keeps each piece that is written, as a pipe from a process under `python -u` gets it."""

    def __init__(self):
        self.pieces = []

    def writable(self):
        return True

    def write(self, piece):
        self.pieces.append(bytes(piece).decode())
        return len(piece)


def fail(error):
    raise error


# A thread of the runtime may write between two pieces of a line, and a launcher then passes on half a message.
@pytest.mark.parametrize(
    ("stream", "command", "line"),
    [
        ("stderr", lambda: fail(ValueError("two rows\nand more")), "error: two rows\nand more\n"),
        ("stderr", lambda: fail(KeyboardInterrupt()), "interrupted\n"),
        ("stderr", lambda: warnings.warn("few images", UserWarning, stacklevel=1), "warning: few images\n"),
        ("stdout", lambda: say("step 1"), "step 1\n"),
    ],
    ids=["error", "interrupted", "warning", "progress"],
)
def test_a_line_is_written_in_one_piece(stream, command, line, monkeypatch):
    raw = Pieces()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(raw, write_through=True))
    run_command(command)
    assert raw.pieces == [line]


def run(*words, **options):
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("platform", ["cuda", pytest.param("nonsense", marks=pytest.mark.slow)])
def test_a_missing_device_is_a_one_line_error(platform, tmp_path):
    words = ["jaxmetric", "train", "debug", "--workdir", str(tmp_path / "run")]
    done = run(*words, env={**os.environ, "JAX_PLATFORMS": platform})
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: JAX_PLATFORMS is {platform}: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_device_is_one_line_from_several_processes():
    done = run("experiments.hosts", "2", "debug", env={**os.environ, "JAX_PLATFORMS": "cuda"})
    assert done.returncode == 1
    assert done.stderr.startswith("error: JAX_PLATFORMS is cuda: ")
    assert done.stderr.count("\n") == 1
