"""Compile the training step for an absent TPU slice, and print whether it fits and its minimum time.

    jaxmetric compile [PRESET] --topology v5e:4x4 [--field value]

Needs the TPU compiler, which is a wheel: pip install "jax[tpu]". Nothing runs on a TPU.
"""

import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro

from jaxmetric import parallel
from jaxmetric.data.problems import byte_size
from jaxmetric.run.chips import CHIPS, Chip, Cost, cost_of, roofline
from jaxmetric.run.command_line import parse
from jaxmetric.run.comparable import comparable_plan
from jaxmetric.run.config import Config, check_config
from jaxmetric.run.console import first_line, run_command
from jaxmetric.run.errors import ConfigError
from jaxmetric.run.experiment import Experiment, activation_shape, check_step, load_experiment, make_step, state_specs
from jaxmetric.run.presets import BUILT_IN, Preset
from jaxmetric.run.processes import python_command

_CHILD = "JAXMETRIC_COMPILES_HERE"
# Without these settings the compiler queries the network for the host's type, and prints warnings.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing runs, so processes can share it
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}


def main(
    argv: Sequence[str] | None = None,
    *,
    program: str = "jaxmetric compile",
    presets: Mapping[str, Preset] = BUILT_IN,
) -> int:
    """Runs the command line in a child process, since the compiler may crash; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if _CHILD in os.environ:
        return compile_here(words, program=program, presets=presets)
    return run_command(lambda: _in_a_child([*python_command(program), *words]))


def _in_a_child(command: Sequence[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # so that Ctrl-C ends `run`, which ends the child
    child = subprocess.run(command, env={**os.environ, _CHILD: "1"}, stderr=subprocess.PIPE, text=True, check=False)
    if child.returncode >= 0:
        print(child.stderr, end="", file=sys.stderr)
        return child.returncode
    name = signal.Signals(-child.returncode).name
    print(
        f"error: the TPU compiler crashed on this step for this topology ({name} in libtpu); "
        'a newer one may not: pip install --upgrade "jax[tpu]"',
        file=sys.stderr,
    )
    return 1


def compile_here(
    argv: Sequence[str], *, program: str = "jaxmetric compile", presets: Mapping[str, Preset] = BUILT_IN
) -> int:
    """Runs the command line in this process; returns the exit code."""
    name, (config, topology) = parse(
        argv,
        presets,
        program=program,
        purpose="Compile the training step for a TPU slice without having one",
        command=_command,
    )
    return run_command(lambda: _run(name, config, topology))


def _command(name: str, preset: Config) -> Callable[..., tuple[Config, str]]:
    def command(config: tyro.conf.OmitArgPrefixes[Config] = preset, topology: str = "v5e:2x2") -> tuple[Config, str]:
        """Collects the arguments of the command line.

        Args:
            config: The run.
            topology: The slice: a chip and its number along each side, such as v5e:4x4, v5p:2x2x1 or v6e:2x4.
        """
        return config, topology

    return command


def _run(name: str, config: Config, topology: str) -> int:
    check_config(config)
    chip, devices = slice_of(topology)
    experiment = load_experiment(config, num_devices=len(devices))
    check_step(experiment)
    comparable_plan(experiment.objective.terms, config, experiment.source)
    size = config.batch.size
    print(f"{name} on {topology}: {len(devices)} chips, batch {size}, {size // len(devices)} a chip", flush=True)
    start = time.monotonic()
    try:
        program = compile_step(experiment, devices)
    except jax.errors.JaxRuntimeError as error:
        print(f"does not fit: {' '.join(str(error).split())[:300]}")
        return 1
    print(f"compiled in {time.monotonic() - start:.0f} s")
    cost = cost_of(program, len(devices))
    print(describe(cost, sizes_of(experiment), chip, size))
    return 0 if cost.peak <= chip.memory else 1


def slice_of(topology: str) -> tuple[Chip, list[jax.Device]]:
    """Returns the chip and the devices of a topology such as `v5e:4x4`.

    Raises:
      ConfigError: if the TPU compiler is missing or does not know the topology.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS:
        raise ConfigError(f"topology is {topology}, expected a chip of {', '.join(CHIPS)} and a shape, such as v5e:4x4")
    _check_shape(topology, shape, CHIPS[name])
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError('the TPU compiler is not installed; it comes with: pip install "jax[tpu]"')
    os.environ.update(_NO_TPU_HERE)
    from jax.experimental import topologies

    try:
        description = topologies.get_topology_desc(topology_name=topology, platform="tpu")
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise ConfigError(f"topology is {topology}, which the TPU compiler refuses: {first_line(error)}") from error
    return CHIPS[name], list(description.devices)


