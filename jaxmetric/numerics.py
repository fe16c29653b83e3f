"""Arithmetic whose gradients stay finite where the textbook formula's do not.

Every loss and distance is built from these few functions, so that a zero vector, two equal vectors or half
precision are handled once. They hide no NaN: a NaN that comes in goes out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> jax.Array:
    """Returns `x` in float32, or in float64 if it already was: the precision in which losses are computed."""
    x = jnp.asarray(x)
    wide = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits >= 32
    return x if wide else x.astype(jnp.float32)


def safe_abs(x: jax.Array) -> jax.Array:
    """Returns |x|, with gradient 0 at 0, where `jnp.abs` has 1.

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
    # Both branches of `where` are differentiated, so the unused one needs a harmless argument as well.
    empty = x <= 0
    return jnp.where(empty, 0, jnp.sqrt(jnp.where(empty, 1, x)))


def safe_normalize(x: jax.Array, axis: int = -1) -> jax.Array:
    """Returns `x` scaled to unit Euclidean length along `axis`; a zero vector stays zero, with gradient zero.

    However long or short a vector is, its squares neither overflow nor vanish.

    Example:
      >>> import jax.numpy as jnp
      >>> safe_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
      [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
    empty = largest < jnp.finfo(x.dtype).tiny
    # The result does not depend on this scale, so that it may be taken for a constant.
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
    """Returns log(1 + exp(x)); its gradient is a sigmoid, at most 1 however `x` was rounded.

    The gradient of `jax.nn.softplus` is exp(x - softplus(x)), which is anything where a compiler rounds the two x
    differently, by more than 1 if they are large.
    """
    return jnp.logaddexp(x, 0)


@softplus.defjvp
def _softplus_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return softplus(*primals), tangents[0] * jax.nn.sigmoid(primals[0])


@jax.custom_jvp
def excess(x: jax.Array, largest: jax.Array) -> jax.Array:
    """Returns x - largest for `x` of which `largest` is the maximum: exactly 0 where they are equal, never above.

    A plain difference is neither: of a product, a compiler subtracts before it rounds. Among numbers of 1e10 that
    leaves 500 instead of 0, and infinity of its exponential. A NaN stays.
    """
    return jnp.where(x >= largest, 0, jnp.minimum(x - largest, 0))


@excess.defjvp
def _excess_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return excess(*primals), tangents[0] - tangents[1]


def equally_varying(tree: Any) -> Any:
    """Returns a tree in which every array varies over each mesh axis over which any of them varies.

    Inside `jax.shard_map` with `check_vma=True`, the type of an array says over which axes devices may hold different
    values. A loop must not change the types of what it carries, and a `custom_vjp` must return cotangents of the types
    of its arguments. Arguments that passed through here satisfy both, and JAX sums the gradients of those that were
    equal on all devices. Outside, the tree comes back as it is.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(tree)))

    def cast(x: Any) -> Any:
        missing = tuple(sorted(axes - _varying_axes(x), key=str))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)


def _varying_axes(x: Any) -> frozenset[Any]:
    return jax.typeof(x).manual_axis_type.varying


def masked_logsumexp(x: jax.Array, where: jax.Array, *, axis: int = -1, weights: jax.Array | None = None) -> jax.Array:
    """The logarithm of the (weighted) sum of exponentials of the selected entries: log sum of w exp(x).

    Where nothing is selected it is -inf, with gradient zero, so that `softplus` of it is 0 and flat. Entries
    which are not selected, or weigh 0, may be anything; a NaN among the selected stays visible.

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
    # Both the argument and the result are masked: the gradient of exp must not see what is not selected.
    terms = jnp.where(selected, jnp.exp(jnp.where(selected, excess(x, largest), 0)), 0)
    total = jnp.sum(terms, axis=axis)
    # Otherwise 0 only where a compiler computed even the largest term again, and rounded it far below the maximum.
    logarithm = jnp.log(jnp.where(total == 0, 1, total)) + jnp.squeeze(largest, axis)
    return jnp.where(jnp.squeeze(empty, axis), -jnp.inf, logarithm)


def replicated(x: jax.Array) -> jax.Array:
    """Returns `x` without explicit sharding: every device of its mesh holds the whole array.

    Arrays on a mesh of explicit axes, the default of `jax.make_mesh`, carry their sharding in their type, and a
    comparison of all rows with all rows has no sharding that JAX could derive. The gradient is sharded as `x` is. Other
    arrays are returned as they are.
    """
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, jax.NamedSharding(sharding.mesh, jax.P()))


def sharded_like(array: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `x` with the explicit sharding of `array`, of the same shape; as it is where `array` has none."""
    sharding = jax.typeof(array).sharding
    return x if all(axis is None for axis in sharding.spec) else jax.sharding.reshard(x, sharding)
