"""Sums of the hinge over all ordered pairs of values, by sorting instead of enumeration.

Given P values d, each on a level, the engine sums `relu(d_a - d_b + margin)` over every ordered pair (a, b) in which
the level of a is below that of b. In ascending order of the values, the b's that a violates form a prefix. Two searches
per value and running sums per level therefore replace the P^2 comparisons, in O(P log P + L P) time and O(P) memory for
L levels. The gradient of each value is its number of violations, which the same pass computes. TPUs sort fast and look
up slowly, so there the values are sorted together with the values plus the margin, without searches.

The quadruplet loss calls `ordered_hinge` on the distances of all pairs of a batch; the batch-all triplet loss takes one
anchor's distances at a time, by `rowwise_ordered_hinge`. `near_far_sums` has two levels and any number of segments, and
compares values within a segment. With it, the quadruplet loss of two margins subtracts the pairs of each class from all
pairs.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmetric.losses._engine.types import ScalarLike
from jaxmetric.numerics import equally_varying

# The number of values that are sorted together when rows are sorted; few enough to stay in the cache.
_BLOCK = 2**16

# The number of values that one product adds up.
_RUN = 32


class OrderedHinge(NamedTuple):
    """Sums over the ordered pairs (a, b), each with weight `near_weights[a] * far_weights[b]`."""

    total: jax.Array
    valid: jax.Array
    active: jax.Array


class Constants(NamedTuple):
    """The arguments that are not differentiated; see `ordered_hinge`."""

    lower: jax.Array
    upper: jax.Array
    near_weights: jax.Array
    far_weights: jax.Array
    margin: jax.Array


class _Order(NamedTuple):
    """The positions of the values in ascending order: a violates b if and only if `slot[b] <= reach[a]`."""

    ascending: jax.Array
    slot: jax.Array  # 1 + the number of values below each
    reach: jax.Array  # the number of values below each value + margin


# Compiled here, so that a loss called outside of `jit` does not recompile the loops over levels at every call.
@partial(jax.jit, static_argnames="num_levels")
def ordered_hinge(
    values: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    near_weights: jax.Array,
    far_weights: jax.Array,
    *,
    margin: ScalarLike,
    num_levels: int,
) -> OrderedHinge:
    """Sums `relu(values[a] - values[b] + margin)` over all (a, b) with `upper[a] < lower[b]`.

    Differentiable once, in reverse, in `values` and `margin`: levels and weights are constants.

    Args:
      values: `[P]` float32 or float64.
      lower: `[P]` integers in [0, num_levels): the lowest level each value can have.
      upper: `[P]` integers, at least `lower`: the highest level (equal to `lower` if the level is known).
      near_weights: `[P]` weights >= 0 of each value as a; 0 excludes it.
      far_weights: `[P]` weights >= 0 of each value as b; 0 excludes it.
      margin: finite; may be an array.
      num_levels: static number of levels.

    Returns:
      The weighted sum of the hinges, the weight of all ordered pairs, and the weight of those with a positive hinge.
    """
    if values.size == 0:
        nothing = jnp.sum(values)
        return OrderedHinge(nothing, nothing, nothing)
    near_weights, far_weights = (weights.astype(values.dtype) for weights in (near_weights, far_weights))
    constants = jax.lax.stop_gradient(
        Constants(lower, upper, near_weights, far_weights, jnp.asarray(margin, values.dtype))
    )
    values = jnp.where((near_weights > 0) | (far_weights > 0), values, 0)
    total, active = _hinge(*equally_varying((values, constants)), num_levels)
    return OrderedHinge(
        attach_margin_gradient(total, active, margin),
        _pairs_weight(constants, num_levels),
        jax.lax.stop_gradient(active),
    )


def rowwise_ordered_hinge(*rows: jax.Array, margin: ScalarLike, num_levels: int) -> OrderedHinge:
    """Returns the sums `[A]` of `ordered_hinge` over each row of its five arrays `[A, P]`, a few rows at a time."""

    def row_sums(row: tuple[jax.Array, ...]) -> OrderedHinge:
        return ordered_hinge(*row, margin=margin, num_levels=num_levels)

    return jax.lax.map(row_sums, rows, batch_size=max(1, _BLOCK // rows[0].shape[1]))


@partial(jax.jit, static_argnames="hard")
def rowwise_gap_hinge(
    values: jax.Array, near_weights: jax.Array, far_weights: jax.Array, *, margin: ScalarLike, hard: bool
) -> OrderedHinge:
    """Sums `relu(values[a] - values[b] + margin)` over pairs of a near a and a far b with a given gap, row by row.

    Differentiable once, in reverse, in `values` and `margin`.

    Args:
      values: `[A, P]` float32 or float64.
      near_weights: `[A, P]` weights >= 0; 0 for values that are not near.
      far_weights: `[A, P]` weights >= 0; 0 for values that are not far.
      margin: >= 0, finite.
      hard: whether to use the pairs with `values[b] <= values[a]`, or those with
        `values[a] < values[b] <= values[a] + margin`.

    Returns:
      Sums `[A]` as in `OrderedHinge`, over these pairs only.
    """

    def row_sums(row: tuple[jax.Array, jax.Array, jax.Array]) -> OrderedHinge:
        sums = _gap_sums(*jax.lax.stop_gradient((*row, jnp.asarray(margin, values.dtype))), hard=hard)
        total = attach_gradient(sums.hinge.total, row[0], sums.gradient)
        return sums.hinge._replace(total=attach_margin_gradient(total, sums.hinge.active, margin))

    rows = (values, near_weights.astype(values.dtype), far_weights.astype(values.dtype))
    return jax.lax.map(row_sums, rows, batch_size=max(1, _BLOCK // values.shape[1]))


class _GapSums(NamedTuple):
    hinge: OrderedHinge
    gradient: jax.Array  # [P], of the total


def _gap_sums(
    values: jax.Array, near_weights: jax.Array, far_weights: jax.Array, margin: jax.Array, *, hard: bool
) -> _GapSums:
    values = jnp.where((near_weights > 0) | (far_weights > 0), values, 0)
    heights, ascending = values + margin, _ascending(values)
    # The number of values below each, not above it, and so on: two counts bound a window of the sorted values.
    below, not_above = _count(ascending, values, "left"), _count(ascending, values, "right")
    below_height, not_above_height = _count(ascending, heights, "left"), _count(ascending, heights, "right")
    near, far = (_scatter_sums(below, weights)[:-1] for weights in (near_weights, far_weights))
    near_sums, far_sums = (jnp.append(0, running_sums(weights)) for weights in (near, far))
    start, stop = (jnp.zeros_like(below), not_above) if hard else (not_above, jnp.maximum(not_above, not_above_height))
    active_stop = jnp.maximum(jnp.minimum(stop, below_height), start)
    compared, active = (far_sums[end] - far_sums[start] for end in (stop, active_stop))
    out_of_reach = _count(ascending + margin, values, "right")
    if hard:
        hinges = _integral(ascending, far_sums, heights, active_stop)
        violated = near_sums[-1] - near_sums[jnp.maximum(below, out_of_reach)]
    else:
        hinges = _hinges_of_windows(ascending, far, start, active_stop, heights)
        violated = near_sums[below] - near_sums[jnp.minimum(below, out_of_reach)]
    nan = _nan_unless_finite(values)
    total, valid, active_sum = (jnp.sum(near_weights * each) for each in (hinges, compared, active))
    return _GapSums(OrderedHinge(total + nan, valid, active_sum), near_weights * active - far_weights * violated + nan)


def _count(ascending: jax.Array, values: jax.Array, side: str) -> jax.Array:
    """Counts, for each value, the ascending elements below it (`"left"`) or not above it (`"right"`)."""
    return jnp.searchsorted(ascending, values, side=side, method="scan").astype(jnp.int32)


def _integral(ascending: jax.Array, sums: jax.Array, values: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the sum of weight times (value - element) over the first `count` elements, none of them above the value.

    Computed as an integral over `sums` `[P + 1]`, the weights of the first elements, which avoids cancellation.
    """
    gaps = jnp.diff(ascending, prepend=ascending[:1])
    last = jnp.maximum(count - 1, 0)
    return running_sums(sums[:-1] * gaps)[last] + sums[count] * (values - ascending[last])


