"""Losses that compare the positives of an anchor with its negatives by a softmax or a smooth maximum.

`ntxent_loss`, `n_pairs_loss` and `tuplet_margin_loss` compare each positive with all negatives. `supcon_loss`,
`nca_loss` and `instance_loss` use all positives at once. `supcon_loss` averages their logarithms; the other two take
the logarithm of their sum, without (`nca_loss`) or with (`instance_loss`) the anchor itself. `multi_similarity_loss`
and `circle_loss` compute one log-sum-exp over the positives and one over the negatives, and
`generalized_lifted_structure_loss` the hinge of their sum. `lifted_structure_loss` compares each positive pair with the
negatives of both of its members.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.comparison import (
    Comparison,
    check_graded_pairs,
    check_pairs,
    complete_anchor_weights,
    negatives_between_references,
    pair_loss,
    pair_weights,
)
from jaxmetric.losses._engine.reduction import LossResult, LossStats, each_anchor, each_pair
from jaxmetric.losses._engine.types import (
    ClassLabels,
    Distance,
    LabelColumns,
    LimitedScalar,
    PositiveScalar,
    Reduction,
    ScalarLike,
    Similarity,
)
from jaxmetric.numerics import masked_logsumexp, safe_divide, safe_sqrt, softplus
from jaxmetric.references import PairMasks, References


def ntxent_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    temperature: PositiveScalar = 0.07,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""NT-Xent, the normalized temperature-scaled cross entropy of each positive against all negatives; or InfoNCE.

    The mean over pairs of an anchor a and a positive p of
    :math:`-\log \frac{\exp(s_{ap} / \tau)}{\exp(s_{ap} / \tau) + \sum_n \exp(s_{an} / \tau)}`, s the similarity, n the
    negatives of a. With two views of each image as the two examples of a class it is the loss of SimCLR.

    With several columns of labels, :math:`\pi` is the share of labels on which a pair agrees. Every pair is a positive
    of weight :math:`\pi`, and each n != p is a negative of weight :math:`1 - \pi_{an}`.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, T]` integers. None if `pairs` defines positives and negatives.
      temperature: tau > 0.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      label_weights: T static weights > 0 of the columns of labels; 1 if None.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks,
        `(positives, negatives)`, or the shares in [0, 1] to which pairs are positive and negative.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights. A negative counts once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over pairs, `"mean_active"` is over those
        with a positive loss, and `"none"` returns for each anchor the sum over its positives.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if there is no pair of a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or `temperature` is not above 0.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([4, 4, 9])
      >>> round(float(ntxent_loss(embeddings, labels, temperature=1.0)), 4)  # log(1 + exp(0 - 1)), twice
      0.3133

    References:
      T. Chen, S. Kornblith, M. Norouzi, G. Hinton, A Simple Framework for Contrastive Learning of Visual
      Representations, ICML 2020. A. van den Oord, Y. Li, O. Vinyals, Representation Learning with Contrastive
      Predictive Coding, 2018.
    """
    temperature = checks.check_scalar("temperature", temperature, above=0)
    batch = check_graded_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, label_weights, similarity=similarity
    )
    return pair_loss(_ntxent, batch, temperature)


def _ntxent(c: Comparison, temperature: ScalarLike) -> LossStats:
    logits = c.values / temperature
    against = masked_logsumexp(logits, c.negatives > 0, weights=c.negatives)
    # A pair that is positive with the share pi is also among its own negatives with 1 - pi; adding pi gives 1.
    log_share = jnp.log(jnp.where(c.positives > 0, c.positives, 1))
    losses = softplus(against[:, None] - logits - log_share) + log_share
    return each_pair(losses, pair_weights(c, c.positives))


