"""Losses over triplets: an anchor should be closer to a positive than to a negative.

`triplet_loss` compares the two distances with a margin, and `chen_quadruplet_loss` adds the pairs of two other classes.
`angular_loss` bounds the angle at the negative, `centroid_triplet_loss` compares anchors with class centroids, and
`dynamic_soft_margin_loss` weights a triplet by the share of triplets that are easier.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.comparison import (
    SYMMETRIC_DISTANCES,
    Comparison,
    PairBatch,
    check_pairs,
    compare,
    function_values,
    named_function,
    negatives_between_references,
    pair_loss,
    zero_sums,
)
from jaxmetric.losses._engine.given_triplets import TripletDistances, triplet_distances
from jaxmetric.losses._engine.ordered_hinge import (
    NearFarSums,
    attach_gradient,
    attach_margin_gradient,
    near_far_sums,
    rowwise_gap_hinge,
)
from jaxmetric.losses._engine.positive_sums import PositivePair, sum_over_positives
from jaxmetric.losses._engine.quadruplet_sampling import all_pairs
from jaxmetric.losses._engine.reduction import (
    LossResult,
    LossStats,
    each_anchor,
    each_pair,
    reduce_anchors,
    reduce_stats,
)
from jaxmetric.losses._engine.triplet_sums import (
    every_gap,
    hinge,
    soft_hinge,
    sorted_triplets,
    sum_over_triplets,
    triplet_weights,
)
from jaxmetric.losses._engine.types import (
    ClassLabels,
    Distance,
    DistanceName,
    LimitedScalar,
    PairwiseFunction,
    PositiveScalar,
    Reduction,
    ReductionToScalar,
    ScalarLike,
    Similarity,
)
from jaxmetric.mining import hardest_negatives, hardest_positives, semi_hard_negatives
from jaxmetric.numerics import as_float, masked_logsumexp, safe_divide, softplus
from jaxmetric.references import PairMasks, References

Mining: TypeAlias = Literal["all", "all-semi-hard", "all-hard", "semi-hard", "hard"]
HardOrAll: TypeAlias = Literal["hard", "all"]


def triplet_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 0.2,
    mining: Mining = "all",
    soft_margin: bool = False,
    swap: bool = False,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    triplets: ArrayLike | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The triplet loss over the triplets of a batch.

    The mean of :math:`[\,d(a, p) - d(a, n) + \alpha\,]_+` over triplets of an anchor a, a positive p of the same class
    and a negative n of another; d is the squared Euclidean distance by default.

    Args:
      embeddings: `[B, D]` floats. They need not be normalized. None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives, or `triplets` lists triplets.
      margin: alpha, in units of the distance.
      mining: `"all"` uses every triplet, exactly, in O(B^2) memory. It takes O(B^2 log B) time, or, with `soft_margin`
        or `swap`, O(B) for each pair of an anchor and a positive. At the same cost, `"all-hard"` uses every triplet
        whose negative is not farther than its positive, and `"all-semi-hard"` every triplet whose negative is farther,
        but by no more than the margin. `"semi-hard"` uses for each such pair the nearest negative that is farther than
        the positive (the farthest if there is none). `"hard"` uses for each anchor its farthest positive and its
        nearest negative.
      soft_margin: whether to use log(1 + exp(d(a, p) - d(a, n) + alpha)) instead of the hinge. The soft margin of
        Hermans et al. has alpha = 0.
      swap: whether to use min(d(a, n), d(p, n)) instead of d(a, n). Mining does not use it.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array.
      references: what the batch is compared with; the batch itself if None. Positives and negatives are references.
      triplets: `[N, 3]` integers, or a tuple of three `[N]`, instead of labels: the row of the anchor in the batch, and
        the rows of the positive and the negative in the references. A negative number marks a row without a triplet.
        With `triplets`, `reduction="none"` returns `[N]` losses, and only O(N) distances are computed. For three arrays
        `[N, D]` of anchors, positives and negatives, pass their concatenation and `jnp.arange(3 * N).reshape(3, N).T`.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a triplet is
        the product of its members' weights.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. `"mean_active"` is over triplets with a positive loss,
        and `"none"` returns for each anchor the sum over its triplets.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if the batch has no triplet.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [1.0], [1.5]]), jnp.array([4, 4, 9])
      >>> loss = triplet_loss(embeddings, labels, margin=0.2)
      >>> round(float(loss), 3)  # anchor 0: relu(1 - 2.25 + .2) = 0; anchor 1: relu(1 - .25 + .2) = .95
      0.475
      >>> round(float(triplet_loss(embeddings, labels, margin=0.2, swap=True)), 3)  # anchor 0: relu(1 - .25 + .2)
      0.95

    References:
      F. Schroff, D. Kalenichenko, J. Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR
      2015. A. Hermans, L. Beyer, B. Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017
      (`"hard"`, `soft_margin`). V. Balntas, E. Riba, D. Ponsa, K. Mikolajczyk, Learning Local Feature Descriptors with
      Triplets and Shallow Convolutional Neural Networks, BMVC 2016 (`swap`).
    """
    margin = checks.check_scalar("margin", margin)
    checks.check_choice("mining", mining, get_args(Mining))
    checks.check_flag("soft_margin", soft_margin)
    checks.check_flag("swap", swap)
    if mining in _GAPS:
        margin = checks.check_scalar("margin", margin, least=0)
    if triplets is not None:
        checks.check_result(reduction, has_aux, unreduced=True)
        _check_alone(labels, pairs, mining)
        given = triplet_distances(embeddings, triplets, references, where, weights, distance=distance, between=swap)
        loss, stats = _given_triplets(given, margin, soft_margin=soft_margin, reduction=reduction)
        return (loss, stats) if has_aux else loss
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, distance=distance, between=swap
    )
    return pair_loss(_triplet_sums, batch, margin, mining=mining, soft_margin=soft_margin)


