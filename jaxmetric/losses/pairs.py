"""Losses over pairs: they pull examples of one class together and push others apart.

`contrastive_loss` and `snr_contrastive_loss` are hinges with fixed margins. `siglip_loss` and `binomial_deviance_loss`
are logistic losses on the similarity; the latter gives negatives a higher cost. `margin_loss` learns the boundary
between positives and negatives. `intra_pair_variance_loss` compares each pair with the mean of its kind, and
`threshold_consistent_margin_loss` averages over the pairs beyond a threshold. `ranked_list_loss` averages over those of
each anchor, with most weight on the worst.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.comparison import (
    Comparison,
    Examples,
    check_graded_pairs,
    check_pairs,
    masked_examples,
    pair_loss,
    pair_weights,
)
from jaxmetric.losses._engine.reduction import LossResult, LossStats, each_anchor, each_pair
from jaxmetric.losses._engine.types import (
    ClassLabels,
    ClassScalars,
    Distance,
    LabelColumns,
    LimitedScalar,
    PositiveScalar,
    Reduction,
    ScalarLike,
    Similarity,
)
from jaxmetric.numerics import excess, safe_abs, safe_divide, safe_sqrt, softplus
from jaxmetric.references import PairMasks, References


def contrastive_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    pos_margin: ScalarLike = 0.0,
    neg_margin: ScalarLike = 1.0,
    power: Literal[1, 2] = 2,
    distance: Distance = "euclidean",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The contrastive loss: pulls positive pairs together and pushes negative pairs apart up to a margin.

    The loss of a pair at distance :math:`D` is :math:`\frac12 [D - m^+]_+^2` if its labels agree and
    :math:`\frac12 [m^- - D]_+^2` if not. With :math:`m^+ = 0` these are the paper's :math:`\frac12 D^2` and
    :math:`\frac12 [m - D]_+^2`. With `power=1` they are linear, :math:`[D - m^+]_+` and :math:`[m^- - D]_+`.

    Args:
      embeddings: `[B, D]` floats. None if `distance` is an array.
      labels: `[B]` or `[B, T]` integers. None if `pairs` defines positives and negatives. With T labels, the share of
        them that agree weights the positive term of a pair, and the rest weights the negative term.
      pos_margin: m+, the distance up to which positive pairs have no loss. With a negative margin, coinciding examples
        also have a loss.
      neg_margin: m-, the distance from which negative pairs have no loss.
      power: 2 for the paper's squared hinges, 1 for linear ones.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array.
      label_weights: T static weights > 0 of the columns of labels; 1 if None.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks,
        `(positives, negatives)`, or the shares in [0, 1] to which pairs are positive and negative.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over all pairs, `"mean_active"` is over
        those with a positive loss, and `"none"` returns for each anchor the sum over its pairs.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if there is no pair.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [0.4], [1.0]]), jnp.array([4, 4, 9])
      >>> loss = contrastive_loss(embeddings, labels)
      >>> round(float(loss), 3)  # distances .4 (alike), 1 and .6: (.4^2 + 0^2 + .4^2) / 2 / 3
      0.053

    References:
      R. Hadsell, S. Chopra, Y. LeCun, Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006.
    """
    pos_margin = checks.check_scalar("pos_margin", pos_margin)
    neg_margin = checks.check_scalar("neg_margin", neg_margin)
    given = checks.check_scalar("power", power)
    if isinstance(given, jax.core.Tracer) or float(given) not in (1, 2):
        raise ValueError(f"power is {checks.shown(power)}, expected 1 or 2")
    power = 2 if float(given) == 2 else 1
    # `pairwise_euclidean` rounds tiny distances to 0; squared distances keep their gradient.
    squared = power == 2 and isinstance(distance, str) and distance == "euclidean"
    distance = "squared_euclidean" if squared else distance
    batch = check_graded_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, label_weights, distance=distance
    )
    return pair_loss(_contrastive, batch, pos_margin, neg_margin, power=power, squared=squared)


def _contrastive(
    c: Comparison, pos_margin: ScalarLike, neg_margin: ScalarLike, *, power: int, squared: bool
) -> LossStats:
    distances = safe_sqrt(c.values) if squared else c.values
    close, apart = jax.nn.relu(distances - pos_margin), jax.nn.relu(neg_margin - distances)
    if power == 2:
        close, apart = jnp.square(close) / 2, jnp.square(apart) / 2
    return _positive_and_negative_sums(close, apart, c)


