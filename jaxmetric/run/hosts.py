"""Train in several processes, each with its own devices and its own share of every batch.

    jaxmetric hosts 2 [PRESET] [--field value] [--workdir DIR]

starts two processes of `jaxmetric train --distributed` on this host, which connect over the loopback interface. On
several hosts, run this on each, with a working directory that all of them can access:

    jaxmetric hosts join [PRESET] [--field value] --workdir /shared/run

On TPU pods, Slurm and Open MPI, jax finds the other processes. Elsewhere, set JAX_COORDINATOR_ADDRESS=host0:1234,
JAX_NUM_PROCESSES and JAX_PROCESS_ID. The flags are those of jaxmetric train. If a process or this launcher dies, the
others end. The same command continues from the last checkpoint.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from jaxmetric.run.console import GOES_ON, LOST, LOST_CODE
from jaxmetric.run.presets import BUILT_IN, Preset
from jaxmetric.run.processes import FOLLOWS, HEARTBEAT, VARIABLES, python_command
from jaxmetric.run.train import read_command_line

# Patterns of the output of processes. On stdout: the messages of the runtime. On stderr, where the runtime's messages
# have many forms: the messages of a command, and the start of Python's tracebacks.
_CHATTER = re.compile(r"\[Gloo\] ")
_SAID = re.compile(r"error: |warning: |stopped by |interrupted")
_TRACEBACK = re.compile(r"Traceback |Exception ")


def main(
    argv: Sequence[str] | None = None,
    *,
    program: str = "jaxmetric hosts",
    presets: Mapping[str, Preset] = BUILT_IN,
) -> int:
    """Runs the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    train = program.replace("hosts", "train")
    first = words[0] if words else ""
    if first in ("-h", "--help"):
        print(__doc__.replace("jaxmetric hosts", program).replace("jaxmetric train", train))
        return 0
    if first != "join" and not (first.isdigit() and int(first)):
        expected = f"expected a number of processes or join, got {first or 'nothing'}"
        print(f"error: {expected}; {program} --help says more", file=sys.stderr)
        return 2
    read_command_line(words[1:], program=train, presets=presets)  # reports a mistake only once
    environments = [os.environ] if first == "join" else _on_this_machine(int(first))
    return supervise(environments, [*python_command(train), *words[1:], "--distributed"])


def _on_this_machine(count: int) -> list[dict[str, str]]:
    """Returns the environments of `count` processes on this host."""
    address = f"127.0.0.1:{_free_port()}"
    places = (zip(VARIABLES, (address, str(count), str(index)), strict=True) for index in range(count))
    return [{**os.environ, **dict(place)} for place in places]


def supervise(environments: Sequence[Mapping[str, str]], command: Sequence[str]) -> int:
    """Runs a command, a training with `--distributed`, in one process per environment, and ends them together.

    Ctrl-C, SIGTERM and the end of this process are forwarded to all of them as a request to stop, on which they agree.
    Messages of the runtime are not printed. A process that dies is reported in one line.

    Returns:
      The exit code: 0 if none failed, else the largest; 0 or 130 if SIGTERM or Ctrl-C came before training began.
    """
    processes: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    told: set[str] = set()
    with _passing_signals_on(processes) as passed:
        for environment in environments:
            already = len(passed)
            process = subprocess.Popen(
                command,
                env={**environment, FOLLOWS: "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            processes.append(process)
            for number in passed[already:]:  # signals that came before the process started
                process.send_signal(number)
            readers.append(threading.Thread(target=_pass_output_on, args=(process.stdout,)))
            readers.append(threading.Thread(target=_pass_errors_on, args=(process.stderr, told, len(environments))))
            for reader in readers[-2:]:
                reader.start()
        hung = _wait(processes)
        for reader in readers:
            reader.join()
    for process in processes:
        process.communicate()  # closes the pipes
    codes = [process.returncode for process in processes]
    if stopped := next((number for number in passed if -number in codes), None):
        print(f"stopped by {signal.Signals(stopped).name} before training began; {GOES_ON}", flush=True)
        return 130 if stopped == signal.SIGINT else 0
    if cause := _cause(codes, hung):
        print(f"error: {cause}; {GOES_ON}", file=sys.stderr)
    return max((code for code in codes if _says_why(code)), default=int(any(codes)))


def _cause(codes: Sequence[int], hung: Sequence[int]) -> str | None:
    """Describes which process was killed first; None if a process has reported why it failed."""
    killed = [index for index, code in enumerate(codes) if code < 0]
    if not killed:
        return None
    # The runtime aborts a process that loses its connection to another one, or leaves it hanging.
    first = min(killed, key=lambda index: (codes[index] == -signal.SIGABRT, index in hung, index))
    which = f"process {first} of {len(codes)}" if len(codes) > 1 else "the process"
    if first not in hung and codes[first] != -signal.SIGABRT:
        return f"{which} was killed by {signal.Signals(-codes[first]).name}"
    if any(map(_says_why, codes)):
        return None
    return f"{which} hung, and was killed" if first in hung else f"{which} {LOST}"


def _says_why(code: int) -> bool:
    return code > 0 and code != LOST_CODE


def _wait(processes: Sequence[subprocess.Popen[str]]) -> list[int]:
    """Waits for all processes. After a failure, kills those that do not end in time, and returns them."""
    while None in (codes := [process.poll() for process in processes]) and not any(codes):
        time.sleep(0.1)
    failed = any(codes)
    deadline = time.monotonic() + HEARTBEAT / 3
    hung = []
    for index, process in enumerate(processes):
        try:
            process.wait(max(deadline - time.monotonic(), 0) if failed else None)
        except subprocess.TimeoutExpired:
            hung.append(index)
            process.kill()
            process.wait()
    return hung


@contextmanager
def _passing_signals_on(processes: Sequence[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Forwards SIGINT and SIGTERM to the processes; yields the signals received so far."""
    passed: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        passed.append(number)
        for process in processes:
            process.send_signal(number)

    former = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield passed
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _pass_output_on(source: IO[str] | None) -> None:
    for line in source or ():
        if not _CHATTER.match(line):
            _print(line, sys.stdout)


def _pass_errors_on(source: IO[str] | None, told: set[str], count: int) -> None:
    """Prints repeated lines of processes once, and only the cause if several processes lost another one."""
    in_traceback = False
    for line in source or ():
        in_traceback = in_traceback or bool(_TRACEBACK.match(line))
        lost_another = count > 1 and line.startswith(f"error: {LOST}")
        if in_traceback or (_SAID.match(line) and line not in told and not lost_another):
            told.add(line)
            _print(line, sys.stderr)


def _print(line: str, file: IO[str]) -> None:
    """Prints a line. If the reader is gone the job stops, but output is still read, or the processes would block."""
    try:
        print(line, end="", file=file, flush=True)
    except OSError:
        os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
