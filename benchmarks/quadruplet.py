"""Compares the exact quadruplet loss with enumerating quadruplets, sorting distances once, and sampling anchors.

`python -m benchmarks.quadruplet`
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import HAVE_PEERS, Candidate, compare, compiled, print_environment, torch_step
from jaxmetric import anchored_quadruplet_loss, quadruplet_loss

T, DIM, MARGIN = 4, 128, 1.0


def example(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(batch, DIM)) / np.sqrt(2 * DIM)  # squared distances of about 1, as the margin
    return embeddings.astype(np.float32), rng.integers(0, 4, (batch, T)).astype(np.int32)


def published_in_jax(embeddings: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the mean as in the authors' code: over all B^4 ordered pairs of ordered pairs."""
    distances = jnp.sum(jnp.square(embeddings[:, None] - embeddings[None]), axis=-1).ravel()
    phi = jnp.any(labels[:, None] != labels[None], axis=-1).ravel().astype(jnp.int32)
    sign = phi[None, :] - phi[:, None]
    hinges = jnp.abs(sign) * jax.nn.relu(sign * (distances[:, None] - distances[None, :]) + MARGIN)
    return jnp.sum(hinges) / jnp.sum(jnp.abs(sign))


def published_in_torch(embeddings: np.ndarray, labels: np.ndarray) -> Candidate:
    import torch

    x, y = torch.tensor(embeddings, requires_grad=True), torch.tensor(labels)

    def loss() -> Any:
        distances = ((x[:, None] - x[None]) ** 2).sum(-1).flatten()
        phi = (y[:, None] != y[None]).any(-1).flatten().int()
        sign = phi[None, :] - phi[:, None]
        hinges = sign.abs() * torch.relu(sign * (distances[:, None] - distances[None, :]) + MARGIN)
        return hinges.sum() / sign.abs().sum()

    return torch_step("published formula, PyTorch", loss, [x])


def as_published(embeddings: jax.Array, labels: jax.Array) -> jax.Array:
    return quadruplet_loss(embeddings, labels, margin=MARGIN, agreement="any", self_pairs=True)


def anchored(batch: int, num_anchors: int) -> Candidate:
    loss = partial(anchored_quadruplet_loss, num_anchors=num_anchors)
    arguments = (jax.random.key(0), *example(batch))
    return compiled(f"{num_anchors} anchors of {batch:,}", jax.value_and_grad(loss, argnums=1), *arguments)


def distances_of(embeddings: np.ndarray) -> np.ndarray:
    squares = np.sum(embeddings**2, axis=1)
    squared = squares[:, None] + squares[None] - 2 * embeddings @ embeddings.T
    return squared[np.triu_indices(len(embeddings), 1)]


def main() -> None:
    embeddings, labels = example(100)
    ours = compiled("quadruplet_loss, as published", jax.value_and_grad(as_published), embeddings, labels)
    counting = compiled("quadruplet_loss", jax.value_and_grad(quadruplet_loss), embeddings, labels)
    in_jax = compiled("published formula, JAX", jax.value_and_grad(published_in_jax), embeddings, labels)
    candidates = [ours, counting, in_jax]
    if HAVE_PEERS:
        candidates.append(published_in_torch(embeddings, labels))
    np.testing.assert_allclose(ours.run()[0], in_jax.run()[0], rtol=1e-4)  # the same number, before it is timed
    compare(f"Quadruplet loss, value and gradient, B = 100, T = {T}: 12 million quadruplets", candidates)

    embeddings, labels = example(1024)
    distances = distances_of(embeddings)
    compare(
        f"Quadruplet loss, value and gradient, B = 1024, T = {T}: 1.4e11 quadruplets",
        [
            compiled(f"one jnp.sort of its {distances.size:,} distances", jnp.sort, distances),
            compiled("quadruplet_loss", jax.value_and_grad(quadruplet_loss), embeddings, labels),
        ],
    )

    exact = compiled("quadruplet_loss, B = 4,096", jax.value_and_grad(quadruplet_loss), *example(4096))
    compare(
        f"Anchored quadruplet loss on one device, value and gradient, T = {T}",
        [exact, anchored(4096, 64), anchored(16384, 32)],
    )


if __name__ == "__main__":
    print_environment()
    main()