def _check_alone(labels: ArrayLike | None, pairs: PairMasks | None, mining: str) -> None:
    if mining != "all":
        raise ValueError(f"mining is {mining!r}, expected 'all': triplets lists the triplets")
    for name, given in (("labels", labels), ("pairs", pairs)):
        if given is not None:
            raise ValueError(f"{name} and triplets are both given, expected one of them")


@partial(jax.jit, static_argnames=("soft_margin", "reduction"))
def _given_triplets(
    given: TripletDistances, margin: ScalarLike, *, soft_margin: bool, reduction: str
) -> tuple[jax.Array, LossStats]:
    far = given.far if given.between is None else jnp.minimum(given.far, given.between)
    per_triplet = each_anchor((soft_hinge if soft_margin else hinge)(given.near - far, margin), given.weights)
    return reduce_anchors(per_triplet, reduction)


def _triplet_sums(c: Comparison, margin: ScalarLike, *, mining: str, soft_margin: bool) -> LossStats:
    if not c.values.size:
        return zero_sums(c)
    penalty = soft_hinge if soft_margin else hinge
    if mining == "hard":
        sums = _hard_triplets(c, margin, penalty)
    elif mining == "semi-hard":
        sums = _semi_hard_triplets(c, margin, penalty)
    elif soft_margin or c.between is not None:
        keep = _GAPS.get(mining, every_gap)
        sums = sum_over_triplets(penalty, c, c.between, (jnp.asarray(margin, c.values.dtype),), keep=keep)
    elif mining == "all":
        sums = sorted_triplets(c, margin)
    else:
        near, far = triplet_weights(c)
        sums = LossStats(*rowwise_gap_hinge(c.values, near, far, margin=margin, hard=mining == "all-hard"))
    return LossStats(*(c.anchor_weights * jnp.where(c.anchor_weights > 0, each, 0) for each in sums))


def all_triplets(c: Comparison, margin: ScalarLike) -> LossStats:
    """Returns the sums of the hinges over all triplets."""
    return LossStats(*(jnp.sum(each) for each in _triplet_sums(c, margin, mining="all", soft_margin=False)))


# The triplets that a set uses: (d(a, p), d(a, n) [R], margin) -> booleans [R].
_GAPS: dict[str, Callable[..., jax.Array]] = {
    "all-semi-hard": lambda near, far, margin: (far > near) & (far <= near + margin),
    "all-hard": lambda near, far, margin: far <= near,
}