def _hinges_of_windows(
    ascending: jax.Array, weights: jax.Array, start: jax.Array, stop: jax.Array, heights: jax.Array
) -> jax.Array:
    """Returns the sum of weight times (height - element) over the elements in [start, stop), all below the height.

    A window is divided into blocks whose sizes are powers of two. The sums of all blocks of a size are computed from
    those of half the size, which avoids the cancellation of a difference of running sums.
    """
    position, hinges = start, jnp.zeros_like(heights)
    below = jnp.zeros_like(weights)  # per block of this size: the sum of weight times (last element - element)
    for bit in range(ascending.size.bit_length()):
        size = 1 << bit
        taken = ((stop - start) >> bit) & 1 == 1
        ends = _shifted(ascending, size - 1)
        hinges += jnp.where(taken, below[position] + weights[position] * (heights - ends[position]), 0)
        position = jnp.where(taken, position + size, position)
        below += weights * (_shifted(ascending, 2 * size - 1) - ends) + _shifted(below, size)
        weights += _shifted(weights, size)
    return hinges


def _shifted(x: jax.Array, start: int) -> jax.Array:
    """Returns the elements from `start` on, with the last one repeated to keep the size."""
    start = min(start, x.size - 1)
    return jnp.pad(x[start:], (0, start), mode="edge")


