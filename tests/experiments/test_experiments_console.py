"""What surrounds a command: its start, its end, and how a person is told."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from experiments.console import with_room_for_frames

ROOT = Path(__file__).parents[2]
COMMANDS = ["train", "evaluate", "compare", "hosts", "compile"]


def run(*words, **options):
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, **options)


def test_a_loop_of_calls_maps_no_memory_however_deep_it_lies():
    program = textwrap.dedent("""
        import resource
        import sys
        from experiments.console import with_room_for_frames

        def leaf():
            pass

        leaf.__code__ = leaf.__code__.replace(co_stacksize=500)  # as large as it takes to meet the end of a piece

        def faults(depth):
            if depth:
                return faults(depth - 1)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(300):
                leaf()
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        print(with_room_for_frames(lambda: max(faults(depth) for depth in range(500))))
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_what_a_function_returns_is_passed_on():
    assert with_room_for_frames(lambda: 7) == 7


@pytest.mark.parametrize("platform", ["cuda", pytest.param("nonsense", marks=pytest.mark.slow)])
def test_a_device_that_is_not_there_is_one_line(platform, tmp_path):
    words = ["experiments.train", "debug", "--workdir", str(tmp_path / "run")]
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


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_during_the_imports_ends_the_process_without_a_word(command, tmp_path):
    (tmp_path / "jax.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = run(f"experiments.{command}", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_a_shell_that_ignores_ctrl_c_is_heeded():
    program = "import signal, sys; sys.argv = ['-m']; import experiments; print(signal.getsignal(signal.SIGINT).name)"
    command = f"trap '' INT; exec {sys.executable} -c \"{program}\""
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "SIG_IGN\n"


@pytest.mark.parametrize(
    "command",
    [name if name in ("train", "hosts") else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS],
)
def test_help_that_nobody_reads_to_its_end_ends_without_a_word(command):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", f"experiments.{command}", "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": write, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=60, check=False, **pipes)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
