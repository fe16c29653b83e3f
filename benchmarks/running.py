"""Measures the overhead of more devices, checkpoints and restarts: `python -m benchmarks.running`.

CPU devices are simulated and share the cores. Steps on the same global batch are therefore compared by the CPU time
of the process, which shows the extra work of dividing the batch, as well as by elapsed time.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

_WIDTH = 16  # as in the preset
_ROUNDS, _STEPS = 5, 8


def main() -> None:
    """Prints the tables."""
    devices(_WIDTH, (1, 2, 4, 8))
    devices(2 * _WIDTH, (1, 8))
    checkpoints()
    restarts()


def devices(width: int, counts: tuple[int, ...]) -> None:
    """Times the step of the default preset with an encoder of a given width on several numbers of devices, in turns."""
    workers = {count: _worker("devices", count, width) for count in counts}
    clock: dict[int, list[float]] = {count: [] for count in counts}
    computed: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(_ROUNDS):
        for count, worker in workers.items():
            assert worker.stdin
            assert worker.stdout
            print("go", file=worker.stdin, flush=True)
            seconds = json.loads(worker.stdout.readline())
            clock[count].append(seconds["clock"])
            computed[count].append(seconds["computed"])
    for worker in workers.values():
        worker.communicate()
    what = f"emoji_people, width {width}, 128 images, median of {_ROUNDS} rounds of {_STEPS} steps in turn"
    print(f"\nA training step of {what}")
    print(f"{'':32s}{'clock':>10s}{'ratio':>8s}{'computed':>12s}{'ratio':>8s}")
    for count in counts:
        times = [1e3 * median(values[count]) for values in (clock, computed)]
        ratios = [median(values[count]) / median(values[1]) for values in (clock, computed)]
        name = f"{count} device{'s' * (count > 1)}"
        print(f"  {name:30s}{times[0]:7.0f} ms{ratios[0]:7.2f}x{times[1]:9.0f} ms{ratios[1]:7.2f}x")


def checkpoints() -> None:
    """Measures the cost of checkpoints in the default preset."""
    worker = _worker("checkpoints", 1, _WIDTH)
    printed, _ = worker.communicate()
    took = json.loads(printed.splitlines()[-1])
    every, step = 200, took["step"]
    share = (took["blocked"] + took["computed"]) / (every * step)
    print("\nCheckpoints of emoji_people, median of ten")
    print(f"  a checkpoint                    {took['bytes'] / 2**20:7.1f} MiB")
    print(f"  the loop waits                  {1e3 * took['blocked']:7.0f} ms")
    print(f"  computed in the background      {1e3 * took['computed']:7.0f} ms")
    print(f"  a step                          {1e3 * step:7.0f} ms")
    print(f"  both, of the {every} steps between   {100 * share:7.2f} %")


def restarts() -> None:
    """Measures the time to resume a stopped run, with and without the compilation cache."""
    rounds = []
    for _ in range(_ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append((_start(folder), _start(folder)))
    print(f"\nStarting emoji_people, and again after SIGTERM: seconds from the command, median of {_ROUNDS}")
    print(f"{'':32s}{'to the restored state':>24s}{'to the end of a step':>24s}{'that step alone':>18s}")
    for index, name in enumerate(("first start, nothing compiled", "again, programs from the cache")):
        ready, stepped, step = (median(starts[index][key] for starts in rounds) for key in ("ready", "stepped", "step"))
        print(f"  {name:30s}{ready:24.1f}{stepped:24.1f}{step:18.1f}")
    ratios = [first["step"] / again["step"] for first, again in rounds]
    print(f"  the first step comes {median(ratios):.1f} times sooner ({min(ratios):.1f} to {max(ratios):.1f})")


def _start(folder: str) -> dict[str, float]:
    """Returns the seconds to the restored state, to the end of a step, and between them."""
    words = ["--workdir", f"{folder}/run", "--log-every", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = f"{folder}/cache"
    began, ready = time.monotonic(), 0.0
    command = [sys.executable, "-u", "-m", "experiments.train", *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if re.match("  network|going on", line):  # the last before compiling
                ready = time.monotonic() - began
            if line.startswith("step "):
                break
        stepped = time.monotonic() - began
        process.send_signal(signal.SIGTERM)
        process.communicate()
    return {"ready": ready, "stepped": stepped, "step": stepped - ready}


def _worker(task: str, count: int, width: int) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    command = [sys.executable, "-m", "benchmarks.running", task, str(width)]
    environment = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _work_on(task: str, width: int) -> None:
    import logging
    from dataclasses import replace

    import jax

    from jaxmetric.data import read_batch
    from jaxmetric.run.experiment import drive_step, load_experiment, make_state
    from jaxmetric.run.plan import make_batch_plan
    from jaxmetric.run.presets import PRESETS
    from jaxmetric.training import open_checkpoints, save_checkpoint

    logging.getLogger("absl").setLevel(logging.CRITICAL)
    config = PRESETS["emoji_people"]
    config = replace(config, network=replace(config.network, width=width))
    experiment = load_experiment(config)
    driven = drive_step(experiment, "pmap")
    state = driven.create_state(lambda: make_state(experiment))
    plan = make_batch_plan(config.batch, experiment.source, seed=0)
    batch = driven.place_batch(read_batch(experiment.source, plan, 0))

    def steps(number: int) -> dict[str, float]:
        nonlocal state
        jax.block_until_ready(state)
        clock, computed = time.perf_counter(), time.process_time()
        for _ in range(number):
            state, _ = driven(state, batch)
            jax.block_until_ready(state)
        return {
            "clock": (time.perf_counter() - clock) / number,
            "computed": (time.process_time() - computed) / number,
        }

    steps(2)
    if task == "devices":
        for _ in sys.stdin:
            print(json.dumps(steps(_STEPS)), flush=True)
        return
    step = median(steps(1)["clock"] for _ in range(10))
    blocked, computed = [], []
    with tempfile.TemporaryDirectory() as folder, open_checkpoints(Path(folder) / "checkpoints") as manager:
        for _ in range(11):
            steps(1)
            cpu, clock = time.process_time(), time.perf_counter()
            save_checkpoint(manager, state)
            blocked.append(time.perf_counter() - clock)
            manager.wait_until_finished()
            computed.append(time.process_time() - cpu - blocked[-1])
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    result = {"step": step, "blocked": median(blocked[1:]), "computed": max(median(computed[1:]), 0.0), "bytes": size}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    _work_on(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