class NearFarSums(NamedTuple):
    """Sums per value over the values of the other kind; not differentiable (see `attach_gradient`)."""

    hinges: jax.Array  # [P], for a near value the weighted sum of its hinges; for a far one 0
    violations: jax.Array  # [P], the weight of the far values that it violates, or of the near values that violate it


def near_far_sums(
    values: jax.Array,
    near_weights: jax.Array,
    far_weights: jax.Array,
    segments: jax.Array,
    *,
    margin: ScalarLike,
) -> NearFarSums:
    """Sums `relu(values[a] - values[b] + margin)`, per value, over all near a and far b of the same segment.

    Takes O(P log P) time: near values plus the margin are sorted together with far values.

    Args:
      values: `[P]` float32 or float64.
      near_weights: `[P]` weights >= 0; 0 for values that are not near.
      far_weights: `[P]` weights >= 0; 0 for values that are not far. No value is both.
      segments: `[P]` integers.
      margin: finite; may be an array.
    """
    values, near_weights, far_weights = jax.lax.stop_gradient((values, near_weights, far_weights))
    if not values.size:
        return NearFarSums(values, values)
    is_near, used = near_weights > 0, (near_weights > 0) | (far_weights > 0)
    heights = jnp.where(used, values + jnp.where(is_near, jnp.asarray(margin, values.dtype), 0), 0)
    # At equal heights near values come first, because a hinge at its corner is not active.
    index = jnp.arange(values.size) + jnp.where(is_near, 0, values.size)
    segments, bits, index = jax.lax.sort((segments, _bits(heights), index), num_keys=3, is_stable=False)
    is_near, index, ascending = index < values.size, index % values.size, _floats(bits, values.dtype)
    bounds = _bounds(segments)
    near_weights, far_weights = near_weights[index], far_weights[index]
    near_above = _segment_suffix_sums(bounds, near_weights)
    # Values beyond the last near value do not count. Excluding them keeps the sums of later segments accurate.
    next_near = jnp.where(near_weights > 0, jnp.arange(values.size), values.size)
    is_reached = jax.lax.cummin(next_near, reverse=True) <= bounds.last
    far_below = _segment_prefix_sums(bounds, jnp.where(is_reached, far_weights, 0))
    # An integral over the weight of the far values below avoids the cancellation of a sum of values.
    steps = jnp.diff(ascending, prepend=ascending[:1]) * jnp.roll(far_below, 1)
    hinges = _segment_prefix_sums(bounds, jnp.where(bounds.starts | ~is_reached, 0, steps))
    violations = jnp.where(is_near, far_below, jnp.where(is_reached, near_above, 0))
    sums = NearFarSums(jnp.where(is_near, hinges, 0), violations)
    unsorted = (jnp.zeros_like(values).at[index].set(each, unique_indices=True) for each in sums)
    return NearFarSums(*(each + _nan_unless_finite(heights) for each in unsorted))


