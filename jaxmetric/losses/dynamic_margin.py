"""The triplet loss with a dynamic soft margin: a triplet weighs the share of triplets that are easier than it.

How hard a triplet is, is its difference z = d(a, p) - d(a, n). A histogram of the differences, averaged over past
batches, is the state of the loss: an argument, and part of what `has_aux=True` returns.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.losses.comparison import (
    Comparison,
    Pairwise,
    between_references,
    compare,
    negatives_between_references,
    no_sums,
)
from jaxmetric.losses.positive_pairs import PositivePair, sum_over_positives
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, each_pair, reduce_anchors
from jaxmetric.losses.triplet import sum_over_triplets, triplet_weights
from jaxmetric.mining import hardest_negatives
from jaxmetric.numerics import as_float, safe_divide
from jaxmetric.references import PairMasks, References

MININGS = ("hard", "all")


class DynamicMarginStats(NamedTuple):
    """`LossStats` and the histogram for the next batch.

    Attributes:
      total: the weighted sum of the losses of all valid triplets.
      valid: the (weighted) number of valid triplets.
      active: the (weighted) number of triplets with a positive loss.
      histogram: `[K]`, of sum 1: the share of the triplets around each of K equally spaced differences.
    """

    total: jax.Array
    valid: jax.Array
    active: jax.Array
    histogram: jax.Array


def dynamic_soft_margin_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    histogram: jax.Array | None = None,
    momentum: float = 0.01,
    num_bins: int = 512,
    largest: float = 2.0,
    mining: str = "hard",
    distance: Pairwise = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The triplet loss with a margin that is the distribution of the triplets.

    The mean of :math:`F(z)\, z` over triplets, :math:`z = d(a, p) - d(a, n)`, with F(z) the share of triplets, in
    past batches and this one, whose difference is at most z. F is a constant: no gradient flows through it.

    Args:
      embeddings: `[B, D]` floats of length 1; None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike.
      histogram: `[K]` floats >= 0, what the call on the batch before returned in its stats; zeros or None before the
        first: then it is that of this batch.
      momentum: in [0, 1], the share of this batch in the histogram of which F is the running sum.
      num_bins: K, static, at least 2; the length of `histogram` if that is given.
      largest: the histogram reaches from -largest to largest; what lies beyond is counted at its ends. Distances of
        embeddings of length 1 are at most 2.
      mining: `"hard"` takes for each anchor and positive the negative nearest to one of the two, as the paper does;
        `"all"` every negative of the anchor.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[B, D]` and `[R, D]`, or an
        array `[B, R]`.
      references: where positives and negatives come from; the batch itself if not given.
      pairs: `[B, R]` booleans: which (a, p) and (a, n) may be used; all if not given. With `labels=None`: two masks,
        `(positives, negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0; a triplet weighs the product of its members'. No gradient flows into them.
      reduction: `"mean"`, `"mean_active"` (over triplets with a positive loss), `"sum"`, or `"none"`: for each anchor
        the sum over its triplets.
      has_aux: whether to return `(loss, DynamicMarginStats)`.

    Returns:
      The scalar loss (or `[B]` sums), negative where most positives are closer than negatives; 0, with zero gradients,
      if the batch has no triplet.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [1.0], [1.5]]), jnp.array([4, 4, 9])
      >>> loss, stats = dynamic_soft_margin_loss(embeddings, labels, num_bins=9, has_aux=True)
      >>> float(loss)  # both triplets: z = 1 - .5, F(z) = 1
      0.5
      >>> stats.histogram.tolist()  # at -2, -1.5, ..., 2
      [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]

    References:
      L. Zhang, S. Rusinkiewicz, Learning Local Descriptors with a CDF-Based Dynamic Soft Margin, ICCV 2019.
    """
    check_reduction(reduction, "none")
    checks.check_scalar("momentum", momentum, least=0, most=1)
    checks.check_scalar("largest", largest, above=0)
    checks.check_choice("mining", mining, MININGS)
    comparison = compare(
        embeddings,
        labels,
        distance=distance,
        references=references,
        pairs=pairs,
        where=where,
        weights=weights,
        needs_labels=references is not None and mining == "hard",
    )
    past = _check_histogram(histogram, num_bins, comparison.values.dtype)
    of_positives = None
    if mining == "hard":
        # Within the batch, the negatives of a positive are those that `pairs` leaves it as an anchor.
        negatives = comparison.negatives if references is None else negatives_between_references(comparison)
        of_positives = between_references("distance", distance, comparison, references), negatives
    per_anchor, updated = _sums_of_anchors(comparison, of_positives, past, momentum, largest)
    loss, stats = reduce_anchors(per_anchor, reduction, has_aux=True)
    return (loss, DynamicMarginStats(stats.total, stats.valid, stats.active, updated)) if has_aux else loss


