"""Arithmetic whose gradients stay finite where those of the textbook formulas do not.

Every loss and distance is built from these few functions, so that zero vectors, equal vectors and half precision are
handled in one place. They do not hide a NaN: a NaN input gives a NaN output.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> jax.Array:
    """Returns `x` in float32, or in float64 if it is float64: the precision in which losses are computed."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        x = x.astype(np.float32)  # JAX would keep the low 32 bits of large integers
    x = jnp.asarray(x)
    wide = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits >= 32
    return x if wide else x.astype(jnp.float32)


def safe_abs(x: jax.Array) -> jax.Array:
    """Returns |x|, with gradient 0 at 0, where that of `jnp.abs` is 1.

    Example:
      >>> import jax
      >>> float(jax.grad(safe_abs)(0.0)), float(jax.grad(safe_abs)(-4.0))
      (0.0, -1.0)
    """
    return x * jnp.sign(x)


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Returns sqrt(x), with 0 and gradient 0 where `x <= 0`.

    Example:
      >>> import jax
      >>> float(jax.grad(safe_sqrt)(0.0)), float(jax.grad(safe_sqrt)(4.0))
      (0.0, 0.25)
    """
    # Both branches of `where` are differentiated, so the unused branch also needs a harmless argument.
    empty = x <= 0
    return jnp.where(empty, 0, jnp.sqrt(jnp.where(empty, 1, x)))


def safe_normalize(x: jax.Array, axis: int = -1) -> jax.Array:
    """Returns `x` scaled to unit Euclidean length along `axis`; a zero vector stays zero, with gradient zero.

    Squares neither overflow nor underflow, however long or short a vector is.

    Example:
      >>> import jax.numpy as jnp
      >>> safe_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    empty = largest < jnp.finfo(x.dtype).tiny
    # The result does not depend on this scale, so the scale needs no gradient.
    scaled = x / jnp.where(empty, 1, largest)
    squared = jnp.sum(jnp.square(scaled), axis=axis, keepdims=True)
    return jnp.where(empty, 0, scaled * jax.lax.rsqrt(jnp.where(empty, 1, squared)))


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Returns numerator / denominator, with 0 (NaN if the numerator is) and gradient 0 where the denominator is 0.

    Example:
      >>> import jax.numpy as jnp
      >>> safe_divide(jnp.array([1.0, 5.0]), jnp.array([2.0, 0.0])).tolist()
      [0.5, 0.0]
    """
    empty = denominator == 0
    return jnp.where(empty, 0 * numerator, numerator / jnp.where(empty, 1, denominator))


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """Returns log(1 + exp(x)); its gradient is a sigmoid, at most 1 for any rounding of `x`.

    The gradient of `jax.nn.softplus` is exp(x - softplus(x)). It can be arbitrarily wrong if a compiler rounds the two
    x differently, by more than 1 for large x.
    """
    return jnp.logaddexp(x, 0)


@softplus.defjvp
def _softplus_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return softplus(*primals), tangents[0] * jax.nn.sigmoid(primals[0])


@jax.custom_jvp
def excess(x: jax.Array, largest: jax.Array) -> jax.Array:
    """Returns x - largest, if `largest` is the maximum of `x`: exactly 0 where they are equal, never above.

    A plain difference guarantees neither, because a compiler may subtract from a product before rounding it. For
    numbers of 1e10 that can give 500 instead of 0, whose exponential is infinite. A NaN stays.
    """
    return jnp.where(x >= largest, 0, jnp.minimum(x - largest, 0))


@excess.defjvp
def _excess_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return excess(*primals), tangents[0] - tangents[1]


def equally_varying(tree: Any) -> Any:
    """Returns a tree in which every array varies over each mesh axis over which any of them varies.

    Inside `jax.shard_map` with `check_vma=True`, the type of an array states over which axes devices may hold different
    values. A loop must not change the types of its carry, and a `custom_vjp` must return cotangents of the types of its
    arguments. Arguments processed by this function satisfy both, and JAX sums the gradients of those that were equal on
    all devices. Outside of `shard_map`, the tree is returned unchanged.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(tree)))

    def cast(x: Any) -> Any:
        missing = tuple(sorted(axes - _varying_axes(x), key=str))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def _varying_axes(x: Any) -> frozenset[Any]:
    return jax.typeof(x).manual_axis_type.varying


def masked_logsumexp(x: jax.Array, where: jax.Array, *, axis: int = -1, weights: jax.Array | None = None) -> jax.Array:
    """Returns the logarithm of the (weighted) sum of exponentials of the selected entries, log sum of w exp(x).

    If nothing is selected it is -inf, with gradient zero, so that its `softplus` is 0 with gradient 0. Entries that are
    not selected, or have weight 0, may be anything. A NaN among the selected entries stays visible.

    Args:
      x: an array of floats.
      where: booleans that broadcast to `x`: which entries are selected.
      axis: the axis that is summed.
      weights: weights >= 0 that broadcast to `x`; 1 if not given.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.log(jnp.array([[1.0, 3.0, 9.0], [1.0, 3.0, 9.0]]))
      >>> jnp.exp(masked_logsumexp(x, jnp.array([[True, True, False], [False, False, False]]))).round(3).tolist()
      [4.0, 0.0]
    """
    x = as_float(x)
    selected = jnp.broadcast_to(where, x.shape)
    if weights is not None:
        weights = jnp.broadcast_to(jnp.asarray(weights, x.dtype), x.shape)
        selected &= weights != 0
        x = x + jnp.log(jnp.where(selected, weights, 1))
    largest = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True, where=selected, initial=-jnp.inf))
    empty = largest == -jnp.inf
    largest = jnp.where(empty, 0, largest)
    # Both the argument and the result are masked, so that unselected entries do not affect the gradient of exp.
    terms = jnp.where(selected, jnp.exp(jnp.where(selected, excess(x, largest), 0)), 0)
    total = jnp.sum(terms, axis=axis)
    # Otherwise it is 0 only if a compiler recomputed the largest term and rounded it far below the maximum.
    logarithm = jnp.log(jnp.where(total == 0, 1, total)) + jnp.squeeze(largest, axis)
    return jnp.where(jnp.squeeze(empty, axis), -jnp.inf, logarithm)


def replicated(x: jax.Array) -> jax.Array:
    """Returns `x` without explicit sharding: every device of its mesh holds the whole array.

    Arrays on a mesh with explicit axes, the default of `jax.make_mesh`, have their sharding in their type, and JAX
    cannot derive a sharding for a comparison of all rows with all rows. The gradient has the sharding of `x`. Other
    arrays are returned unchanged.
    """
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, jax.NamedSharding(sharding.mesh, jax.P()))


def sharded_like(array: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `x` with the explicit sharding of `array`, of the same shape; unchanged if `array` has none."""
    sharding = jax.typeof(array).sharding
    return x if all(axis is None for axis in sharding.spec) else jax.sharding.reshard(x, sharding)
