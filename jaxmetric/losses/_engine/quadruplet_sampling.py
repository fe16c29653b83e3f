"""The pairs of a batch, and quadruplets drawn from them, with static shapes and explicit keys."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmetric.losses._engine.ordered_hinge import sums_above


class Pairs(NamedTuple):
    """Index arrays `[P]` of the two members of each pair."""

    first: jax.Array
    second: jax.Array


def all_pairs(batch: int) -> Pairs:
    """Returns every unordered pair of distinct examples of a batch, once.

    The pairs are numbered by offset: (i, i + offset mod B). Their indices are computed where they are used, and not
    stored as constants of the program.

    Example:
      >>> first, second = all_pairs(4)
      >>> list(zip(first.tolist(), second.tolist()))
      [(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)]
    """
    number = jax.lax.iota(np.int32, batch * (batch - 1) // 2)
    first = number % batch
    second = (first + number // batch + 1) % batch
    return Pairs(first, second)


def pair_values(matrix: jax.Array) -> jax.Array:
    """Returns `matrix[all_pairs(B)]` `[P]` of a `[B, B]` matrix by moving whole rows, because TPUs look up slowly."""
    batch = matrix.shape[0]
    half = batch // 2
    circle = jnp.concatenate([matrix, matrix[:, :half]], axis=1)
    # One extra entry per row shifts row i by i entries: its entry k is matrix[i, (i + k) % B].
    turned = jnp.pad(circle.reshape(-1), (0, batch)).reshape(batch, batch + half + 1)
    rounds = turned[:, 1 : half + 1].T
    return rounds.reshape(-1)[: batch * (batch - 1) // 2]


@partial(jax.jit, static_argnames=("num_samples", "num_levels"))
def sample_ordered(
    key: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    weights: jax.Array,
    *,
    num_samples: int,
    num_levels: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws ordered pairs (a, b) with `upper[a] < lower[b]`, with replacement.

    The probability of a pair is proportional to `weights[a] weights[b]`. The pairs are drawn by inverting the
    cumulative weights, so every draw is valid, however rare valid pairs are.

    Args:
      key: a `jax.random` key.
      lower: `[P]` lowest level of each item, integers in [0, num_levels).
      upper: `[P]` highest level of each item.
      weights: `[P]` weights >= 0.
      num_samples: how many to draw (static).
      num_levels: static number of levels.

    Returns:
      Indices a and b, `[num_samples]` each, and a boolean: whether any such ordered pair exists.
    """
    near_key, far_key = jax.random.split(key)
    near_weights = weights * sums_above(weights, lower, num_levels)[upper]
    near = _draw(near_key, near_weights, jnp.zeros(num_samples, jnp.int32))
    # Sorted by level, the far items above level u form a suffix.
    by_level = jnp.argsort(lower)
    end_of_level = jnp.searchsorted(lower[by_level], jnp.arange(num_levels), side="right")
    far = by_level[_draw(far_key, weights[by_level], end_of_level[upper[near]])]
    return near, far, jnp.any(near_weights > 0)


def _draw(key: jax.Array, weights: jax.Array, start: jax.Array) -> jax.Array:
    """Draws for each entry of `start` an index at or above it, in proportion to the weights."""
    cumulative = jnp.append(0, jnp.cumsum(weights))
    before = cumulative[start]
    uniform = jax.random.uniform(key, start.shape, weights.dtype)
    target = before + uniform * (cumulative[-1] - before)
    drawn = jnp.maximum(jnp.searchsorted(cumulative[1:], target, side="right"), start)
    # Rounding may select an item of weight 0, or one beyond the last. Then the next item with a weight is meant.
    index = jnp.arange(weights.size)
    last = jnp.max(jnp.where(weights > 0, index, 0))
    following = jax.lax.cummin(jnp.where(weights > 0, index, last), reverse=True)
    return following[jnp.minimum(drawn, last)]