def _check_histogram(histogram: jax.Array | None, num_bins: int, dtype: jnp.dtype) -> jax.Array:
    checks.check_static_integer("num_bins", num_bins, least=2)
    if histogram is None:
        return jnp.zeros(num_bins, dtype)
    histogram = checks.check_floats("histogram", histogram)
    if histogram.ndim != 1 or histogram.size < 2:
        raise ValueError(f"histogram has shape {histogram.shape}, expected [K] with K >= 2")
    return jax.lax.stop_gradient(as_float(histogram).astype(dtype))


@jax.jit
def _sums_of_anchors(
    c: Comparison,
    of_positives: tuple[jax.Array, jax.Array] | None,
    past: jax.Array,
    momentum: float,
    largest: float,
) -> tuple[LossStats, jax.Array]:
    """The sums of each anchor, and the updated histogram.

    `of_positives` has the distances of positives to all references and which of these are their negatives, `[R, R]`; if
    it is None, all triplets are taken.
    """
    if not c.values.size:
        return no_sums(c), past
    past, momentum, reach = jax.lax.stop_gradient((past, momentum, jnp.asarray(largest, past.dtype)))
    if of_positives is None:
        histogram = _updated(past, _histogram_of_all(c, past, reach), momentum)
        sums = sum_over_triplets(_losses, c, None, (jnp.cumsum(histogram), reach))
    else:
        differences, weights = _hard_triplets(c, *of_positives)
        every_weight = c.anchor_weights[:, None] * weights
        histogram = _updated(past, _histogram(differences, every_weight, past.size, reach), momentum)
        sums = each_pair(_losses(differences, jnp.cumsum(histogram), reach), weights)
    return LossStats(*(c.anchor_weights * each for each in sums)), histogram


def _hard_triplets(c: Comparison, others: jax.Array, negatives: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`[A, R]`: z of each anchor and positive with the negative nearest to one of the two, and the weight of both."""

    def nearest(distances: jax.Array, negatives: jax.Array) -> tuple[jax.Array, jax.Array]:
        index = hardest_negatives(distances, negatives)
        distance = jnp.take_along_axis(distances, index[:, None], axis=1)[:, 0]
        return jnp.where(jnp.any(negatives, axis=1), distance, jnp.inf), c.reference_weights[index]

    of_anchor, anchors_weight = (each[:, None] for each in nearest(c.values, c.negatives))
    of_positive, positives_weight = (each[None, :] for each in nearest(others, negatives))
    positive_is_nearer = of_positive < of_anchor
    exists = c.positives & jnp.any(c.negatives, axis=1, keepdims=True)
    far = jnp.where(positive_is_nearer, of_positive, of_anchor)
    weights = c.reference_weights[None, :] * jnp.where(positive_is_nearer, positives_weight, anchors_weight)
    return jnp.where(exists, c.values - jnp.where(exists, far, 0), 0), jnp.where(exists, weights, 0)


def _histogram_of_all(c: Comparison, past: jax.Array, reach: jax.Array) -> jax.Array:
    """The histogram of all triplets."""
    _, far = triplet_weights(c)
    constants = c.reference_weights, jnp.zeros_like(past), reach
    of_anchors = sum_over_positives(_histogram_term, c.values, None, c.positives, far, constants)
    return jnp.sum(c.anchor_weights[:, None] * of_anchors, axis=0)


def _histogram_term(pair: PositivePair, far: jax.Array, constants: Any) -> jax.Array:
    reference_weights, empty, reach = constants
    return _histogram(pair.value - pair.anchor_row, reference_weights[pair.positive] * far, empty.size, reach)


def _losses(differences: jax.Array, cumulative: jax.Array, reach: jax.Array) -> jax.Array:
    bins, _ = _bins(differences, cumulative.size, reach)
    return cumulative[bins] * differences


def _histogram(differences: jax.Array, weights: jax.Array, num_bins: int, reach: jax.Array) -> jax.Array:
    """The weight around each bin: a difference between two bins is shared by them."""
    bins, share = _bins(differences, num_bins, reach)
    histogram = jnp.zeros(num_bins, weights.dtype)
    used = weights > 0  # what the others hold need not be a number
    histogram = histogram.at[bins].add(jnp.where(used, weights * (1 - share), 0))
    return histogram.at[jnp.minimum(bins + 1, num_bins - 1)].add(jnp.where(used, weights * share, 0))


def _bins(differences: jax.Array, num_bins: int, reach: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bin at or below each difference, and how far it is on the way to the next."""
    differences = jax.lax.stop_gradient(differences)
    positions = jnp.clip((differences + reach) * ((num_bins - 1) / (2 * reach)), 0, num_bins - 1)
    bins = jnp.floor(positions)
    return bins.astype(jnp.int32), positions - bins


def _updated(past: jax.Array, histogram: jax.Array, momentum: float) -> jax.Array:
    """The past with a share of this batch; the one alone where the other is empty."""
    total, past_total = jnp.sum(histogram), jnp.sum(past)
    share = jnp.where(past_total > 0, jnp.asarray(momentum, past.dtype), 1)
    share = jnp.where(total > 0, share, 0)
    return (1 - share) * safe_divide(past, past_total) + share * safe_divide(histogram, total)
