"""Losses that compare examples with learned class vectors.

`normalized_softmax_loss` and `proxy_nca_loss` score all classes for each example, and `proxy_anchor_loss` scores all
examples for each class. `center_loss` pulls examples to the center of their class, and `manifold_loss` compares
random-walk similarities between embeddings and proxies.
"""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.distances import pairwise_cosine_similarity, pairwise_dot_product
from jaxmetric.losses._engine.class_loss import Column, ColumnResult, check_classes, class_loss, per_example_loss
from jaxmetric.losses._engine.class_shard import ClassShard, count_classes, gather_class_rows
from jaxmetric.losses._engine.class_softmax import (
    cross_entropy,
    normalized_dot_product,
    right_and_others,
    sum_over_classes,
)
from jaxmetric.losses._engine.reduction import LossResult, LossStats
from jaxmetric.losses._engine.types import (
    ClassLabels,
    ClassProxies,
    ClassWeights,
    LimitedScalar,
    PositiveScalar,
    Reduction,
    ReductionToScalar,
    ScalarLike,
)
from jaxmetric.numerics import as_float, excess, safe_divide, safe_normalize, safe_sqrt


def normalized_softmax_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 20.0,
    margin: ScalarLike = 0.0,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""Softmax cross entropy over the similarities to one normalized vector per class.

    :math:`-\log \mathrm{softmax}(\lambda\,(x^\top w_c - \delta\,[c = y]))_y` with :math:`|w_c| = 1`: SoftTriple with a
    single center per class.

    Args:
      embeddings: `[B, D]` floats. Normalized ones make the similarities cosines.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, or a `ClassShard` of them; a tuple of T for T columns of labels, whose losses add
        up. They are normalized here.
      scale: lambda > 0, the inverse temperature.
      margin: delta, subtracted from the similarity to the right class.
      class_weights: `[C]` weights >= 0 of the classes; 1 if None. A tuple of T for T columns of labels. The weight of
        an example is multiplied by that of its class.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each example.
      has_aux: whether to return `(loss, LossStats)`. The arrays of the stats are `[T]` for a tuple of proxies.

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
    scale = checks.check_scalar("scale", scale, above=0)
    margin = checks.check_scalar("margin", margin)
    batch = check_classes("proxies", proxies, embeddings, labels, class_weights, where, weights, reduction, has_aux)
    return class_loss(_normalized_softmax, batch, scale, margin)


def _normalized_softmax(embeddings: jax.Array, column: Column, scale: ScalarLike, margin: ScalarLike) -> ColumnResult:
    right, others = right_and_others(normalized_dot_product, column.vectors, column.labels, scale * embeddings)
    return per_example_loss(cross_entropy(right - scale * margin, others), column)


def proxy_nca_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    temperature: PositiveScalar = 1.0,
    positive_in_denominator: bool = False,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""Proxy-NCA and Proxy-NCA++: a softmax over the distances of an example to the proxies.

    :math:`-\log \frac{\exp(-d(x, p_y) / \sigma)}{\sum_{z \in Z} \exp(-d(x, p_z) / \sigma)}` with d the squared
    Euclidean distance between vectors scaled to length 1, and Z the classes other than y.

    With `positive_in_denominator=True`, Z contains all classes. This is a softmax, whose gradient is small for examples
    that are already right. With `temperature=1/9` it is the loss of Proxy-NCA++.

    Args:
      embeddings: `[B, D]` floats. They are normalized here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, or a `ClassShard` of them; a tuple of T for T columns of labels, whose losses add
        up. They are normalized here.
      temperature: sigma > 0.
      positive_in_denominator: whether the right class is in Z.
      class_weights: `[C]` weights >= 0 of the classes; 1 if None. A tuple of T for T columns of labels. The weight of
        an example is multiplied by that of its class.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each example.
      has_aux: whether to return `(loss, LossStats)`. The arrays of the stats are `[T]` for a tuple of proxies.

    Returns:
      The scalar loss (or `[B]` losses). It is >= 0 with the positive in the denominator. Without it, the minimum is
      log(C - 1) - 4 / sigma, and the loss is 0 if there is a single class. Under `jit`, a valid label outside [0, C)
      gives NaN.

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
    temperature = checks.check_scalar("temperature", temperature, above=0)
    checks.check_flag("positive_in_denominator", positive_in_denominator)
    batch = check_classes("proxies", proxies, embeddings, labels, class_weights, where, weights, reduction, has_aux)
    return class_loss(_proxy_nca_plus_plus if positive_in_denominator else _proxy_nca, batch, temperature)


