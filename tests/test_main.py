"""The command line: its commands, how they start and end, and what is said where something is missing."""

import ast
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jaxmetric
from jaxmetric.__main__ import COMMANDS
from jaxmetric._extras import TRAIN

ROOT = Path(__file__).parents[1]
PACKAGE = Path(jaxmetric.__file__).parent
DOORS = [("jaxmetric", "train"), ("experiments.hosts",)]
SUBPACKAGES = {"data": "grain", "encoders": "flax", "report": "PIL", "training": "flax"}  # and what each needs first


def run(*words, code="", **environment):
    """Runs `python -m WORDS`, after some code if there is any."""
    script = f"import runpy, sys; {code}; sys.argv[1:] = {list(words[1:])!r}; "
    script += f"runpy.run_module({words[0]!r}, run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", script] if code else [sys.executable, "-m", *words]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100, check=False
    )


def without(package):
    return f"sys.modules[{package!r}] = None"


def test_help_has_a_line_for_each_command():
    done = run("jaxmetric", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, what in COMMANDS.items():
        assert f"\n  {name:10}{what}\n" in done.stdout


def test_the_version_is_one_line():
    assert run("jaxmetric", "--version").stdout == f"jaxmetric {jaxmetric.__version__}, jax {jax.__version__}\n"


def test_without_a_command_the_commands_are_listed():
    done = run("jaxmetric")
    assert done.returncode == 2
    assert done.stdout.startswith("usage: jaxmetric COMMAND")


@pytest.mark.parametrize(("word", "near"), [("trian", " (did you mean train?)"), ("xyz", "")])
def test_an_unknown_command_is_a_one_line_error_with_the_nearest_name(word, near):
    done = run("jaxmetric", word)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: no command is called {word!r}{near}; there are {', '.join(COMMANDS)}\n"


@pytest.mark.parametrize("door", ["jaxmetric ", "python -m experiments."])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_names_it_as_it_was_called(name, door, monkeypatch, capsys):
    monkeypatch.setenv("JAXMETRIC_COMPILES_HERE", "1")  # else compile prints from a process of its own
    command = importlib.import_module(f"jaxmetric.run.{name}").main
    try:
        code = command(["--help"], program=f"{door}{name}")
    except SystemExit as stopped:
        code = stopped.code
    assert not code
    assert f"{door}{name}" in capsys.readouterr().out


@pytest.mark.parametrize("words", DOORS, ids=" ".join)
def test_a_command_without_its_extra_is_a_one_line_error_that_names_the_extra(words):
    done = run(*words, code=without("flax"))
    called = " ".join(words).replace("experiments", "python -m experiments")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {called} needs flax: pip install 'jaxmetric[train]'\n"


def test_the_losses_are_listed_without_the_extra():
    done = run("jaxmetric", "losses", code="; ".join(map(without, TRAIN)))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_subpackage_without_its_extra_names_the_extra():
    script = ["import sys", *map(without, TRAIN), "import jaxmetric"]
    for subpackage in SUBPACKAGES:
        for statement in (f"import jaxmetric.{subpackage}", f"jaxmetric.{subpackage}"):
            script += ["try:", f"    {statement}", "except ModuleNotFoundError as error:", "    print(error)"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    line = "jaxmetric.{} needs {}: pip install 'jaxmetric[train]'"
    assert done.stdout.splitlines() == [line.format(*needed) for needed in SUBPACKAGES.items() for _ in range(2)]


def outside(folder):
    """The packages, beyond those of the core, that the files of a folder import whenever they are imported."""
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            else:
                continue
            for name in names:
                package = name.split(".")[0]
                if package not in sys.stdlib_module_names | {"jax", "numpy", "jaxmetric"}:
                    yield package


@pytest.mark.parametrize("subpackage", SUBPACKAGES)
def test_a_subpackage_requires_all_that_it_imports(subpackage):
    body = ast.parse((PACKAGE / subpackage / "__init__.py").read_text()).body
    calls = [node.value for node in body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert {argument.value for argument in calls[0].args[1:]} == set(outside(PACKAGE / subpackage))


def test_a_command_requires_all_that_it_imports():
    imported = {name for folder in [*SUBPACKAGES, "run"] for name in outside(PACKAGE / folder)}
    assert imported | {"sklearn"} == set(TRAIN)  # scikit-learn is imported when a report is written


@pytest.mark.parametrize("words", DOORS, ids=" ".join)
def test_ctrl_c_during_the_imports_of_a_command_ends_the_process_silently(words, tmp_path):
    (tmp_path / "tyro.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(*words, PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    (tmp_path / "tyro.py").write_text("import signal\nraise SystemExit(signal.getsignal(signal.SIGINT).name)\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = f"trap '' INT; exec {sys.executable} -m jaxmetric train"
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == "SIG_IGN\n"


def test_importing_sets_no_signal_handler():
    script = (
        "import signal; numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE); "
        "before = list(map(signal.getsignal, numbers)); import jaxmetric.__main__, jaxmetric.run.train, experiments; "
        "assert before == list(map(signal.getsignal, numbers))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("words", [("jaxmetric",), ("experiments.train",)], ids=" ".join)
def test_help_whose_reader_is_gone_ends_silently(words):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *words, "--help"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = {"stdout": write, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=100, check=False, **pipes)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
