"""Losses that average over pairs, the alike ones and the others apart, however many there are of each.

`intra_pair_variance_loss` compares the pairs of a batch with the average of their kind,
`threshold_consistent_margin_loss` averages over the pairs of a batch beyond a threshold, and `ranked_list_loss` over
those of each anchor, the worst weighing most.
"""

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.losses.comparison import Comparison, Pairwise, compare, pair_weights
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, each_anchor, reduce_anchors
from jaxmetric.numerics import excess, safe_divide
from jaxmetric.references import PairMasks, References


def intra_pair_variance_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    pos_eps: float = 0.01,
    neg_eps: float = 0.01,
    similarity: Pairwise = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The intra-pair variance loss: pairs of a kind are about as similar as each other.

    :math:`\mathrm{E}_{ap} [(1 - \epsilon^+)\, \mathrm{E}(s_{ap}) - s_{ap}]_+^2 +
    \mathrm{E}_{an} [s_{an} - (1 + \epsilon^-)\, \mathrm{E}(s_{an})]_+^2`: it pulls at positives less similar than the
    average positive, and at negatives more similar than the average negative. A complement of another loss, in the
    paper of `tuplet_margin_loss`.

    Args:
      embeddings: `[B, D]` floats; None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike.
      pos_eps: epsilon of the positives, >= 0.
      neg_eps: epsilon of the negatives, >= 0.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what to compare the batch with; itself if not given.
      pairs: `[B, R]` booleans: which pairs may be used. With `labels=None`: two masks, `(positives, negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` weights >= 0; a pair weighs the product of its members'.
      reduction: `"mean"`, which is the formula; `"mean_active"` and `"sum"`, which are the same, as the loss is one
        number of the whole batch; or `"none"`: what each anchor's pairs contribute to it.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` parts of it); 0, with zero gradients, if there is no pair.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> similarity = jnp.array([[0.0, 1.0, 0.2], [0.6, 0.0, 0.2], [0.2, 0.2, 0.0]])
      >>> loss = intra_pair_variance_loss(None, jnp.array([4, 4, 9]), pos_eps=0.0, neg_eps=0.0, similarity=similarity)
      >>> round(float(loss), 3)  # positives 1 and .6 on average .8: (0 + .2^2) / 2; the negatives are equal
      0.02

    References:
      B. Yu, D. Tao, Deep Metric Learning With Tuplet Margin Loss, ICCV 2019.
    """
    check_reduction(reduction, "none")
    checks.check_scalar("pos_eps", pos_eps, least=0)
    checks.check_scalar("neg_eps", neg_eps, least=0)
    comparison = compare(
        embeddings, labels, similarity=similarity, references=references, pairs=pairs, where=where, weights=weights
    )
    return reduce_anchors(_intra_pair_variance(comparison, pos_eps, neg_eps), reduction, has_aux)


@jax.jit
def _intra_pair_variance(c: Comparison, pos_eps: float, neg_eps: float) -> LossStats:
    near, far = pair_weights(c, c.positives), pair_weights(c, c.negatives)
    below = jax.nn.relu((1 - pos_eps) * _average(c.values, near) - c.values)
    above = jax.nn.relu(c.values - (1 + neg_eps) * _average(c.values, far))
    contributions = _parts(jnp.square(below), near) + _parts(jnp.square(above), far)
    return _of_batch(contributions, near + far)


def threshold_consistent_margin_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    pos_margin: float = 0.9,
    neg_margin: float = 0.5,
    pos_weight: float = 1.0,
    neg_weight: float = 1.0,
    similarity: Pairwise = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The threshold-consistent margin loss: one threshold of similarity should fit all classes.

    :math:`\lambda^+ \frac{\sum_{ap} (m^+ - s_{ap})\, [s_{ap} \le m^+]}{\sum_{ap} [s_{ap} \le m^+]} +
    \lambda^- \frac{\sum_{an} (s_{an} - m^-)\, [s_{an} \ge m^-]}{\sum_{an} [s_{an} \ge m^-]}`: the mean excess of the
    hard pairs, and of them alone. A regulariser beside another loss.

    Args:
      embeddings: `[B, D]` floats; None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike.
      pos_margin: m+, the similarity that alike examples should exceed.
      neg_margin: m-, the similarity below which others should stay.
      pos_weight: lambda+ >= 0.
      neg_weight: lambda- >= 0.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what to compare the batch with; itself if not given.
      pairs: `[B, R]` booleans: which pairs may be used. With `labels=None`: two masks, `(positives, negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` weights >= 0; a pair weighs the product of its members'.
      reduction: `"mean"`, which is the formula; `"mean_active"` and `"sum"`, which are the same, as the loss is one
        number of the whole batch; or `"none"`: what each anchor's pairs contribute to it.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` parts of it); 0, with zero gradients, if there is no hard pair.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> similarity = jnp.array([[0.0, 1.0, 0.2], [0.6, 0.0, 0.7], [0.2, 0.6, 0.0]])
      >>> loss = threshold_consistent_margin_loss(None, jnp.array([4, 4, 9]), similarity=similarity)
      >>> round(float(loss), 3)  # of the positives .6 is hard, by .3; of the negatives .7 and .6, by .2 and .1
      0.45

    References:
      Q. Zhang, L. Xu, Q. Tang, J. Fang, Y. N. Wu, J. Tighe, Y. Xing, Threshold-Consistent Margin Loss for Open-World
      Deep Metric Learning, ICLR 2024, arXiv 2307.04047.
    """
    check_reduction(reduction, "none")
    checks.check_scalar("pos_margin", pos_margin)
    checks.check_scalar("neg_margin", neg_margin)
    checks.check_scalar("pos_weight", pos_weight, least=0)
    checks.check_scalar("neg_weight", neg_weight, least=0)
    comparison = compare(
        embeddings, labels, similarity=similarity, references=references, pairs=pairs, where=where, weights=weights
    )
    per_anchor = _threshold_consistent(comparison, pos_margin, neg_margin, pos_weight, neg_weight)
    return reduce_anchors(per_anchor, reduction, has_aux)