def n_pairs_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    similarity: Similarity = "dot",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The (N+1)-tuplet loss of the N-pairs paper, over all anchors, positives and negatives of the batch.

    The mean over pairs of an anchor a and a positive p of
    :math:`\log\big(1 + \sum_n \exp(f_a^\top f_n - f_a^\top f_p)\big)`, n the negatives of a.

    For the paper's N-pair-mc loss, pass N anchors as `embeddings` and the other members of their pairs as `references`.
    The paper's regularizer of the embeddings' lengths is not included; without it, or if it is weak, lengths grow.

    Args:
      embeddings: `[B, D]` floats. They are not normalized. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights. A negative counts once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over pairs, `"mean_active"` is over those
        with a positive loss, and `"none"` returns for each anchor the sum over its positives.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if there is no pair of a positive and a negative.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxmetric.references import References
      >>> anchors, positives, labels = 2 * jnp.eye(2), jnp.eye(2), jnp.arange(2)
      >>> loss = n_pairs_loss(anchors, labels, references=References(positives, labels))
      >>> round(float(loss), 4)  # log(1 + exp(0 - 2)), twice
      0.1269

    References:
      K. Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss Objective, NeurIPS 2016.
    """
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_n_pairs, batch)


def _n_pairs(c: Comparison) -> LossStats:
    return _each_positive_against_negatives(c, c.values, c.values)


def tuplet_margin_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: LimitedScalar = 0.1,
    scale: PositiveScalar = 64.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The tuplet margin loss: angles of each positive against all negatives, with slack for the positive.

    The mean over pairs of an anchor a and a positive p of :math:`\log\big(1 + \sum_n \exp(s\,(\cos\theta_{an} -
    \cos(\theta_{ap} - \beta)))\big)`, n the negatives of a. Angles to positives below :math:`\beta` are not reduced
    further.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      margin: beta, the slack, in radians, in [0, pi / 2).
      scale: s > 0.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array. The loss is designed
        for cosines.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights. A negative counts once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over pairs, `"mean_active"` is over those
        with a positive loss, and `"none"` returns for each anchor the sum over its positives.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if there is no pair of a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([4, 4, 9])
      >>> loss = tuplet_margin_loss(embeddings, labels, margin=jnp.pi / 3, scale=1.0)
      >>> round(float(loss), 4)  # cos(0 - pi / 3) = 0.5: log(1 + exp(0 - 0.5)), twice
      0.4741

    References:
      B. Yu, D. Tao, Deep Metric Learning with Tuplet Margin Loss, ICCV 2019.
    """
    margin = checks.check_scalar("margin", margin, least=0, below=math.pi / 2, unit="radians")
    scale = checks.check_scalar("scale", scale, above=0)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_tuplet_margin, batch, margin, scale)


def _tuplet_margin(c: Comparison, margin: ScalarLike, scale: ScalarLike) -> LossStats:
    # cos(theta - margin) by the addition theorem, because the gradient of an arc cosine is infinite at 1.
    sines = safe_sqrt((1 - c.values) * (1 + c.values))
    slack = c.values * jnp.cos(margin) + sines * jnp.sin(margin)
    return _each_positive_against_negatives(c, scale * slack, scale * c.values)


