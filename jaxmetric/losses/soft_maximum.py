"""Losses which take the log-sum-exp of an anchor's pairs for their maximum: hard pairs count most, none is dropped.

`multi_similarity_loss` and `circle_loss` take one over the positives and one over the negatives of each anchor;
`generalized_lifted_structure_loss` puts a hinge on the sum of the two; `lifted_structure_loss` has each positive pair
by itself, against the negatives of both of its members.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.losses.comparison import (
    Comparison,
    Pairwise,
    between_references,
    compare,
    negatives_between_references,
    pair_weights,
    weights_of_complete_anchors,
)
from jaxmetric.losses.reduction import LossResult, LossStats, each_anchor, each_pair, reduce_anchors
from jaxmetric.numerics import masked_logsumexp, softplus
from jaxmetric.references import PairMasks, References


def multi_similarity_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    similarity: Pairwise = "cosine",
    label_weights: Sequence[float] | None = None,
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The multi-similarity loss: soft maxima of how dissimilar the positives and how similar the negatives are.

    The mean over anchors i of :math:`\frac{1}{\alpha} \log\big(1 + \sum_p e^{-\alpha (s_{ip} - \lambda)}\big)
    + \frac{1}{\beta} \log\big(1 + \sum_n e^{\beta (s_{in} - \lambda)}\big)`, p the positives and n the negatives of i.
    The paper's first step, the choice of pairs, is a mask for `pairs`.

    With several columns of labels every pair is in both sums: :math:`\pi` times in the first, with :math:`\pi` the
    share of its labels that agree, and :math:`1 - \pi` times in the second.

    Args:
      embeddings: `[B, D]` floats; None if `similarity` is an array.
      labels: `[B]` or `[B, T]` integers; None if `pairs` says what is alike.
      alpha: how sharply hard positives stand out, > 0.
      beta: how sharply hard negatives stand out, > 0.
      base: lambda, the similarity between positives and negatives: 1 in the paper's text, 0.5 in its code.
      similarity: `"cosine"`, `"dot"`, a function of `[B, D]` and `[R, D]`, or a `[B, R]` array.
      label_weights: T static weights of the columns in the share of the labels that agree.
      references: what the anchors are compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`, or the shares in [0, 1] by which pairs are alike and different.
      where: `[B]` or `[B, T]` booleans: which examples, or labels, are valid.
      weights: `[B]` example weights >= 0 of the anchors; in the sums each example counts once (unless it weighs 0). No
        gradient flows into them.
      reduction: `"mean"` over anchors with a positive and a negative, `"mean_active"` over those with a positive loss,
        `"sum"`, or `"none"`: one value per anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if no anchor has both a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number out of range.
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
    checks.check_scalar("alpha", alpha, above=0)
    checks.check_scalar("beta", beta, above=0)
    checks.check_scalar("base", base)
    comparison = compare(
        embeddings,
        labels,
        similarity=similarity,
        references=references,
        pairs=pairs,
        where=where,
        weights=weights,
        multi_output=True,
        label_weights=label_weights,
    )
    return reduce_anchors(_multi_similarity(comparison, alpha, beta, base), reduction, has_aux)


def circle_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    margin: float = 0.4,
    gamma: float = 80.0,
    similarity: Pairwise = "cosine",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The circle loss: each similarity is pulled the harder the farther it is from where it should be.

    The mean over anchors of :math:`\log\big(1 + \sum_n e^{\gamma \alpha_n (s_n - m)} \sum_p e^{-\gamma \alpha_p (s_p -
    1 + m)}\big)`, with the weights :math:`\alpha_p = [1 + m - s_p]_+` and :math:`\alpha_n = [s_n + m]_+`, taken for
    constants by the gradient; p are the positives and n the negatives of the anchor.

    Args:
      embeddings: `[B, D]` floats; None if `similarity` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike.
      margin: m: positives should be more similar than 1 - m, negatives less than m.
      gamma: the scale, > 0. The paper takes m = 0.4, gamma = 80 for fine-grained retrieval and m = 0.25, gamma = 256
        for faces.
      similarity: `"cosine"`, or a function of `[B, D]` and `[R, D]`, or a `[B, R]` array, of cosines.
      references: what the anchors are compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0 of the anchors; in the sums each example counts once (unless it weighs 0). No
        gradient flows into them.
      reduction: `"mean"` over anchors with a positive and a negative, `"mean_active"` over those with a positive loss,
        `"sum"`, or `"none"`: one value per anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if no anchor has both a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number out of range.
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
    checks.check_scalar("margin", margin)
    checks.check_scalar("gamma", gamma, above=0)
    comparison = compare(
        embeddings, labels, similarity=similarity, references=references, pairs=pairs, where=where, weights=weights
    )
    return reduce_anchors(_circle(comparison, margin, gamma), reduction, has_aux)


def lifted_structure_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    margin: float = 1.0,
    distance: Pairwise = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The lifted structure loss: each positive pair against the negatives of both of its members.

    The mean over pairs of an anchor i and a positive j of :math:`\frac{1}{2} [J_{ij}]_+^2` with
    :math:`J_{ij} = D_{ij} + \log\big(\sum_k e^{\alpha - D_{ik}} + \sum_l e^{\alpha - D_{jl}}\big)`, k the negatives of
    i and l those of j.

    With `references`, j and all negatives are references: the negatives of j, which `pairs` leaves alone, are found by
    comparing the references with each other.

    Args:
      embeddings: `[B, D]` floats; None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike.
      margin: alpha.
      distance: `"euclidean"`, `"squared_euclidean"`, `"cosine"`, `"snr"`, a function of `[B, D]` and `[R, D]`, or, of a
        batch without references, a `[B, B]` array.
      references: what the anchors are compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0; a pair weighs the product of its members', and a negative counts once
        whatever its weight (unless that is 0). No gradient flows into them.
      reduction: `"mean"` over pairs, `"mean_active"` over those with a positive loss, `"sum"`, or `"none"`: for each
        anchor the sum over its positives.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` sums); 0, with zero gradients, if there is no positive pair with a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number out of range.
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
    checks.check_scalar("margin", margin)
    comparison = compare(
        embeddings,
        labels,
        distance=distance,
        references=references,
        pairs=pairs,
        where=where,
        weights=weights,
        needs_labels=references is not None,
    )
    others = None if references is None else between_references("distance", distance, comparison, references)
    return reduce_anchors(_lifted_structure(comparison, others, margin), reduction, has_aux)


def generalized_lifted_structure_loss(
    embeddings: jax.Array | None,
    labels: jax.Array | None,
    *,
    margin: float = 1.0,
    distance: Pairwise = "euclidean",
    references: References | None = None,
    pairs: PairMasks | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The generalised lifted structure loss: the soft maximum over positives against that over negatives.

    The mean over anchors a of :math:`\big[\log \sum_p e^{D_{ap}} + \log \sum_n e^{m - D_{an}}\big]_+`, p the positives
    and n the negatives of a.

    Args:
      embeddings: `[B, D]` floats; None if `distance` is an array.
      labels: `[B]` or `[B, 1]` integers; None if `pairs` says what is alike.
      margin: m.
      distance: `"euclidean"`, `"squared_euclidean"`, `"cosine"`, `"snr"`, a function of `[B, D]` and `[R, D]`, or a
        `[B, R]` array.
      references: what the anchors are compared with; the batch itself if None.
      pairs: `[B, R]` booleans: which pairs may be used; all if None. With `labels=None`: two masks, `(positives,
        negatives)`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0 of the anchors; in the sums each example counts once (unless it weighs 0). No
        gradient flows into them.
      reduction: `"mean"` over anchors with a positive and a negative, `"mean_active"` over those with a positive loss,
        `"sum"`, or `"none"`: one value per anchor.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, if no anchor has both a positive and a negative.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or a number out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels = jnp.array([[0.0], [1.0], [3.0]]), jnp.array([4, 4, 9])
      >>> float(generalized_lifted_structure_loss(embeddings, labels, margin=2.0))  # relu(1 + 2 - 3), relu(1 + 2 - 2)
      0.5

    References:
      A. Hermans, L. Beyer, B. Leibe, In Defense of the Triplet Loss for Person Re-Identification, 2017.
    """
    checks.check_scalar("margin", margin)
    comparison = compare(
        embeddings, labels, distance=distance, references=references, pairs=pairs, where=where, weights=weights
    )
    return reduce_anchors(_generalized_lifted_structure(comparison, margin), reduction, has_aux)


