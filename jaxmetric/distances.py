"""Pairwise distances and similarities between the rows of two matrices, each by one matrix product.

All are computed in float32 (float64 if given) and ask for the highest matmul precision: TPUs and recent GPUs round the
operands of a default product to bfloat16 or TF32, which is coarser than the distances that metric learning orders.
"""

import jax
import jax.numpy as jnp

from jaxmetric.numerics import as_float, safe_normalize


def pairwise_dot_product(x: jax.Array, y: jax.Array | None = None) -> jax.Array:
    """Returns `[A, B]` inner products of the rows of `x` `[A, D]` and `y` `[B, D]` (or `x`)."""
    x, y = _matrices(x, y)
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def pairwise_cosine_similarity(x: jax.Array, y: jax.Array | None = None) -> jax.Array:
    """Returns `[A, B]` cosines in [-1, 1] of the rows of `x` `[A, D]` and `y` `[B, D]` (or `x`); 0 for a zero row."""
    x, y = (safe_normalize(matrix) for matrix in _matrices(x, y))
    return pairwise_dot_product(x, y)


def pairwise_squared_euclidean(x: jax.Array, y: jax.Array | None = None) -> jax.Array:
    """Returns `[A, B]` squared Euclidean distances, at least 0, of the rows of `x` `[A, D]` and `y` `[B, D]` (or `x`).

    Example:
      >>> import jax.numpy as jnp
      >>> pairwise_squared_euclidean(jnp.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
      [[0.0, 25.0], [25.0, 0.0]]
    """
    x, y = _matrices(x, y)
    squared = jnp.sum(jnp.square(x), axis=1)[:, None] + jnp.sum(jnp.square(y), axis=1)[None, :]
    # Rounding can push the difference below 0; relu, unlike maximum, has gradient 0 there.
    return jax.nn.relu(squared - 2 * pairwise_dot_product(x, y))


def _matrices(x: jax.Array, y: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    x = as_float(x)
    y = x if y is None else as_float(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}, expected [A, D] and [B, D]")
    return x, y