def supcon_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    temperature: PositiveScalar = 0.1,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The supervised contrastive loss, L_out: all positives of an anchor share one softmax over all other examples.

    The mean over anchors i, P(i) their positives, of
    :math:`\frac{-1}{|P(i)|} \sum_{p \in P(i)} \log \frac{\exp(s_{ip} / \tau)}{\sum_{a \ne i} \exp(s_{ia} / \tau)}`.

    With several columns of labels, every other example is a positive. Its weight is the share of the labels on which it
    agrees with the anchor, and |P(i)| is the sum of these weights.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, T]` integers. None if `pairs` defines positives and negatives.
      temperature: tau > 0.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      label_weights: T static weights > 0 of the columns of labels; 1 if None.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks,
        `(positives, negatives)`, or the shares in [0, 1] to which pairs are positive and negative.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The mean over anchors uses
        those of the anchors, the mean over positives those of the positives. In the denominator each example counts
        once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over anchors with a positive and a
        negative, `"mean_active"` is over those with a positive loss, and `"none"` returns one value for each anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if no anchor has both a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or `temperature` is not above 0.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
      >>> loss = supcon_loss(embeddings, jnp.array([4, 4, 4, 9]), temperature=1.0)
      >>> round(float(loss), 4)  # log(2 e + 1) - 1, three times
      0.862

    References:
      P. Khosla, P. Teterwak, C. Wang, A. Sarna, Y. Tian, P. Isola, A. Maschinot, C. Liu, D. Krishnan, Supervised
      Contrastive Learning, NeurIPS 2020.
    """
    temperature = checks.check_scalar("temperature", temperature, above=0)
    batch = check_graded_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, label_weights, similarity=similarity
    )
    return pair_loss(_supcon, batch, temperature)


def _supcon(c: Comparison, temperature: ScalarLike) -> LossStats:
    logits = c.values / temperature
    shares = c.positives * c.reference_weights[None, :]
    mean_positive = safe_divide(jnp.sum(jnp.where(shares > 0, shares * logits, 0), axis=1), jnp.sum(shares, axis=1))
    losses = masked_logsumexp(logits, c.positives + c.negatives > 0) - mean_positive
    return each_anchor(losses, complete_anchor_weights(c))


def nca_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    softmax_scale: PositiveScalar = 1.0,
    distance: Distance = "squared_euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""Neighborhood components analysis (NCA): minus the log-probability that a random neighbor has the same class.

    The mean over anchors i of :math:`-\log \frac{\sum_{p \in P(i)} \exp(-\gamma\, d_{ip})}{\sum_{a \ne i}
    \exp(-\gamma\, d_{ia})}`, P(i) the positives of i. Near neighbors are more probable.

    Args:
      embeddings: `[B, D]` floats. None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      softmax_scale: gamma > 0.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight the anchors. In
        the sums each example counts once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over anchors with a positive,
        `"mean_active"` is over those with a positive loss, and `"none"` returns one value for each anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if no anchor has both a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or `softmax_scale` is not above 0.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [1.0], [1.0]]), jnp.array([4, 4, 9])
      >>> round(float(nca_loss(embeddings, labels)), 4)  # (log(1 + exp(1 - 1)) + log(1 + exp(1 - 0))) / 2
      1.0032

    References:
      J. Goldberger, S. Roweis, G. Hinton, R. Salakhutdinov, Neighbourhood Components Analysis, NeurIPS 2004.
    """
    softmax_scale = checks.check_scalar("softmax_scale", softmax_scale, above=0)
    batch = check_pairs(embeddings, labels, references, pairs, where, weights, reduction, has_aux, distance=distance)
    return pair_loss(_nca, batch, softmax_scale)


def _nca(c: Comparison, softmax_scale: ScalarLike) -> LossStats:
    logits = -softmax_scale * c.values
    exists = jnp.any(c.positives, axis=1)
    alike = jnp.where(exists, masked_logsumexp(logits, c.positives), 0)
    losses = softplus(masked_logsumexp(logits, c.negatives) - alike)
    return each_anchor(losses, jnp.where(exists, c.anchor_weights, 0))


def instance_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    gamma: PositiveScalar = 64.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The instance loss: each example is its own class, with its embedding as the class vector.

    The mean over the examples i that have a negative of :math:`-\log \frac{\exp(\gamma) + \sum_{p \in P(i)}
    \exp(\gamma\, s_{ip})}{\exp(\gamma) + \sum_{a \ne i} \exp(\gamma\, s_{ia})}`, s the cosine, which is 1 between an
    example and itself, and P(i) the other examples with the same label. With all labels distinct it spreads the
    embeddings over the sphere. Examples that share a label form one class, and the softmax may choose any of them.

    The paper learns the class vectors, one per image of the training set; this is the in-batch form.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. `jnp.arange(B)` makes every example a class. None if `pairs` defines positives
        and negatives.
      gamma: the scale of the similarities, > 0.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array. The loss is designed
        for cosines.
      references: what the batch is compared with; the batch itself if None. Each example is also compared with itself.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight the anchors. In
        the sums each example counts once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over examples with a negative,
        `"mean_active"` is over those with a positive loss, and `"none"` returns one value for each example.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if no example has a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or `gamma` is not above 0.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(instance_loss(jnp.eye(2), jnp.arange(2), gamma=1.0)), 4)  # log(1 + exp(0 - 1)), twice
      0.3133

    References:
      Z. Zheng, L. Zheng, M. Garrett, Y. Yang, M. Xu, Y.-D. Shen, Dual-Path Convolutional Image-Text Embeddings with
      Instance Loss, ACM TOMM 2020.
    """
    gamma = checks.check_scalar("gamma", gamma, above=0)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_instance, batch, gamma)


def _instance(c: Comparison, gamma: ScalarLike) -> LossStats:
    logits = gamma * c.values
    alike = jnp.logaddexp(masked_logsumexp(logits, c.positives), gamma)
    losses = softplus(masked_logsumexp(logits, c.negatives) - alike)
    return each_anchor(losses, jnp.where(jnp.any(c.negatives, axis=1), c.anchor_weights, 0))


def multi_similarity_loss(
    embeddings: ArrayLike | None,
    labels: LabelColumns | None,
    *,
    alpha: PositiveScalar = 2.0,
    beta: PositiveScalar = 50.0,
    base: ScalarLike = 0.5,
    similarity: Similarity = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The multi-similarity loss: smooth maxima over dissimilar positives and over similar negatives.

    The mean over anchors i of :math:`\frac{1}{\alpha} \log\big(1 + \sum_p e^{-\alpha (s_{ip} - \lambda)}\big) +
    \frac{1}{\beta} \log\big(1 + \sum_n e^{\beta (s_{in} - \lambda)}\big)`, p the positives and n the negatives of i.
    The paper's first step, the selection of pairs, is a mask for `pairs`.

    With several columns of labels every pair is in both sums, with weight :math:`\pi` in the first and :math:`1 - \pi`
    in the second, where :math:`\pi` is the share of its labels that agree.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, T]` integers. None if `pairs` defines positives and negatives.
      alpha: how much more hard positives weigh, > 0.
      beta: how much more hard negatives weigh, > 0.
      base: lambda, the similarity that separates positives and negatives: 1 in the paper's text, 0.5 in its code.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array.
      label_weights: T static weights > 0 of the columns of labels; 1 if None.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks,
        `(positives, negatives)`, or the shares in [0, 1] to which pairs are positive and negative.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight the anchors. In
        the sums each example counts once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over anchors with a positive and a
        negative, `"mean_active"` is over those with a positive loss, and `"none"` returns one value for each anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if no anchor has both a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([4, 4, 9])
      >>> loss = multi_similarity_loss(embeddings, labels, alpha=1.0, beta=1.0, base=0.0)
      >>> round(float(loss), 4)  # log(1 + exp(-1)) + log(1 + exp(0)), twice
      1.0064

    References:
      X. Wang, X. Han, W. Huang, D. Dong, M. R. Scott, Multi-Similarity Loss with General Pair Weighting for Deep Metric
      Learning, CVPR 2019.
    """
    alpha = checks.check_scalar("alpha", alpha, above=0)
    beta = checks.check_scalar("beta", beta, above=0)
    base = checks.check_scalar("base", base)
    batch = check_graded_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, label_weights, similarity=similarity
    )
    return pair_loss(_multi_similarity, batch, alpha, beta, base)


def _multi_similarity(c: Comparison, alpha: ScalarLike, beta: ScalarLike, base: ScalarLike) -> LossStats:
    beyond = c.values - base
    alike = masked_logsumexp(-alpha * beyond, c.positives > 0, weights=c.positives)
    unlike = masked_logsumexp(beta * beyond, c.negatives > 0, weights=c.negatives)
    losses = softplus(alike) / alpha + softplus(unlike) / beta
    return each_anchor(losses, complete_anchor_weights(c))


def circle_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 0.4,
    gamma: PositiveScalar = 80.0,
    similarity: Similarity = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The circle loss: weights each similarity by how far it is from its optimum.

    The mean over anchors of :math:`\log\big(1 + \sum_n e^{\gamma \alpha_n (s_n - m)} \sum_p e^{-\gamma \alpha_p (s_p -
    1 + m)}\big)`, with the weights :math:`\alpha_p = [1 + m - s_p]_+` and :math:`\alpha_n = [s_n + m]_+`; p are the
    positives and n the negatives of the anchor. No gradient flows through the weights.

    Args:
      embeddings: `[B, D]` floats. None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      margin: m: positives should be more similar than 1 - m, negatives less than m.
      gamma: the scale, > 0. The paper uses m = 0.4, gamma = 80 for fine-grained retrieval and m = 0.25, gamma = 256 for
        faces.
      similarity: `"cosine"`, `"dot"`, a function of `[A, D]` and `[R, D]`, or an `[A, R]` array. The loss is designed
        for cosines.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight the anchors. In
        the sums each example counts once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over anchors with a positive and a
        negative, `"mean_active"` is over those with a positive loss, and `"none"` returns one value for each anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if no anchor has both a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), jnp.array([4, 4, 9])
      >>> loss = circle_loss(embeddings, labels, margin=0.5, gamma=4.0)
      >>> round(float(loss), 4)  # weights 0.5 and 0.5: log(1 + exp(4 * 0.5 * -0.5) * exp(-4 * 0.5 * 0.5)), twice
      0.1269

    References:
      Y. Sun, C. Cheng, Y. Zhang, C. Zhang, L. Zheng, Z. Wang, Y. Wei, Circle Loss: A Unified Perspective of Pair
      Similarity Optimization, CVPR 2020.
    """
    margin = checks.check_scalar("margin", margin)
    gamma = checks.check_scalar("gamma", gamma, above=0)
    batch = check_pairs(
        embeddings, labels, references, pairs, where, weights, reduction, has_aux, similarity=similarity
    )
    return pair_loss(_circle, batch, margin, gamma)


