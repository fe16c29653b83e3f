"""The quadruplet loss of Chen et al., of two margins: the triplet loss, and all pairs of one class before all others.

For an anchor a, a positive p and a pair (k, l) of two classes other than that of a, the second term is

    relu(d(a, p) - d(k, l) + second_margin).

All these quadruplets are those with any negative pair, less those whose negative pair touches the class of a: each of
the three sums over pairs of pairs is one sort (`jaxmetric.ordering.near_far_sums`).
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.losses.comparison import SYMMETRIC_DISTANCES, Comparison, Pairwise, compare
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, reduce_stats
from jaxmetric.losses.triplet import all_triplets
from jaxmetric.ordering import NearFarSums, near_far_sums, of_margin, with_gradient
from jaxmetric.references import References
from jaxmetric.tuples import all_pairs


def chen_quadruplet_loss(
    embeddings: jax.Array | None,
    labels: jax.Array,
    *,
    margin: float = 1.0,
    second_margin: float = 0.5,
    distance: Pairwise = "squared_euclidean",
    references: References | None = None,
    pairs: jax.Array | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The quadruplet loss of two margins over all triplets and quadruplets of a batch, exactly.

    The mean of :math:`[\,d(a, p) - d(a, n) + \alpha_1\,]_+` over all triplets, plus that of
    :math:`[\,d(a, p) - d(k, l) + \alpha_2\,]_+` over all quadruplets of an anchor a, a positive p and two examples k
    and l whose classes differ from each other and from that of a.

    Args:
      embeddings: `[B, D]` floats, normalised or not; None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers.
      margin: alpha_1, in units of the distance.
      second_margin: alpha_2, in units of the distance; smaller than alpha_1, as the second term is auxiliary.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[B, D]` and `[R, D]`, or an
        array `[B, R]`.
      references: where p, n and l come from, k being of the batch; the batch itself if not given.
      pairs: `[B, R]` booleans: which (a, p), (a, n) and (k, l) may be used; all if not given.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0; a tuple weighs the product of its members'. No gradient flows into them.
      reduction: `"mean"`, `"mean_active"` (over tuples with a positive loss) or `"sum"`: that of the triplets plus that
        of the quadruplets.
      has_aux: whether to return `(loss, LossStats)`, whose entries are `[2]`: of triplets and of quadruplets.

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
    check_reduction(reduction)
    checks.check_scalar("margin", margin)
    checks.check_scalar("second_margin", second_margin)
    comparison = compare(
        embeddings,
        labels,
        distance=distance,
        references=references,
        pairs=pairs,
        where=where,
        weights=weights,
        needs_labels=True,
    )
    symmetric = references is None and pairs is None and isinstance(distance, str) and distance in SYMMETRIC_DISTANCES
    triplets = all_triplets(comparison, margin)
    quadruplets = _all_quadruplets(comparison, second_margin, symmetric=symmetric)
    stats = LossStats(*(jnp.stack(both) for both in zip(triplets, quadruplets, strict=True)))
    loss = jnp.sum(reduce_stats(stats, reduction))
    return (loss, stats) if has_aux else loss


@partial(jax.jit, static_argnames="symmetric")
def _all_quadruplets(c: Comparison, margin: float, *, symmetric: bool) -> LossStats:
    weights = c.anchor_weights[:, None] * c.reference_weights[None, :]
    far = jnp.where(c.negatives, weights, 0)
    elsewhere = _not_touching(c, c.negatives.astype(jnp.int32)) > 0
    # Without a pair of two other classes, what is left of the sums is only their rounding.
    near = jnp.where(c.positives & elsewhere[:, None], weights, 0)
    sums = _near_far_sums(c, near, far, margin, symmetric=symmetric)
    total = with_gradient(jnp.sum(near * sums.hinges), c.values, (near - far) * sums.violations)
    valid = jnp.sum(jnp.sum(near, axis=1) * jax.nn.relu(_not_touching(c, far)))
    active = jnp.sum(near * sums.violations)
    return LossStats(of_margin(total, active, margin), valid, active)


def _near_far_sums(c: Comparison, near: jax.Array, far: jax.Array, margin: float, *, symmetric: bool) -> NearFarSums:
    """`[A, R]` sums over the pairs of the other side that share no class: all, less those that share either."""
    if symmetric:  # (i, j) stands for (j, i) as well
        first, second = all_pairs(near.shape[0])
        near, far = 2 * near, 2 * far
    else:
        first, second = (index.reshape(-1) for index in jnp.indices(near.shape))
    of_anchors, of_references = c.anchor_labels[first], c.reference_labels[second]
    segments = jnp.stack([jnp.zeros_like(of_anchors), of_anchors, of_references])
    values, near, far = (each[first, second] for each in (c.values, near, far))
    everywhere_and_touching = jax.lax.map(lambda each: near_far_sums(values, near, far, each, margin=margin), segments)
    hinges, violations = (
        jnp.zeros_like(c.values).at[first, second].set(each[0] - each[1] - each[2], unique_indices=True)
        for each in everywhere_and_touching
    )
    if symmetric:
        hinges, violations = hinges + hinges.T, violations + violations.T
    return NearFarSums(jnp.where(violations <= 0, 0, jax.nn.relu(hinges)), violations)


def _not_touching(c: Comparison, of_pairs: jax.Array) -> jax.Array:
    """`[A]`: the sum of what each `[A, R]` negative pair has, over those that do not touch the class of each anchor."""
    of_anchors, of_references = jnp.sum(of_pairs, axis=1), jnp.sum(of_pairs, axis=0)
    same_anchor = c.anchor_labels[:, None] == c.anchor_labels[None, :]
    same_reference = c.anchor_labels[:, None] == c.reference_labels[None, :]
    touching = jnp.sum(jnp.where(same_anchor, of_anchors[None, :], 0), axis=1)
    return jnp.sum(of_pairs) - touching - jnp.sum(jnp.where(same_reference, of_references[None, :], 0), axis=1)
