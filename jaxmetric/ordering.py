"""The hinge over all ordered pairs of values, by sorting instead of enumerating.

Given P values d, each on a level, the engine sums `relu(d_a - d_b + margin)` over every ordered pair (a, b) in which
a's level lies below b's. With the values in ascending order, the b's that a violates are a prefix, so one search
per value and running sums per level replace the P^2 comparisons: O(P log P + L P) time and O(P) memory for L levels.
The gradient of each value is a count of its violations, found on the way.

The quadruplet loss calls it on the distances of all pairs of a batch; the batch-all triplet loss calls it under
`vmap`, one anchor's distances at a time.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp


class OrderedHinge(NamedTuple):
    """Sums over the ordered pairs (a, b), each weighing `near_weights[a] * far_weights[b]`."""

    total: jax.Array
    valid: jax.Array
    active: jax.Array


class _Order(NamedTuple):
    """The values in ascending order, and where the violations of each end."""

    values: jax.Array
    lower: jax.Array
    upper: jax.Array
    near_weights: jax.Array
    far_weights: jax.Array
    position: jax.Array  # in the input, of each sorted value
    reach: jax.Array  # how many sorted values lie below value + margin


def ordered_hinge(
    values: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    near_weights: jax.Array,
    far_weights: jax.Array,
    *,
    margin: float,
    num_levels: int,
) -> OrderedHinge:
    """Sums `relu(values[a] - values[b] + margin)` over all (a, b) with `upper[a] < lower[b]`.

    Differentiable in `values` only: levels and weights are constants.

    Args:
      values: `[P]` float32 or float64.
      lower: `[P]` integers in [0, num_levels): the lowest level each value can have.
      upper: `[P]` integers, at least `lower`: the highest (equal to `lower` where the level is known).
      near_weights: `[P]` weights >= 0 of each value as a; 0 leaves it out.
      far_weights: `[P]` weights >= 0 of each value as b.
      margin: finite; may be an array.
      num_levels: static number of levels.

    Returns:
      The weighted sum of the hinges, the weight of all ordered pairs, and of those with a positive hinge.
    """
    if values.size == 0:
        nothing = jnp.sum(values)
        return OrderedHinge(nothing, nothing, nothing)
    margin = jnp.asarray(margin, values.dtype)
    near_weights, far_weights = (w.astype(values.dtype) for w in (near_weights, far_weights))
    constants = lower, upper, near_weights, far_weights
    total, active = _hinge(values, *jax.lax.stop_gradient((*constants, margin)), num_levels)
    return OrderedHinge(total, _pairs_weight(*constants, num_levels), active)


def level_sums(weights: jax.Array, levels: jax.Array, num_levels: int) -> jax.Array:
    """Returns `[num_levels]`: the sum of the `[P]` weights on each level."""
    one_level = jax.vmap(lambda level: jnp.sum(jnp.where(levels == level, weights, 0)))
    return one_level(jnp.arange(num_levels))


def _pairs_weight(
    lower: jax.Array, upper: jax.Array, near_weights: jax.Array, far_weights: jax.Array, num_levels: int
) -> jax.Array:
    near = level_sums(near_weights, upper, num_levels)
    far = level_sums(far_weights, lower, num_levels)
    return jnp.sum(near[:-1] * jnp.cumsum(far[::-1])[::-1][1:])


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _hinge(
    values: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    near_weights: jax.Array,
    far_weights: jax.Array,
    margin: jax.Array,
    num_levels: int,
) -> tuple[jax.Array, jax.Array]:
    order = _sort(values, lower, upper, near_weights, far_weights, margin)
    integral, violations = _violations_of_near(order, margin, num_levels)
    return _totals(order, integral, violations)


def _hinge_forward(
    values: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    near_weights: jax.Array,
    far_weights: jax.Array,
    margin: jax.Array,
    num_levels: int,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    order = _sort(values, lower, upper, near_weights, far_weights, margin)
    integral, violations = _violations_of_near(order, margin, num_levels)
    gradient = order.near_weights * violations - order.far_weights * _violations_of_far(order, num_levels)
    unsorted = jnp.zeros_like(values).at[order.position].set(gradient, unique_indices=True)
    return _totals(order, integral, violations), unsorted


def _hinge_backward(
    num_levels: int, gradient: jax.Array, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, ...]:
    total, _ = cotangents
    return (total * gradient, None, None, None, None, None)


_hinge.defvjp(_hinge_forward, _hinge_backward)


def _sort(
    values: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    near_weights: jax.Array,
    far_weights: jax.Array,
    margin: jax.Array,
) -> _Order:
    ascending, position = jax.lax.sort((values, jnp.arange(values.size, dtype=jnp.int32)), num_keys=1)
    reach = jnp.searchsorted(ascending, ascending + margin, side="left", method="scan")
    rest = (array[position] for array in (lower, upper, near_weights, far_weights))
    return _Order(ascending, *rest, position=position, reach=reach.astype(jnp.int32))


def _violations_of_near(order: _Order, margin: jax.Array, num_levels: int) -> tuple[jax.Array, jax.Array]:
    """For each sorted a: the sum of its hinges and the weight of the b's that it violates.

    With C(t) the weight of the b's below t, the sum of (d_a + margin - d_b) over the violated b's is the integral of
    C up to d_a + margin. All its terms are positive, so nothing cancels, as it would in C d_a minus a sum of d_b.
    """
    gaps = jnp.diff(order.values, append=order.values[-1:])
    last = jnp.maximum(order.reach - 1, 0)
    beyond = order.values + margin - order.values[last]

    def add_level(level: int, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        integral, violations = sums
        count = jnp.cumsum(jnp.where(order.lower > level, order.far_weights, 0))
        area = jnp.cumsum(count * gaps) - count * gaps
        here = (order.upper == level) & (order.reach > 0)
        reached = count[last]
        return (
            jnp.where(here, area[last] + reached * beyond, integral),
            jnp.where(here, reached, violations),
        )

    zeros = jnp.zeros_like(order.values)
    return jax.lax.fori_loop(0, num_levels - 1, add_level, (zeros, zeros))


def _violations_of_far(order: _Order, num_levels: int) -> jax.Array:
    """For each sorted b: the weight of the a's that violate it, which are those whose reach lies beyond b."""
    size = order.values.size
    # `reach` ascends with the values, so these a's are a suffix; it starts after those with reach <= b's rank.
    ends = jnp.zeros(size + 1, jnp.int32).at[order.reach].add(1, indices_are_sorted=True)
    start = jnp.cumsum(ends)[:-1]

    def add_level(level: int, violations: jax.Array) -> jax.Array:
        weight = jnp.where(order.upper < level, order.near_weights, 0)
        suffix = jnp.append(jnp.cumsum(weight[::-1])[::-1], 0)
        return jnp.where(order.lower == level, suffix[start], violations)

    return jax.lax.fori_loop(1, num_levels, add_level, jnp.zeros_like(order.values))


def _totals(order: _Order, integral: jax.Array, violations: jax.Array) -> tuple[jax.Array, jax.Array]:
    used = (order.near_weights > 0) | (order.far_weights > 0)
    not_a_number = 0 * jnp.sum(jnp.where(used, order.values, 0))
    return jnp.sum(order.near_weights * integral) + not_a_number, jnp.sum(order.near_weights * violations)
