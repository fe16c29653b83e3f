"""Losses that approximate retrieval metrics by smooth ranks or by histograms.

In `smooth_ap_loss`, `pnp_loss` and `recall_at_k_loss`, a rank is 1 plus a smooth count of the references ranked before,
a sum of sigmoids of differences of similarities. The formula for one positive is a `Term` of
`jaxmetric.losses._engine.positive_sums`, which never stores the ranks of all triplets. `fast_ap_loss` replaces ranks by
the cumulative counts of a histogram of distances.

`histogram_loss` compares the similarities of positive and negative pairs. A similarity counts at the two nodes around
it on an equidistant grid, which gives the histogram a gradient. No array has axes for anchors, references and nodes at
once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.comparison import Comparison, check_pairs, pair_loss, pair_weights
from jaxmetric.losses._engine.positive_sums import PositivePair, Term, sum_over_positives
from jaxmetric.losses._engine.reduction import LossResult, LossStats, each_anchor, each_pair
from jaxmetric.losses._engine.types import (
    ClassLabels,
    Distance,
    PositiveScalar,
    Reduction,
    ScalarLike,
    Similarity,
)
from jaxmetric.numerics import safe_divide
from jaxmetric.references import PairMasks, References

PnpVariant: TypeAlias = Literal["O", "Ds", "Dq", "Iu", "Ib"]


class _Masks(NamedTuple):
    """The masks of a query that a term takes."""

    positives: jax.Array  # [R]
    negatives: jax.Array  # [R]


class _Constants(NamedTuple):
    """The constants that all terms take."""

    reference_weights: jax.Array  # [R]
    temperature: jax.Array
    hyper: tuple[jax.Array, ...]


def smooth_ap_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    temperature: PositiveScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""Smooth-AP: one minus the average precision of each query's ranking, with sigmoids instead of steps.

    :math:`1 - \frac{1}{|P_q|} \sum_{i \in P_q} \frac{1 + \sum_{j \in P_q, j \ne i} G_{ij}}
    {1 + \sum_{j \in P_q \cup N_q, j \ne i} G_{ij}}` with :math:`G_{ij} = \sigma((s_{qj} - s_{qi}) / \tau)`.

    As in the code published with the paper, the ranking of a query includes the query itself as a positive;
    `pairs=~jnp.eye(B, dtype=bool)` excludes it. A query without another positive has no loss.

    Args:
      embeddings: `[B, D]` floats. They need not be normalized. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. Classes may come in any order and number. None if `pairs` defines positives
        and negatives.
      temperature: tau > 0, in similarity. Smaller values are closer to average precision but make the gradient sparser.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`. References in other pairs are not ranked.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight queries, and
        positives in the mean of a query. In ranks every valid example counts once.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each query.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss in [0, 1) (or `[B]` losses); 0, with zero gradients, where there is no positive.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> similarity = jnp.array([[9.0, 1.0, 5.0], [1.0, 9.0, 0.0], [5.0, 0.0, 9.0]])
      >>> loss = smooth_ap_loss(None, jnp.array([0, 0, 1]), similarity=similarity)
      >>> round(float(loss), 4)  # mean of 1/6 and 0
      0.0833

      The first query ranks itself first and its other positive third: 1 - (1/1 + 2/3) / 2.

    References:
      A. Brown, W. Xie, V. Kalogeiton, A. Zisserman, Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval,
      ECCV 2020, arXiv 2007.12163.
    """
    temperature = checks.check_scalar("temperature", temperature, above=0)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_mean_over_positives, batch, temperature, term=_precision_lost)


def _precision_lost(pair: PositivePair, masks: _Masks, constants: _Constants) -> jax.Array:
    negatives = _before(pair, masks.negatives, constants.temperature)
    positives = 1 + _before(pair, masks.positives, constants.temperature)
    # One minus the precision at the positive: exactly 0 if no negative is ranked.
    return _weight(pair, constants) * negatives / (positives + negatives)


