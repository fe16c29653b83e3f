"""Estimates the sums over all quadruplets of a batch without bias, from the pairs of a few random anchors.

Of n examples, m random ones are anchors. A pair is anchored once by each member that is an anchor. Two given examples
are both anchors with probability r = m (m - 1) / (n (n - 1)). A quadruplet of two pairs without a common example is
anchored in 4 ways, by one anchor from each pair, each with probability r. A quadruplet whose pairs share an example is
anchored in 3 such ways, and once by the shared example alone, with the larger probability m / n. Let H be the sum of
the hinges over all pairs of anchored pairs, and H_1 the same sum over those with the same anchor. Then

    E[H - (n - m) / (n - 1) H_1] = 4 r times the sum over all quadruplets.

The divisor is exact: all pairs of the batch are counted, one level of disagreement at a time.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmetric.agreement import Disagreement, PairLevels, disagreement_levels
from jaxmetric.distances import pairwise_squared_euclidean
from jaxmetric.losses._engine.class_shard import axis_size
from jaxmetric.losses._engine.comparison import MaskedExamples
from jaxmetric.losses._engine.ordered_hinge import level_sums, ordered_hinge, ordered_weight, rowwise_ordered_hinge
from jaxmetric.losses._engine.reduction import LossStats
from jaxmetric.losses._engine.types import ScalarLike
from jaxmetric.numerics import safe_divide


def draw_anchors(key: jax.Array, valid: jax.Array, num_anchors: int, axis_name: str | None) -> jax.Array:
    """Draws distinct examples, different ones per device: valid ones first, uniformly, then masked ones."""
    device, devices = _device_and_count(axis_name)
    if num_anchors * devices > valid.size:
        raise ValueError(
            f"num_anchors is {num_anchors} on each of {devices} devices, expected at most {valid.size // devices}: "
            f"the batch has {valid.size} examples"
        )
    shuffled = jax.random.permutation(key, valid.size)
    valid_first = shuffled[jnp.argsort(~valid[shuffled], stable=True)]
    return jax.lax.dynamic_slice_in_dim(valid_first, device * num_anchors, num_anchors)


def anchored_stats(
    batch: MaskedExamples,
    anchors: jax.Array,
    margin: ScalarLike,
    *,
    disagreement: Disagreement,
    balance: str,
    axis_name: str | None,
) -> LossStats:
    """Returns the stats estimated from the pairs of the anchors `[A]` of this device and of the other devices."""
    near_sums, far_sums = _level_sums_of_batch(batch, len(anchors), disagreement, axis_name)
    levels = _levels_of_rows(batch, anchors, batch.labels, batch.known, disagreement)
    itself = anchors[:, None] == jnp.arange(batch.size)[None]
    pair_weights = jnp.where(itself, 0, batch.weights[anchors][:, None] * batch.weights[None])
    near_weights = far_weights = pair_weights
    if balance == "levels":
        near_weights = safe_divide(pair_weights, near_sums[levels.upper])
        far_weights = safe_divide(pair_weights, far_sums[levels.lower])
        near_sums, far_sums = safe_divide(near_sums, near_sums), safe_divide(far_sums, far_sums)

    distances = pairwise_squared_euclidean(batch.embeddings[anchors], batch.embeddings)
    anchored = (distances, levels.lower, levels.upper, near_weights, far_weights)
    every = ordered_hinge(*(each.reshape(-1) for each in anchored), margin=margin, num_levels=levels.num_levels)
    one_anchor = rowwise_ordered_hinge(*anchored, margin=margin, num_levels=levels.num_levels)

    m, n = (jnp.sum(weights > 0).astype(distances.dtype) for weights in (batch.weights[anchors], batch.weights))
    excess = safe_divide(n - m, n - 1)
    total, active, r = _psum_over_devices(
        (
            every.total - excess * jnp.sum(one_anchor.total),
            every.active - excess * jnp.sum(one_anchor.active),
            safe_divide(m * (m - 1), n * (n - 1)),
        ),
        axis_name,
    )
    return LossStats(safe_divide(total, 4 * r), ordered_weight(near_sums, far_sums), safe_divide(active, 4 * r))


class _LevelSums(NamedTuple):
    """The weight `[num_levels]` of the pairs per level, by the highest and by the lowest level of each pair."""

    near: jax.Array
    far: jax.Array


def _level_sums_of_batch(
    batch: MaskedExamples, num_rows: int, disagreement: Disagreement, axis_name: str | None
) -> _LevelSums:
    """Counts all pairs of the batch. Each device counts every N-th row, a few rows at a time."""
    device, devices = _device_and_count(axis_name)
    # Pairs each row with the half of the batch that follows it in a circle. In an even batch, the opposite row occurs
    # twice.
    half = batch.size // 2
    share = jnp.where(2 * jnp.arange(1, half + 1) == batch.size, 0.5, 1).astype(batch.weights.dtype)
    circle = [jnp.concatenate([x.T, x.T], axis=-1) for x in (batch.labels, batch.known, batch.weights)]

    def row_level_sums(i: jax.Array) -> _LevelSums:
        labels, known, weights = (jax.lax.dynamic_slice_in_dim(x, i + 1, half, axis=-1).T for x in circle)
        levels = _levels_of_rows(batch, i[None], labels, known, disagreement)
        weights = jnp.where(i < batch.size, batch.weights[i] * weights * share, 0)
        return _LevelSums(*(level_sums(weights, x[0], levels.num_levels) for x in (levels.upper, levels.lower)))

    rows = device + devices * jnp.arange(-(-batch.size // devices))
    sums = jax.lax.map(row_level_sums, rows, batch_size=num_rows)
    return _LevelSums(*_psum_over_devices([jnp.sum(x, axis=0) for x in sums], axis_name))


def _levels_of_rows(
    batch: MaskedExamples, rows: jax.Array, labels: jax.Array, known: jax.Array, disagreement: Disagreement
) -> PairLevels:
    """Returns the levels `[A, R]` of the pairs of A rows of the batch with R rows of labels."""
    return disagreement_levels(
        batch.labels[rows][:, None],
        labels[None],
        first_known=batch.known[rows][:, None],
        second_known=known[None],
        **disagreement._asdict(),
    )


def _device_and_count(axis_name: str | None) -> tuple[int | jax.Array, int]:
    """Returns the index of this device and the number of devices."""
    if axis_name is None:
        return 0, 1
    devices = axis_size(axis_name)
    return jax.lax.axis_index(axis_name), devices


def _psum_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
