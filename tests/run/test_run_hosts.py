"""Several processes on this machine: the numbers of one, and what happens when one of them dies."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from finished_runs import final_state

from jaxmetric.run import hosts, processes, train
from jaxmetric.run.console import GOES_ON, LOST_CODE, run_command
from jaxmetric.run.errors import ConfigError
from jaxmetric.training import checkpoints, read_metrics

ROOT = Path(__file__).parents[2]
SMALL = ["debug", "--steps", "8", "--log-every", "2", "--checkpoint-every", "4", "--evaluate-every", "4"]
DEVICES = "--xla_force_host_platform_device_count={} --xla_backend_optimization_level=0"
TWO_DEVICES = DEVICES.format(2)

# What each process does: three steps of a linear embedding, its own rows of each batch; checkpoints of all.
WORKER = textwrap.dedent("""
    import sys
    import jax, jax.numpy as jnp, numpy as np, optax
    from pathlib import Path
    import jaxmetric
    from jaxmetric.run.processes import join_processes
    from jaxmetric import parallel
    from jaxmetric.training import TrainState, open_checkpoints, restore_latest, save_checkpoint

    folder, driver, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if count > 1:
        join_processes()
    assert jax.process_count() == count
    if count > 1:  # what lies on one device of each process, as an initial state does, can be put together too
        assert parallel.across_processes(jnp.arange(3.0)).sharding.device_set == set(jax.devices())

    def step(state, batch, *, axis_name):
        def loss(params):
            embeddings, labels = parallel.gather((batch["x"] @ params["encoder"], batch["y"]), axis_name)
            return jaxmetric.soft_triple_loss(embeddings, labels, params["loss"])
        value, gradients = jax.value_and_grad(loss)(state.params)
        gradients = parallel.average(gradients, axis_name)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, state.params, gradients)
        return state.replace(step=state.step + 1, params=params), value

    rng = np.random.default_rng(0)
    params = jax.tree.map(jnp.float32, {"encoder": rng.normal(size=(5, 4)), "loss": rng.normal(size=(3, 2, 4))})
    driven = getattr(parallel, f"drive_{driver}")(step)
    start = TrainState(step=jnp.int32(0), params=params, batch_stats={}, opt_state=())
    with open_checkpoints(folder / "checkpoints") as checkpoints:
        restored = restore_latest(checkpoints, driven.state_shapes(start))
        state = driven.place_state(restored.state if restored else start)
        for _ in range(3):
            batch = {"x": rng.normal(size=(8, 5)).astype(np.float32), "y": rng.integers(0, 3, 8)}
            share = slice(8 * jax.process_index() // count, 8 * (jax.process_index() + 1) // count)
            state, loss = driven(state, {name: x[share] for name, x in batch.items()})
            print("LOSS", float(loss), flush=True)
        save_checkpoint(checkpoints, state)
""")


def run_workers(folder, driver, count):
    """The losses that each of the processes saw."""
    environment = {**os.environ, "XLA_FLAGS": TWO_DEVICES}
    address = f"127.0.0.1:{hosts._free_port()}"
    processes = []
    for index in range(count):
        place = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
        command = [sys.executable, "-c", WORKER, str(folder), driver, str(count)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, env={**environment, **place}, **pipes))
    printed = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, printed
    return [[float(line.split()[1]) for line in out.splitlines() if line.startswith("LOSS")] for out, _ in printed]


@pytest.mark.parametrize(
    "drivers", [("pmap", "shard_map"), pytest.param(("shard_map", "pmap"), marks=pytest.mark.slow)]
)
def test_two_processes_give_the_numbers_of_one_and_resume_from_a_checkpoint(drivers, tmp_path):
    alone = [run_workers(tmp_path / "alone", "pmap", 1)[0] for _ in drivers]
    assert [len(losses) for losses in alone] == [3, 3]
    for driver, expected in zip(drivers, alone, strict=True):
        for losses in run_workers(tmp_path / "two", driver, 2):
            np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_damage_found_by_one_process_makes_all_use_the_previous_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import jaxmetric.training.checkpoints as checkpoints\n"
        "checkpoints._READ_AT_ONCE = 0\n"  # as of files too large for one process to read all
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first, second = (run_workers(tmp_path, "shard_map", 2) for _ in range(2))
    assert first != second
    checkpoint = tmp_path / "checkpoints" / "6"
    names = list(json.loads((tmp_path / "checkpoints" / "6.files.json").read_text())["files"])
    largest = max(names[1::2], key=lambda name: (checkpoint / name).stat().st_size)
    whole = (checkpoint / largest).read_bytes()
    (checkpoint / largest).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert run_workers(tmp_path, "shard_map", 2) == second
    assert (tmp_path / "unreadable" / "6").exists()


@pytest.mark.slow
def test_an_error_in_one_process_is_reported_and_ends_the_others(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('JAX_PROCESS_ID') == '1':\n"
        "    import jaxmetric.training.loop as loop\n"
        "    def agreed(stop): raise KeyError('a mistake')\n"
        "    loop.StopRequest.agreed = agreed\n"
    )
    command = [sys.executable, "-m", "experiments.hosts", "2", *SMALL, "--workdir", str(tmp_path / "run")]
    environment = {**os.environ, "XLA_FLAGS": TWO_DEVICES, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "KeyError: 'a mistake'" in done.stderr
    assert "Aborted" not in done.stderr


def test_a_missing_setting_to_find_the_other_processes_is_named(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(
        ConfigError, match=r"^distributed: JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID set, but not JAX_NUM_P"
    ):
        processes.join_processes()


@pytest.mark.parametrize("address", ["localhost", "localhost:0", "localhost:99999", "localhost:22x", ":22"])
def test_an_invalid_address_is_named(address, monkeypatch):
    for name, value in zip(processes.VARIABLES, (address, "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    message = f"^distributed: JAX_COORDINATOR_ADDRESS is {address}, expected host:port$"
    with pytest.raises(ConfigError, match=message):
        processes.join_processes()


def test_an_invalid_number_is_named(monkeypatch):
    for name, value in zip(processes.VARIABLES, ("127.0.0.1:1", "two", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match=r"^distributed: JAX_PROCESS_ID is 0 and JAX_NUM_PROCESSES two, expected whole"
    ):
        processes.join_processes()


@pytest.mark.parametrize(
    ("program", "door"),
    [
        ("jaxmetric hosts", ["-m", "jaxmetric", "train"]),
        ("python -m experiments.hosts", ["-m", "experiments.train"]),
    ],
)
def test_processes_are_started_with_the_same_command_as_the_launcher(program, door, monkeypatch):
    started = []
    monkeypatch.setattr(hosts, "supervise", lambda environments, command: started.append((environments, command)) or 0)
    assert hosts.main(["2", "debug", "--steps", "3"], program=program) == 0
    ((environments, command),) = started
    assert command == [sys.executable, "-u", *door, "debug", "--steps", "3", "--distributed"]
    assert [environment["JAX_PROCESS_ID"] for environment in environments] == ["0", "1"]


def test_wrong_flags_are_reported_before_anything_starts(capsys):
    with pytest.raises(SystemExit):
        hosts.main(["2", "debug", "--no-such-flag", "3"])
    assert "no-such-flag" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "code"), [([], 2), (["zero"], 2), (["--help"], 0)])
def test_the_command_prints_its_usage(words, code, capsys):
    assert hosts.main(words) == code
    printed, errors = capsys.readouterr()
    if code:
        assert errors.startswith(
            f"error: expected a number of processes or join, got {words[0] if words else 'nothing'}; "
        )
        assert errors.count("\n") == 1
    else:
        assert "jaxmetric hosts 2" in printed


WAITING = """
from jaxmetric.run import hosts, processes, train
processes._QUIET, processes._PATIENCE = 0.1, 2
raise SystemExit(train.main(["debug", "--distributed", "--workdir", "nowhere"]))
"""


def wait_alone(index, *command):
    """A process that waits for another, which does not come, and the port at which they were to meet."""
    port = hosts._free_port()
    place = zip(processes.VARIABLES, (f"127.0.0.1:{port}", "2", str(index)), strict=True)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env={**os.environ, **dict(place)}, **pipes)
    return process, port


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_no_other_joins_reports_it_and_ends(index):
    process, port = wait_alone(index, "-c", WAITING)
    printed, errors = outcome(process)
    who, where = f"process {index} of 2", f"at 127.0.0.1:{port}"
    assert printed == f"{who} waits for the others {where}, up to 2 s\n"
    assert errors == f"error: {who} waited 2 s for the others {where}; not all came\n"
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_process_that_waits_for_others_handles_signals(number, tmp_path):
    process, port = wait_alone(0, "-m", "experiments.train", "debug", "--distributed", "--workdir", str(tmp_path))
    with process:
        deadline = time.monotonic() + 60
        while not listens(port):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        assert outcome(process) == ("", "")
    assert process.returncode == -number


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


FOLLOWING = """
import time
from jaxmetric.run.processes import follow_launcher
from jaxmetric.training import stop_on_signals
with stop_on_signals() as stop:
    follow_launcher()
    deadline = time.monotonic() + {patience}
    while stop.signal is None and time.monotonic() < deadline:
        time.sleep(0.05)
print("nobody reads this")
raise SystemExit(7 if stop.signal == "SIGTERM" else 8)
"""


@pytest.mark.parametrize(("follows", "patience", "code"), [(True, 60, 7), (False, 0.5, 8)])
def test_a_process_stops_with_its_launcher(follows, patience, code):
    environment = {**os.environ, **({processes.FOLLOWS: "1"} if follows else {})}
    command = [sys.executable, "-c", FOLLOWING.format(patience=patience)]
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        process.stdin.close()
        if follows:
            process.stdout.close()
        assert process.wait(60) == code


def test_the_job_stops_without_blocking_if_nobody_reads_the_output_of_the_launcher(sleeping, monkeypatch, capfd):
    class Unread:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", Unread())
    much = "i=0; while [ $i -lt 20000 ]; do echo a line that somebody prints; i=$((i + 1)); done"
    with pytest.raises(BrokenPipeError):  # of the launcher's own last line
        hosts.supervise([{**os.environ, "FIRST": f"trap '' TERM; {much}; trap - TERM; kill -TERM $$"}], sleeping)


@pytest.mark.slow
def test_when_the_launcher_is_killed_its_processes_save_and_end(tmp_path):
    words = ["debug", "--steps", "100000", "--checkpoint-every", "100000", "--log-every", "10", "--evaluate-every", "0"]
    command = [sys.executable, "-u", "-m", "experiments.hosts", "2", *words, "--workdir", str(tmp_path / "run")]
    environment = {**os.environ, "XLA_FLAGS": TWO_DEVICES}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        for line in launcher.stdout:
            if line.startswith("step 50/"):
                break
        launcher.kill()
    deadline = time.monotonic() + 30
    while subprocess.run(["pgrep", "-f", str(tmp_path)], stdout=subprocess.DEVNULL, check=False).returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (step,) = (int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert 50 <= step < 100000


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("driver", ["pmap", "shard_map"])
def test_a_run_of_several_processes_equals_that_of_one(count, driver, tmp_path, monkeypatch, capfd):
    assert train.main([*SMALL, "--workdir", str(tmp_path / "one")]) == 0
    monkeypatch.setenv("XLA_FLAGS", TWO_DEVICES)
    # All of it by several processes, then its second half by one with eight devices.
    words = [*SMALL, "--workdir", str(tmp_path / "several"), "--driver", driver]
    assert hosts.main([str(count), *words]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    assert f"on {2 * count} cpu devices of {count} processes" in printed.out
    compare(tmp_path / "several", tmp_path / "one")
    for step in ("8", "8.files.json"):
        subprocess.run(["rm", "-r", str(tmp_path / "several" / "checkpoints" / step)], check=True)
    assert train.main(words) == 0
    assert "going on after step 4" in capfd.readouterr().out
    compare(tmp_path / "several", tmp_path / "one", steps=(1, 2, 4, 8))  # step 5 stands apart, as the run went on there


def compare(run, other, steps=(1, 2, 4, 6, 8)):
    lines, expected = ({line["step"]: line for line in read_metrics(each) if "loss" in line} for each in (run, other))
    for step in steps:
        np.testing.assert_allclose(lines[step]["loss"], expected[step]["loss"], rtol=1e-5)
        np.testing.assert_allclose(lines[step]["gradient_norm"], expected[step]["gradient_norm"], rtol=1e-4)
    chex.assert_trees_all_close(
        final_state(run).params, final_state(other).params, rtol=1e-3, atol=1e-4
    )  # Adam enlarges rounding


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError])
def test_a_lost_process_is_reported_for_each_kind_of_error(kind, capsys):
    def lose():
        raise kind("UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer")

    assert run_command(lose) == LOST_CODE
    assert capsys.readouterr().err.startswith("error: lost another process of the job (UNKNOWN: Gloo")


def test_a_process_lost_during_a_save_is_reported_as_lost(capsys):
    def lose():
        raise jax.errors.JaxRuntimeError(
            "UNKNOWN: Gloo all-reduce failed: [pair.cc:547] recvmsg: Connection reset by peer"
        )

    assert run_command(lambda: checkpoints._call("a checkpoint could not be written", lose)) == LOST_CODE
    assert capsys.readouterr().err.startswith("error: lost another process of the job (a checkpoint could not be")


@pytest.mark.parametrize("which", [0, 1])
def test_any_hung_process_is_ended_after_another_has_failed(which, monkeypatch):
    monkeypatch.setattr(hosts, "HEARTBEAT", 0.3)
    commands = [["false"], ["false"]]
    commands[which] = ["sleep", "60"]
    assert hosts._wait([subprocess.Popen(command) for command in commands]) == [which]


@pytest.mark.parametrize(
    ("codes", "hung", "cause"),
    [
        ([0, 0], [], None),
        ([1, 75], [], None),
        ([-9], [], "the process was killed by SIGKILL"),
        ([75, -9], [], "process 1 of 2 was killed by SIGKILL"),
        ([-6, -9], [], "process 1 of 2 was killed by SIGKILL"),
        ([-9, -9], [0], "process 1 of 2 was killed by SIGKILL"),  # process 0 waited for it
        ([-9, -6], [0], "process 0 of 2 hung, and was killed"),
        ([75, -9], [1], "process 1 of 2 hung, and was killed"),
        ([-9, 1], [0], None),
        ([1, -6], [], None),  # process 0 failed, and with it went what holds the others together
        ([-6, 75], [], "process 0 of 2 lost another process of the job"),
    ],
)
def test_the_process_that_the_others_waited_for_is_named(codes, hung, cause):
    assert hosts._cause(codes, hung) == cause


@pytest.fixture
def sleeping(tmp_path):
    """A command that runs the command in $FIRST and sleeps."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\neval "$FIRST"\nexec sleep 60\n')
    script.chmod(0o755)
    return [str(script)]


STOPS = pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])