def pnp_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    variant: PnpVariant = "O",
    alpha: PositiveScalar = 1.0,
    b: PositiveScalar = 2.0,
    temperature: PositiveScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""PNP: penalizes only the negatives that a query ranks before its positives.

    :math:`\frac{1}{|P_q|} \sum_{i \in P_q} f(R_i)`, where the number of negatives before the positive i is
    :math:`R_i = \sum_{j \in N_q} \sigma((s_{qj} - s_{qi}) / \tau)`, and `variant` chooses f:

    * `"O"`: :math:`R`;
    * `"Iu"`: :math:`(1 + R) \log(1 + R)`, and `"Ib"`: :math:`(b R - \log(1 + b R)) / b^2`, whose derivatives increase:
      the lowest-ranked positives are pulled most, and a class becomes one cluster;
    * `"Ds"`: :math:`\log(1 + R)`, and `"Dq"`: :math:`1 - (1 + R)^{-\alpha}`, whose derivatives decrease: the
      lowest-ranked positives are pulled little, and a class may form several clusters.

    As in the code published with the paper, the query itself is one of its positives; `pairs=~jnp.eye(B, dtype=bool)`
    excludes it. A query without another positive has no loss.

    Args:
      embeddings: `[B, D]` floats. They need not be normalized. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      variant: f, one of the five above.
      alpha: > 0, the parameter of `"Dq"`.
      b: > 0, the parameter of `"Ib"`.
      temperature: tau > 0, in similarity.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`. References in other pairs are not ranked.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight queries, and
        positives in the mean of a query. Every valid negative counts once.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each query.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, where there is no positive or no negative.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> similarity = jnp.array([[9.0, 1.0, 5.0], [1.0, 9.0, 0.0], [5.0, 0.0, 9.0]])
      >>> pnp_loss(None, jnp.array([0, 0, 1]), similarity=similarity, reduction="none").tolist()
      [0.5, 0.0, 0.0]

      The first ranks one negative before its positive and none before itself: (1 + 0) / 2.

    References:
      Z. Li, W. Min, J. Song, Y. Zhu, L. Kang, X. Wei, X. Wei, S. Jiang, Rethinking the Optimization of Average
      Precision: Only Penalizing Negative Instances before Positive Ones is Enough, AAAI 2022, arXiv 2102.04640.
    """
    checks.check_choice("variant", variant, _PNP_TERMS)
    alpha = checks.check_scalar("alpha", alpha, above=0)
    b = checks.check_scalar("b", b, above=0)
    temperature = checks.check_scalar("temperature", temperature, above=0)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_mean_over_positives, batch, temperature, alpha, b, term=_PNP_TERMS[variant])


def _pnp_term(curve: Callable[..., jax.Array], pair: PositivePair, masks: _Masks, constants: _Constants) -> jax.Array:
    negatives = _before(pair, masks.negatives, constants.temperature)
    return _weight(pair, constants) * curve(negatives, *constants.hyper)


_PNP_CURVES: dict[str, Callable[..., jax.Array]] = {
    "O": lambda r, alpha, b: r,
    "Ds": lambda r, alpha, b: jnp.log1p(r),
    "Dq": lambda r, alpha, b: -jnp.expm1(-alpha * jnp.log1p(r)),
    "Iu": lambda r, alpha, b: (1 + r) * jnp.log1p(r),
    "Ib": lambda r, alpha, b: (b * r - jnp.log1p(b * r)) / b**2,
}


_PNP_TERMS: dict[str, Term] = {name: partial(_pnp_term, curve) for name, curve in _PNP_CURVES.items()}


def recall_at_k_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8, 16),
    temperature: PositiveScalar = 0.01,
    rank_temperature: PositiveScalar = 1.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The Recall@k surrogate: one minus the smooth share of positives among each query's k nearest, over several k.

    :math:`1 - \frac{1}{|K|} \sum_{k \in K} \frac{\min(k, \sum_{i \in P_q} \sigma((k - r_i) / \tau_1))}{\min(k, |P_q|)}`
    with the soft ranks :math:`r_i = 1 + \sum_{j \ne i} \sigma((s_{qj} - s_{qi}) / \tau_2)`.

    The query itself is not ranked. A perfect ranking does not have loss 0, because a positive at rank k counts 1/2.

    Args:
      embeddings: `[B, D]` floats. They need not be normalized. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      ks: K, static numbers >= 1.
      temperature: tau_2 > 0, in similarity.
      rank_temperature: tau_1 > 0, in ranks.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`. References in other pairs are not ranked.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight queries, and the
        positives of a query relative to each other. In ranks every valid example counts once.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each query.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss in [0, 1] (or `[B]` losses); 0, with zero gradients, where no query has both a positive and a
      negative.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> similarity = jnp.array([[9.0, 1.0, 5.0], [1.0, 9.0, 0.0], [5.0, 0.0, 9.0]])
      >>> losses = recall_at_k_loss(None, jnp.array([0, 0, 1]), similarity=similarity, ks=(1,), reduction="none")
      >>> losses.round(4).tolist()  # ranks 2 and 1: 1 - sigmoid(-1), 1 - sigmoid(0)
      [0.7310999631881714, 0.5, 0.0]

    References:
      Y. Patel, G. Tolias, J. Matas, Recall@k Surrogate Loss with Large Batches and Similarity Mixup, CVPR 2022, arXiv
      2108.11179.
    """
    temperature = checks.check_scalar("temperature", temperature, above=0)
    rank_temperature = checks.check_scalar("rank_temperature", rank_temperature, above=0)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_recall_lost, batch, temperature, rank_temperature, ks=_check_ks(ks))


def _check_ks(ks: Sequence[int]) -> tuple[int, ...]:
    ks = checks.check_static_sequence("ks", ks, "a sequence of static integers")
    if not ks:
        raise ValueError(f"ks is {ks!r}, expected at least one static number")
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ValueError(f"ks has {checks.shown(k)}, expected static integers of at least 1")
    return tuple(int(k) for k in ks)


def _recall_lost(
    c: Comparison, temperature: ScalarLike, rank_temperature: ScalarLike, *, ks: tuple[int, ...]
) -> LossStats:
    similarities, positives, negatives, query_weights, weights = _ranking(c)
    dtype = similarities.dtype
    first = jnp.asarray(ks, dtype)
    hyper = (jnp.asarray(rank_temperature, dtype), *first)
    constants = _Constants(weights, jnp.asarray(temperature, dtype), hyper)
    found = sum_over_positives(_among_first, similarities, None, positives, positives | negatives, constants)
    found = jnp.stack(found, axis=1)
    positive_weight = jnp.sum(jnp.where(positives, weights[None, :], 0), axis=1, keepdims=True)
    num_positives = jnp.sum(positives.astype(dtype), axis=1, keepdims=True)
    # Weights do not change the number of positives of a query; they only make some count more than others.
    found = found * safe_divide(num_positives, positive_weight)
    recall = safe_divide(jnp.minimum(first[None, :], found), jnp.minimum(first[None, :], num_positives))
    valid = jnp.any(negatives, axis=1)
    return each_anchor(1 - jnp.mean(recall, axis=1), jnp.where(valid, query_weights, 0))


def _among_first(pair: PositivePair, ranked: jax.Array, constants: _Constants) -> tuple[jax.Array, ...]:
    """Returns for each k a smooth indicator that the positive is among the first k."""
    rank_temperature, *ks = constants.hyper
    rank = 1 + _before(pair, ranked, constants.temperature)
    weight = _weight(pair, constants)
    return tuple(weight * jax.nn.sigmoid((k - rank) / rank_temperature) for k in ks)


def fast_ap_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    num_bins: int = 10,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""FastAP: one minus the average precision of each query's ranking, from a histogram of its distances.

    :math:`1 - \frac{1}{|P_q|} \sum_{l=0}^{L} \frac{h^+_l H^+_l}{H_l}`, h the counts at the L + 1 nodes of [0, 4], H the
    cumulative counts, and + the counts of positives. A distance counts at the two nodes around it, in proportion to its
    nearness to each.

    Args:
      embeddings: `[B, D]` floats. They are normalized, so that squared distances lie in [0, 4]; larger ones count as 4
        and have no gradient. None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      num_bins: L, a static number >= 1.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array. Distances lie in [0, 4]; larger ones count as 4.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`. References in other pairs are not ranked.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight queries, and
        positives in the mean of a query. In H every valid example counts once.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each query.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss in [0, 1) (or `[B]` losses); 0, with zero gradients, where there is no positive or no negative.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> distance = jnp.array([[0.0, 2.0, 1.0], [2.0, 0.0, 4.0], [1.0, 4.0, 0.0]])
      >>> fast_ap_loss(None, jnp.array([0, 0, 1]), num_bins=4, distance=distance, reduction="none").tolist()
      [0.5, 0.0, 0.0]

      The first finds its positive at node 2, and a negative before, at node 1: 1 - 1 x 1 / 2.

    References:
      F. Cakir, K. He, X. Xia, B. Kulis, S. Sclaroff, Deep Metric Learning to Rank, CVPR 2019.
    """
    num_bins = checks.check_static_integer("num_bins", num_bins, least=1)
    batch = check_pairs(embeddings, labels, references, pairs, where, weights, reduction, has_aux, distance=distance)
    return pair_loss(_fast_ap, batch, num_bins=num_bins)