def _proxy_nca(embeddings: jax.Array, column: Column, temperature: ScalarLike) -> ColumnResult:
    right, others = _nca_logits(embeddings, column, temperature)
    alone = others == -jnp.inf  # a single class has no denominator
    return per_example_loss(jnp.where(alone, 0, jnp.where(alone, 0, others) - right), column)


def _proxy_nca_plus_plus(embeddings: jax.Array, column: Column, temperature: ScalarLike) -> ColumnResult:
    return per_example_loss(cross_entropy(*_nca_logits(embeddings, column, temperature)), column)


def _nca_logits(embeddings: jax.Array, column: Column, temperature: ScalarLike) -> tuple[jax.Array, jax.Array]:
    # Between unit vectors the squared distance is 2 - 2 cos, and the 2 cancels.
    doubled = safe_normalize(embeddings) * (2 / temperature)
    return right_and_others(normalized_dot_product, column.vectors, column.labels, doubled)


def proxy_anchor_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 32.0,
    margin: ScalarLike = 0.1,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""Proxy-Anchor: each proxy pulls the examples of its class and pushes the others, with most weight on the hardest.

    :math:`\frac{1}{|P^+|} \sum_{p \in P^+} \log\Big(1 + \sum_{x \in X_p^+} e^{-\alpha (s(x, p) - \delta)}\Big) +
    \frac{1}{|P|} \sum_{p \in P} \log\Big(1 + \sum_{x \in X_p^-} e^{\alpha (s(x, p) + \delta)}\Big)` with s the cosine,
    P all proxies, :math:`P^+` those of the classes in the batch, :math:`X_p^+` the examples of p's class, :math:`X_p^-`
    the others.

    This loss counts classes instead of tuples: `"mean"` is the formula, and `LossStats.valid` is the number of classes,
    or the sum of their weights.

    Args:
      embeddings: `[B, D]` floats. They are normalized here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, or a `ClassShard` of them; a tuple of T for T columns of labels, whose losses add
        up. They are normalized here.
      scale: alpha > 0.
      margin: delta.
      class_weights: `[C]` weights >= 0 of the classes; 1 if None. A tuple of T for T columns of labels. They multiply
        the two terms of a class.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. Divided by their mean, they
        set how often an example counts in the inner sums.
      reduction: `"mean"`, `"mean_active"` or `"sum"`.
      has_aux: whether to return `(loss, LossStats)`. The arrays of the stats are `[T]` for a tuple of proxies.

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
    scale = checks.check_scalar("scale", scale, above=0)
    margin = checks.check_scalar("margin", margin)
    batch = check_classes(
        "proxies", proxies, embeddings, labels, class_weights, where, weights, reduction, has_aux, per_example=False
    )
    return class_loss(_proxy_anchor, batch, scale, margin)


def _proxy_anchor(embeddings: jax.Array, column: Column, scale: ScalarLike, margin: ScalarLike) -> ColumnResult:
    labels, weights, class_weights = column.labels, column.weights, column.class_weights
    valid = weights > 0
    # How often each example counts: its weight divided by the mean weight.
    counts = weights * safe_divide(jnp.sum(valid, dtype=weights.dtype), jnp.sum(weights))
    operands = safe_normalize(embeddings) * scale, scale * margin
    (positive, negative, present, active), _ = sum_over_classes(
        _anchor_terms, column.vectors, operands, (labels, counts, class_weights), rows=labels.size
    )
    total_weight = (
        jnp.asarray(count_classes(column.vectors), weights.dtype) if class_weights is None else jnp.sum(class_weights)
    )
    total = positive * safe_divide(total_weight, present) + negative
    known = jnp.all(~valid | column.is_class())
    return None, LossStats(jnp.where(known, total, jnp.nan), jnp.where(jnp.any(valid), total_weight, 0), active)