def _semi_hard_triplets(c: Comparison, margin: ScalarLike, penalty: Callable[..., jax.Array]) -> LossStats:
    index = semi_hard_negatives(c.values, c.negatives)
    far = jnp.take_along_axis(c.values, index, axis=1)
    if c.between is not None:
        far = jnp.minimum(far, c.between[jnp.arange(index.shape[1])[None, :], index])
    near_weights, far_weights = triplet_weights(c)
    triplets = near_weights * jnp.take_along_axis(far_weights, index, axis=1)
    sums = each_pair(penalty(c.values - far, margin), triplets)
    # A negative at distance NaN sorts last and is not selected, but has to stay visible.
    not_a_number = 0 * jnp.sum(jnp.where(c.negatives, c.values, 0), axis=1)
    return sums._replace(total=sums.total + not_a_number)


def _hard_triplets(c: Comparison, margin: ScalarLike, penalty: Callable[..., jax.Array]) -> LossStats:
    near, far = hardest_positives(c.values, c.positives), hardest_negatives(c.values, c.negatives)
    near_weights, far_weights = triplet_weights(c)
    chosen = (
        jnp.take_along_axis(array, index[:, None], axis=1)
        for array, index in ((c.values, near), (c.values, far), (near_weights, near), (far_weights, far))
    )
    near_distance, far_distance, near_weight, far_weight = chosen
    if c.between is not None:
        far_distance = jnp.minimum(far_distance, c.between[near, far][:, None])
    return each_pair(penalty(near_distance - far_distance, margin), near_weight * far_weight)


