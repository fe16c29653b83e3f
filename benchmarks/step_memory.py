"""Measures memory and time of a training step: plain, in chunks, with rematerialized blocks, in bfloat16.

On a CPU, chunks only save memory: XLA is slow there at gradients of convolutions in a loop, undoes rematerialization,
and computes bfloat16 in float32. `jaxmetric.run.compile` shows the savings on a TPU.

`python -m benchmarks.step_memory`
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmetric
from benchmarks.measure import Candidate, compare, compiled, print_environment
from jaxmetric.data import augment, image_keys
from jaxmetric.encoders import make_encoder
from jaxmetric.parallel import AXIS_NAME, drive_shard_map
from jaxmetric.training import create_state, make_optimizer, make_schedule, make_train_step

BATCH, SIDE, DIM, CLASSES = 64, 64, 128, 16
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "remat": {"remat": True},
    "chunks=4": {"chunks": 4},
    "chunks=4, remat": {"chunks": 4, "remat": True},
    "bfloat16": {"dtype": jnp.bfloat16},
    "bfloat16, chunks=4, remat": {"dtype": jnp.bfloat16, "chunks": 4, "remat": True},
}


def candidate(name: str, width: int, *, chunks: int = 1, **precision: Any) -> Candidate:
    encoder = make_encoder("resnet18", embedding_dim=DIM, width=width, axis_name=AXIS_NAME, **precision)
    optimizer = make_optimizer("adamw", make_schedule("constant", peak=1e-3, steps=1))

    def preprocess(key: jax.Array, positions: jax.Array, images: jax.Array) -> jax.Array:
        return augment(image_keys(key, positions), images, image_size=SIDE, mean=0.0, std=1.0)

    def objective(
        key: jax.Array, centers: Any, memory: Any, embeddings: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Any]:
        return jaxmetric.soft_triple_loss(embeddings, labels, centers), ({}, memory)

    step = make_train_step(
        apply_fn=encoder.apply,
        objective=objective,
        optimizer=optimizer,
        preprocess=preprocess,
        seed=0,
        chunks=chunks,
    )
    state = create_state(
        jax.random.key(0, impl="unsafe_rbg"),
        encoder,
        image_size=SIDE,
        loss_params=jaxmetric.init_centers(jax.random.key(1), CLASSES, 4, DIM),
        optimizer=optimizer,
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8),
        "label": (np.arange(BATCH) % CLASSES).astype(np.int32),
    }
    return compiled(name, drive_shard_map(step, devices=jax.devices()[:1]).run, state, batch)


def main() -> None:
    for width in (16, 64):
        candidates = [candidate(name, width, **options) for name, options in VARIANTS.items()]
        title = f"A training step of ResNet-18, width {width}: {BATCH} images of {SIDE} pixels"
        compare(title, candidates, rounds=5, seconds=10)


if __name__ == "__main__":
    print_environment()
    main()
