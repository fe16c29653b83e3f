"""The triplet loss: an anchor lies closer to examples of its class than to others, by a margin.

Over all triplets, a hinge is summed by sorting (`jaxmetric.ordering`); a soft margin and swapped anchors, which no sort
orders, one positive of each anchor at a time (`jaxmetric.losses.positive_pairs`).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.losses.comparison import (
    Comparison,
    Pairwise,
    TripletDistances,
    between_references,
    compare,
    compare_triplets,
    no_sums,
)
from jaxmetric.losses.positive_pairs import PositivePair, sum_over_positives
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, each_anchor, each_pair, reduce_anchors
from jaxmetric.mining import hardest_negatives, hardest_positives, semi_hard_negatives
from jaxmetric.numerics import softplus
from jaxmetric.ordering import gap_hinge_of_rows, ordered_hinge_of_rows
from jaxmetric.references import PairMasks, References

MININGS = ("all", "all-semi-hard", "all-hard", "semi-hard", "hard")


def triplet_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    margin: float = 0.2,
    mining: str = "all",
    soft_margin: bool = False,
    swap: bool = False,
    distance: Pairwise = "squared_euclidean",
    references: References | None = None,
    triplets: jax.Array | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The triplet loss over the triplets of a batch.

    The mean of :math:`[\,d(a, p) - d(a, n) + \alpha\,]_+` over triplets of an anchor a, a positive p of the same class
    and a negative n of another; d is the squared Euclidean distance, if no other is asked for.

    Args:
      embeddings: `[B, D]` floats, normalised or not; None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike, or `triplets` lists the triplets.
      margin: alpha, in units of the distance.
      mining: `"all"` takes every triplet, exactly, in O(B^2) memory, and in O(B^2 log B) time or, with `soft_margin` or
        `swap`, in O(B) for each pair of an anchor and a positive. At the same cost `"all-hard"` takes every triplet
        whose negative is not farther than its positive, and `"all-semi-hard"` every one whose negative is farther, but
        by no more than the margin. `"semi-hard"` takes for each such pair the nearest
        negative that is farther than the positive (the farthest if there is none); `"hard"` takes for each anchor its
        farthest positive and its nearest negative.
      soft_margin: whether to take log(1 + exp(d(a, p) - d(a, n) + alpha)) instead of the hinge. The soft margin of
        Hermans et al. has alpha = 0.
      swap: whether to take min(d(a, n), d(p, n)) instead of d(a, n), in the triplets that were mined without it.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[B, D]` and `[R, D]`, or an
        array `[B, R]`.
      references: where positives and negatives come from; the batch itself if not given.
      triplets: `[N, 3]` integers, or a tuple of three `[N]`, in place of labels: the rows of an anchor in the batch, of
        a positive and of a negative in the references; a negative number marks a row without a triplet. With them
        `reduction="none"` gives `[N]` losses, and O(N) distances are computed. For three arrays `[N, D]` of anchors,
        positives and negatives, pass their concatenation and `jnp.arange(3 * N).reshape(3, N).T`.
      pairs: `[B, R]` booleans: which (a, p) and (a, n) may be used; all if not given. With `labels=None`: two masks,
        `(positives, negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0; a triplet weighs the product of its members'. No gradient flows into them.
      reduction: `"mean"`, `"mean_active"` (over triplets with a positive loss), `"sum"`, or `"none"`: for each anchor
        the sum over its triplets.
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
    check_reduction(reduction, "none")
    checks.check_scalar("margin", margin)
    checks.check_choice("mining", mining, MININGS)
    checks.check_flag("soft_margin", soft_margin)
    checks.check_flag("swap", swap)
    if mining in _GAPS:
        checks.check_scalar("margin", margin, least=0)
    if triplets is not None:
        _check_alone(labels, pairs, mining)
        given = compare_triplets(
            embeddings, triplets, distance=distance, references=references, where=where, weights=weights, between=swap
        )
        return reduce_anchors(_given_triplets(given, margin, soft_margin=soft_margin), reduction, has_aux)
    comparison = compare(
        embeddings, labels, distance=distance, references=references, pairs=pairs, where=where, weights=weights
    )
    others = between_references("distance", distance, comparison, references) if swap else None
    per_anchor = _sums_of_anchors(comparison, others, margin, mining=mining, soft_margin=soft_margin)
    return reduce_anchors(per_anchor, reduction, has_aux)


def _check_alone(labels: jax.Array | None, pairs: PairMasks | None, mining: str) -> None:
    if mining != "all":
        raise ValueError(f"mining is {mining!r}, expected 'all': triplets lists the triplets")
    for name, given in (("labels", labels), ("pairs", pairs)):
        if given is not None:
            raise ValueError(f"{name} and triplets are both given, expected one of them")


@partial(jax.jit, static_argnames="soft_margin")
def _given_triplets(given: TripletDistances, margin: float, *, soft_margin: bool) -> LossStats:
    far = given.far if given.between is None else jnp.minimum(given.far, given.between)
    return each_anchor((_soft_hinge if soft_margin else _hinge)(given.near - far, margin), given.weights)


def triplet_weights(comparison: Comparison) -> tuple[jax.Array, jax.Array]:
    """The weights `[A, R]` of the references as positives and as negatives of each anchor, 0 where they are not."""
    weights = comparison.reference_weights[None, :]
    return jnp.where(comparison.positives, weights, 0), jnp.where(comparison.negatives, weights, 0)


@partial(jax.jit, static_argnames=("mining", "soft_margin"))
def _sums_of_anchors(
    c: Comparison, others: jax.Array | None, margin: float, *, mining: str, soft_margin: bool
) -> LossStats:
    if not c.values.size:
        return no_sums(c)
    penalty = _soft_hinge if soft_margin else _hinge
    if mining == "hard":
        sums = _hard_triplets(c, others, margin, penalty)
    elif mining == "semi-hard":
        sums = _semi_hard_triplets(c, others, margin, penalty)
    elif soft_margin or others is not None:
        keep = _GAPS.get(mining, _every_gap)
        sums = sum_over_triplets(penalty, c, others, (jnp.asarray(margin, c.values.dtype),), keep=keep)
    elif mining == "all":
        sums = _sorted_triplets(c, margin)
    else:
        near, far = triplet_weights(c)
        sums = LossStats(*gap_hinge_of_rows(c.values, near, far, margin=margin, hard=mining == "all-hard"))
    return LossStats(*(c.anchor_weights * jnp.where(c.anchor_weights > 0, each, 0) for each in sums))


def all_triplets(c: Comparison, margin: float) -> LossStats:
    """The sums of the hinges of all triplets."""
    return LossStats(*(jnp.sum(each) for each in _sums_of_anchors(c, None, margin, mining="all", soft_margin=False)))


def _sorted_triplets(c: Comparison, margin: float) -> LossStats:
    near, far = triplet_weights(c)
    level = (far > 0).astype(jnp.int32)
    return LossStats(*ordered_hinge_of_rows(c.values, level, level, near, far, margin=margin, num_levels=2))


def _every_gap(near: jax.Array, far: jax.Array, *_: jax.Array) -> jax.Array:
    return jnp.ones(far.shape, bool)


# Which triplets a set takes: (d(a, p), d(a, n) [R], margin) to booleans [R].
_GAPS: dict[str, Callable[..., jax.Array]] = {
    "all-semi-hard": lambda near, far, margin: (far > near) & (far <= near + margin),
    "all-hard": lambda near, far, margin: far <= near,
}


def sum_over_triplets(
    penalty: Callable[..., jax.Array],
    c: Comparison,
    others: jax.Array | None,
    constants: tuple[jax.Array, ...],
    *,
    keep: Callable[..., jax.Array] = _every_gap,
) -> LossStats:
    """Sums `penalty(d(a, p) - d(a, n), *constants)` over the triplets of each anchor for which `keep` is True.

    `penalty` and `keep` are functions of a module. With `others` `[R, R]`, the distances among the references, d(p, n)
    stands for d(a, n) in the penalty where it is smaller.
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
    """The sums of all triplets of an anchor and a positive."""
    reference_weights, *hyper = constants
    row = pair.anchor_row
    distances = row if pair.positive_row is None else jnp.minimum(row, pair.positive_row)
    # A NaN is kept, so that it stays visible.
    kept = keep(pair.value, row, *hyper) | jnp.isnan(pair.value - row)
    weights = jnp.where(kept, reference_weights[pair.positive] * far, 0)
    sums = each_pair(penalty(pair.value - distances, *hyper)[None], weights[None])
    return LossStats(*(each[0] for each in sums))