def snr_contrastive_loss(
    embeddings: ArrayLike,
    labels: LabelColumns | None,
    *,
    pos_margin: ScalarLike = 0.0,
    neg_margin: ScalarLike = 1.0,
    zero_mean: LimitedScalar = 0.0,
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The contrastive loss with signal-to-noise-ratio distances.

    An anchor i and another example j have the distance :math:`d_S = \mathrm{var}(h_i - h_j) / \mathrm{var}(h_i)`. The
    loss of the pair is :math:`[d_S - m^+]_+` if their labels agree and :math:`[m^- - d_S]_+` if not, plus
    :math:`\lambda\,|\sum_d h_{id}|`, which keeps the mean of an embedding's coordinates at 0. The distance is not
    symmetric, so a pair counts in both orders.

    Args:
      embeddings: `[B, D]` floats. D is at least 2.
      labels: `[B]` or `[B, T]` integers. None if `pairs` defines positives and negatives. With T labels, the share of
        them that agree weights the positive term of a pair, and the rest weights the negative term.
      pos_margin: m+; the paper's formula has none.
      neg_margin: m-, alpha of the paper.
      zero_mean: lambda >= 0, the weight of the regularizer. It is part of every pair's loss: `"mean"` contains its mean
        over the anchors, and `"mean_active"` counts every pair.
      label_weights: T static weights > 0 of the columns of labels; 1 if None.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks,
        `(positives, negatives)`, or the shares in [0, 1] to which pairs are positive and negative.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over all pairs, `"mean_active"` is over
        those with a positive loss, and `"none"` returns for each anchor the sum over its pairs.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if there is no pair.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[1.0, -1.0], [2.0, -2.0]]), jnp.array([4, 4])
      >>> float(snr_contrastive_loss(embeddings, labels))  # differences of variance 1; signals 1 and 4: (1 + .25) / 2
      0.625

    References:
      T. Yuan, W. Deng, J. Tang, Y. Tang, B. Chen, Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric
      Learning, CVPR 2019, arXiv 1904.02616.
    """
    pos_margin = checks.check_scalar("pos_margin", pos_margin)
    neg_margin = checks.check_scalar("neg_margin", neg_margin)
    zero_mean = checks.check_scalar("zero_mean", zero_mean, least=0)
    batch = check_graded_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, label_weights, distance="snr"
    )
    return pair_loss(_snr_contrastive, batch, pos_margin, neg_margin, zero_mean)


def _snr_contrastive(c: Comparison, pos_margin: ScalarLike, neg_margin: ScalarLike, zero_mean: ScalarLike) -> LossStats:
    mean = zero_mean * safe_abs(jnp.sum(c.anchors, axis=1, keepdims=True))
    close, apart = jax.nn.relu(c.values - pos_margin), jax.nn.relu(neg_margin - c.values)
    return _positive_and_negative_sums(close + mean, apart + mean, c)


def siglip_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    scale: PositiveScalar = 10.0,
    bias: ScalarLike = -10.0,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The sigmoid loss of SigLIP: a logistic regression on the similarity of each pair, positive or negative.

    The loss of an anchor i is :math:`-\sum_j \log \sigma(z_{ij}(t\,s_{ij} + b))` over all references j, with
    :math:`z_{ij} = 1` if their labels agree and -1 if not. Unlike a softmax, it needs no normalizing sum over the
    batch. The scale t and the bias b are usually learned: pass them as parameters.

    Args:
      embeddings: `[B, D]` floats. Images, for example. None if `similarity` is an array.
      labels: `[B]` or `[B, T]` integers. `jnp.arange(B)` on both sides for images and their texts. None if `pairs`
        defines positives and negatives. With T labels, the share of them that agree weights the positive term of a
        pair, and the rest weights the negative term.
      scale: t > 0, static or learned; the paper learns its logarithm, from log 10.
      bias: b, static or learned; the paper starts from -10, at which the many negative pairs have a small loss.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      label_weights: T static weights > 0 of the columns of labels; 1 if None.
      references: what the batch is compared with; the batch itself if None. Texts for images, for example.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks,
        `(positives, negatives)`, or the shares in [0, 1] to which pairs are positive and negative.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a reference is
        divided by the mean weight of the references.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over anchors, as in the paper: the sum over
        all pairs divided by the batch, not by the number of pairs. `"mean_active"` is the same, and `"none"` returns
        for each anchor the sum over its pairs.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if there is no pair.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmetric.references import References
      >>> images = texts = jnp.eye(2)
      >>> loss = siglip_loss(images, jnp.arange(2), scale=2.0, bias=-1.0, references=References(texts, jnp.arange(2)))
      >>> round(float(loss), 4)  # similarities 1 and 0, logits 1 and -1: 2 log(1 + exp(-1)) for each image
      0.6265

    References:
      X. Zhai, B. Mustafa, A. Kolesnikov, L. Beyer, Sigmoid Loss for Language Image Pre-Training, ICCV 2023, arXiv
      2303.15343.
    """
    scale = checks.check_scalar("scale", scale, above=0)
    bias = checks.check_scalar("bias", bias)
    batch = check_graded_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, label_weights, similarity=similarity
    )
    return pair_loss(_siglip, batch, scale, bias)


