"""Reduces sums over tuples to the value of a loss, by one division."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmetric.numerics import safe_divide


class LossStats(NamedTuple):
    """The sums from which a loss was computed. Add them over batches or devices, then divide once.

    Attributes:
      total: the weighted sum of the losses of all valid tuples.
      valid: the (weighted) number of valid tuples.
      active: the (weighted) number of tuples with a positive loss.
    """

    total: jax.Array
    valid: jax.Array
    active: jax.Array


# A scalar (or one value per anchor or example), or with has_aux=True a pair of that and LossStats.
LossResult: TypeAlias = jax.Array | tuple[jax.Array, LossStats]


def reduce_stats(stats: LossStats, reduction: str) -> jax.Array:
    """Divides the sum of a loss according to `reduction`; 0 if there was nothing to compare."""
    if reduction == "mean":
        return safe_divide(stats.total, stats.valid)
    if reduction == "mean_active":
        return safe_divide(stats.total, stats.active)
    return stats.total


def each_pair(losses: jax.Array, weights: jax.Array) -> LossStats:
    """Sums `[A, R]` losses of pairs with weights (0 = no pair) to `[A]` sums per anchor."""
    return LossStats(
        jnp.sum(jnp.where(weights > 0, weights * losses, 0), axis=1),
        jnp.sum(weights, axis=1),
        jnp.sum(jnp.where(losses > 0, weights, 0), axis=1),
    )


def each_anchor(losses: jax.Array, weights: jax.Array) -> LossStats:
    """Returns the sums per anchor, from one loss `[A]` and one weight `[A]` (0 = no loss) per anchor."""
    return LossStats(jnp.where(weights > 0, weights * losses, 0), weights, jnp.where(losses > 0, weights, 0))


def reduce_anchors(per_anchor: LossStats, reduction: str) -> tuple[jax.Array, LossStats]:
    """Returns the loss from `[A]` sums per anchor, and its stats; `"none"` returns the total of each anchor."""
    stats = LossStats(*(jnp.sum(each) for each in per_anchor))
    return per_anchor.total if reduction == "none" else reduce_stats(stats, reduction), stats