def stopped(number):
    return f"stopped by {number.name} before training began; {GOES_ON}\n", ""


@STOPS
def test_a_signal_before_training_is_not_a_failure_of_a_process(number, code, sleeping, capfd):
    assert hosts.supervise([{**os.environ, "FIRST": f"kill -{int(number)} $PPID"}], sleeping) == code
    assert capfd.readouterr() == stopped(number)


@STOPS
def test_a_signal_while_a_process_is_being_started_reaches_it(number, code, sleeping, monkeypatch, capfd):
    started = subprocess.Popen

    def start(*args, **options):
        process = started(*args, **options)
        signal.raise_signal(number)
        return process

    monkeypatch.setattr(hosts.subprocess, "Popen", start)
    assert hosts.supervise([{**os.environ, "FIRST": ""}], sleeping) == code
    assert capfd.readouterr() == stopped(number)


def outcome(process):
    try:
        return process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("number", "devices", "every"),
    # jax tells of a lost process in another way where each has one device, and where it was about to save.
    [(signal.SIGKILL, 2, 20), (signal.SIGKILL, 1, 1), (signal.SIGSTOP, 2, 20), (signal.SIGTERM, 2, 20)],
)
def test_when_one_of_two_dies_or_hangs_or_is_preempted_the_run_ends_in_one_line_and_resumes(
    which, number, devices, every, tmp_path
):
    words = ["debug", "--steps", "2000", "--checkpoint-every", str(every), "--log-every", "10", "--evaluate-every", "0"]
    command = [sys.executable, "-u", "-m", "experiments.hosts", "2", *words, "--workdir", str(tmp_path / "run")]
    environment = {**os.environ, "XLA_FLAGS": DEVICES.format(devices)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as launcher:
        for line in launcher.stdout:
            if line.startswith("step 50/"):
                break
        children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True)
        os.kill(int(children.stdout.split()[which]), number)
        printed, errors = outcome(launcher)
    if number == signal.SIGTERM:
        assert (launcher.returncode, errors) == (0, "")
        assert re.search(r"stopped by SIGTERM after step \d+", printed)
    else:
        happened = "was killed by SIGKILL" if number == signal.SIGKILL else "hung, and was killed"
        assert launcher.returncode == 1
        assert errors == f"error: process {which} of 2 {happened}; {GOES_ON}\n"
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as again:
        for line in again.stdout:
            if line.startswith("going on after step "):
                assert int(line.split()[-1]) >= 20
                break
        again.send_signal(signal.SIGTERM)
        outcome(again)
    assert again.returncode == 0