def _fast_ap(comparison: Comparison, *, num_bins: int) -> LossStats:
    positives, negatives = comparison.positives, comparison.negatives
    weights = jnp.where(positives, comparison.reference_weights[None, :], 0)
    positions = jnp.clip(comparison.values * (num_bins / 4), 0, num_bins)

    @jax.checkpoint
    def counts(node: jax.Array, positions: jax.Array) -> list[jax.Array]:
        """Returns the three counts of each query at one node, so that no array has an axis of nodes besides [A, R]."""
        near = jax.nn.relu(1 - jnp.abs(positions - node))
        masked = (jnp.where(positives, near, 0), jnp.where(negatives, near, 0), jnp.where(positives, weights * near, 0))
        return [jnp.sum(each, axis=1) for each in masked]

    nodes = jnp.arange(num_bins + 1, dtype=positions.dtype)
    positive_counts, negative_counts, weighed = jax.lax.map(lambda node: counts(node, positions), nodes)
    negatives_before = jnp.cumsum(negative_counts, axis=0)
    before = jnp.cumsum(positive_counts, axis=0) + negatives_before
    # One minus the precision at each node; its mean over the positives is 1 - FastAP.
    lost = jnp.sum(weighed * safe_divide(negatives_before, before), axis=0)
    valid = jnp.where(jnp.any(positives, axis=1), comparison.anchor_weights, 0)
    return each_anchor(safe_divide(lost, jnp.sum(weights, axis=1)), valid)


