"""The centroid triplet loss: an anchor lies closer to the centroid of its class than to any other, by a margin."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmetric.losses import checks
from jaxmetric.losses.comparison import DISTANCES, Comparison, compare, each_anchor, each_pair, no_sums
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, reduce_anchors
from jaxmetric.mining import hardest_negatives
from jaxmetric.numerics import as_float, safe_divide
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
    if isinstance(distance, str) and distance not in DISTANCES:
        raise ValueError(f"distance is {distance!r}, expected one of {', '.join(DISTANCES)} or a function")
    if not isinstance(distance, str) and not callable(distance):
        raise TypeError(f"distance is {type(distance).__name__}, expected a name or a function: it is of centroids")
    comparison = compare(embeddings, labels, references=references, where=where, weights=weights)
    pairwise = DISTANCES[distance] if isinstance(distance, str) else distance
    return reduce_anchors(_centroid_triplets(comparison, margin, mining, pairwise), reduction, has_aux)


class _Centroids(NamedTuple):
    """The centroids of the R classes that R references can have at most; the weight of one that is not there is 0."""

    vectors: jax.Array  # [R, D]
    labels: jax.Array  # [R]
    weights: jax.Array  # [R]


@partial(jax.jit, static_argnames=("mining", "distance"))
def _centroid_triplets(c: Comparison, margin: float, mining: str, distance: Callable[..., jax.Array]) -> LossStats:
    if not c.positives.size:
        return no_sums(c)
    centroids = _centroids(c)
    near = _distances_to_own_centroid(c, distance)
    far = as_float(distance(c.anchors, centroids.vectors))
    negatives = (c.anchor_labels[:, None] != centroids.labels[None, :]) & (centroids.weights > 0)[None, :]
    weights = jnp.where(jnp.any(c.positives, axis=1), c.anchor_weights, 0)
    if mining == "all":
        losses = jax.nn.relu(near[:, None] - far + margin)
        return each_pair(losses, jnp.where(negatives, weights[:, None], 0))
    nearest = jnp.take_along_axis(far, hardest_negatives(far, negatives)[:, None], axis=1)[:, 0]
    return each_anchor(jax.nn.relu(near - nearest + margin), jnp.where(jnp.any(negatives, axis=1), weights, 0))


def _centroids(c: Comparison) -> _Centroids:
    count = c.reference_labels.size
    labels, index = jnp.unique(c.reference_labels, return_inverse=True, size=count)
    weights = jax.ops.segment_sum(c.reference_weights, index, count)
    sums = jax.ops.segment_sum(c.reference_weights[:, None] * c.references, index, count)
    return _Centroids(safe_divide(sums, jnp.broadcast_to(weights[:, None], sums.shape)), labels, weights)


def _distances_to_own_centroid(c: Comparison, distance: Callable[..., jax.Array]) -> jax.Array:
    """`[A]`: how far each anchor is from the mean of the other examples of its class."""
    weights = jnp.where(c.positives, c.reference_weights[None, :], 0)
    shares = safe_divide(weights, jnp.broadcast_to(jnp.sum(weights, axis=1, keepdims=True), weights.shape))
    own = jnp.matmul(shares, c.references, precision=jax.lax.Precision.HIGHEST)
    return jax.vmap(lambda x, y: as_float(distance(x[None], y[None]))[0, 0])(c.anchors, own)