def _anchor_terms(
    vectors: jax.Array, index: jax.Array, operands: tuple[Any, ...], fixed: tuple[Any, ...]
) -> tuple[jax.Array, ...]:
    """Returns, per class, the positive and negative terms, and the weight if it is present, and if it is active."""
    (embeddings, margin), (labels, counts, class_weights) = operands, fixed
    logits = normalized_dot_product(vectors, embeddings)
    valid, is_right = (counts > 0)[None, :], index[:, None] == labels[None, :]
    signed = margin + jnp.where(is_right, -logits, logits)
    positive = _log_1_plus_sum(signed, is_right & valid, counts)
    negative = _log_1_plus_sum(signed, ~is_right & valid, counts)
    weight = jnp.ones_like(positive) if class_weights is None else class_weights[index]
    present = jnp.any(is_right & valid, axis=1)
    active = positive + negative > 0
    return weight * positive, weight * negative, jnp.where(present, weight, 0), jnp.where(active, weight, 0)


def _log_1_plus_sum(logits: jax.Array, where: jax.Array, counts: jax.Array) -> jax.Array:
    """Returns `[c]`: for each class log(1 + the sum of counts * exp(logits)) over the examples `where`."""
    selected = jnp.where(where, logits, -jnp.inf)
    largest = jax.lax.stop_gradient(jnp.max(selected, axis=1, initial=0))  # the 1 in the sum has logit 0
    total = jnp.sum(counts[None, :] * jnp.exp(excess(selected, largest[:, None])), axis=1)
    return largest + jnp.log1p(jnp.expm1(-largest) + total)


def center_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassProxies,
    *,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The center loss: half the squared distance of each example to the center of its class.

    :math:`\frac{1}{2} |x - c_y|^2`. Add it with a small weight to a loss that separates classes.

    Args:
      embeddings: `[B, D]` floats.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of centers.
      centers: `[C, D]` class vectors, or a `ClassShard` of them; a tuple of T for T columns of labels, whose losses add
        up. They are not normalized.
      class_weights: `[C]` weights >= 0 of the classes; 1 if None. A tuple of T for T columns of labels. The weight of
        an example is multiplied by that of its class.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each example.
      has_aux: whether to return `(loss, LossStats)`. The arrays of the stats are `[T]` for a tuple of centers.

    Returns:
      The scalar loss >= 0 (or `[B]` losses). Under `jit`, a valid label outside [0, C) gives NaN.

    Raises:
      ValueError: if a shape does not fit, an option is unknown, or a concrete label is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> float(center_loss(jnp.array([[3.0, 4.0]]), jnp.array([1]), jnp.zeros((2, 2))))  # 25 / 2
      12.5

    References:
      Y. Wen, K. Zhang, Z. Li, Y. Qiao, A Discriminative Feature Learning Approach for Deep Face Recognition, ECCV 2016.
    """
    batch = check_classes("centers", centers, embeddings, labels, class_weights, where, weights, reduction, has_aux)
    return class_loss(_center, batch)


def _center(embeddings: jax.Array, column: Column) -> ColumnResult:
    centers = gather_class_rows(column.vectors, column.labels)
    return per_example_loss(jnp.sum(jnp.square(embeddings - centers), axis=1) / 2, column)


# The temperature of the affinities exp(cos / 0.5) in the paper's experiments.
_TEMPERATURE = 0.5


def manifold_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: Annotated[ArrayLike, "[C, D]"],
    *,
    context_weight: LimitedScalar = 1.0,
    alpha: LimitedScalar = 0.8,
    margin: ScalarLike = 5e-4,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The manifold loss: compares embeddings and proxies by random walks along their manifold.

    :math:`F = (1 - \alpha)(I - \alpha\, \bar S)^{-1}` with :math:`\bar S = D^{-1/2} S D^{-1/2}` and
    :math:`S_{ij} = \exp(2 [\cos(z_i, z_j)]_+)`, :math:`S_{ii} = 0`, over all embeddings and proxies z. F holds the end
    points of random walks that continue with probability alpha. For the example i of the class y, with the similarities
    :math:`s_{ic}` to proxies c, the loss is

    :math:`\log\left(1 + \sum_{c \ne y} [\delta_c \ge 0]\, e^{\delta_c}\right),\quad \delta_c = s_{ic} - s_{iy} + m`,

    with :math:`s_{ic} = F_{ic}` (intrinsic), plus lambda_C times the same with :math:`s_{ic} = \cos(F_i, F_c)`
    (context).

    The classes are meta-classes in the paper: every learner of an ensemble merges the classes of the data at random,
    for example by `jax.random.randint(key, [num_classes], 0, C)[labels]`.

    Args:
      embeddings: `[B, D]` floats.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors; a tuple of T for T columns of labels, whose losses add up.
      context_weight: lambda_C >= 0, the weight of the context loss.
      alpha: in (0, 1); random walks are longer for larger values.
      margin: m, in similarity.
      class_weights: `[C]` weights >= 0 of the classes; 1 if None. A tuple of T for T columns of labels. The weight of
        an example is multiplied by that of its class.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None. Other examples
        are not part of the walks.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight the losses. In
        the walks every valid example counts once.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each example.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses); 0, with zero gradients, with a single class. Under `jit`, a valid label
      outside [0, C) gives NaN.

    Raises:
      ValueError: if a shape does not fit, an option is unknown, or a concrete label is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings, proxies = jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> float(manifold_loss(embeddings, jnp.array([0, 1]), proxies))  # each is most similar to its proxy
      0.0
      >>> round(float(manifold_loss(embeddings, jnp.array([1, 0]), proxies)), 3)  # log(1 + e^.124) + log(1 + e^.209)
      1.56

    References:
      N. Aziere, S. Todorovic, Ensemble Deep Manifold Similarity Learning using Hard Proxies, CVPR 2019.
    """
    context_weight = checks.check_scalar("context_weight", context_weight, least=0)
    margin = checks.check_scalar("margin", margin)
    alpha = checks.check_scalar("alpha", alpha, above=0, below=1)
    batch = check_classes("proxies", proxies, embeddings, labels, class_weights, where, weights, reduction, has_aux)
    return class_loss(_manifold, batch, context_weight, alpha, margin)


