"""The angular loss: bounds the angle at the negative of a triangle of an anchor, a positive and a negative."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.losses.comparison import Comparison, Pairwise, between_references, compare, no_sums
from jaxmetric.losses.positive_pairs import PositivePair, sum_over_positives
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, reduce_anchors
from jaxmetric.numerics import masked_logsumexp, softplus
from jaxmetric.references import PairMasks, References


def angular_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    angle: float = math.pi / 4,
    similarity: Pairwise = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The angular loss over the pairs of an anchor and a positive.

    The mean of :math:`\log(1 + \sum_n \exp f_{apn})` over the pairs of an anchor a and a positive p; n runs over the
    negatives of a, and :math:`f_{apn} = 4 \tan^2\!\alpha \,(x_a + x_p)^T x_n - 2 (1 + \tan^2\!\alpha)\, x_a^T x_p`.

    Args:
      embeddings: `[B, D]` floats; None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike.
      angle: alpha, in radians, in (0, pi / 2): the angle which the one at the negative should not exceed.
      similarity: `"cosine"`, which compares embeddings scaled to length 1; `"dot"`; a function of `[B, D]` and
        `[R, D]`; or an array `[B, R]`.
      references: where positives and negatives come from; the batch itself if not given.
      pairs: `[B, R]` booleans: which (a, p) and (a, n) may be used; all if not given. With `labels=None`: two masks,
        `(positives, negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0; a pair (a, p) weighs the product of its members'. In the sum over n every
        negative counts once. No gradient flows into the weights.
      reduction: `"mean"`, `"mean_active"` (over pairs with a positive loss), `"sum"`, or `"none"`: for each anchor the
        sum over its pairs.
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
    check_reduction(reduction, "none")
    checks.check_scalar("angle", angle, above=0, below=math.pi / 2, unit="radians")
    comparison = compare(
        embeddings, labels, similarity=similarity, references=references, pairs=pairs, where=where, weights=weights
    )
    others = between_references("similarity", similarity, comparison, references)
    return reduce_anchors(_angular(comparison, others, angle), reduction, has_aux)


@jax.jit
def _angular(c: Comparison, others: jax.Array, angle: float) -> LossStats:
    if not c.values.size:
        return no_sums(c)
    complete = c.positives & jnp.any(c.negatives, axis=1, keepdims=True)
    constants = (c.reference_weights, jnp.square(jnp.tan(jnp.asarray(angle, c.values.dtype))))
    total, active = sum_over_positives(_term, c.values, others, complete, c.negatives, constants)
    valid = jnp.sum(jnp.where(complete, c.reference_weights[None, :], 0), axis=1)
    return LossStats(*(c.anchor_weights * each for each in (total, valid, active)))


def _term(pair: PositivePair, negatives: jax.Array, constants: Any) -> tuple[jax.Array, jax.Array]:
    reference_weights, squared_tangent = constants
    assert pair.positive_row is not None
    f = 4 * squared_tangent * (pair.anchor_row + pair.positive_row) - 2 * (1 + squared_tangent) * pair.value
    loss = softplus(masked_logsumexp(f, negatives))
    weight = reference_weights[pair.positive]
    return weight * loss, jnp.where(loss > 0, weight, 0)
