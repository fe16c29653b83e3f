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

`drive_pmap`, `drive_shard_map` and `drive_vmap` run the same body. What they return is called with a state and a batch
of `[B, ...]` arrays, and gives the new state, without a device axis, and metrics. Of several processes (hosts) each
calls it with its own consecutive rows of the batch, those of its devices.
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
    """What one device does; `axis_name` is the mapped axis."""

    def __call__(self, state: Any, batch: Any, *, axis_name: str) -> tuple[Any, Any]:
        """Returns the new state and metrics, both equal on all devices."""


def gather(tree: Any, axis_name: str) -> Any:
    """Concatenates each device's `[B / N, ...]` arrays to the global `[B, ...]`, in the order of the devices."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), tree)


def average(tree: Any, axis_name: str) -> Any:
    """Averages over devices: what turns gradients of a gathered loss into those of the global batch."""
    return jax.lax.pmean(tree, axis_name)


@dataclass(frozen=True)
class Driven(Generic[State]):
    """A step on all devices, `(state, batch) -> (state, metrics)`, and where its arguments lie.

    Calling it with arrays in the host's memory is all that is needed. A loop does better to place the state once, so
    that the step is compiled once, and each batch while the step before is running.

    Attributes:
      run: takes a placed state and a placed batch. The state is donated.
      mesh: the devices over which this process's part of the step runs.
      state_specs: see `drive_shard_map`.
    """

    run: Callable[[State, Batch], tuple[State, Metrics]]
    mesh: Mesh
    state_specs: Any = REPLICATED

    def __call__(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Takes a step.

        Raises:
          ValueError: if the arrays of the batch differ in length, or do not divide among the devices.
        """
        return self.run(state, self.place_batch(batch))

    def place_state(self, state: State) -> State:
        """Copies a state to the devices, as the step returns it."""
        return jax.tree.map(_placed, state, self.state_shardings(state))

    def create_state(self, create: Callable[[], State]) -> State:
        """Computes a state where it will lie, so that no device has to hold more than its part."""
        return jax.jit(create, out_shardings=self.state_shardings(jax.eval_shape(create)))()

    def place_batch(self, batch: Batch) -> Batch:
        """Copies this process's rows of a batch to its devices, without waiting for it; see `__call__`."""
        return place_rows(batch, self.mesh)

    def state_shardings(self, state: State) -> Any:
        """Where each array of a state lies: a tree of `jax.sharding.NamedSharding`."""
        return _shardings(self.mesh, self.state_specs, state)

    def state_shapes(self, state: State) -> Any:
        """A tree of `jax.ShapeDtypeStruct`s over the devices of all processes, to restore a checkpoint into."""
        mesh = self.mesh if jax.process_count() == 1 else all_devices()
        return jax.tree.map(_placed_shape, state, _shardings(mesh, self.state_specs, state))


def drive_pmap(step: Step, *, devices: Sequence[jax.Device] | None = None) -> Driven:
    """Runs a step on all devices of all processes (or local ones, if given) with `jax.pmap`. The state is donated.

    Args:
      step: what one device does.
      devices: devices of this process; all of all processes if not given.

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
) -> Driven:
    """Runs a step with `jax.jit(jax.shard_map(...))`. The state is donated.

    `check_vma=False` is part of the arithmetic: with the check on, shard_map adds a sum over devices to the gradient of
    whatever is replicated, and gradients averaged by the body come out N times too large.

    Args:
      step: what one device does.
      devices: all of all processes if not given.
      state_specs: a prefix of the state's tree: `SHARDED` what each device holds a part of, by its first axis, and
        `REPLICATED` what all hold.

    Returns:
      `(state, batch) -> (state, metrics)`; see `Driven`.
    """
    mesh = _mesh(devices) if devices else all_devices()
    return Driven(_shard_mapped(step, mesh, state_specs), mesh, state_specs)


def all_devices() -> Mesh:
    """All devices of all processes in a row. Those of a process stand together, as its rows do; their ids need not."""
    return _mesh(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))


def place_rows(tree: Any, mesh: Mesh) -> Any:
    """Copies this process's rows of `[B, ...]` arrays to its devices of a mesh, without waiting for it.

    Raises:
      ValueError: if the arrays differ in length, or do not divide among the devices.
    """
    sharding = NamedSharding(mesh, SHARDED)
    if all(isinstance(x, jax.Array) and x.sharding == sharding for x in jax.tree.leaves(tree)):
        return tree
    _check_batch(tree, len(mesh.local_devices))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def compile_shard_map(
    step: Step, state: Any, batch: Batch, *, devices: Sequence[jax.Device], state_specs: Any = REPLICATED
) -> jax.stages.Compiled:
    """Compiles what `drive_shard_map` runs, for devices that need not be there, such as those of a TPU topology.

    Args:
      step: what one device does.
      state: the state, or `jax.ShapeDtypeStruct`s in its place.
      batch: the global batch, or `jax.ShapeDtypeStruct`s in its place.
      devices: what to compile for.
      state_specs: see `drive_shard_map`.

    Returns:
      The program, which can be asked for its memory and cost.
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
    """Runs a step as `num_devices` devices would, on a single one, with `jax.vmap` over a named axis; for tests."""
    mapped = jax.jit(
        jax.vmap(partial(step, axis_name=AXIS_NAME), in_axes=(None, 0), out_axes=(None, None), axis_name=AXIS_NAME)
    )
    return lambda state, batch: mapped(state, split_batch(batch, num_devices))


def placed_ahead(batches: Iterable[Batch], place: Callable[[Batch], Batch]) -> Iterator[Batch]:
    """Places each batch before the step on the one before it begins, so that copying overlaps computing.

    Args:
      batches: batches in the host's memory.
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
    """The same arrays as of all processes' devices, which a checkpoint needs.

    A step driven by pmap returns to each process arrays of its own devices, all of which hold the same. Nothing is
    copied but to local devices that do not hold an array yet.
    """
    if jax.process_count() == 1:
        return tree
    here = NamedSharding(_mesh(jax.local_devices()), REPLICATED)
    everywhere = NamedSharding(all_devices(), REPLICATED)

    def of_all(x: jax.Array) -> jax.Array:
        if not x.is_fully_addressable:
            return x
        parts = jax.device_put(x, here).addressable_shards
        return jax.make_array_from_single_device_arrays(x.shape, everywhere, [part.data for part in parts])

    return jax.tree.map(of_all, tree)


def any_process(flag: bool) -> jax.Array:
    """Whether the flag is true in any process, on its way: all processes ask alike, and get the same answer."""
    return _any(place_rows(np.full(jax.local_device_count(), flag), all_devices()))


_any = jax.jit(jnp.any)


def split_batch(batch: Batch, num_devices: int) -> Batch:
    """Reshapes each array `[B, ...]` to `[num_devices, B / num_devices, ...]`.

    Raises:
      ValueError: if the arrays differ in B, or B is not a positive multiple of the number of devices.
    """
    _check_batch(batch, num_devices)
    return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)


_split = jax.jit(split_batch, static_argnums=1)  # of a placed batch: one program for all its arrays


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
    def of_part(spec: PartitionSpec, part: Any) -> Any:
        return jax.tree.map(lambda _: NamedSharding(mesh, spec), part)

    return jax.tree.map(of_part, specs, tree)


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable and sharding.is_fully_addressable:
        # Replicated over all processes: this process's part of it is the whole.
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
