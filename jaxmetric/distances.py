"""Pairwise distances and similarities between the rows of two matrices, in O(A B) memory.

All but `pairwise_lp` are one matrix product. They are computed in float32 (float64 if given) and request the highest
matmul precision. By default, TPUs and recent GPUs round the operands of a product to bfloat16 or TF32, which is coarser
than the distances that metric learning has to order.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.numerics import as_float, equally_varying, replicated, safe_abs, safe_divide, safe_normalize, safe_sqrt


def pairwise_dot_product(x: ArrayLike, y: ArrayLike | None = None) -> jax.Array:
    """Returns `[A, B]` inner products of the rows of `x` `[A, D]` and `y` `[B, D]` (or `x`)."""
    x, y = _matrices(x, y)
    return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)


def pairwise_cosine_similarity(x: ArrayLike, y: ArrayLike | None = None) -> jax.Array:
    """Returns `[A, B]` cosines in [-1, 1] of the rows of `x` `[A, D]` and `y` `[B, D]` (or `x`); 0 for a zero row."""
    x, y = (safe_normalize(matrix) for matrix in _matrices(x, y))
    return pairwise_dot_product(x, y)


def pairwise_squared_euclidean(x: ArrayLike, y: ArrayLike | None = None) -> jax.Array:
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


def pairwise_euclidean(x: ArrayLike, y: ArrayLike | None = None) -> jax.Array:
    """Returns `[A, B]` Euclidean distances of the rows of `x` `[A, D]` and `y` `[B, D]` (or `x`).

    A distance that rounding cannot distinguish from 0 is 0, with gradient 0. In float32 that is a distance below about
    1e-3 of the rows' length, because the squares are subtracted before the root is taken.

    Example:
      >>> import jax.numpy as jnp
      >>> pairwise_euclidean(jnp.array([[0.0, 0.0], [3.0, 4.0]])).tolist()
      [[0.0, 5.0], [5.0, 0.0]]
    """
    x, y = _matrices(x, y)
    squared = pairwise_squared_euclidean(x, y)
    lengths = jnp.sum(jnp.square(x), axis=1)[:, None] + jnp.sum(jnp.square(y), axis=1)[None, :]
    noise = jax.lax.stop_gradient(4 * jnp.finfo(x.dtype).eps * lengths)
    return safe_sqrt(jnp.where(squared <= noise, 0, squared))


def pairwise_cosine_distance(x: ArrayLike, y: ArrayLike | None = None) -> jax.Array:
    """Returns `[A, B]`, in [0, 2], 1 minus the cosines of the rows of `x` `[A, D]` and `y` `[B, D]` (or `x`).

    Every distance to a zero row is 1.

    Example:
      >>> import jax.numpy as jnp
      >>> pairwise_cosine_distance(jnp.array([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]])).tolist()
      [[0.0, 1.0, 2.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]
    """
    return jax.nn.relu(1 - pairwise_cosine_similarity(x, y))


def pairwise_snr(x: ArrayLike, y: ArrayLike | None = None) -> jax.Array:
    r"""Returns signal-to-noise-ratio distances: the variance of the difference relative to that of the anchor.

    :math:`d(x_i, y_j) = \mathrm{var}(x_i - y_j) / \mathrm{var}(x_i)`, variances over the D coordinates. It is not
    symmetric, and ignores a constant added to all coordinates of a row.

    Args:
      x: `[A, D]` anchors.
      y: `[B, D]` others; `x` itself if not given.

    Returns:
      `[A, B]` distances >= 0; 0 for an anchor without signal, whose coordinates are all equal up to rounding or whose
      variance is less than 1e-19 (float32) of the largest square in `x` and `y`.

    Example:
      >>> import jax.numpy as jnp
      >>> pairwise_snr(jnp.array([[1.0, -1.0], [2.0, -2.0]])).tolist()  # differences of variance 1; signals 1 and 4
      [[0.0, 1.0], [0.25, 0.0]]

    References:
      T. Yuan, W. Deng, J. Tang, Y. Tang, B. Chen, Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric
      Learning, CVPR 2019.
    """
    x, y = _matrices(x, y)
    # The ratio does not depend on a common scale; with this one, squares neither overflow nor underflow.
    x, y = (matrix / jnp.where(largest > 0, largest, 1) for largest in [_largest(x, y)] for matrix in (x, y))
    x, y = _centered(x), _centered(y)
    signal = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    signal = jnp.where(signal < math.sqrt(jnp.finfo(x.dtype).tiny), 0, signal)
    return safe_divide(pairwise_squared_euclidean(x, y), signal)


def pairwise_lp(x: ArrayLike, y: ArrayLike | None = None, *, p: float, power: float = 1) -> jax.Array:
    r"""Returns Lp distances, to a power: :math:`\left(\sum_d |x_{id} - y_{jd}|^p\right)^{\text{power} / p}`.

    It uses a matrix product for p = 2. Otherwise the forward and the backward pass handle one anchor at a time, so that
    no array of coordinate differences `[A, B, D]` exists.

    Args:
      x: `[A, D]`.
      y: `[B, D]`; `x` itself if not given.
      p: >= 1, a static number; `math.inf` for the largest difference of a coordinate.
      power: > 0, a static number.

    Returns:
      `[A, B]` distances >= 0; the gradient of coinciding points is 0.

    Raises:
      ValueError: if a shape does not fit, `p` is below 1 or `power` is not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> points = jnp.array([[0.0, 0.0], [3.0, -4.0]])
      >>> pairwise_lp(points, p=1).tolist(), pairwise_lp(points, p=math.inf).tolist()
      ([[0.0, 7.0], [7.0, 0.0]], [[0.0, 4.0], [4.0, 0.0]])
    """
    p, power = check_norm(p, power)
    x, y = _matrices(x, y)
    if p == 2:
        return pairwise_squared_euclidean(x, y) if power == 2 else _power(pairwise_euclidean(x, y), power)
    anchors, others = equally_varying((x, y))
    columns = others.T  # sums over the first axis let a CPU process whole rows of others

    def anchor_distances(anchor: jax.Array) -> jax.Array:
        return _power(_lp_norms(anchor[:, None] - columns, p), power)

    return jax.lax.map(jax.checkpoint(anchor_distances), anchors)


def check_norm(p: Any, power: Any) -> tuple[float, float]:
    """Returns the static numbers `p`, at least 1, and `power`, finite and above 0."""
    if isinstance(p, float) and p == math.inf:
        return math.inf, checks.check_static_number("power", power, above=0)
    p = checks.check_static_number("p", p, least=1, unit="a number")
    return p, checks.check_static_number("power", power, above=0)


def _lp_norms(differences: jax.Array, p: float) -> jax.Array:
    """Returns the Lp norms of the columns of `[D, B]`, with gradient 0 for a column of zeros."""
    absolute = safe_abs(differences)
    if p == 1:
        return jnp.sum(absolute, axis=0)
    largest = jnp.max(absolute, axis=0, initial=0)
    if p == math.inf:
        return largest
    empty = largest < jnp.finfo(absolute.dtype).tiny
    # The norm does not depend on this scale, so the scale needs no gradient.
    unit = jax.lax.stop_gradient(jnp.where(empty, 1, largest))
    total = jnp.sum(jnp.power(absolute / unit[None, :], p), axis=0)
    return jnp.where(empty, 0 * largest, unit * jnp.power(jnp.where(empty, 1, total), 1 / p))


def _power(distances: jax.Array, power: float) -> jax.Array:
    """Returns `distances` >= 0 to a power > 0, with gradient 0 at 0 for any power."""
    if power == 1:
        return distances
    empty = distances == 0
    return jnp.where(empty, 0, jnp.power(jnp.where(empty, 1, distances), power))


def _largest(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the largest finite absolute value of both matrices, without a gradient."""
    absolute = (jnp.abs(jax.lax.stop_gradient(matrix)) for matrix in (x, y))
    return jnp.maximum(*(jnp.max(each, where=jnp.isfinite(each), initial=0) for each in absolute))


def _centered(x: jax.Array) -> jax.Array:
    """Returns the rows of `x` minus their means; rows with coordinates equal up to rounding become zeros."""
    centered = x - jnp.mean(x, axis=1, keepdims=True)
    rounding = 4 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=1, keepdims=True, initial=0)
    equal = jnp.max(jnp.abs(centered), axis=1, keepdims=True, initial=0) <= rounding
    return jnp.where(jax.lax.stop_gradient(equal), 0, centered)


def _matrices(x: ArrayLike, y: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    x = replicated(as_float(x))
    y = x if y is None else replicated(as_float(y))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y have shapes {x.shape} and {y.shape}, expected [A, D] and [B, D]")
    return x, y
