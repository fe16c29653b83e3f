"""Reduces sums over tuples to the value that a loss returns: one division, by what was counted."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmetric.numerics import safe_divide


class LossStats(NamedTuple):
    """The sums from which a loss was computed, so that they can be added over batches or devices before dividing.

    Attributes:
      total: the weighted sum of the losses of all valid tuples.
      valid: the (weighted) number of valid tuples.
      active: the (weighted) number of tuples with a positive loss.
    """

    total: jax.Array
    valid: jax.Array
    active: jax.Array


# A scalar (or one value for each anchor or example), or with has_aux=True a pair of that and LossStats.
LossResult: TypeAlias = jax.Array | tuple[jax.Array, LossStats]


def reduce_stats(stats: LossStats, reduction: str) -> jax.Array:
    """Divides a loss's sum as `reduction` says; 0 where there was nothing to compare."""
    if reduction == "mean":
        return safe_divide(stats.total, stats.valid)
    if reduction == "mean_active":
        return safe_divide(stats.total, stats.active)
    return stats.total


def each_pair(losses: jax.Array, weights: jax.Array) -> LossStats:
    """Sums `[A, R]` losses of pairs, each of a weight (0 = no pair), to `[A]` sums for each anchor."""
    return LossStats(
        jnp.sum(jnp.where(weights > 0, weights * losses, 0), axis=1),
        jnp.sum(weights, axis=1),
        jnp.sum(jnp.where(losses > 0, weights, 0), axis=1),
    )


def each_anchor(losses: jax.Array, weights: jax.Array) -> LossStats:
    """Returns the sums for each anchor that has a single loss, `[A]`, of a weight `[A]` (0 = none)."""
    return LossStats(jnp.where(weights > 0, weights * losses, 0), weights, jnp.where(losses > 0, weights, 0))


def reduce_anchors(per_anchor: LossStats, reduction: str) -> tuple[jax.Array, LossStats]:
    """Returns the loss of `[A]` sums for each anchor, and its stats; `"none"` gives each anchor's total."""
    stats = LossStats(*(jnp.sum(each) for each in per_anchor))
    return per_anchor.total if reduction == "none" else reduce_stats(stats, reduction), stats
