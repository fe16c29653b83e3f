"""Compares the triplet loss over all triplets with enumerating them, and times it on a batch too large for that.

`python -m benchmarks.triplet`
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import HAVE_PEERS, Candidate, compare, compiled, print_environment, torch_step
from jaxmetric import triplet_loss

B, LARGE, PER_CLASS, DIM, MARGIN = 512, 4096, 8, 128, 0.2


def example(batch: int = B) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(batch, DIM)) / np.sqrt(2 * DIM)
    return embeddings.astype(np.float32), (np.arange(batch) % (batch // PER_CLASS)).astype(np.int32)


def enumerated(embeddings: jax.Array, labels: jax.Array) -> jax.Array:
    squared = jnp.sum(jnp.square(embeddings), axis=1)
    distances = squared[:, None] + squared[None, :] - 2 * embeddings @ embeddings.T
    same = labels[:, None] == labels[None, :]
    valid = (same & ~jnp.eye(B, dtype=bool))[:, :, None] & ~same[:, None, :]
    hinges = jax.nn.relu(distances[:, :, None] - distances[:, None, :] + MARGIN)
    return jnp.sum(jnp.where(valid, hinges, 0)) / jnp.sum(valid)


def in_torch(embeddings: np.ndarray, labels: np.ndarray) -> Candidate:
    import torch
    from pytorch_metric_learning import distances, losses, reducers

    loss = losses.TripletMarginLoss(
        MARGIN,
        distance=distances.LpDistance(normalize_embeddings=False, p=2, power=2),
        reducer=reducers.MeanReducer(),
    )
    x, y = torch.tensor(embeddings, requires_grad=True), torch.tensor(labels)
    return torch_step("pytorch-metric-learning, TripletMarginLoss", lambda: loss(x, y), [x])


def main() -> None:
    embeddings, labels = example()
    ours = compiled("triplet_loss", jax.value_and_grad(triplet_loss), embeddings, labels)
    candidates = [ours, compiled("enumerated, JAX", jax.value_and_grad(enumerated), embeddings, labels)]
    if HAVE_PEERS:
        candidates.append(in_torch(embeddings, labels))
    np.testing.assert_allclose(ours.run()[0], candidates[1].run()[0], rtol=1e-4)  # the values agree
    compare(f"Triplet loss, all triplets, value and gradient, B = {B}, classes of {PER_CLASS}", candidates)
    variants: dict[str, dict[str, Any]] = {
        "triplet_loss": {},
        "triplet_loss, swap=True": {"swap": True},
        "triplet_loss, mining='hard'": {"mining": "hard"},
    }
    large = [
        compiled(name, jax.value_and_grad(partial(triplet_loss, **options)), *example(LARGE))
        for name, options in variants.items()
    ]
    compare(f"Triplet loss, value and gradient, B = {LARGE}, classes of {PER_CLASS}", large)


if __name__ == "__main__":
    print_environment()
    main()