class _Bounds(NamedTuple):
    """The segments of a sorted sequence: whether each element starts one, and the first and last of its segment."""

    starts: jax.Array
    first: jax.Array
    last: jax.Array


def _bounds(segments: jax.Array) -> _Bounds:
    index = jnp.arange(segments.size)
    change = segments[1:] != segments[:-1]
    starts, ends = jnp.append(True, change), jnp.append(change, True)
    return _Bounds(
        starts,
        jax.lax.cummax(jnp.where(starts, index, 0)),
        jax.lax.cummin(jnp.where(ends, index, segments.size), reverse=True),
    )


def _segment_prefix_sums(bounds: _Bounds, x: jax.Array) -> jax.Array:
    """Returns the sums from the start of each element's segment up to it."""
    total = running_sums(x)
    return total - (total - x)[bounds.first]


def _segment_suffix_sums(bounds: _Bounds, x: jax.Array) -> jax.Array:
    """Returns the sums from each element to the end of its segment."""
    total = running_sums(x, reverse=True)
    return total - (total - x)[bounds.last]


def attach_gradient(total: jax.Array, values: jax.Array, gradient: jax.Array) -> jax.Array:
    """Returns a scalar `total` of `values` whose gradient was computed together with it."""
    total, gradient = jax.lax.stop_gradient((total, gradient))
    values = jnp.where(gradient == 0, 0, values)  # values without a gradient may be anything
    return total + jnp.sum(gradient * (values - jax.lax.stop_gradient(values)))


def attach_margin_gradient(total: jax.Array, active: jax.Array, margin: ScalarLike) -> jax.Array:
    """Returns a `total` of hinges with its gradient with respect to the margin: the weight of the active hinges."""
    margin = jnp.asarray(margin, total.dtype)
    return total + jax.lax.stop_gradient(active) * (margin - jax.lax.stop_gradient(margin))


@partial(jax.jit, static_argnames="num_levels")
def level_sums(weights: jax.Array, levels: jax.Array, num_levels: int) -> jax.Array:
    """Returns `[num_levels]`: the sum of the `[P]` weights on each level."""
    # One level at a time, so that memory holds P weights.
    return jax.lax.map(lambda level: jnp.sum(jnp.where(levels == level, weights, 0)), jnp.arange(num_levels))


def sums_above(weights: jax.Array, levels: jax.Array, num_levels: int) -> jax.Array:
    """Returns `[num_levels]`: the sum of the `[P]` weights on the levels above each."""
    return _above(level_sums(weights, levels, num_levels))


def ordered_weight(near_sums: jax.Array, far_sums: jax.Array) -> jax.Array:
    """Returns the weight of all ordered pairs, from the sums `[num_levels]` of near and far weights per level."""
    return jnp.sum(near_sums * _above(far_sums))


def _above(sums: jax.Array) -> jax.Array:
    return jnp.append(jnp.cumsum(sums[::-1])[::-1][1:], 0)


def _pairs_weight(constants: Constants, num_levels: int) -> jax.Array:
    near = level_sums(constants.near_weights, constants.upper, num_levels)
    return ordered_weight(near, level_sums(constants.far_weights, constants.lower, num_levels))


class _Sums(NamedTuple):
    """The sums of `OrderedHinge`, and the gradient `[P]` of the total."""

    total: jax.Array
    active: jax.Array
    gradient: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _hinge(values: jax.Array, constants: Constants, num_levels: int) -> tuple[jax.Array, jax.Array]:
    (total, active), _ = _hinge_forward(values, constants, num_levels)
    return total, active