def chen_quadruplet_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels,
    *,
    margin: ScalarLike = 1.0,
    second_margin: ScalarLike = 0.5,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: jax.Array | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The quadruplet loss of two margins, exactly over all triplets and quadruplets of a batch.

    The mean of :math:`[\,d(a, p) - d(a, n) + \alpha_1\,]_+` over all triplets, plus that of
    :math:`[\,d(a, p) - d(k, l) + \alpha_2\,]_+` over all quadruplets of an anchor a, a positive p and two examples k
    and l whose classes differ from each other and from that of a.

    Args:
      embeddings: `[B, D]` floats. They need not be normalized. None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers.
      margin: alpha_1, in units of the distance.
      second_margin: alpha_2, in units of the distance; smaller than alpha_1, as the second term is auxiliary.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array.
      references: what the batch is compared with; the batch itself if None. p, n and l are references, a and k examples
        of the batch.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. They select (a, p), (a, n) and (k, l).
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a tuple is the
        product of its members' weights.
      reduction: `"mean"`, `"mean_active"` or `"sum"`. `"mean_active"` is over tuples with a positive loss. Each adds
        the value for triplets and the value for quadruplets.
      has_aux: whether to return `(loss, LossStats)`. The arrays of the stats are `[2]`: of triplets and of quadruplets.

    Returns:
      The scalar loss >= 0; 0, with zero gradients, if the batch has no triplet.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [1.0], [3.0], [4.0]]), jnp.array([4, 4, 8, 9])
      >>> loss, stats = chen_quadruplet_loss(embeddings, labels, has_aux=True)
      >>> # triplets: relu(1 - 9 + 1), relu(1 - 16 + 1), relu(1 - 4 + 1), relu(1 - 9 + 1); quadruplets: relu(1 - 1 + .5)
      >>> float(loss), stats.valid.tolist()
      (0.5, [4.0, 4.0])

    References:
      W. Chen, X. Chen, J. Zhang, K. Huang, Beyond Triplet Loss: A Deep Quadruplet Network for Person
      Re-identification, CVPR 2017.
    """
    margin = checks.check_scalar("margin", margin)
    second_margin = checks.check_scalar("second_margin", second_margin)
    batch = check_pairs(
        embeddings,
        labels,
        references,
        pairs,
        where,
        weights,
        reduction,
        has_aux,
        distance=distance,
        needs_labels=True,
        unreduced=False,
    )
    symmetric = references is None and pairs is None and isinstance(distance, str) and distance in SYMMETRIC_DISTANCES
    return _chen_quadruplet(batch, margin, second_margin, symmetric=symmetric)


@partial(jax.jit, static_argnames="symmetric")
def _chen_quadruplet(batch: PairBatch, margin: ScalarLike, second_margin: ScalarLike, *, symmetric: bool) -> LossResult:
    c = compare(batch)
    triplets, quadruplets = all_triplets(c, margin), _all_quadruplets(c, second_margin, symmetric=symmetric)
    stats = LossStats(*(jnp.stack(both) for both in zip(triplets, quadruplets, strict=True)))
    loss = jnp.sum(reduce_stats(stats, batch.reduction))
    return (loss, stats) if batch.has_aux else loss


# The quadruplets of an anchor a, a positive p and a pair (k, l) of two other classes are those with any negative pair,
# minus those whose negative pair touches the class of a. Each of the three sums over pairs of pairs takes one sort.
def _all_quadruplets(c: Comparison, margin: ScalarLike, *, symmetric: bool) -> LossStats:
    weights = c.anchor_weights[:, None] * c.reference_weights[None, :]
    far = jnp.where(c.negatives, weights, 0)
    elsewhere = _not_touching(c, c.negatives.astype(jnp.int32)) > 0
    # Without a pair of two other classes, the difference of the sums is only rounding error.
    near = jnp.where(c.positives & elsewhere[:, None], weights, 0)
    sums = _near_far_sums(c, near, far, margin, symmetric=symmetric)
    total = attach_gradient(jnp.sum(near * sums.hinges), c.values, (near - far) * sums.violations)
    valid = jnp.sum(jnp.sum(near, axis=1) * jax.nn.relu(_not_touching(c, far)))
    active = jnp.sum(near * sums.violations)
    return LossStats(attach_margin_gradient(total, active, margin), valid, active)


def _near_far_sums(
    c: Comparison, near: jax.Array, far: jax.Array, margin: ScalarLike, *, symmetric: bool
) -> NearFarSums:
    """Returns `[A, R]` sums over the pairs of the other kind without a common class: all minus those with one."""
    if symmetric:  # (i, j) stands for (j, i) as well
        first, second = all_pairs(near.shape[0])
        near, far = 2 * near, 2 * far
    else:
        first, second = (index.reshape(-1) for index in jnp.indices(near.shape))
    anchor_classes, reference_classes = c.anchor_labels[first], c.reference_labels[second]
    segments = jnp.stack([jnp.zeros_like(anchor_classes), anchor_classes, reference_classes])
    values, near, far = (each[first, second] for each in (c.values, near, far))
    everywhere_and_touching = jax.lax.map(lambda each: near_far_sums(values, near, far, each, margin=margin), segments)
    hinges, violations = (
        jnp.zeros_like(c.values).at[first, second].set(each[0] - each[1] - each[2], unique_indices=True)
        for each in everywhere_and_touching
    )
    if symmetric:
        hinges, violations = hinges + hinges.T, violations + violations.T
    return NearFarSums(jnp.where(violations <= 0, 0, jax.nn.relu(hinges)), violations)


def _not_touching(c: Comparison, pair_values: jax.Array) -> jax.Array:
    """Returns `[A]`: the sum of the `[A, R]` values of the negative pairs that do not touch the anchor's class."""
    anchor_sums, reference_sums = jnp.sum(pair_values, axis=1), jnp.sum(pair_values, axis=0)
    same_anchor = c.anchor_labels[:, None] == c.anchor_labels[None, :]
    same_reference = c.anchor_labels[:, None] == c.reference_labels[None, :]
    touching = jnp.sum(jnp.where(same_anchor, anchor_sums[None, :], 0), axis=1)
    return jnp.sum(pair_values) - touching - jnp.sum(jnp.where(same_reference, reference_sums[None, :], 0), axis=1)


