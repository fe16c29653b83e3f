"""Runs one per-device training step on any number of devices.

A step is written for ONE device and its share of the batch:

    def step(state, batch, *, axis_name):
        def loss_fn(params):
            embeddings = gather(embed(params, batch["image"]), axis_name)   # the global batch, on every device
            return loss(embeddings, gather(batch["label"], axis_name))
        loss, gradients = jax.value_and_grad(loss_fn)(state.params)
        gradients = average(gradients, axis_name)
        ...
        return new_state, metrics

Each device computes the loss of the global batch and differentiates it through its own share. `gather` is
differentiable, and its transpose sums the gradients of all N devices with respect to one device's embeddings. Each
device's gradient is therefore N times its part of the total, and the *average* over devices is the gradient of the
global batch, up to rounding.

`drive_pmap`, `drive_shard_map` and `drive_vmap` run the same step. They return a function that takes a state and a
batch of `[B, ...]` arrays and returns the new state, without a device axis, and metrics. With several processes
(hosts), each calls it with the consecutive rows of the batch that belong to its devices.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS_NAME = "devices"
REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(AXIS_NAME)

State = TypeVar("State")
Batch = Any
Metrics = Any


class Step(Protocol):
    """The step of one device; `axis_name` is the mapped axis."""

    def __call__(self, state: Any, batch: Any, *, axis_name: str) -> tuple[Any, Any]:
        """Returns the new state and metrics, both equal on all devices."""


def gather(tree: Any, axis_name: str) -> Any:
    """Concatenates each device's `[B / N, ...]` arrays to the global `[B, ...]`, in the order of the devices."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def average(tree: Any, axis_name: str) -> Any:
    """Averages over devices; gradients of a loss of gathered embeddings become those of the global batch."""
    return jax.lax.pmean(tree, axis_name)


@dataclass(frozen=True)
class Driven(Generic[State]):
    """A step on all devices, `(state, batch) -> (state, metrics)`, and the placement of its arguments.

    It can be called with arrays in host memory. A training loop is faster if it places the state once, so that the
    step is compiled once, and places each batch while the previous step runs.

    Attributes:
      run: the step for a placed state and a placed batch. The state is donated.
      mesh: the devices of this process's part of the step.
      state_specs: see `drive_shard_map`.
    """

    run: Callable[[State, Batch], tuple[State, Metrics]]
    mesh: Mesh
    state_specs: Any = REPLICATED

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Takes a step.

        Raises:
          ValueError: if the arrays of the batch differ in length, or it is not divisible by the number of devices.
        """
        return self.run(state, self.place_batch(batch))

    def place_state(self, state: State) -> State:
        """Copies a state to the devices, with the shardings of the step's result."""
        return jax.tree.map(_placed, state, self.state_shardings(state))

    def create_state(self, create: Callable[[], State]) -> State:
        """Creates a state directly on the devices, so that no device ever holds more than its part."""
        return jax.jit(create, out_shardings=self.state_shardings(jax.eval_shape(create)))()

    def place_batch(self, batch: Batch) -> Batch:
        """Copies this process's rows of a batch to its devices asynchronously; see `__call__`."""
        return place_rows(batch, self.mesh)

    def state_shardings(self, state: State) -> Any:
        """Returns the sharding of each array of a state, as a tree of `jax.sharding.NamedSharding`."""
        return _shardings(self.mesh, self.state_specs, state)

    def state_shapes(self, state: State) -> Any:
        """Returns a tree of `jax.ShapeDtypeStruct`s over the devices of all processes, to restore a checkpoint."""
        mesh = self.mesh if jax.process_count() == 1 else all_devices()
        return jax.tree.map(_placed_shape, state, _shardings(mesh, self.state_specs, state))


def drive_pmap(step: Step, *, devices: Sequence[jax.Device] | None = None) -> Driven[Any]:
    """Runs a step on the devices of all processes (or given local ones) with `jax.pmap`. The state is donated.

    Args:
      step: the step of one device.
      devices: devices of this process; by default all devices of all processes.

    Returns:
      `(state, batch) -> (state, metrics)`; see `Driven`.

    Example:
      >>> import jax.numpy as jnp
      >>> def step(state, batch, *, axis_name):
      ...     return state + 1, jnp.sum(gather(batch, axis_name))
      >>> state, total = drive_pmap(step)(jnp.zeros(()), jnp.arange(8.0))
      >>> float(state), float(total)
      (1.0, 28.0)
    """
    mapped = jax.pmap(
        partial(step, axis_name=AXIS_NAME),
        axis_name=AXIS_NAME,
        in_axes=(None, 0),
        out_axes=(None, None),
        devices=devices,
        donate_argnums=(0,),
    )
    mesh = _mesh(devices or jax.local_devices())
    return Driven(lambda state, batch: mapped(state, _split(batch, mesh.size)), mesh)


def drive_shard_map(
    step: Step, *, devices: Sequence[jax.Device] | None = None, state_specs: Any = REPLICATED
) -> Driven[Any]:
    """Runs a step with `jax.jit(jax.shard_map(...))`. The state is donated.

    `check_vma=False` affects the gradients: with the check on, shard_map sums the gradients of replicated arguments
    over devices, and gradients averaged by the step would be N times too large.

    Args:
      step: the step of one device.
      devices: by default all devices of all processes.
      state_specs: a prefix of the state's tree: `SHARDED` for arrays divided among devices along the first axis,
        `REPLICATED` for arrays that every device holds.

    Returns:
      `(state, batch) -> (state, metrics)`; see `Driven`.
    """
    mesh = _mesh(devices) if devices else all_devices()
    return Driven(_shard_mapped(step, mesh, state_specs), mesh, state_specs)


