"""One per-device step body, any number of devices: what it calls inside, and what drives it from outside.

A step is written once, as what ONE device does with its share of the batch:

    def step(state, batch, *, axis_name):
        def loss_fn(params):
            embeddings = gather(embed(params, batch["image"]), axis_name)   # the global batch, on every device
            return loss(embeddings, gather(batch["label"], axis_name))
        loss, gradients = jax.value_and_grad(loss_fn)(state.params)
        gradients = average(gradients, axis_name)
        ...
        return new_state, metrics

Each device computes the loss of the global batch and differentiates it through its own share, because `gather` is
differentiable: its transpose adds up what all N devices say of one device's embeddings. That makes each gradient N
times its share of the whole, so that the *average* over devices is the gradient of the global batch, to rounding.

`drive_pmap`, `drive_shard_map` and `drive_vmap` run the same body; each takes a step on the global batch, `[B, ...]`
arrays in the host's memory, and returns the replicated state without a device axis.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS_NAME = "devices"

State = TypeVar("State")
Batch = Any
Metrics = Any
Driven = Callable[[State, Batch], tuple[State, Metrics]]


class Step(Protocol):
    """What one device does; `axis_name` is the mapped axis."""

    def __call__(self, state: Any, batch: Any, *, axis_name: str) -> tuple[Any, Any]:
        """Returns the new state and metrics, both equal on all devices."""


def gather(tree: Any, axis_name: str) -> Any:
    """Concatenates each device's `[B / N, ...]` arrays to the global `[B, ...]`, in the order of the devices."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def average(tree: Any, axis_name: str) -> Any:
    """Averages over devices: what turns gradients of a gathered loss into those of the global batch."""
    return jax.lax.pmean(tree, axis_name)


def drive_pmap(step: Step, *, devices: Sequence[jax.Device] | None = None) -> Driven:
    """Runs a step on all local devices (or those given) with `jax.pmap`. The state is donated.

    Args:
      step: what one device does.
      devices: local devices; all of them if not given.

    Returns:
      `(state, batch) -> (state, metrics)` for a batch of `[B, ...]` arrays, B a multiple of the number of devices; it
      raises ValueError for any other batch.

    Example:
      >>> import jax.numpy as jnp
      >>> def step(state, batch, *, axis_name):
      ...     return state + 1, jnp.sum(gather(batch, axis_name))
      >>> state, total = drive_pmap(step)(jnp.zeros(()), jnp.arange(8.0))
      >>> float(state), float(total)
      (1.0, 28.0)
    """
    devices = jax.local_devices() if devices is None else list(devices)
    mapped = jax.pmap(
        partial(step, axis_name=AXIS_NAME),
        axis_name=AXIS_NAME,
        in_axes=(None, 0),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=(0,),
    )
    return lambda state, batch: mapped(state, split_batch(batch, len(devices)))


def drive_shard_map(step: Step, *, devices: Sequence[jax.Device] | None = None) -> Driven:
    """Runs a step with `jax.jit(jax.shard_map(...))`; see `drive_pmap` for the arguments.

    `check_vma=False` is part of the arithmetic: with the check on, shard_map adds a sum over devices to the gradient of
    whatever is replicated, and gradients averaged by the body come out N times too large.
    """
    mesh = _mesh(devices)
    mapped = _shard_mapped(step, mesh)

    def driven(state: State, batch: Batch) -> tuple[State, Metrics]:
        _check_batch(batch, mesh.size)
        return mapped(state, batch)

    return driven


def compile_shard_map(step: Step, state: Any, batch: Batch, *, devices: Sequence[jax.Device]) -> jax.stages.Compiled:
    """Compiles what `drive_shard_map` runs, for devices that need not be there, such as those of a TPU topology.

    Args:
      step: what one device does.
      state: the state, or `jax.ShapeDtypeStruct`s in its place.
      batch: the global batch, or `jax.ShapeDtypeStruct`s in its place.
      devices: what to compile for.

    Returns:
      The program, which can be asked for its memory and cost.
    """
    mesh = _mesh(devices)
    _check_batch(batch, mesh.size)

    def placed(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    arguments = placed(state, PartitionSpec()), placed(batch, PartitionSpec(AXIS_NAME))
    return _shard_mapped(step, mesh).lower(*arguments).compile()


def drive_vmap(step: Step, *, num_devices: int) -> Driven:
    """Runs a step as `num_devices` devices would, on a single one, with `jax.vmap` over a named axis; for tests."""
    mapped = jax.jit(
        jax.vmap(partial(step, axis_name=AXIS_NAME), in_axes=(None, 0), out_axes=(None, None), axis_name=AXIS_NAME)
    )
    return lambda state, batch: mapped(state, split_batch(batch, num_devices))


def replicate(tree: Any, *, devices: Sequence[jax.Device] | None = None) -> Any:
    """Copies a state to every device, placed as the drivers return it.

    A driver takes a state that lies anywhere, but compiles its step once more for each new placement: replicating the
    initial state saves the second compilation.
    """
    return jax.device_put(tree, NamedSharding(_mesh(devices), PartitionSpec()))


def split_batch(batch: Batch, num_devices: int) -> Batch:
    """Reshapes each array `[B, ...]` to `[num_devices, B / num_devices, ...]`.

    Raises:
      ValueError: if the arrays differ in B, or B is not a positive multiple of the number of devices.
    """
    _check_batch(batch, num_devices)
    return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)


def _shard_mapped(step: Step, mesh: Mesh) -> Any:
    replicated, sharded = PartitionSpec(), PartitionSpec(AXIS_NAME)
    return jax.jit(
        jax.shard_map(
            partial(step, axis_name=AXIS_NAME),
            mesh=mesh,
            in_specs=(replicated, sharded),
            out_specs=(replicated, replicated),
            check_vma=False,
        ),
        donate_argnums=(0,),
    )


def _mesh(devices: Sequence[jax.Device] | None) -> Mesh:
    devices = jax.local_devices() if devices is None else list(devices)
    return Mesh(devices, (AXIS_NAME,), axis_types=(AxisType.Auto,))


def _check_batch(batch: Batch, num_devices: int) -> None:
    sizes = sorted({x.shape[0] for x in jax.tree.leaves(batch)})
    if len(sizes) != 1:
        raise ValueError(f"the arrays of a batch have {sizes} rows, expected equally many")
    if sizes[0] == 0 or sizes[0] % num_devices:
        raise ValueError(f"a batch of {sizes[0]} does not divide among {num_devices} devices")