def _siglip(c: Comparison, scale: ScalarLike, bias: ScalarLike) -> LossStats:
    logits = scale * c.values + bias
    # p softplus(-z) + n softplus(z) with one softplus, that of the larger share, so that small losses stay accurate.
    signed = jnp.where(c.positives > c.negatives, -logits, logits)
    valid = c.positives + c.negatives > 0
    losses = softplus(signed) - jnp.minimum(c.positives, c.negatives) * signed
    count = jnp.sum(c.reference_weights > 0, dtype=c.values.dtype)
    relative = safe_divide(count * c.reference_weights, jnp.sum(c.reference_weights))
    anchor_losses = jnp.sum(jnp.where(valid, relative[None, :] * losses, 0), axis=1)
    return each_anchor(anchor_losses, jnp.where(jnp.any(valid, axis=1), c.anchor_weights, 0))


def margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    beta: ClassScalars = 1.2,
    *,
    margin: LimitedScalar = 0.2,
    nu: LimitedScalar = 0.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The margin loss: learns a boundary between the distances of positives and negatives.

    The loss of a triplet of an anchor a, a positive p and a negative n is :math:`[\alpha + D_{ap} - \beta]_+ + [\alpha
    + \beta - D_{an}]_+ + \nu \beta`. The boundary :math:`\beta` is a single number, or the one of the anchor's class.
    The triplets only balance the pairs: each term depends on one pair, so the loss takes O(B^2) time and memory.

    Args:
      embeddings: `[B, D]` floats. Their length should be 1. None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers. They are in [0, C) if `beta` is `[C]`. None if `pairs` defines positives and
        negatives.
      beta: a scalar or `[C]`, static or learned; the default is the boundary from which the paper starts.
      margin: alpha >= 0.
      nu: >= 0, the weight of the regularizer, which decreases a learned beta.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`. The paper draws negatives by their distance.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a triplet is
        the product of its members' weights.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over the pairs of all triplets, two per
        triplet. `"mean_active"`, the authors' choice, is over those with a positive loss, and `"none"` returns for each
        anchor the sum over its triplets.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss (or `[B]` sums); 0, with zero gradients, if there is no triplet. Under `jit`, a valid label
      outside [0, C) gives NaN.

    Raises:
      ValueError: if a shape does not fit, an option is unknown, or a concrete label is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [1.1], [3.0]]), jnp.array([4, 4, 9])
      >>> loss = margin_loss(embeddings, labels)
      >>> round(float(loss), 3)  # anchors 0 and 1, positives at 1.1: .1 each; negatives at 3 and 1.9: 0; four pairs
      0.05

    References:
      C.-Y. Wu, R. Manmatha, A. J. Smola, P. Krähenbühl, Sampling Matters in Deep Embedding Learning, ICCV 2017, arXiv
      1706.07567.
    """
    margin = checks.check_scalar("margin", margin, least=0)
    nu = checks.check_scalar("nu", nu, least=0)
    beta = _check_beta(beta)
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
        needs_labels=beta.ndim > 0,
    )
    if beta.ndim:
        _check_boundaries(batch.examples, beta)
    return pair_loss(_margin, batch, beta, margin, nu)


def _margin(c: Comparison, beta: jax.Array, margin: ScalarLike, nu: ScalarLike) -> LossStats:
    beta = _boundaries(c, beta)
    boundary = beta[:, None]
    near, far = pair_weights(c, c.positives), c.reference_weights[None, :] * c.negatives.astype(c.values.dtype)
    num_far = jnp.sum(far, axis=1)
    num_near = jnp.sum(near, axis=1)  # includes the anchor's weight, once per triplet
    positives = each_pair(jax.nn.relu(margin + c.values - boundary), near * num_far[:, None])
    negatives = each_pair(jax.nn.relu(margin + boundary - c.values), far * num_near[:, None])
    total, valid, active = (jnp.add(*sums) for sums in zip(positives, negatives, strict=True))
    triplets = num_near * num_far
    total += jnp.where(triplets > 0, nu * triplets * beta, 0)
    # A label without a boundary gives NaN, even if its anchor has no triplet.
    return LossStats(jnp.where(jnp.isnan(beta) & (c.anchor_weights > 0), jnp.nan, total), valid, active)


def _check_beta(beta: Any) -> jax.Array:
    beta = checks.check_array("beta", beta, "floats")
    if not jnp.issubdtype(beta.dtype, jnp.floating) and not jnp.issubdtype(beta.dtype, jnp.integer):
        raise TypeError(f"beta has dtype {beta.dtype}, expected floats")
    if beta.ndim > 1 or beta.size == 0:
        raise ValueError(f"beta has shape {beta.shape}, expected a scalar or [C]")
    return beta


def _check_boundaries(examples: Examples, beta: jax.Array) -> None:
    """Raises for concrete labels of valid examples that have no boundary in `beta` `[C]`."""
    counted = masked_examples(examples).weights > 0
    checks.check_class_range(examples.labels[:, 0], counted, beta.size, "beta")


def _boundaries(c: Comparison, beta: jax.Array) -> jax.Array:
    """Returns the boundary of each anchor, `[A]`; NaN where a traced label has none."""
    beta = beta.astype(c.values.dtype)
    if beta.ndim == 0:
        return jnp.broadcast_to(beta, c.anchor_weights.shape)
    labels = jnp.where(c.anchor_weights > 0, c.anchor_labels, 0)
    return jnp.where((labels >= 0) & (labels < beta.size), beta[jnp.clip(labels, 0, beta.size - 1)], jnp.nan)


def intra_pair_variance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    pos_eps: LimitedScalar = 0.01,
    neg_eps: LimitedScalar = 0.01,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The intra-pair variance loss: reduces the variance of positive and of negative similarities.

    :math:`\mathrm{E}_{ap} [(1 - \epsilon^+)\, \mathrm{E}(s_{ap}) - s_{ap}]_+^2 + \mathrm{E}_{an} [s_{an} - (1 +
    \epsilon^-)\, \mathrm{E}(s_{an})]_+^2`: it acts on positives less similar than the average positive, and on
    negatives more similar than the average negative. Add it to another loss; the paper adds it to `tuplet_margin_loss`.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      pos_eps: epsilon of the positives, >= 0.
      neg_eps: epsilon of the negatives, >= 0.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The loss is a single number for the whole batch, so the
        first three are equal; the last returns the contribution of each anchor's pairs.
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
    pos_eps = checks.check_scalar("pos_eps", pos_eps, least=0)
    neg_eps = checks.check_scalar("neg_eps", neg_eps, least=0)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_intra_pair_variance, batch, pos_eps, neg_eps)


def _intra_pair_variance(c: Comparison, pos_eps: ScalarLike, neg_eps: ScalarLike) -> LossStats:
    near, far = pair_weights(c, c.positives), pair_weights(c, c.negatives)
    below = jax.nn.relu((1 - pos_eps) * _average(c.values, near) - c.values)
    above = jax.nn.relu(c.values - (1 + neg_eps) * _average(c.values, far))
    contributions = _contributions(jnp.square(below), near) + _contributions(jnp.square(above), far)
    return _batch_average_stats(contributions, near + far)


def threshold_consistent_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    pos_margin: ScalarLike = 0.9,
    neg_margin: ScalarLike = 0.5,
    pos_weight: LimitedScalar = 1.0,
    neg_weight: LimitedScalar = 1.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The threshold-consistent margin loss: makes one similarity threshold fit all classes.

    :math:`\lambda^+ \frac{\sum_{ap} (m^+ - s_{ap})\, [s_{ap} \le m^+]}{\sum_{ap} [s_{ap} \le m^+]} + \lambda^-
    \frac{\sum_{an} (s_{an} - m^-)\, [s_{an} \ge m^-]}{\sum_{an} [s_{an} \ge m^-]}`: the mean excess over the hard pairs
    only. Add it as a regularizer to another loss.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      pos_margin: m+, the similarity that positives should exceed.
      neg_margin: m-, the similarity below which negatives should stay.
      pos_weight: lambda+ >= 0.
      neg_weight: lambda- >= 0.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The loss is a single number for the whole batch, so the
        first three are equal; the last returns the contribution of each anchor's pairs.
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
    pos_margin = checks.check_scalar("pos_margin", pos_margin)
    neg_margin = checks.check_scalar("neg_margin", neg_margin)
    pos_weight = checks.check_scalar("pos_weight", pos_weight, least=0)
    neg_weight = checks.check_scalar("neg_weight", neg_weight, least=0)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_threshold_consistent, batch, pos_margin, neg_margin, pos_weight, neg_weight)


def _threshold_consistent(
    c: Comparison, pos_margin: ScalarLike, neg_margin: ScalarLike, pos_weight: ScalarLike, neg_weight: ScalarLike
) -> LossStats:
    # Written as `~(x > y)` so that a NaN similarity counts as hard and stays visible.
    near = pair_weights(c, c.positives & ~(c.values > pos_margin))
    far = pair_weights(c, c.negatives & ~(c.values < neg_margin))
    contributions = pos_weight * _contributions(pos_margin - c.values, near) + neg_weight * _contributions(
        c.values - neg_margin, far
    )
    return _batch_average_stats(contributions, pair_weights(c, c.positives | c.negatives))


def binomial_deviance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    alpha: PositiveScalar = 2.0,
    beta: ScalarLike = 0.5,
    neg_cost: PositiveScalar = 25.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The binomial deviance loss: a logistic loss on the similarity of each pair, with a higher cost for negatives.

    :math:`\mathrm{E}_{ap} \log\big(1 + e^{-\alpha (s_{ap} - \beta)}\big) +
    \mathrm{E}_{an} \log\big(1 + e^{\alpha (s_{an} - \beta)\, c}\big)`: the mean over positive pairs plus the mean over
    negative pairs, which is the paper's sum with the weights 1 / n of each kind.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      alpha: the steepness, > 0.
      beta: the similarity between positives and negatives.
      neg_cost: c > 0, the cost of negatives.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The loss is a single number for the whole batch, so the
        first three are equal; the last returns the contribution of each anchor's pairs.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` parts of it); 0, with zero gradients, if there is no pair.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([4, 4, 9])
      >>> loss = binomial_deviance_loss(embeddings, labels, neg_cost=1.0)
      >>> round(float(loss), 4)  # similarities 1 and 0: log(1 + exp(-1)) of either kind
      0.6265

    References:
      D. Yi, Z. Lei, S. Liao, S. Z. Li, Deep Metric Learning for Person Re-Identification, ICPR 2014.
    """
    alpha = checks.check_scalar("alpha", alpha, above=0)
    beta = checks.check_scalar("beta", beta)
    neg_cost = checks.check_scalar("neg_cost", neg_cost, above=0)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_binomial_deviance, batch, alpha, beta, neg_cost)


def _binomial_deviance(c: Comparison, alpha: ScalarLike, beta: ScalarLike, neg_cost: ScalarLike) -> LossStats:
    beyond = alpha * (c.values - beta)
    near, far = pair_weights(c, c.positives), pair_weights(c, c.negatives)
    contributions = _contributions(softplus(-beyond), near) + _contributions(softplus(neg_cost * beyond), far)
    return _batch_average_stats(contributions, near + far)


def ranked_list_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: LimitedScalar = 0.4,
    alpha: ScalarLike | None = None,
    pos_temperature: LimitedScalar = 0.0,
    neg_temperature: LimitedScalar = 10.0,
    neg_weight: LimitedScalar = 0.5,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The ranked list loss: pushes negatives beyond a boundary and pulls positives within a smaller one.

    The loss of an anchor is :math:`(1 - \lambda) \sum_p \bar w_{ap} [d_{ap} - (\alpha - m)]_+ + \lambda \sum_n \bar
    w_{an} [\alpha - d_{an}]_+`, where :math:`w_{ap} = \exp(T_p (d_{ap} - (\alpha - m)))` and :math:`w_{an} = \exp(T_n
    (\alpha - d_{an}))` for the pairs on the wrong side, and :math:`\bar w` is w divided by its sum over the anchor's
    positives, or negatives. As in the authors' code, no gradient flows through the weights.

    Args:
      embeddings: `[B, D]` floats. Their length should be 1. None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      margin: m >= 0, between the two boundaries.
      alpha: the boundary of the negatives; 1 + margin / 2 if not given.
      pos_temperature: T_p >= 0; 0 weights all positives outside their boundary equally.
      neg_temperature: T_n >= 0; in the limit of infinity only the nearest negative counts.
      neg_weight: lambda in [0, 1].
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight anchors in the
        mean, and references in the sums of an anchor.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over the anchors that have a positive or a
        negative, `"mean_active"` is over those with a positive loss, and `"none"` returns one value for each anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if there is no pair.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number is out of range.
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
    margin = checks.check_scalar("margin", margin, least=0)
    alpha = 1 + margin / 2 if alpha is None else checks.check_scalar("alpha", alpha)
    pos_temperature = checks.check_scalar("pos_temperature", pos_temperature, least=0)
    neg_temperature = checks.check_scalar("neg_temperature", neg_temperature, least=0)
    neg_weight = checks.check_scalar("neg_weight", neg_weight, least=0, most=1)
    batch = check_pairs(embeddings, labels, references, pairs, where, weights, reduction, has_aux, distance=distance)
    return pair_loss(_ranked_list, batch, margin, alpha, pos_temperature, neg_temperature, neg_weight)


def _ranked_list(
    c: Comparison,
    margin: ScalarLike,
    alpha: ScalarLike,
    pos_temperature: ScalarLike,
    neg_temperature: ScalarLike,
    neg_weight: ScalarLike,
) -> LossStats:
    near = _worst_first(c.values - (alpha - margin), c.positives, c.reference_weights, pos_temperature)
    far = _worst_first(alpha - c.values, c.negatives, c.reference_weights, neg_temperature)
    compared = jnp.any(c.positives | c.negatives, axis=1)
    return each_anchor((1 - neg_weight) * near + neg_weight * far, jnp.where(compared, c.anchor_weights, 0))


def _worst_first(beyond: jax.Array, selected: jax.Array, weights: jax.Array, temperature: ScalarLike) -> jax.Array:
    """Returns `[A]`: each anchor's average of positive excesses `[A, R]`, with weights exp(temperature * excess)."""
    wrong = selected & ~(beyond <= 0)
    beyond = jnp.where(wrong, beyond, 0)
    constant = jax.lax.stop_gradient(beyond)
    largest = jnp.max(constant, axis=1, keepdims=True, initial=0)
    shares = jnp.where(wrong, weights[None, :] * jnp.exp(temperature * excess(constant, largest)), 0)
    return safe_divide(jnp.sum(shares * beyond, axis=1), jnp.sum(shares, axis=1))


def _positive_and_negative_sums(close: jax.Array, apart: jax.Array, c: Comparison) -> LossStats:
    """Sums `close` over the positive pairs and `apart` over the negative pairs."""
    alike = each_pair(close, pair_weights(c, c.positives))
    unlike = each_pair(apart, pair_weights(c, c.negatives))
    return LossStats(*(jnp.add(*sums) for sums in zip(alike, unlike, strict=True)))


def _average(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weighted average of all values with a positive weight; 0 if there is none."""
    return jnp.sum(_contributions(values, weights))


def _contributions(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the contribution of each value to the weighted average of all."""
    return jnp.where(weights > 0, safe_divide(weights, jnp.sum(weights)) * values, 0)


def _batch_average_stats(contributions: jax.Array, weights: jax.Array) -> LossStats:
    """Returns the sums per anchor of a loss that is one number for the whole batch, from `[A, R]` contributions."""
    total = jnp.sum(contributions, axis=1)
    valid = safe_divide(jnp.sum(weights, axis=1), jnp.sum(weights))
    return LossStats(total, valid, jnp.where(jnp.sum(total) > 0, valid, 0))