def all_devices() -> Mesh:
    """Returns a mesh of all devices, ordered by process like the rows of a batch. Their ids may have another order."""
    return _mesh(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))


def place_rows(tree: Any, mesh: Mesh) -> Any:
    """Copies this process's rows of `[B, ...]` arrays to its devices of a mesh asynchronously.

    Raises:
      ValueError: if the arrays differ in length, or are not divisible by the number of devices.
    """
    sharding = NamedSharding(mesh, SHARDED)
    if all(isinstance(x, jax.Array) and x.sharding == sharding for x in jax.tree.leaves(tree)):
        return tree
    _check_batch(tree, len(mesh.local_devices))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def compile_shard_map(
    step: Step, state: Any, batch: Batch, *, devices: Sequence[jax.Device], state_specs: Any = REPLICATED
) -> jax.stages.Compiled:
    """Compiles the program of `drive_shard_map` for devices that may be absent, such as those of a TPU topology.

    Args:
      step: the step of one device.
      state: the state, or `jax.ShapeDtypeStruct`s in its place.
      batch: the global batch, or `jax.ShapeDtypeStruct`s in its place.
      devices: the target devices.
      state_specs: see `drive_shard_map`.

    Returns:
      The compiled program, with its memory and cost analysis.
    """
    mesh = _mesh(devices)
    _check_batch(batch, mesh.size)
    sharding = NamedSharding(mesh, SHARDED)
    arguments = (
        jax.tree.map(_placed_shape, state, _shardings(mesh, state_specs, state)),
        jax.tree.map(lambda x: _placed_shape(x, sharding), batch),
    )
    return _shard_mapped(step, mesh, state_specs).lower(*arguments).compile()


def drive_vmap(step: Step, *, num_devices: int) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """Simulates a step on `num_devices` devices with `jax.vmap` over a named axis, on a single device; for tests."""
    mapped = jax.jit(
        jax.vmap(partial(step, axis_name=AXIS_NAME), in_axes=(None, 0), out_axes=(None, None), axis_name=AXIS_NAME)
    )
    return lambda state, batch: mapped(state, split_batch(batch, num_devices))


def placed_ahead(batches: Iterable[Batch], place: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """Places each batch before the step on the previous one begins, so that copying overlaps with computation.

    Args:
      batches: batches in host memory.
      place: `Driven.place_batch`.

    Yields:
      The placed batches.
    """
    source = iter(batches)
    placed = [place(batch) for batch in itertools.islice(source, 1)]
    for batch in source:
        placed.append(place(batch))
        yield placed.pop(0)
    yield from placed


def across_processes(tree: Any) -> Any:
    """Returns the same arrays over the devices of all processes, as a checkpoint needs them.

    A step driven by pmap returns arrays over the devices of one process, with the same values in all processes. Arrays
    are copied only to local devices that do not hold them yet.
    """
    if jax.process_count() == 1:
        return tree
    here = NamedSharding(_mesh(jax.local_devices()), REPLICATED)
    everywhere = NamedSharding(all_devices(), REPLICATED)

    def on_all_processes(x: jax.Array) -> jax.Array:
        if not x.is_fully_addressable:
            return x
        parts = jax.device_put(x, here).addressable_shards
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, [part.data for part in parts])

    return jax.tree.map(on_all_processes, tree)


def any_process(flag: bool) -> jax.Array:
    """Returns, asynchronously, whether the flag is true in any process. All processes must call it."""
    return _any(place_rows(np.full(jax.local_device_count(), flag), all_devices()))


_any = jax.jit(jnp.any)


def split_batch(batch: Batch, num_devices: int) -> Batch:
    """Reshapes each array `[B, ...]` to `[num_devices, B / num_devices, ...]`.

    Raises:
      ValueError: if the arrays differ in B, or B is not a positive multiple of the number of devices.
    """
    _check_batch(batch, num_devices)
    return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)


_split = jax.jit(split_batch, static_argnums=1)  # one program for all arrays of a placed batch


def _shard_mapped(step: Step, mesh: Mesh, state_specs: Any) -> Any:
    return jax.jit(
        jax.shard_map(
            partial(step, axis_name=AXIS_NAME),
            mesh=mesh,
            in_specs=(state_specs, SHARDED),
            out_specs=(state_specs, REPLICATED),
            check_vma=False,
        ),
        donate_argnums=(0,),
    )


def _shardings(mesh: Mesh, specs: Any, tree: Any) -> Any:
    def shardings(spec: PartitionSpec, part: Any) -> Any:
        return jax.tree.map(lambda _: NamedSharding(mesh, spec), part)

    return jax.tree.map(shardings, specs, tree)


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable and sharding.is_fully_addressable:
        # Replicated over all processes, so this process has all of it.
        return jax.make_array_from_single_device_arrays(x.shape, sharding, [part.data for part in x.addressable_shards])
    return jax.device_put(x, sharding)


def _placed_shape(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(list(devices), (AXIS_NAME,), axis_types=(AxisType.Auto,))


def _check_batch(batch: Batch, num_devices: int) -> None:
    if any(np.ndim(x) == 0 for x in jax.tree.leaves(batch)):
        raise ValueError("a batch holds a scalar, expected arrays [B, ...]")
    sizes = sorted({x.shape[0] for x in jax.tree.leaves(batch)})
    if len(sizes) != 1:
        raise ValueError(f"the arrays of a batch have {sizes} rows, expected equally many")
    if sizes[0] == 0 or sizes[0] % num_devices:
        raise ValueError(f"a batch of {sizes[0]} does not divide among {num_devices} devices")