def _manifold(
    embeddings: jax.Array, column: Column, context_weight: ScalarLike, alpha: ScalarLike, margin: ScalarLike
) -> ColumnResult:
    if isinstance(column.vectors, ClassShard):
        raise TypeError("proxies is a ClassShard, expected an array: the walks of manifold_loss go over all proxies")
    count, num_proxies = embeddings.shape[0], column.vectors.shape[0]
    points = jnp.concatenate([embeddings, as_float(column.vectors)])
    valid = jnp.concatenate([column.weights > 0, jnp.ones(num_proxies, bool)])
    walks = (1 - alpha) * _inverse(jnp.eye(len(points), dtype=points.dtype) - alpha * _transitions(points, valid))
    losses = _n_pair(walks[:count, count:], column.labels, margin)
    context = pairwise_cosine_similarity(walks[:count], walks[count:])
    return per_example_loss(losses + context_weight * _n_pair(context, column.labels, margin), column)


def _transitions(points: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the normalized affinities of all pairs of distinct valid points; 0 for other pairs."""
    cosines = jax.nn.relu(pairwise_cosine_similarity(points))
    pairs = valid[:, None] & valid[None, :] & ~jnp.eye(valid.size, dtype=bool)
    affinities = jnp.where(pairs, jnp.exp(cosines / _TEMPERATURE), 0)
    scale = safe_divide(jnp.ones_like(points[:, 0]), safe_sqrt(jnp.sum(affinities, axis=1)))
    return affinities * scale[:, None] * scale[None, :]


def _n_pair(similarities: jax.Array, labels: jax.Array, margin: ScalarLike) -> jax.Array:
    right = labels[:, None] == jnp.arange(similarities.shape[1])[None, :]
    own = jnp.sum(jnp.where(right, similarities, 0), axis=1, keepdims=True)
    beyond = similarities - own + margin
    # Not `beyond >= 0`, so that a NaN is counted.
    counted = ~right & ~(beyond < 0)
    return jnp.log1p(jnp.sum(jnp.where(counted, jnp.exp(jnp.where(counted, beyond, 0)), 0), axis=1))


@jax.custom_vjp
def _inverse(matrix: jax.Array) -> jax.Array:
    """Returns the inverse of a symmetric positive definite matrix, by Cholesky decomposition."""
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix, symmetrize_input=False), True), identity)


def _inverse_forward(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = _inverse(matrix)
    return inverse, inverse


def _inverse_backward(inverse: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (-pairwise_dot_product(pairwise_dot_product(inverse, cotangent.T), inverse),)


_inverse.defvjp(_inverse_forward, _inverse_backward)