@jax.jit
def _threshold_consistent(
    c: Comparison, pos_margin: float, neg_margin: float, pos_weight: float, neg_weight: float
) -> LossStats:
    # What is hard is asked for in the negative, so that a similarity of NaN stays.
    near = pair_weights(c, c.positives & ~(c.values > pos_margin))
    far = pair_weights(c, c.negatives & ~(c.values < neg_margin))
    contributions = pos_weight * _parts(pos_margin - c.values, near) + neg_weight * _parts(c.values - neg_margin, far)
    return _of_batch(contributions, pair_weights(c, c.positives | c.negatives))


def ranked_list_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    margin: float = 0.4,
    alpha: float | None = None,
    pos_temperature: float = 0.0,
    neg_temperature: float = 10.0,
    neg_weight: float = 0.5,
    distance: Pairwise = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The ranked list loss: an anchor's negatives lie beyond a boundary, its positives within a smaller one.

    Of each anchor :math:`(1 - \lambda) \sum_p \bar w_{ap} [d_{ap} - (\alpha - m)]_+ + \lambda \sum_n \bar w_{an}
    [\alpha - d_{an}]_+`, where :math:`w_{ap} = \exp(T_p (d_{ap} - (\alpha - m)))` and
    :math:`w_{an} = \exp(T_n (\alpha - d_{an}))` of the pairs on the wrong side, and :math:`\bar w` is their share in
    the sum over the anchor's positives, or negatives. The weights are constants to the gradient, as in the authors'
    code: they say how much a pair is pulled, and are not themselves to be made smaller.

    Args:
      embeddings: `[B, D]` floats, normalised by the network; None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike.
      margin: m >= 0, between the two boundaries.
      alpha: the boundary of the negatives; 1 + margin / 2 if not given.
      pos_temperature: T_p >= 0; 0 weighs all positives outside their boundary alike.
      neg_temperature: T_n >= 0; towards infinity only the nearest negative counts.
      neg_weight: lambda in [0, 1].
      distance: `"euclidean"`, `"squared_euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array.
      references: what to compare the batch with; itself if not given.
      pairs: `[B, R]` booleans: which pairs may be used. With `labels=None`: two masks, `(positives, negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` weights >= 0 of anchors in the mean, and of references in the sums of an anchor.
      reduction: `"mean"` over the anchors that have a positive or a negative, `"mean_active"` over those that lose
        something, `"sum"`, or `"none"` for one value per anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if there is no pair.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> distances = jnp.array([[0.0, 1.0, 1.1], [1.0, 0.0, 1.5], [1.1, 1.5, 0.0]])
      >>> losses = ranked_list_loss(None, jnp.array([4, 4, 9]), distance=distances, reduction="none")
      >>> print(losses.round(3))  # boundaries .8 and 1.2: half of .2 + .1, of .2 and of .1
      [0.15 0.1  0.05]

    References:
      X. Wang, Y. Hua, E. Kodirov, G. Hu, R. Garnier, N. M. Robertson, Ranked List Loss for Deep Metric Learning, CVPR
      2019, arXiv 1903.03238. The weights of positives: the extended version, IEEE TPAMI 2021.
    """
    check_reduction(reduction, "none")
    checks.check_scalar("margin", margin, least=0)
    alpha = 1 + margin / 2 if alpha is None else checks.check_scalar("alpha", alpha)
    checks.check_scalar("pos_temperature", pos_temperature, least=0)
    checks.check_scalar("neg_temperature", neg_temperature, least=0)
    checks.check_scalar("neg_weight", neg_weight, least=0, most=1)
    comparison = compare(
        embeddings, labels, distance=distance, references=references, pairs=pairs, where=where, weights=weights
    )
    per_anchor = _ranked_list(comparison, margin, alpha, pos_temperature, neg_temperature, neg_weight)
    return reduce_anchors(per_anchor, reduction, has_aux)


@jax.jit
def _ranked_list(
    c: Comparison, margin: float, alpha: float, pos_temperature: float, neg_temperature: float, neg_weight: float
) -> LossStats:
    near = _worst_first(c.values - (alpha - margin), c.positives, c.reference_weights, pos_temperature)
    far = _worst_first(alpha - c.values, c.negatives, c.reference_weights, neg_temperature)
    compared = jnp.any(c.positives | c.negatives, axis=1)
    return each_anchor((1 - neg_weight) * near + neg_weight * far, jnp.where(compared, c.anchor_weights, 0))


def _worst_first(beyond: jax.Array, selected: jax.Array, weights: jax.Array, temperature: float) -> jax.Array:
    """`[A]`: the average of each anchor's positive excesses `[A, R]`, each weighing exp(temperature excess)."""
    wrong = selected & ~(beyond <= 0)
    beyond = jnp.where(wrong, beyond, 0)
    constant = jax.lax.stop_gradient(beyond)
    largest = jnp.max(constant, axis=1, keepdims=True, initial=0)
    shares = jnp.where(wrong, weights[None, :] * jnp.exp(temperature * excess(constant, largest)), 0)
    return safe_divide(jnp.sum(shares * beyond, axis=1), jnp.sum(shares, axis=1))


def _average(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted average of all values that weigh something; 0 if none does."""
    return jnp.sum(_parts(values, weights))


def _parts(values: jax.Array, weights: jax.Array) -> jax.Array:
    """What each value contributes to the weighted average of all."""
    return jnp.where(weights > 0, safe_divide(weights, jnp.sum(weights)) * values, 0)


def _of_batch(contributions: jax.Array, weights: jax.Array) -> LossStats:
    """The sums for each anchor of a loss which is one number of the whole batch, made of `[A, R]` contributions."""
    total = jnp.sum(contributions, axis=1)
    valid = safe_divide(jnp.sum(weights, axis=1), jnp.sum(weights))
    return LossStats(total, valid, jnp.where(jnp.sum(total) > 0, valid, 0))
