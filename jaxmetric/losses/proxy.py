"""Losses against one vector per class: the normalised softmax, Proxy-NCA and Proxy-Anchor.

The first two score the classes of each example, the last the examples of each class.
"""

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.losses.class_columns import Column
from jaxmetric.losses.class_shard import ClassVectors, count_classes
from jaxmetric.losses.class_vectors import (
    class_vector_loss,
    normalized_dot_product,
    of_examples,
    right_and_others,
    softmax_loss,
    sum_over_classes,
)
from jaxmetric.losses.reduction import LossResult, LossStats
from jaxmetric.numerics import excess, safe_divide, safe_normalize


def normalized_softmax_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    proxies: ClassVectors,
    *,
    scale: float = 20.0,
    margin: float = 0.0,
    class_weights: jax.Array | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""Softmax cross entropy over the similarities to one normalised vector per class.

    :math:`-\log \mathrm{softmax}(\lambda\,(x^\top w_c - \delta\,[c = y]))_y` with :math:`|w_c| = 1`: SoftTriple with a
    single centre per class.

    Args:
      embeddings: `[B, D]` floats; normalised ones make the similarities cosines.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, normalised here, or a `ClassShard` of them; a tuple of T for T columns of labels,
        whose losses add up.
      scale: lambda > 0, the inverse temperature.
      margin: delta, taken off the similarity to the right class.
      class_weights: `[C]` weights >= 0, by which those of the examples of a class are multiplied; a tuple of T.
      where: `[B]` booleans, or `[B, T]` for single missing labels: which are valid.
      weights: `[B]` example weights >= 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"`, or `"none"` for one value per example.
      has_aux: whether to return `(loss, LossStats)`; its arrays are `[T]` for a tuple of proxies.

    Returns:
      The scalar loss >= 0 (or `[B]` losses). Under `jit`, a valid label outside [0, C) gives NaN.

    Raises:
      ValueError: if a shape does not fit, an option is unknown, or a concrete label is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = normalized_softmax_loss(jnp.eye(2), jnp.array([0, 1]), 5 * jnp.eye(2), scale=1.0)
      >>> round(float(loss), 4)  # log(1 + exp(-1))
      0.3133

    References:
      A. Zhai, H.-Y. Wu, Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019, arXiv 1811.12649.
    """
    checks.check_scalar("scale", scale, above=0)
    checks.check_scalar("margin", margin)
    return class_vector_loss(
        _normalized_softmax,
        {"scale": scale, "margin": margin},
        embeddings,
        labels,
        proxies,
        name="proxies",
        num_axes=2,
        class_weights=class_weights,
        where=where,
        weights=weights,
        reduction=reduction,
        has_aux=has_aux,
    )


def _normalized_softmax(
    embeddings: jax.Array, column: Column, *, scale: jax.Array, margin: jax.Array
) -> tuple[jax.Array, LossStats]:
    right, others = right_and_others(normalized_dot_product, column.vectors, column.labels, scale * embeddings)
    return of_examples(softmax_loss(right - scale * margin, others), column)


def proxy_nca_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    proxies: ClassVectors,
    *,
    temperature: float = 1.0,
    positive_in_denominator: bool = False,
    class_weights: jax.Array | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""Proxy-NCA: an example is nearer to the proxy of its class than to those of the others; and Proxy-NCA++.

    :math:`-\log \frac{\exp(-d(x, p_y) / \sigma)}{\sum_{z \in Z} \exp(-d(x, p_z) / \sigma)}` with d the squared
    Euclidean distance of the vectors scaled to length 1, and Z the classes other than y.

    With `positive_in_denominator=True`, Z is all classes: a softmax, whose gradient is weak for examples that are right
    already. With `temperature=1/9` that is the loss of Proxy-NCA++.

    Args:
      embeddings: `[B, D]` floats, normalised here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, normalised here, or a `ClassShard` of them; a tuple of T for T columns of labels,
        whose losses add up.
      temperature: sigma > 0.
      positive_in_denominator: whether the right class is in Z.
      class_weights: `[C]` weights >= 0, by which those of the examples of a class are multiplied; a tuple of T.
      where: `[B]` booleans, or `[B, T]` for single missing labels: which are valid.
      weights: `[B]` example weights >= 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"`, or `"none"` for one value per example.
      has_aux: whether to return `(loss, LossStats)`; its arrays are `[T]` for a tuple of proxies.

    Returns:
      The scalar loss (or `[B]` losses): >= 0 with the positive in the denominator; without it as low as
      log(C - 1) - 4 / sigma, and 0 if there is a single class. Under `jit`, a valid label outside [0, C) gives NaN.

    Raises:
      ValueError: if a shape does not fit, an option is unknown, or a concrete label is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, labels, proxies = jnp.eye(2), jnp.array([0, 1]), jnp.eye(2)
      >>> round(float(proxy_nca_loss(embeddings, labels, proxies)), 4)  # -log(exp(-0) / exp(-2))
      -2.0
      >>> loss = proxy_nca_loss(embeddings, labels, proxies, positive_in_denominator=True)
      >>> round(float(loss), 4)  # log(1 + exp(-2))
      0.1269

    References:
      Y. Movshovitz-Attias, A. Toshev, T. K. Leung, S. Ioffe, S. Singh, No Fuss Distance Metric Learning using Proxies,
      ICCV 2017, arXiv 1703.07464. E. W. Teh, T. DeVries, G. W. Taylor, ProxyNCA++: Revisiting and Revitalizing Proxy
      Neighborhood Component Analysis, ECCV 2020, arXiv 2004.01113.
    """
    checks.check_scalar("temperature", temperature, above=0)
    checks.check_flag("positive_in_denominator", positive_in_denominator)
    return class_vector_loss(
        _proxy_nca_plus_plus if positive_in_denominator else _proxy_nca,
        {"temperature": temperature},
        embeddings,
        labels,
        proxies,
        name="proxies",
        num_axes=2,
        class_weights=class_weights,
        where=where,
        weights=weights,
        reduction=reduction,
        has_aux=has_aux,
    )