def _check_shape(topology: str, shape: str, chip: Chip) -> None:
    shape = shape.removesuffix("_untwisted").removesuffix("_twisted")
    sides = [int(side) if side.isdecimal() else 0 for side in shape.split("x")]
    # Each host has 2 x 2 chips.
    fit = len(sides) == chip.sides and all(side % 2 == 0 for side in sides[:2]) and min(sides) > 0
    if not fit or math.prod(sides) > chip.most:
        example = ":".join((chip.name, "x".join("221"[: chip.sides])))
        raise ConfigError(
            f"topology is {topology}, expected {chip.sides} sides, the first two even, and at most {chip.most:,} chips "
            f"of {chip.name}, such as {example}"
        )


def compile_step(experiment: Experiment, devices: list[jax.Device]) -> Any:
    """Compiles the training step of a configuration for devices that need not be present."""
    batch_size, columns = experiment.config.batch.size, len(experiment.source.columns)
    batch = {
        "image": _images(experiment, batch_size),
        "label": jax.ShapeDtypeStruct((batch_size, columns), jnp.int32),
    }
    step, specs = make_step(experiment), state_specs(experiment)
    return parallel.compile_shard_map(step, experiment.state_shapes, batch, devices=devices, state_specs=specs)


def _images(experiment: Experiment, size: int) -> jax.ShapeDtypeStruct:
    if experiment.config.network.freeze_until:
        return jax.ShapeDtypeStruct((size, *activation_shape(experiment)[1:]), jnp.float32)
    side = experiment.config.data.stored_size
    return jax.ShapeDtypeStruct((size, side, side, 3), jnp.uint8)


class Sizes(NamedTuple):
    """The bytes that each chip holds."""

    parameters: int
    batch_statistics: int
    optimizer: int


def sizes_of(experiment: Experiment) -> Sizes:
    """Returns the bytes of a state on one chip: all replicated arrays, and its share of sharded ones."""

    def size(x: Any, spec: Any) -> int:
        return x.size * x.dtype.itemsize // (1 if spec == parallel.REPLICATED else experiment.num_devices)

    sizes = jax.tree.map(size, experiment.state_shapes, state_specs(experiment))
    return Sizes(*(sum(jax.tree.leaves(part)) for part in (sizes.params, sizes.batch_stats, sizes.opt_state)))


def describe(cost: Cost, sizes: Sizes, chip: Chip, batch_size: int) -> str:
    """Formats the table that the command prints."""
    least = roofline(cost, chip)
    slowest = max(least)
    rows = [
        ("memory of a chip", ""),
        ("  parameters", byte_size(sizes.parameters)),
        ("  batch statistics", byte_size(sizes.batch_statistics)),
        ("  optimizer state", byte_size(sizes.optimizer)),
        ("  share of the batch, padding", byte_size(cost.arguments - sum(sizes))),
        ("  activations and workspace", byte_size(cost.workspace)),
        ("  peak", f"{byte_size(cost.peak)} of {byte_size(chip.memory)}, {cost.peak / chip.memory:.1%}"),
        ("a step on a chip, loops counted once", ""),
        ("  arithmetic", f"{cost.flops / 1e9:,.2f} GFLOP"),
        ("  traffic with memory", byte_size(cost.traffic)),
        *((f"  {kind}, sent", byte_size(size)) for kind, size in sorted(cost.sent.items())),
        ("least time of a step", ""),
        ("  by arithmetic (bf16 peak)", f"{1e3 * least.compute:.3f} ms"),
        ("  by memory", f"{1e3 * least.memory:.3f} ms"),
        ("  by the interconnect", f"{1e3 * least.interconnect:.3f} ms"),
        ("  so at most", f"{batch_size / slowest:,.0f} images/s, bound by {least._fields[least.index(slowest)]}"),
    ]
    fits = "fits" if cost.peak <= chip.memory else f"DOES NOT FIT: {byte_size(cost.peak - chip.memory)} too much"
    return "\n".join([*(f"{what:40}{number}".rstrip() for what, number in rows), fits])