def _hinge(differences: jax.Array, margin: float | jax.Array) -> jax.Array:
    return jax.nn.relu(differences + margin)


def _soft_hinge(differences: jax.Array, margin: float | jax.Array) -> jax.Array:
    return softplus(differences + margin)


def _semi_hard_triplets(
    c: Comparison, others: jax.Array | None, margin: float, penalty: Callable[..., jax.Array]
) -> LossStats:
    index = semi_hard_negatives(c.values, c.negatives)
    far = jnp.take_along_axis(c.values, index, axis=1)
    if others is not None:
        far = jnp.minimum(far, others[jnp.arange(index.shape[1])[None, :], index])
    near_weights, far_weights = triplet_weights(c)
    triplets = near_weights * jnp.take_along_axis(far_weights, index, axis=1)
    sums = each_pair(penalty(c.values - far, margin), triplets)
    # A negative at a distance of NaN sorts last and is not chosen; it must be seen all the same.
    not_a_number = 0 * jnp.sum(jnp.where(c.negatives, c.values, 0), axis=1)
    return sums._replace(total=sums.total + not_a_number)


def _hard_triplets(
    c: Comparison, others: jax.Array | None, margin: float, penalty: Callable[..., jax.Array]
) -> LossStats:
    near, far = hardest_positives(c.values, c.positives), hardest_negatives(c.values, c.negatives)
    near_weights, far_weights = triplet_weights(c)
    chosen = (
        jnp.take_along_axis(array, index[:, None], axis=1)
        for array, index in ((c.values, near), (c.values, far), (near_weights, near), (far_weights, far))
    )
    near_distance, far_distance, near_weight, far_weight = chosen
    if others is not None:
        far_distance = jnp.minimum(far_distance, others[near, far][:, None])
    return each_pair(penalty(near_distance - far_distance, margin), near_weight * far_weight)
