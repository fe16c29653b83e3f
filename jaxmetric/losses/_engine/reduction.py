"""From sums over tuples to the value a loss returns: one division, by what was counted."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmetric.numerics import safe_divide

# A scalar (or one value per anchor or example), or with has_aux=True a pair of that and LossStats.
LossResult: TypeAlias = Any

REDUCTIONS = ("mean", "mean_active", "sum")


class LossStats(NamedTuple):
    """What a loss was computed from. Sums, so that they can be added over batches or devices before dividing.

    Attributes:
      total: the weighted sum of the losses of all valid tuples.
      valid: the (weighted) number of valid tuples.
      active: the (weighted) number of tuples with a positive loss.
    """

    total: jax.Array
    valid: jax.Array
    active: jax.Array


def reduce_stats(stats: LossStats, reduction: str) -> jax.Array:
    """Divides a loss's sum as `reduction` says; 0 where there was nothing to compare."""
    check_reduction(reduction)
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
    """The sums for each anchor where an anchor has a single loss, `[A]`, of a weight `[A]` (0 = none)."""
    return LossStats(jnp.where(weights > 0, weights * losses, 0), weights, jnp.where(losses > 0, weights, 0))


def reduce_each(values: jax.Array, weights: jax.Array, reduction: str) -> tuple[jax.Array, LossStats]:
    """Reduces one value and one weight (0 = left out) for each anchor or example; `"none"` returns them weighed."""
    return reduce_anchors(each_anchor(values, weights), reduction, has_aux=True)


def reduce_anchors(per_anchor: LossStats, reduction: str, has_aux: bool) -> LossResult:
    """What a loss returns, of sums `[A]` for each anchor; `"none"` gives each anchor's total."""
    check_reduction(reduction, "none")
    stats = LossStats(*(jnp.sum(each) for each in per_anchor))
    loss = per_anchor.total if reduction == "none" else reduce_stats(stats, reduction)
    return (loss, stats) if has_aux else loss


def check_reduction(reduction: str, *more: str) -> None:
    """Raises ValueError unless `reduction` is one of `REDUCTIONS` or of `more`."""
    if reduction not in (*REDUCTIONS, *more):
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join((*REDUCTIONS, *more))}")