def angular_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    angle: LimitedScalar = math.pi / 4,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The angular loss over the pairs of an anchor and a positive.

    The mean of :math:`\log(1 + \sum_n \exp f_{apn})` over the pairs of an anchor a and a positive p; n runs over the
    negatives of a, and :math:`f_{apn} = 4 \tan^2\!\alpha \,(x_a + x_p)^T x_n - 2 (1 + \tan^2\!\alpha)\, x_a^T x_p`.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      angle: alpha, in radians, in (0, pi / 2): the upper bound of the angle at the negative.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what the batch is compared with; the batch itself if None. Positives and negatives are references.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair (a, p)
        is the product of its members' weights. In the sum over n every negative counts once.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. `"mean_active"` is over pairs with a positive loss, and
        `"none"` returns for each anchor the sum over its pairs.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if the batch has no triplet.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or `angle` is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([4, 4, 9])
      >>> round(float(angular_loss(embeddings, labels)), 4)  # tan = 1: log(1 + exp(4 * (0 + 0) - 4 * 1))
      0.0181

    References:
      J. Wang, F. Zhou, S. Wen, X. Liu, Y. Lin, Deep Metric Learning with Angular Loss, ICCV 2017.
    """
    angle = checks.check_scalar("angle", angle, above=0, below=math.pi / 2, unit="radians")
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity, between=True
    )
    return pair_loss(_angular, batch, angle)


def _angular(c: Comparison, angle: ScalarLike) -> LossStats:
    if not c.values.size:
        return zero_sums(c)
    complete = c.positives & jnp.any(c.negatives, axis=1, keepdims=True)
    constants = (c.reference_weights, jnp.square(jnp.tan(jnp.asarray(angle, c.values.dtype))))
    total, active = sum_over_positives(_angular_term, c.values, c.between, complete, c.negatives, constants)
    valid = jnp.sum(jnp.where(complete, c.reference_weights[None, :], 0), axis=1)
    return LossStats(*(c.anchor_weights * each for each in (total, valid, active)))


def _angular_term(pair: PositivePair, negatives: jax.Array, constants: Any) -> tuple[jax.Array, jax.Array]:
    reference_weights, squared_tangent = constants
    assert pair.positive_row is not None
    f = 4 * squared_tangent * (pair.anchor_row + pair.positive_row) - 2 * (1 + squared_tangent) * pair.value
    loss = softplus(masked_logsumexp(f, negatives))
    weight = reference_weights[pair.positive]
    return weight * loss, jnp.where(loss > 0, weight, 0)


def centroid_triplet_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    *,
    margin: ScalarLike = 0.5,
    mining: HardOrAll = "hard",
    distance: DistanceName | PairwiseFunction = "squared_euclidean",
    references: References | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The triplet loss between anchors and class centroids.

    The mean of :math:`[\,|x_a - c_p|^2 - |x_a - c_n|^2 + \alpha\,]_+` over the anchors a, with :math:`c_p` the mean of
    the other examples of the anchor's class and :math:`c_n` the mean of the nearest other class.

    Args:
      embeddings: `[B, D]` floats. They need not be normalized. Centroids are not normalized.
      labels: `[B]` or `[B, 1]` integers.
      margin: alpha, in units of the distance.
      mining: `"hard"` uses the nearest centroid of another class, `"all"` uses every centroid of another class.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`. An array
        is not possible, because centroids are computed here.
      references: what the batch is compared with; the batch itself if None. The centroids are means of references.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. Centroids are weighted means,
        and a triplet has the weight of its anchor.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. `"mean_active"` is over triplets with a positive loss,
        and `"none"` returns for each anchor the sum over its triplets.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if no anchor has another example of its class and
      one of another class.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [1.0], [2.0], [4.0]]), jnp.array([4, 4, 9, 9])
      >>> centroid_triplet_loss(embeddings, labels, reduction="none").tolist()  # of anchor 2: relu(4 - 2.25 + .5)
      [0.0, 0.0, 2.25, 0.0]

    References:
      M. Wieczorek, B. Rychalska, J. Dąbrowski, On the Unreasonable Effectiveness of Centroids in Image Retrieval,
      ICONIP 2021, arXiv 2104.13643.
    """
    margin = checks.check_scalar("margin", margin)
    checks.check_choice("mining", mining, get_args(HardOrAll))
    if not isinstance(distance, str) and not callable(distance):
        raise TypeError(f"distance is {type(distance).__name__}, expected a name or a function: it is of centroids")
    function = named_function("distance", distance) if isinstance(distance, str) else distance
    batch = check_pairs(
        embeddings, labels, references, None, where, weights, reduction, has_aux, needs_values=False, needs_labels=True
    )
    c, centroids, own = _compare_with_centroids(batch)
    # Outside of a compiled program, which would be recompiled for every new function.
    values = partial(function_values, "distance", function)
    far = values(c.anchors, centroids.vectors, c.anchor_weights > 0, centroids.weights > 0)
    has_own = jnp.any(c.positives, axis=1)
    near = jax.vmap(lambda x, y, valid: values(x[None], y[None], valid[None], valid[None])[0, 0])(
        c.anchors, own, has_own
    )
    loss, stats = _centroid_triplets(c, centroids, near, far, margin, mining=mining, reduction=reduction)
    return (loss, stats) if has_aux else loss