def _proxy_nca(embeddings: jax.Array, column: Column, *, temperature: jax.Array) -> tuple[jax.Array, LossStats]:
    right, others = _nca_logits(embeddings, column, temperature)
    alone = others == -jnp.inf  # a single class has no denominator
    return of_examples(jnp.where(alone, 0, jnp.where(alone, 0, others) - right), column)


def _proxy_nca_plus_plus(
    embeddings: jax.Array, column: Column, *, temperature: jax.Array
) -> tuple[jax.Array, LossStats]:
    return of_examples(softmax_loss(*_nca_logits(embeddings, column, temperature)), column)


def _nca_logits(embeddings: jax.Array, column: Column, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Between unit vectors the squared distance is 2 - 2 cos, and the 2 cancels.
    doubled = safe_normalize(embeddings) * (2 / temperature)
    return right_and_others(normalized_dot_product, column.vectors, column.labels, doubled)


def proxy_anchor_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    proxies: ClassVectors,
    *,
    scale: float = 32.0,
    margin: float = 0.1,
    class_weights: jax.Array | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""Proxy-Anchor: each proxy pulls its class's examples and pushes the others, the hardest most.

    :math:`\frac{1}{|P^+|} \sum_{p \in P^+} \log\Big(1 + \sum_{x \in X_p^+} e^{-\alpha (s(x, p) - \delta)}\Big) +
    \frac{1}{|P|} \sum_{p \in P} \log\Big(1 + \sum_{x \in X_p^-} e^{\alpha (s(x, p) + \delta)}\Big)` with s the cosine,
    P all proxies, :math:`P^+` those of the classes in the batch, :math:`X_p^+` the examples of p's class, :math:`X_p^-`
    the others.

    The tuples of this loss are classes: `"mean"` is the formula, and `LossStats.valid` counts (the weights of) all
    classes.

    Args:
      embeddings: `[B, D]` floats, normalised here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, normalised here, or a `ClassShard` of them; a tuple of T for T columns of labels,
        whose losses add up.
      scale: alpha > 0.
      margin: delta.
      class_weights: `[C]` weights >= 0, which multiply the two terms of a class; a tuple of T.
      where: `[B]` booleans, or `[B, T]` for single missing labels: which are valid.
      weights: `[B]` weights >= 0. Relative to their mean, they are how often an example counts in the inner sums.
      reduction: `"mean"`, `"mean_active"` or `"sum"`.
      has_aux: whether to return `(loss, LossStats)`; its arrays are `[T]` for a tuple of proxies.

    Returns:
      The scalar loss >= 0. Under `jit`, a valid label outside [0, C) gives NaN.

    Raises:
      ValueError: if a shape does not fit, an option is unknown, or a concrete label is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = proxy_anchor_loss(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), scale=1.0, margin=0.0)
      >>> round(float(loss), 4)  # log(1 + exp(-1)) + log(1 + exp(0))
      1.0064

    References:
      S. Kim, D. Kim, M. Cho, S. Kwak, Proxy Anchor Loss for Deep Metric Learning, CVPR 2020, arXiv 2003.13911.
    """
    checks.check_scalar("scale", scale, above=0)
    checks.check_scalar("margin", margin)
    return class_vector_loss(
        _proxy_anchor,
        {"scale": scale, "margin": margin},
        embeddings,
        labels,
        proxies,
        name="proxies",
        num_axes=2,
        class_weights=class_weights,
        where=where,
        weights=weights,
        reduction=reduction,
        has_aux=has_aux,
        per_example=False,
    )


def _proxy_anchor(
    embeddings: jax.Array, column: Column, *, scale: jax.Array, margin: jax.Array
) -> tuple[None, LossStats]:
    labels, weights, of_class = column.labels, column.weights, column.class_weights
    valid = weights > 0
    # How often each example counts: weights, relative to their mean.
    counts = weights * safe_divide(jnp.sum(valid, dtype=weights.dtype), jnp.sum(weights))
    operands = safe_normalize(embeddings) * scale, scale * margin
    (positive, negative, present, active), _ = sum_over_classes(
        _anchor_terms, column.vectors, operands, (labels, counts, of_class), rows=labels.size
    )
    total_weight = jnp.asarray(count_classes(column.vectors), weights.dtype) if of_class is None else jnp.sum(of_class)
    total = positive * safe_divide(total_weight, present) + negative
    known = jnp.all(~valid | column.is_class())
    return None, LossStats(jnp.where(known, total, jnp.nan), jnp.where(jnp.any(valid), total_weight, 0), active)


def _anchor_terms(vectors: jax.Array, index: jax.Array, operands: tuple, fixed: tuple) -> tuple[jax.Array, ...]:
    """For each class its positive and its negative term, whether the batch has it, and whether its loss is positive."""
    (embeddings, margin), (labels, counts, of_class) = operands, fixed
    logits = normalized_dot_product(vectors, embeddings)
    valid, is_right = (counts > 0)[None, :], index[:, None] == labels[None, :]
    signed = margin + jnp.where(is_right, -logits, logits)
    positive = _log_1_plus_sum(signed, is_right & valid, counts)
    negative = _log_1_plus_sum(signed, ~is_right & valid, counts)
    weight = jnp.ones_like(positive) if of_class is None else of_class[index]
    present = jnp.any(is_right & valid, axis=1)
    active = positive + negative > 0
    return weight * positive, weight * negative, jnp.where(present, weight, 0), jnp.where(active, weight, 0)


def _log_1_plus_sum(logits: jax.Array, where: jax.Array, counts: jax.Array) -> jax.Array:
    """log(1 + the sum of counts exp(logits)) over the examples `where`, for each class: `[c]`."""
    selected = jnp.where(where, logits, -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(selected, axis=1, initial=0))  # the 0 is the logit of the one
    total = jnp.sum(counts[None, :] * jnp.exp(excess(selected, largest[:, None])), axis=1)
    return largest + jnp.log1p(jnp.expm1(-largest) + total)
