"""The triplet loss: an anchor lies closer to examples of its class than to others, by a margin."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxmetric.distances import pairwise_squared_euclidean
from jaxmetric.losses import checks
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, reduce_stats
from jaxmetric.mining import hardest_negatives, hardest_positives, semi_hard_negatives
from jaxmetric.ordering import ordered_hinge


def triplet_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    margin: float = 0.2,
    mining: str = "all",
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The triplet loss over the triplets of a batch, with squared Euclidean distances.

    The mean of :math:`[\,|f_a - f_p|^2 - |f_a - f_n|^2 + \alpha\,]_+` over triplets of an anchor a, a positive p of
    the same class and a negative n of another.

    Args:
      embeddings: `[B, D]` floats, normalised or not.
      labels: `[B]` or `[B, 1]` integers.
      margin: alpha, in squared distance.
      mining: `"all"` takes every triplet, exactly, in O(B^2 log B) time and O(B^2) memory; `"semi-hard"` takes for each
        anchor and positive the nearest negative that is farther than the positive (the farthest if there is none);
        `"hard"` takes for each anchor its farthest positive and its nearest negative.
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

    References:
      F. Schroff, D. Kalenichenko, J. Philbin, FaceNet: A Unified Embedding for Face Recognition and Clustering, CVPR
      2015. A. Hermans, L. Beyer, B. Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017
      (`"hard"`).
    """
    check_reduction(reduction, "none")
    checks.check_scalar("margin", margin)
    if mining not in _TRIPLETS:
        raise ValueError(f"mining is {mining!r}, expected one of {', '.join(_TRIPLETS)}")
    embeddings = checks.check_embeddings(embeddings)
    labels = checks.check_class_labels(embeddings, labels)
    weights = checks.example_weights(embeddings, where, weights)
    embeddings = checks.leave_out(embeddings, weights)
    per_anchor = _sums_of_anchors(embeddings, labels, weights, margin, mining=mining)
    stats = LossStats(*(jnp.sum(each) for each in per_anchor))
    loss = per_anchor.total if reduction == "none" else reduce_stats(stats, reduction)
    return (loss, stats) if has_aux else loss


@partial(jax.jit, static_argnames="mining")
def _sums_of_anchors(
    embeddings: jax.Array, labels: jax.Array, weights: jax.Array, margin: float, *, mining: str
) -> LossStats:
    if not labels.size:
        return LossStats(weights, weights, weights)
    same = labels[:, None] == labels[None, :]
    valid = weights[None, :] > 0
    positives, negatives = same & valid & ~jnp.eye(labels.size, dtype=bool), ~same & valid
    sums = _TRIPLETS[mining](pairwise_squared_euclidean(embeddings), positives, negatives, weights, margin)
    return LossStats(*(weights * jnp.where(weights > 0, each, 0) for each in sums))


def _all_triplets(
    distances: jax.Array, positives: jax.Array, negatives: jax.Array, weights: jax.Array, margin: float
) -> LossStats:
    def of_anchor(distance: jax.Array, positive: jax.Array, negative: jax.Array) -> LossStats:
        level = negative.astype(jnp.int32)
        near, far = jnp.where(positive, weights, 0), jnp.where(negative, weights, 0)
        return LossStats(*ordered_hinge(distance, level, level, near, far, margin=margin, num_levels=2))

    return jax.vmap(of_anchor)(distances, positives, negatives)


def _semi_hard_triplets(
    distances: jax.Array, positives: jax.Array, negatives: jax.Array, weights: jax.Array, margin: float
) -> LossStats:
    index = semi_hard_negatives(distances, negatives)
    weight = jnp.where(positives & jnp.any(negatives, axis=1, keepdims=True), weights[None, :] * weights[index], 0)
    sums = _row_sums(distances, jnp.take_along_axis(distances, index, axis=1), weight, margin)
    # A negative at a distance of NaN sorts last and is not chosen; it must be seen all the same.
    not_a_number = 0 * jnp.sum(jnp.where(negatives, distances, 0), axis=1)
    return sums._replace(total=sums.total + not_a_number)


def _hard_triplets(
    distances: jax.Array, positives: jax.Array, negatives: jax.Array, weights: jax.Array, margin: float
) -> LossStats:
    near, far = hardest_positives(distances, positives), hardest_negatives(distances, negatives)
    exists = jnp.any(positives, axis=1) & jnp.any(negatives, axis=1)
    weight = jnp.where(exists, weights[near] * weights[far], 0)
    near_distance, far_distance = (jnp.take_along_axis(distances, index[:, None], axis=1) for index in (near, far))
    return _row_sums(near_distance, far_distance, weight[:, None], margin)


def _row_sums(near: jax.Array, far: jax.Array, weight: jax.Array, margin: float) -> LossStats:
    hinge = jax.nn.relu(near - far + margin)
    total = jnp.sum(jnp.where(weight > 0, weight * hinge, 0), axis=1)
    return LossStats(total, jnp.sum(weight, axis=1), jnp.sum(jnp.where(hinge > 0, weight, 0), axis=1))


_TRIPLETS = {"all": _all_triplets, "semi-hard": _semi_hard_triplets, "hard": _hard_triplets}
