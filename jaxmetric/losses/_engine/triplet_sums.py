"""Sums over all triplets of an anchor, a positive and a negative, without storing the triplets.

`sorted_triplets` sums the hinge in O(R log R) for each anchor. `sum_over_triplets` sums any penalty on the difference
of the two distances, in O(R) for each pair of an anchor and a positive.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxmetric.losses._engine.comparison import Comparison
from jaxmetric.losses._engine.ordered_hinge import rowwise_ordered_hinge
from jaxmetric.losses._engine.positive_sums import PositivePair, sum_over_positives
from jaxmetric.losses._engine.reduction import LossStats, each_pair
from jaxmetric.losses._engine.types import ScalarLike
from jaxmetric.numerics import softplus


def triplet_weights(comparison: Comparison) -> tuple[jax.Array, jax.Array]:
    """Returns the weights `[A, R]` of the references as positives and as negatives of each anchor; 0 for others."""
    weights = comparison.reference_weights[None, :]
    return jnp.where(comparison.positives, weights, 0), jnp.where(comparison.negatives, weights, 0)


def sorted_triplets(c: Comparison, margin: ScalarLike) -> LossStats:
    near, far = triplet_weights(c)
    level = (far > 0).astype(jnp.int32)
    return LossStats(*rowwise_ordered_hinge(c.values, level, level, near, far, margin=margin, num_levels=2))


def every_gap(near: jax.Array, far: jax.Array, *_: jax.Array) -> jax.Array:
    return jnp.ones(far.shape, bool)


def sum_over_triplets(
    penalty: Callable[..., jax.Array],
    c: Comparison,
    others: jax.Array | None,
    constants: tuple[jax.Array, ...],
    *,
    keep: Callable[..., jax.Array] = every_gap,
) -> LossStats:
    """Sums `penalty(d(a, p) - d(a, n), *constants)` over the triplets of each anchor for which `keep` is True.

    `penalty` and `keep` are module-level functions. With `others` `[R, R]`, the distances between references, the
    penalty uses d(p, n) instead of d(a, n) if it is smaller.
    """
    near, far = triplet_weights(c)
    term = partial(_term, penalty, keep)
    return LossStats(*sum_over_positives(term, c.values, others, near > 0, far, (c.reference_weights, *constants)))


def _term(
    penalty: Callable[..., jax.Array],
    keep: Callable[..., jax.Array],
    pair: PositivePair,
    far: jax.Array,
    constants: tuple[jax.Array, ...],
) -> LossStats:
    """Returns the sums over all triplets of an anchor and a positive."""
    reference_weights, *hyper = constants
    row = pair.anchor_row
    distances = row if pair.positive_row is None else jnp.minimum(row, pair.positive_row)
    # A NaN is kept, so that it stays visible.
    kept = keep(pair.value, row, *hyper) | jnp.isnan(pair.value - row)
    weights = jnp.where(kept, reference_weights[pair.positive] * far, 0)
    sums = each_pair(penalty(pair.value - distances, *hyper)[None], weights[None])
    return LossStats(*(each[0] for each in sums))


def hinge(differences: jax.Array, margin: ScalarLike) -> jax.Array:
    return jax.nn.relu(differences + margin)


def soft_hinge(differences: jax.Array, margin: ScalarLike) -> jax.Array:
    return softplus(differences + margin)
