"""All triplets of a batch by sorting, against enumerating them.

`python -m benchmarks.triplet`
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import HAVE_PEERS, Candidate, compare, compiled, print_environment, torch_step
from jaxmetric import triplet_loss

B, CLASSES, DIM, MARGIN = 512, 64, 128, 0.2


def example() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(B, DIM)) / np.sqrt(2 * DIM)
    return embeddings.astype(np.float32), (np.arange(B) % CLASSES).astype(np.int32)


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
    np.testing.assert_allclose(ours.run()[0], candidates[1].run()[0], rtol=1e-4)  # the same number
    compare(f"Triplet loss, all triplets, value and gradient, B = {B}, {CLASSES} classes of 8", candidates)


if __name__ == "__main__":
    print_environment()
    main()