def histogram_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    num_bins: int = 100,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The histogram loss: the probability that a negative pair is more similar than a positive pair.

    :math:`\sum_{r=0}^{R} h^-_r \sum_{q=0}^{r} h^+_q`, with h the relative frequencies of the similarities of negative
    and positive pairs at the R + 1 nodes of [-1, 1]. A similarity counts at the two nodes around it, in proportion to
    its nearness. The loss is the frequency :math:`\phi^+` of positive pairs that are less similar than a negative pair,
    averaged over negative pairs.

    Args:
      embeddings: `[B, D]` floats. They need not be normalized. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      num_bins: R, a static number >= 1: 2 divided by the width of a bin.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array. Similarities outside
        [-1, 1] count as -1 or 1 and have no gradient.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. A pair weighs the product of
        its members', in both histograms.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over negative pairs, and `"none"` returns
        for each anchor the sum over its negative pairs.
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
    num_bins = checks.check_static_integer("num_bins", num_bins, least=1)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_histogram, batch, num_bins=num_bins)


def _histogram(comparison: Comparison, *, num_bins: int) -> LossStats:
    bins = _soft_bins(comparison.values, num_bins)
    positives, negatives = (pair_weights(comparison, mask) for mask in (comparison.positives, comparison.negatives))
    total = jnp.sum(positives)
    less_similar = jnp.cumsum(safe_divide(_soft_counts(bins, positives, num_bins), total))
    return each_pair(_interpolate(less_similar, bins), jnp.where(total > 0, negatives, 0))