class _Centroids(NamedTuple):
    """The centroids of up to R classes, for R references; unused ones have weight 0."""

    vectors: jax.Array  # [R, D]
    labels: jax.Array  # [R]
    weights: jax.Array  # [R]


@jax.jit
def _compare_with_centroids(batch: PairBatch) -> tuple[Comparison, _Centroids, jax.Array]:
    """Returns the comparison, the centroids of all classes, and `[A, D]` of each anchor's class without the anchor."""
    c = compare(batch)
    return c, _centroids(c), _own_centroids(c)


@partial(jax.jit, static_argnames=("mining", "reduction"))
def _centroid_triplets(
    c: Comparison,
    centroids: _Centroids,
    near: jax.Array,
    far: jax.Array,
    margin: ScalarLike,
    *,
    mining: str,
    reduction: str,
) -> tuple[jax.Array, LossStats]:
    if not c.positives.size:
        return reduce_anchors(zero_sums(c), reduction)
    negatives = (c.anchor_labels[:, None] != centroids.labels[None, :]) & (centroids.weights > 0)[None, :]
    weights = jnp.where(jnp.any(c.positives, axis=1), c.anchor_weights, 0)
    if mining == "all":
        losses = jax.nn.relu(near[:, None] - far + margin)
        return reduce_anchors(each_pair(losses, jnp.where(negatives, weights[:, None], 0)), reduction)
    nearest = jnp.take_along_axis(far, hardest_negatives(far, negatives)[:, None], axis=1)[:, 0]
    losses = jax.nn.relu(near - nearest + margin)
    return reduce_anchors(each_anchor(losses, jnp.where(jnp.any(negatives, axis=1), weights, 0)), reduction)


def _centroids(c: Comparison) -> _Centroids:
    count = c.reference_labels.size
    labels, index = jnp.unique(c.reference_labels, return_inverse=True, size=count)
    weights = jax.ops.segment_sum(c.reference_weights, index, count)
    sums = jax.ops.segment_sum(c.reference_weights[:, None] * c.references, index, count)
    return _Centroids(safe_divide(sums, jnp.broadcast_to(weights[:, None], sums.shape)), labels, weights)


def _own_centroids(c: Comparison) -> jax.Array:
    """Returns `[A, D]`: the mean of the other examples of each anchor's class."""
    weights = jnp.where(c.positives, c.reference_weights[None, :], 0)
    shares = safe_divide(weights, jnp.broadcast_to(jnp.sum(weights, axis=1, keepdims=True), weights.shape))
    return jnp.matmul(shares, c.references, precision=jax.lax.Precision.HIGHEST)


class DynamicMarginStats(NamedTuple):
    """`LossStats` and the histogram for the next batch.

    Attributes:
      total: the weighted sum of the losses of all valid triplets.
      valid: the (weighted) number of valid triplets.
      active: the (weighted) number of triplets with a positive loss.
      histogram: `[K]`, with sum 1: the share of the triplets near each of K equally spaced differences.
    """

    total: jax.Array
    valid: jax.Array
    active: jax.Array
    histogram: jax.Array


