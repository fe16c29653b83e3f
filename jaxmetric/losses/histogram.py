"""The histogram loss: positive and negative pairs overlap little in similarity.

A similarity counts at the two nodes around it on an equidistant grid, by its nearness to each: a histogram whose
gradient is not 0. `_soft_counts` adds positive pairs to the nodes, and `_interpolate` reads their cumulative
frequencies where the negative pairs are. No array has an axis for the nodes beside those of anchors and references.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.losses.comparison import Comparison, Pairwise, compare, pair_weights
from jaxmetric.losses.reduction import LossResult, LossStats, each_pair, reduce_anchors
from jaxmetric.numerics import safe_divide
from jaxmetric.references import PairMasks, References


def histogram_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    num_bins: int = 100,
    similarity: Pairwise = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The histogram loss: how probable it is that a negative pair is more similar than a positive pair.

    :math:`\sum_{r=0}^{R} h^-_r \sum_{q=0}^{r} h^+_q`, with h the relative frequencies of the similarities of negative
    and positive pairs at the R + 1 nodes of [-1, 1]; a similarity counts at the two nodes around it, by its nearness.

    As a mean over negative pairs, of the frequency :math:`\phi^+` of positive pairs which are less similar.

    Args:
      embeddings: `[B, D]` floats, normalised or not; None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike.
      num_bins: R, a static number >= 1: 2 over the width of a bin.
      similarity: `"cosine"`, `"dot"`, a function `(x [A, D], y [R, D]) -> [A, R]`, or an `[A, R]` array. Similarities
        outside [-1, 1] count as -1 or 1 and have no gradient.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used. With `labels=None`: two masks, `(positives, negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0; a pair weighs the product of its members', in both histograms.
      reduction: `"mean"` over negative pairs, `"mean_active"`, `"sum"`, or `"none"`: for each anchor the sum over its
        negative pairs.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss in [0, 1] (or `[B]` sums); 0, with zero gradients, if there are no positive or no negative pairs.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> similarity = jnp.array([[1.0, 0.0, 0.75], [0.0, 1.0, -0.5], [0.75, -0.5, 1.0]])
      >>> float(histogram_loss(None, jnp.array([0, 0, 1]), num_bins=4, similarity=similarity))
      0.5

      The positive pair has similarity 0: one negative pair is above, at 0.75, and one below.

    References:
      E. Ustinova, V. Lempitsky, Learning Deep Embeddings with Histogram Loss, NeurIPS 2016, arXiv 1611.00822.
    """
    checks.check_static_integer("num_bins", num_bins, least=1)
    comparison = compare(
        embeddings, labels, similarity=similarity, references=references, pairs=pairs, where=where, weights=weights
    )
    return reduce_anchors(_histogram(comparison, num_bins=num_bins), reduction, has_aux)


@partial(jax.jit, static_argnames="num_bins")
def _histogram(comparison: Comparison, *, num_bins: int) -> LossStats:
    bins = _soft_bins(comparison.values, num_bins)
    positives, negatives = (pair_weights(comparison, mask) for mask in (comparison.positives, comparison.negatives))
    total = jnp.sum(positives)
    less_similar = jnp.cumsum(safe_divide(_soft_counts(bins, positives, num_bins), total))
    return each_pair(_interpolate(less_similar, bins), jnp.where(total > 0, negatives, 0))


class _SoftBins(NamedTuple):
    """Where `[A, R]` values lie on a grid of nodes 0 to n."""

    share: jax.Array  # in [0, 1], of the node above
    below: jax.Array  # of the node below, in a flat table of n + 1 nodes for each anchor


def _soft_bins(values: jax.Array, num_bins: int) -> _SoftBins:
    position = jnp.clip((values + 1) * (num_bins / 2), 0, num_bins)
    # Clipped as integers once more: what a NaN becomes is undefined, and its share shall be seen.
    node = jnp.clip(jax.lax.stop_gradient(position).astype(jnp.int32), 0, num_bins - 1)
    below = node + (num_bins + 1) * jnp.arange(values.shape[0], dtype=jnp.int32)[:, None]
    return _SoftBins(position - node.astype(position.dtype), below)


def _soft_counts(bins: _SoftBins, weights: jax.Array, num_bins: int) -> jax.Array:
    """`[n + 1]`: the weight at each node, of values that weigh `weights` `[A, R]`."""
    upper = jnp.where(weights > 0, weights * bins.share, 0)
    # A table for each anchor: single sums over all pairs of a large batch would lose digits.
    counts = jnp.zeros(weights.shape[0] * (num_bins + 1), weights.dtype)
    counts = counts.at[bins.below].add(weights - upper).at[bins.below + 1].add(upper)
    return jnp.sum(counts.reshape(weights.shape[0], num_bins + 1), axis=0)


def _interpolate(table: jax.Array, bins: _SoftBins) -> jax.Array:
    """`[A, R]`: at each value the function that is given at the nodes by `table` `[n + 1]`."""
    tables = jnp.tile(table, bins.below.shape[0])
    lower, upper = tables[bins.below], tables[bins.below + 1]
    return lower + bins.share * (upper - lower)