class _SoftBins(NamedTuple):
    """The positions of `[A, R]` values on a grid of nodes 0 to n."""

    share: jax.Array  # in [0, 1], the share of the node above
    below: jax.Array  # the node below, as an index of a flat table of n + 1 nodes per anchor


def _soft_bins(values: jax.Array, num_bins: int) -> _SoftBins:
    position = jnp.clip((values + 1) * (num_bins / 2), 0, num_bins)
    # Clipped again as integers: the conversion of a NaN is undefined, and its share has to stay visible.
    node = jnp.clip(jax.lax.stop_gradient(position).astype(jnp.int32), 0, num_bins - 1)
    below = node + (num_bins + 1) * jnp.arange(values.shape[0], dtype=jnp.int32)[:, None]
    return _SoftBins(position - node.astype(position.dtype), below)


def _soft_counts(bins: _SoftBins, weights: jax.Array, num_bins: int) -> jax.Array:
    """Returns `[n + 1]`: the total weight at each node, for values with `weights` `[A, R]`."""
    upper = jnp.where(weights > 0, weights * bins.share, 0)
    # One table per anchor: a single sum over all pairs of a large batch would lose digits.
    counts = jnp.zeros(weights.shape[0] * (num_bins + 1), weights.dtype)
    counts = counts.at[bins.below].add(weights - upper).at[bins.below + 1].add(upper)
    return jnp.sum(counts.reshape(weights.shape[0], num_bins + 1), axis=0)


def _interpolate(table: jax.Array, bins: _SoftBins) -> jax.Array:
    """Returns `[A, R]`: the function with the values `table` `[n + 1]` at the nodes, interpolated at each value."""
    tables = jnp.tile(table, bins.below.shape[0])
    lower, upper = tables[bins.below], tables[bins.below + 1]
    return lower + bins.share * (upper - lower)


def _mean_over_positives(c: Comparison, temperature: ScalarLike, *hyper: ScalarLike, term: Term) -> LossStats:
    """Returns the weighted mean of a term over the positives of each query."""
    ranking = _ranking(c, c.own)
    weights, dtype = ranking.reference_weights, ranking.similarities.dtype
    constants = _Constants(weights, jnp.asarray(temperature, dtype), tuple(jnp.asarray(each, dtype) for each in hyper))
    masks = _Masks(ranking.positives, ranking.negatives)
    sums = sum_over_positives(term, ranking.similarities, None, ranking.positives, masks, constants)
    positive_weight = jnp.sum(jnp.where(ranking.positives, weights[None, :], 0), axis=1)
    return each_anchor(safe_divide(sums, positive_weight), ranking.query_weights)


class _Ranking(NamedTuple):
    """The references that each query ranks. The query itself may be one of its positives."""

    similarities: jax.Array  # [A, R]
    positives: jax.Array  # [A, R] booleans
    negatives: jax.Array  # [A, R] booleans
    query_weights: jax.Array  # [A], 0 for a query without another positive
    reference_weights: jax.Array  # [R]


def _ranking(comparison: Comparison, own: jax.Array | None = None) -> _Ranking:
    positives = comparison.positives
    weights = jnp.where(jnp.any(positives, axis=1), comparison.anchor_weights, 0)
    positives = positives if own is None else positives | own
    values = jnp.where(positives | comparison.negatives, comparison.all_values, 0)
    return _Ranking(values, positives, comparison.negatives, weights, comparison.reference_weights)


def _before(pair: PositivePair, of: jax.Array, temperature: jax.Array) -> jax.Array:
    """Returns the smooth count of the references `of` `[R]` ranked before the positive, without the positive itself."""
    others = of & (jnp.arange(of.size) != pair.positive)
    return jnp.sum(jnp.where(others, jax.nn.sigmoid((pair.anchor_row - pair.value) / temperature), 0))


def _weight(pair: PositivePair, constants: _Constants) -> jax.Array:
    # A masked sum instead of an index, so that it also works without references.
    weights = constants.reference_weights
    return jnp.sum(jnp.where(jnp.arange(weights.size) == pair.positive, weights, 0))