def dynamic_soft_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    histogram: ArrayLike | None = None,
    momentum: LimitedScalar = 0.01,
    num_bins: int = 512,
    largest: PositiveScalar = 2.0,
    mining: HardOrAll = "hard",
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> jax.Array | tuple[jax.Array, DynamicMarginStats]:
    r"""The triplet loss with the distribution of the triplets in place of a margin.

    The mean of :math:`F(z)\, z` over triplets, :math:`z = d(a, p) - d(a, n)`, with F(z) the share of triplets, in past
    batches and this one, whose difference is at most z. No gradient flows through F.

    Args:
      embeddings: `[B, D]` floats. They have length 1. None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      histogram: `[K]` floats >= 0, from the stats of the previous batch. Zeros or None for the first batch; the
        histogram of the batch is then used.
      momentum: in [0, 1], the share of this batch in the histogram, whose running sum is F.
      num_bins: K, static, at least 2; the length of `histogram` if that is given.
      largest: the histogram extends from -largest to largest; values beyond are counted at its ends. Distances of
        embeddings of length 1 are at most 2.
      mining: `"hard"` uses for each anchor and positive the negative nearest to either of the two, as in the paper;
        `"all"` uses every negative of the anchor.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array.
      references: what the batch is compared with; the batch itself if None. Positives and negatives are references.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a triplet is
        the product of its members' weights.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. `"mean_active"` is over triplets with a positive loss,
        and `"none"` returns for each anchor the sum over its triplets.
      has_aux: whether to return `(loss, DynamicMarginStats)`.

    Returns:
      The scalar loss (or `[B]` sums), negative if most positives are closer than negatives; 0, with zero gradients, if
      the batch has no triplet.

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
    momentum = checks.check_scalar("momentum", momentum, least=0, most=1)
    largest = checks.check_scalar("largest", largest, above=0)
    checks.check_choice("mining", mining, get_args(HardOrAll))
    past = _check_histogram(histogram, num_bins)
    batch = check_pairs(
        embeddings,
        labels,
        references,
        pairs,
        where,
        weights,
        reduction,
        has_aux,
        distance=distance,
        needs_labels=references is not None and mining == "hard",
        between=mining == "hard",
    )
    return _dynamic_margin(batch, past, momentum, largest, mining=mining, num_bins=num_bins)


def _check_histogram(histogram: ArrayLike | None, num_bins: int) -> jax.Array | None:
    num_bins = checks.check_static_integer("num_bins", num_bins, least=2)
    if histogram is None:
        return None
    histogram = checks.check_floats("histogram", histogram)
    if histogram.ndim != 1 or histogram.size < 2:
        raise ValueError(f"histogram has shape {histogram.shape}, expected [K] with K >= 2")
    return as_float(histogram)


@partial(jax.jit, static_argnames=("mining", "num_bins"))
def _dynamic_margin(
    batch: PairBatch, past: jax.Array | None, momentum: ScalarLike, largest: ScalarLike, *, mining: str, num_bins: int
) -> jax.Array | tuple[jax.Array, DynamicMarginStats]:
    c = compare(batch)
    dtype = c.values.dtype
    past = jnp.zeros(num_bins, dtype) if past is None else past.astype(dtype)
    past, share, reach = jax.lax.stop_gradient((past, jnp.asarray(momentum, dtype), jnp.asarray(largest, dtype)))
    if not c.values.size:
        sums, histogram = zero_sums(c), past
    elif c.between is None:
        sums, histogram = _every_triplet(c, past, share, reach)
    else:
        sums, histogram = _hardest_triplets(c, c.between, past, share, reach, within_batch=batch.references is None)
    per_anchor = LossStats(*(c.anchor_weights * each for each in sums))
    loss, stats = reduce_anchors(per_anchor, batch.reduction)
    return (loss, DynamicMarginStats(*stats, histogram)) if batch.has_aux else loss


def _every_triplet(
    c: Comparison, past: jax.Array, momentum: jax.Array, reach: jax.Array
) -> tuple[LossStats, jax.Array]:
    """Returns the sums of each anchor over all triplets, and the updated histogram."""
    histogram = _updated(past, _histogram_of_all(c, past, reach), momentum)
    return sum_over_triplets(_losses, c, None, (jnp.cumsum(histogram), reach)), histogram


def _hardest_triplets(
    c: Comparison, between: jax.Array, past: jax.Array, momentum: jax.Array, reach: jax.Array, *, within_batch: bool
) -> tuple[LossStats, jax.Array]:
    """Returns the same over the triplets of each anchor and positive with the negative nearest to either of the two."""
    # Within the batch, the negatives of a positive are those that it has as an anchor under `pairs`.
    negatives = c.negatives if within_batch else negatives_between_references(c)
    differences, weights = _nearest_negatives(c, between, negatives)
    every_weight = c.anchor_weights[:, None] * weights
    histogram = _updated(past, _histogram(differences, every_weight, past.size, reach), momentum)
    return each_pair(_losses(differences, jnp.cumsum(histogram), reach), weights), histogram


def _nearest_negatives(c: Comparison, others: jax.Array, negatives: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns `[A, R]`: z of each anchor and positive with the negative nearest to either of the two, and weights."""

    def nearest(distances: jax.Array, negatives: jax.Array) -> tuple[jax.Array, jax.Array]:
        index = hardest_negatives(distances, negatives)
        distance = jnp.take_along_axis(distances, index[:, None], axis=1)[:, 0]
        return jnp.where(jnp.any(negatives, axis=1), distance, jnp.inf), c.reference_weights[index]

    anchor_distance, anchors_weight = (each[:, None] for each in nearest(c.values, c.negatives))
    positive_distance, positives_weight = (each[None, :] for each in nearest(others, negatives))
    positive_is_nearer = positive_distance < anchor_distance
    exists = c.positives & jnp.any(c.negatives, axis=1, keepdims=True)
    far = jnp.where(positive_is_nearer, positive_distance, anchor_distance)
    weights = c.reference_weights[None, :] * jnp.where(positive_is_nearer, positives_weight, anchors_weight)
    return jnp.where(exists, c.values - jnp.where(exists, far, 0), 0), jnp.where(exists, weights, 0)


