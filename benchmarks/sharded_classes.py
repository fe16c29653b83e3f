"""Times SoftTriple with 1,000,000 classes on eight devices: with all classes in each step, or a tenth of them.

`python -m benchmarks.sharded_classes`. On a CPU, the eight devices are simulated and share its cores and
memory.
"""

import os
import resource
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

import jaxmetric
from benchmarks.measure import Candidate, measure, megabytes
from jaxmetric.numerics import safe_normalize
from jaxmetric.parallel import AXIS_NAME, average, drive_shard_map, gather

DEVICES, CLASSES, CENTERS, DIM, BATCH = 8, 1_000_000, 4, 64, 128
# The norm of the centers is small, about 1 / sqrt(C K), so that small steps rotate them.
KERNEL_RATE, CENTERS_RATE = 0.1, 1e-5
SPECS = {"step": PartitionSpec(), "kernel": PartitionSpec(), "centers": PartitionSpec(AXIS_NAME)}


def initial_state() -> dict[str, jax.Array]:
    centers = jaxmetric.init_centers(jax.random.key(0), CLASSES, CENTERS, DIM)
    return {"step": jnp.zeros((), jnp.int32), "kernel": jnp.eye(DIM), "centers": centers}


def one_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    return {"x": rng.normal(size=(BATCH, DIM)).astype(np.float32), "label": labels}


def all_classes(state: Any, batch: Any, *, axis_name: str) -> Any:
    """Takes a step of gradient descent on a linear embedding and all centers."""
    labels = gather(batch["label"], axis_name)
    loss, kernel, change = loss_and_changes(state["kernel"], state["centers"], CLASSES, batch["x"], labels, axis_name)
    return {"step": state["step"] + 1, "kernel": kernel, "centers": state["centers"] + change}, loss


def a_tenth_of_the_classes(state: Any, batch: Any, *, axis_name: str) -> Any:
    """Takes a step of gradient descent on a linear embedding and the centers of sampled classes."""
    key, labels = jax.random.fold_in(jax.random.key(1), state["step"]), gather(batch["label"], axis_name)
    rows, labels = jaxmetric.sample_classes(key, labels, CLASSES, CLASSES // 10, axis_name=axis_name)
    taken = state["centers"][rows]
    loss, kernel, change = loss_and_changes(state["kernel"], taken, CLASSES // 10, batch["x"], labels, axis_name)
    return {"step": state["step"] + 1, "kernel": kernel, "centers": state["centers"].at[rows].add(change)}, loss


def loss_and_changes(
    kernel: jax.Array, vectors: jax.Array, num_classes: int, x: jax.Array, labels: jax.Array, axis_name: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the loss, the new kernel and the update of the centers of this device."""

    def loss_fn(kernel: jax.Array, vectors: jax.Array) -> jax.Array:
        embeddings = gather(safe_normalize(x @ kernel), axis_name)
        shard = jaxmetric.ClassShard(vectors, axis_name=axis_name, num_classes=num_classes)
        return jaxmetric.soft_triple_loss(embeddings, labels, shard)

    loss, (d_kernel, d_vectors) = jax.value_and_grad(loss_fn, argnums=(0, 1))(kernel, vectors)
    change = -CENTERS_RATE / jax.lax.axis_size(axis_name) * d_vectors
    return loss, kernel - KERNEL_RATE * average(d_kernel, axis_name), change


def run_steps(step: Any) -> None:
    """Takes repeated steps on one batch from the initial state, in place, and prints a row with their cost."""
    driven = drive_shard_map(step, state_specs=SPECS, devices=jax.devices()[:DEVICES])
    state, batch, losses = driven.create_state(initial_state), driven.place_batch(one_batch()), []
    program = driven.run.lower(state, batch).compile()  # type: ignore[attr-defined]  # a jitted function

    def run() -> None:
        nonlocal state
        state, loss = program(state, batch)
        losses.append(float(loss))

    name = step.__name__.replace("_", " ")
    temporary = program.memory_analysis().temp_size_in_bytes
    measured = measure([Candidate(name, run, temporary)], rounds=7, seconds=120)[0]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"  {name:26}{np.median(measured.seconds):>8.2f} s{min(measured.seconds):>9.2f} s{megabytes(temporary):>14}"
        f"{megabytes(peak):>12}{losses[0]:>10.3f} to {losses[-1]:.3f}"
    )


def main() -> None:
    size = 4 * CLASSES * CENTERS * DIM
    print(
        f"\nSoftTriple, {CLASSES:,} classes on {DEVICES} devices: B = {BATCH}, K = {CENTERS}, D = {DIM}, steps of SGD"
    )
    print(f"{'':28}{'median':>10}{'fastest':>11}{'temporary':>14}{'peak':>12}{'loss':>10}")
    run_steps(a_tenth_of_the_classes)  # first, since the peak is that of the process so far
    run_steps(all_classes)
    print("temporary: of each device, beside its state. peak: memory of the whole process, all devices together.")
    print(
        f"Of {megabytes(size)} of centers a device holds {megabytes(size // DEVICES)}; Adam's state adds twice as much."
    )


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print(f"jax {jax.__version__}, {jax.device_count()} devices: {jax.devices()[0].device_kind}, {os.cpu_count()} CPUs")
    main()