@jax.jit
def _multi_similarity(c: Comparison, alpha: float, beta: float, base: float) -> LossStats:
    beyond = c.values - base
    alike = masked_logsumexp(-alpha * beyond, c.positives > 0, weights=c.positives)
    unlike = masked_logsumexp(beta * beyond, c.negatives > 0, weights=c.negatives)
    losses = softplus(alike) / alpha + softplus(unlike) / beta
    return each_anchor(losses, weights_of_complete_anchors(c))


@jax.jit
def _circle(c: Comparison, margin: float, gamma: float) -> LossStats:
    constant = jax.lax.stop_gradient(c.values)
    pull, push = jax.nn.relu(1 + margin - constant), jax.nn.relu(constant + margin)
    alike = masked_logsumexp(-gamma * pull * (c.values - (1 - margin)), c.positives)
    unlike = masked_logsumexp(gamma * push * (c.values - margin), c.negatives)
    return each_anchor(softplus(alike + unlike), weights_of_complete_anchors(c))


@jax.jit
def _lifted_structure(c: Comparison, others: jax.Array | None, margin: float) -> LossStats:
    of_anchors = of_positives = masked_logsumexp(margin - c.values, c.negatives)
    if others is not None:
        of_positives = masked_logsumexp(margin - others, negatives_between_references(c))
    losses = jax.nn.relu(c.values + jnp.logaddexp(of_anchors[:, None], of_positives[None, :]))
    return each_pair(jnp.square(losses) / 2, pair_weights(c, c.positives))


@jax.jit
def _generalized_lifted_structure(c: Comparison, margin: float) -> LossStats:
    alike = masked_logsumexp(c.values, c.positives)
    unlike = masked_logsumexp(margin - c.values, c.negatives)
    return each_anchor(jax.nn.relu(alike + unlike), weights_of_complete_anchors(c))