def _histogram_of_all(c: Comparison, past: jax.Array, reach: jax.Array) -> jax.Array:
    """Returns the histogram of all triplets."""
    _, far = triplet_weights(c)
    constants = c.reference_weights, jnp.zeros_like(past), reach
    anchor_histograms = sum_over_positives(_histogram_term, c.values, None, c.positives, far, constants)
    return jnp.sum(c.anchor_weights[:, None] * anchor_histograms, axis=0)


def _histogram_term(pair: PositivePair, far: jax.Array, constants: Any) -> jax.Array:
    reference_weights, empty, reach = constants
    return _histogram(pair.value - pair.anchor_row, reference_weights[pair.positive] * far, empty.size, reach)


def _losses(differences: jax.Array, cumulative: jax.Array, reach: jax.Array) -> jax.Array:
    bins, _ = _bins(differences, cumulative.size, reach)
    return cumulative[bins] * differences


def _histogram(differences: jax.Array, weights: jax.Array, num_bins: int, reach: jax.Array) -> jax.Array:
    """Returns the weight at each bin; a difference between two bins is shared by both."""
    bins, share = _bins(differences, num_bins, reach)
    histogram = jnp.zeros(num_bins, weights.dtype)
    used = weights > 0  # the others may be NaN
    histogram = histogram.at[bins].add(jnp.where(used, weights * (1 - share), 0))
    return histogram.at[jnp.minimum(bins + 1, num_bins - 1)].add(jnp.where(used, weights * share, 0))


def _bins(differences: jax.Array, num_bins: int, reach: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the bin at or below each difference, and the fraction of the way to the next bin."""
    differences = jax.lax.stop_gradient(differences)
    positions = jnp.clip((differences + reach) * ((num_bins - 1) / (2 * reach)), 0, num_bins - 1)
    bins = jnp.floor(positions)
    return bins.astype(jnp.int32), positions - bins


def _updated(past: jax.Array, histogram: jax.Array, momentum: jax.Array) -> jax.Array:
    """Mixes the past with a share of this batch; if one of them is empty, returns the other."""
    total, past_total = jnp.sum(histogram), jnp.sum(past)
    share = jnp.where(past_total > 0, momentum, 1)
    share = jnp.where(total > 0, share, 0)
    return (1 - share) * safe_divide(past, past_total) + share * safe_divide(histogram, total)