def _hinge_forward(
    values: jax.Array, constants: Constants, num_levels: int
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    sums = jax.lax.platform_dependent(
        values,
        constants,
        tpu=partial(sums_by_sorting, num_levels=num_levels),
        default=partial(sums_by_searching, num_levels=num_levels),
    )
    nan = _nan_unless_finite(values)
    return (sums.total + nan, sums.active), sums.gradient + nan


def _hinge_backward(
    num_levels: int, gradient: jax.Array, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, None]:
    total, _ = cotangents
    return total * gradient, None


_hinge.defvjp(_hinge_forward, _hinge_backward)


def sums_by_searching(values: jax.Array, constants: Constants, num_levels: int) -> _Sums:
    """Computes the sums by one sort of integers, then searches and lookups in its result."""
    order = _sort(values, constants.margin)
    near = _near_sums(values, order, constants, num_levels)
    far_violations = _far_violations(order, constants, num_levels)
    return _Sums(
        jnp.sum(constants.near_weights * near.hinges),
        jnp.sum(constants.near_weights * near.violations),
        constants.near_weights * near.violations - constants.far_weights * far_violations,
    )


def sums_by_sorting(values: jax.Array, constants: Constants, num_levels: int) -> _Sums:
    """Computes the sums by sorting only: one sequence holds each value plus the margin, as a, and each value, as b."""
    size = values.size
    heights = jnp.concatenate([values + constants.margin, values])
    heights = jnp.where(heights == 0, 0, heights)  # -0.0 would sort below 0.0
    levels = jnp.concatenate([constants.upper, constants.lower])
    weights = jnp.concatenate([constants.near_weights, constants.far_weights])
    # At equal heights the a's come first, because a hinge at its corner is not active.
    bits, index, levels, weights = jax.lax.sort(
        (_bits(heights), jnp.arange(2 * size), levels, weights), num_keys=2, is_stable=False
    )
    is_near, ascending = index < size, _floats(bits, values.dtype)
    near_weights, far_weights = jnp.where(is_near, weights, 0), jnp.where(is_near, 0, weights)
    gaps = jnp.diff(ascending, prepend=ascending[:1])

    def add_level(level: int, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hinges, violations = found  # of the a's; of both
        below = jnp.cumsum(jnp.where(levels > level, far_weights, 0))
        integral = jnp.cumsum(jnp.roll(below, 1) * gaps)  # see _near_sums
        above = jax.lax.cumsum(jnp.where(levels < level, near_weights, 0), reverse=True)
        here = levels == level
        return (
            jnp.where(here, integral, hinges),
            jnp.where(here, jnp.where(is_near, below, above), violations),
        )

    zeros = jnp.zeros_like(ascending)
    hinges, violations = jax.lax.fori_loop(0, num_levels, add_level, (zeros, zeros))
    _, unsorted = jax.lax.sort((index, (near_weights - far_weights) * violations), num_keys=1, is_stable=False)
    return _Sums(jnp.sum(near_weights * hinges), jnp.sum(near_weights * violations), unsorted[:size] + unsorted[size:])


def _sort(values: jax.Array, margin: jax.Array) -> _Order:
    ascending = _ascending(values)
    below, reach = (
        jnp.searchsorted(ascending, x, side="left", method="scan").astype(jnp.int32) for x in (values, values + margin)
    )
    return _Order(ascending, 1 + below, reach)


def _ascending(values: jax.Array) -> jax.Array:
    """Sorts floats through integers of the same order, which XLA sorts several times faster on CPUs."""
    return _floats(jax.lax.sort(_bits(values)), values.dtype)


def _bits(values: jax.Array) -> jax.Array:
    """Returns integers in the order of the floats."""
    return _flip_negatives(jax.lax.bitcast_convert_type(values, jnp.dtype(f"int{jnp.finfo(values.dtype).bits}")))


def _floats(bits: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Inverts `_bits`."""
    return jax.lax.bitcast_convert_type(_flip_negatives(bits), dtype)


def _flip_negatives(bits: jax.Array) -> jax.Array:
    # The bits of negative floats, read as integers, descend. Flipping all bits but the sign reverses the order.
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


class _NearSums(NamedTuple):
    """The sum of the hinges of each a, and the weight of the b's that it violates."""

    hinges: jax.Array
    violations: jax.Array


def _near_sums(values: jax.Array, order: _Order, constants: Constants, num_levels: int) -> _NearSums:
    """Sums over the b's, with C(t) the weight of the b's below t.

    The sum of (d_a + margin - d_b) over the violated b's is the integral of C up to d_a + margin. All its terms are
    positive, which avoids the cancellation of C d_a minus a sum of d_b.
    """
    gaps = jnp.diff(order.ascending, prepend=order.ascending[:1])
    last = jnp.maximum(order.reach - 1, 0)
    beyond = values + constants.margin - order.ascending[last]

    def add_level(level: int, sums: _NearSums) -> _NearSums:
        weights = jnp.where(constants.lower > level, constants.far_weights, 0)
        below = running_sums(_scatter_sums(order.slot, weights))
        integral = running_sums(below[:-1] * gaps)
        reached = below[order.reach]
        here = constants.upper == level
        return _NearSums(
            jnp.where(here, integral[last] + reached * beyond, sums.hinges),
            jnp.where(here, reached, sums.violations),
        )

    zeros = jnp.zeros_like(values)
    return jax.lax.fori_loop(0, num_levels - 1, add_level, _NearSums(zeros, zeros))


def _far_violations(order: _Order, constants: Constants, num_levels: int) -> jax.Array:
    """Returns the weight of the a's that violate each b."""

    def add_level(level: int, violations: jax.Array) -> jax.Array:
        weights = jnp.where(constants.upper < level, constants.near_weights, 0)
        reaching = running_sums(_scatter_sums(order.reach, weights), reverse=True)
        return jnp.where(constants.lower == level, reaching[order.slot], violations)

    return jax.lax.fori_loop(1, num_levels, add_level, jnp.zeros_like(order.ascending))


def _scatter_sums(index: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns `[P + 1]`: the sum of the `[P]` weights at each index."""
    return jnp.zeros(weights.size + 1, weights.dtype).at[index].add(weights)


@partial(jax.jit, static_argnames="reverse")
def running_sums(x: jax.Array, *, reverse: bool = False) -> jax.Array:
    """Returns the sums `[P]` of the elements >= 0 up to each, or from each on; inf where they overflow.

    On CPUs it multiplies by a triangle of ones, which takes about half the time of `jnp.cumsum`, in which XLA adds up
    sixteen elements per result.
    """
    cumsum = partial(jax.lax.cumsum, reverse=reverse)
    return jax.lax.platform_dependent(x, cpu=partial(_sums_by_products, reverse=reverse), default=cumsum)


def _sums_by_products(x: jax.Array, *, reverse: bool) -> jax.Array:
    # Replaced by the largest number: infinity times zero would make sums NaN that do not include it.
    largest = jnp.finfo(x.dtype).max
    runs = jnp.pad(jnp.minimum(x, largest), (0, -x.size % _RUN)).reshape(-1, _RUN)
    ones = jnp.ones((_RUN, _RUN), x.dtype)
    within = jnp.dot(runs, jnp.tril(ones) if reverse else jnp.triu(ones), precision=jax.lax.Precision.HIGHEST)
    within = jnp.where(within >= largest, jnp.inf, within)
    if reverse:
        elsewhere = jnp.append(jax.lax.cumsum(within[1:, 0], reverse=True), 0)
    else:
        elsewhere = jnp.append(0, jax.lax.cumsum(within[:-1, -1]))
    return (within + elsewhere[:, None]).reshape(-1)[: x.size]


def _nan_unless_finite(values: jax.Array) -> jax.Array:
    """Returns 0, or NaN if a value is not finite, since comparisons with it are meaningless."""
    return jnp.sum(0 * values)