def _circle(c: Comparison, margin: ScalarLike, gamma: ScalarLike) -> LossStats:
    constant = jax.lax.stop_gradient(c.values)
    pull, push = jax.nn.relu(1 + margin - constant), jax.nn.relu(constant + margin)
    alike = masked_logsumexp(-gamma * pull * (c.values - (1 - margin)), c.positives)
    unlike = masked_logsumexp(gamma * push * (c.values - margin), c.negatives)
    return each_anchor(softplus(alike + unlike), complete_anchor_weights(c))


def lifted_structure_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 1.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The lifted structure loss: each positive pair against the negatives of both of its members.

    The mean over pairs of an anchor i and a positive j of :math:`\frac{1}{2} [J_{ij}]_+^2` with
    :math:`J_{ij} = D_{ij} + \log\big(\sum_k e^{\alpha - D_{ik}} + \sum_l e^{\alpha - D_{jl}}\big)`, k the negatives of
    i and l those of j.

    With `references`, j and all negatives are references. The references are then compared with each other to find the
    negatives of j, to which `pairs` does not apply.

    Args:
      embeddings: `[B, D]` floats. None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      margin: alpha.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array. An array is not possible with references, because these are compared with each other.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights. A negative counts once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over pairs, `"mean_active"` is over those
        with a positive loss, and `"none"` returns for each anchor the sum over its positives.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if there is no positive pair with a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([4, 4, 9])
      >>> loss = lifted_structure_loss(embeddings, labels)
      >>> round(float(loss), 4)  # J = 1 + log(exp(1 - 3) + exp(1 - 2)) = 0.3133, twice
      0.0491

    References:
      H. Oh Song, Y. Xiang, S. Jegelka, S. Savarese, Deep Metric Learning via Lifted Structured Feature Embedding, CVPR
      2016.
    """
    margin = checks.check_scalar("margin", margin)
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
        needs_labels=references is not None,
        between=references is not None,
    )
    return pair_loss(_lifted_structure, batch, margin)


def _lifted_structure(c: Comparison, margin: ScalarLike) -> LossStats:
    against_anchors = against_positives = masked_logsumexp(margin - c.values, c.negatives)
    if c.between is not None:
        against_positives = masked_logsumexp(margin - c.between, negatives_between_references(c))
    losses = jax.nn.relu(c.values + jnp.logaddexp(against_anchors[:, None], against_positives[None, :]))
    return each_pair(jnp.square(losses) / 2, pair_weights(c, c.positives))


def generalized_lifted_structure_loss(
    embeddings: ArrayLike | None,
    labels: ClassLabels | None,
    *,
    margin: ScalarLike = 1.0,
    distance: Distance = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The generalized lifted structure loss: smooth maxima over positives and over negatives, with a hinge.

    The mean over anchors a of :math:`\big[\log \sum_p e^{D_{ap}} + \log \sum_n e^{m - D_{an}}\big]_+`, p the positives
    and n the negatives of a.

    Args:
      embeddings: `[B, D]` floats. None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers. None if `pairs` defines positives and negatives.
      margin: m.
      distance: `"squared_euclidean"`, `"euclidean"`, `"cosine"`, `"snr"`, a function of `[A, D]` and `[R, D]`, or an
        `[A, R]` array.
      references: what the batch is compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight the anchors. In
        the sums each example counts once, unless its weight is 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The mean is over anchors with a positive and a
        negative, `"mean_active"` is over those with a positive loss, and `"none"` returns one value for each anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if no anchor has both a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([4, 4, 9])
      >>> float(generalized_lifted_structure_loss(embeddings, labels, margin=2.0))  # relu(1 + 2 - 3), relu(1 + 2 - 2)
      0.5

    References:
      A. Hermans, L. Beyer, B. Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017.
    """
    margin = checks.check_scalar("margin", margin)
    batch = check_pairs(embeddings, labels, references, pairs, where, weights, reduction, has_aux, distance=distance)
    return pair_loss(_generalized_lifted_structure, batch, margin)


def _generalized_lifted_structure(c: Comparison, margin: ScalarLike) -> LossStats:
    alike = masked_logsumexp(c.values, c.positives)
    unlike = masked_logsumexp(margin - c.values, c.negatives)
    return each_anchor(jax.nn.relu(alike + unlike), complete_anchor_weights(c))


def _each_positive_against_negatives(c: Comparison, positive: jax.Array, negative: jax.Array) -> LossStats:
    """Sums log(1 + sum over n of exp(negative[a, n] - positive[a, p])) over the pairs (a, p)."""
    against = masked_logsumexp(negative, c.negatives)
    return each_pair(softplus(against[:, None] - positive), pair_weights(c, c.positives))
