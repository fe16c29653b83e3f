"""The centroid triplet loss: an anchor lies closer to the centroid of its class than to any other, by a margin."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.losses.comparison import Comparison, compare, no_sums, pairwise_values
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, each_anchor, each_pair, reduce_anchors
from jaxmetric.mining import hardest_negatives
from jaxmetric.numerics import safe_divide
from jaxmetric.references import References

MININGS = ("hard", "all")


def centroid_triplet_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    margin: float = 0.5,
    mining: str = "hard",
    distance: str | Callable[[jax.Array, jax.Array], jax.Array] = "squared_euclidean",
    references: References | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The triplet loss of anchors and centroids of classes.

    The mean of :math:`[\,|x_a - c_p|^2 - |x_a - c_n|^2 + \alpha\,]_+` over the anchors a, with :math:`c_p` the mean of
    the other examples of the anchor's class and :math:`c_n` that of another class, the nearest of them.

    Args:
      embeddings: `[B, D]` floats, normalised or not. Centroids are not normalised.
      labels: `[B]` or `[B, 1]` integers.
      margin: alpha, in units of the distance.
      mining: `"hard"` takes the nearest centroid of another class, `"all"` every one of them.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, or a function of `[B, D]` and `[R, D]`.
      references: of which the centroids are means; the batch itself if not given.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0: centroids are weighted means, and a triplet weighs what its anchor does. No
        gradient flows into the weights.
      reduction: `"mean"`, `"mean_active"` (over triplets with a positive loss), `"sum"`, or `"none"`: for each anchor
        the sum over its triplets.
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
    check_reduction(reduction, "none")
    checks.check_scalar("margin", margin)
    checks.check_choice("mining", mining, MININGS)
    if not isinstance(distance, str) and not callable(distance):
        raise TypeError(f"distance is {type(distance).__name__}, expected a name or a function: it is of centroids")
    c = compare(
        embeddings,
        labels,
        references=references,
        where=where,
        weights=weights,
        needs_values=False,
        needs_labels=True,
    )
    if not c.positives.size:
        return reduce_anchors(no_sums(c), reduction, has_aux)
    centroids, own = _centroids(c), _own_centroids(c)
    of = partial(pairwise_values, "distance", distance)
    far = of(c.anchors, centroids.vectors, c.anchor_weights > 0, centroids.weights > 0)
    has_own = jnp.any(c.positives, axis=1)
    near = jax.vmap(lambda x, y, valid: of(x[None], y[None], valid[None], valid[None])[0, 0])(c.anchors, own, has_own)
    return reduce_anchors(_centroid_triplets(c, centroids, near, far, margin, mining=mining), reduction, has_aux)


class _Centroids(NamedTuple):
    """The centroids of the R classes that R references can have at most; the weight of one that is not there is 0."""

    vectors: jax.Array  # [R, D]
    labels: jax.Array  # [R]
    weights: jax.Array  # [R]


@partial(jax.jit, static_argnames="mining")
def _centroid_triplets(
    c: Comparison, centroids: _Centroids, near: jax.Array, far: jax.Array, margin: float, *, mining: str
) -> LossStats:
    negatives = (c.anchor_labels[:, None] != centroids.labels[None, :]) & (centroids.weights > 0)[None, :]
    weights = jnp.where(jnp.any(c.positives, axis=1), c.anchor_weights, 0)
    if mining == "all":
        losses = jax.nn.relu(near[:, None] - far + margin)
        return each_pair(losses, jnp.where(negatives, weights[:, None], 0))
    nearest = jnp.take_along_axis(far, hardest_negatives(far, negatives)[:, None], axis=1)[:, 0]
    return each_anchor(jax.nn.relu(near - nearest + margin), jnp.where(jnp.any(negatives, axis=1), weights, 0))


@jax.jit
def _centroids(c: Comparison) -> _Centroids:
    count = c.reference_labels.size
    labels, index = jnp.unique(c.reference_labels, return_inverse=True, size=count)
    weights = jax.ops.segment_sum(c.reference_weights, index, count)
    sums = jax.ops.segment_sum(c.reference_weights[:, None] * c.references, index, count)
    return _Centroids(safe_divide(sums, jnp.broadcast_to(weights[:, None], sums.shape)), labels, weights)


@jax.jit
def _own_centroids(c: Comparison) -> jax.Array:
    """`[A, D]`: the mean of the other examples of each anchor's class."""
    weights = jnp.where(c.positives, c.reference_weights[None, :], 0)
    shares = safe_divide(weights, jnp.broadcast_to(jnp.sum(weights, axis=1, keepdims=True), weights.shape))
    return jnp.matmul(shares, c.references, precision=jax.lax.Precision.HIGHEST)
