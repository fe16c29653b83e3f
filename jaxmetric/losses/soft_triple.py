"""SoftTriple of Qian et al.: a softmax with several centers per class, without sampling of triplets.

`soft_triple_loss` is the paper's loss. `soft_triple_regularizer` is its term that merges superfluous centers, and
`hard_triple_loss` its limit, in which only the nearest center of a class counts. `init_centers` creates the centers,
and `effective_centers` counts those that remain distinct after merging.
"""

import math
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.class_loss import Column, ColumnResult, check_classes, class_loss, per_example_loss
from jaxmetric.losses._engine.class_shard import ClassVectors, check_class_vectors, count_classes, local_vectors
from jaxmetric.losses._engine.class_softmax import (
    cross_entropy,
    nearest_center,
    normalized_dot_product,
    right_and_others,
    sum_over_classes,
)
from jaxmetric.losses._engine.reduction import LossResult
from jaxmetric.losses._engine.types import (
    ClassCenters,
    ClassLabels,
    ClassWeights,
    LimitedScalar,
    PositiveScalar,
    Reduction,
    ScalarLike,
)
from jaxmetric.numerics import excess, safe_normalize, safe_sqrt


def soft_triple_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 20.0,
    gamma: PositiveScalar = 0.1,
    margin: ScalarLike = 0.01,
    tau: LimitedScalar = 0.2,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The SoftTriple loss, including its regularizer.

    With :math:`S_{i,c} = \sum_k \mathrm{softmax}_k(x_i^\top w_c^k / \gamma)\, x_i^\top w_c^k`, the similarity of an
    example to class c, a relaxed maximum over its centers, the loss is

    :math:`-\log \frac{\exp \lambda(S_{i,y} - \delta)}{\exp \lambda(S_{i,y} - \delta) + \sum_{c \ne y} \exp \lambda
    S_{i,c}} + \tau\,` `soft_triple_regularizer(centers)`.

    Args:
      embeddings: `[B, D]` floats. Their length should be 1; they are not normalized here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of centers.
      centers: `[C, K, D]` class vectors, K centers of each class, or a `ClassShard` of them; a tuple of T for T columns
        of labels, whose losses add up. They are normalized here. See `init_centers`.
      scale: lambda > 0.
      gamma: > 0, the entropy of the assignment to centers; in the limit of 0 only the nearest center counts.
      margin: delta, subtracted from the similarity to the right class.
      tau: >= 0, the weight of the regularizer; 0 removes it. It is part of every example's loss: `"sum"` and `"none"`
        contain it once per example, and `"mean_active"` counts every example.
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
      >>> import jax
      >>> centers = init_centers(jax.random.key(0), num_classes=5, centers_per_class=3, dim=8)
      >>> embeddings = centers[:, 0]  # each class's first center, as an embedding of that class
      >>> loss = soft_triple_loss(embeddings, jax.numpy.arange(5), centers)
      >>> bool(loss < soft_triple_loss(embeddings, jax.numpy.arange(5)[::-1], centers))
      True

    References:
      Q. Qian, L. Shang, B. Sun, J. Hu, H. Li, R. Jin, SoftTriple Loss: Deep Metric Learning Without Triplet Sampling,
      ICCV 2019, arXiv 1909.05235.
    """
    scale = checks.check_scalar("scale", scale, above=0)
    gamma = checks.check_scalar("gamma", gamma, above=0)
    margin = checks.check_scalar("margin", margin)
    tau = checks.check_scalar("tau", tau, least=0)
    leave_out = not isinstance(tau, jax.core.Tracer) and float(tau) == 0
    batch = check_classes(
        "centers",
        centers,
        embeddings,
        labels,
        class_weights,
        where,
        weights,
        reduction,
        has_aux,
        centers_per_class=True,
    )
    return class_loss(_soft_triple, batch, scale, gamma, margin, None if leave_out else tau)


def _soft_triple(
    embeddings: jax.Array,
    column: Column,
    scale: ScalarLike,
    gamma: ScalarLike,
    margin: ScalarLike,
    tau: ScalarLike | None,
) -> ColumnResult:
    centers, penalty = column.vectors, jnp.zeros((), embeddings.dtype)
    if tau is not None:
        regularizer, centers = _regularizer(centers)
        penalty = tau * regularizer
    right, others = right_and_others(_relaxed_similarity, centers, column.labels, scale * embeddings, scale * gamma)
    return per_example_loss(cross_entropy(right - scale * margin, others) + penalty, column)


def _relaxed_similarity(centers: jax.Array, embeddings: jax.Array, gamma: jax.Array) -> jax.Array:
    """Returns `[c, B]`: the mean similarity to the centers of each class, weighted by their softmax at gamma."""
    return _relaxed_max(normalized_dot_product(centers, embeddings), gamma)


@jax.custom_vjp
def _relaxed_max(similarity: jax.Array, gamma: jax.Array) -> jax.Array:
    """Returns `[c, B]`: the means of `[c, K, B]` similarities over K centers, weighted by their softmax at gamma."""
    return _relaxed_max_fwd(similarity, gamma)[0]


def _relaxed_max_fwd(similarity: jax.Array, gamma: jax.Array) -> Any:
    # One center at a time, which XLA compiles to one loop.
    by_center = [similarity[:, k] for k in range(similarity.shape[1])]
    nearest = reduce(jnp.maximum, by_center)
    total = excess_sum = jnp.zeros_like(nearest)
    for similarities in by_center:
        # Relative to the nearest center, which avoids cancellation when gamma is small.
        relative = excess(similarities, nearest)
        share = jnp.exp(relative / gamma)
        total, excess_sum = total + share, excess_sum + share * relative
    excess_mean = excess_sum / total
    return nearest + excess_mean, (similarity, gamma, nearest, excess_mean, total)


def _relaxed_max_bwd(saved: Any, cotangent: jax.Array) -> Any:
    similarity, gamma, nearest, excess_mean, total = saved
    relative = excess(similarity, nearest[:, None])
    share = jnp.exp(relative / gamma) * (cotangent / total)[:, None]
    deviation = (relative - excess_mean[:, None]) / gamma
    return share * (1 + deviation), -jnp.sum(share * deviation * deviation)


_relaxed_max.defvjp(_relaxed_max_fwd, _relaxed_max_bwd)


def hard_triple_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 20.0,
    margin: ScalarLike = 0.01,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The HardTriple loss: SoftTriple with only the nearest center of each class.

    :math:`-\log \mathrm{softmax}(\lambda\,(S_c - \delta\,[c = y]))_y` with :math:`S_c = \max_k x^\top w_c^k` and
    :math:`|w_c^k| = 1`: the limit of `soft_triple_loss` for gamma to 0, without its regularizer.

    Args:
      embeddings: `[B, D]` floats. Their length should be 1; they are not normalized here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of centers.
      centers: `[C, K, D]` class vectors, K centers of each class, or a `ClassShard` of them; a tuple of T for T columns
        of labels, whose losses add up. They are normalized here. See `init_centers`.
      scale: lambda > 0.
      margin: delta, subtracted from the similarity to the right class.
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
      >>> centers = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [-1.0, 0.0]]])
      >>> loss = hard_triple_loss(jnp.array([[0.0, 1.0]]), jnp.array([0]), centers, scale=1.0, margin=0.0)
      >>> round(float(loss), 4)  # similarities 1, of the second center, and 0: log(1 + exp(-1))
      0.3133

    References:
      Q. Qian, L. Shang, B. Sun, J. Hu, H. Li, R. Jin, SoftTriple Loss: Deep Metric Learning Without Triplet Sampling,
      ICCV 2019, arXiv 1909.05235.
    """
    scale = checks.check_scalar("scale", scale, above=0)
    margin = checks.check_scalar("margin", margin)
    batch = check_classes(
        "centers",
        centers,
        embeddings,
        labels,
        class_weights,
        where,
        weights,
        reduction,
        has_aux,
        centers_per_class=True,
    )
    return class_loss(_hard_triple, batch, scale, margin)


def _hard_triple(embeddings: jax.Array, column: Column, scale: ScalarLike, margin: ScalarLike) -> ColumnResult:
    right, others = right_and_others(nearest_center, column.vectors, column.labels, scale * embeddings)
    return per_example_loss(cross_entropy(right - scale * margin, others), column)


@jax.jit
def soft_triple_regularizer(centers: ClassVectors) -> jax.Array:
    r"""Penalizes the distances between the centers of a class, which merges them.

    :math:`\frac{1}{C K (K - 1)} \sum_c \sum_{s < t} \sqrt{2 + 10^{-5} - 2\,w_c^{s\top} w_c^t}`: half the mean distance
    between two centers of one class, in O(C K^2) memory. The 1e-5 of the authors' code keeps the gradient finite where
    two centers coincide.

    Args:
      centers: `[C, K, D]`, normalized here, or a `ClassShard` of them.

    Returns:
      A scalar from 0.0016, if all centers of each class coincide, to 1; 0 if K is 1.

    Raises:
      ValueError: if the shape is not `[C, K, D]`.
      TypeError: if the dtype is not a floating-point one.

    Example:
      >>> import jax.numpy as jnp
      >>> opposite = jnp.array([[[1.0, 0.0], [-1.0, 0.0]]])
      >>> round(float(soft_triple_regularizer(opposite)), 4)  # a mean distance of 2, halved
      1.0

    References:
      Q. Qian, L. Shang, B. Sun, J. Hu, H. Li, R. Jin, SoftTriple Loss: Deep Metric Learning Without Triplet Sampling,
      ICCV 2019, arXiv 1909.05235.
    """
    return _regularizer(check_class_vectors("centers", centers, 3))[0]


def _regularizer(centers: ClassVectors) -> tuple[jax.Array, ClassVectors]:
    """Returns the regularizer and the centers, see `sum_over_classes`."""
    _, num_centers, dim = local_vectors(centers).shape
    total, centers = sum_over_classes(_distances_within_class, centers, (), (), rows=num_centers + dim)
    return total / (count_classes(centers) * max(num_centers * (num_centers - 1), 1)), centers


def _distances_within_class(centers: jax.Array, *_: Any) -> jax.Array:
    centers = safe_normalize(centers)
    cosine = jnp.einsum("csd,ctd->cst", centers, centers, precision=jax.lax.Precision.HIGHEST)
    distances = safe_sqrt(2 + 1e-5 - 2 * cosine)
    later = jnp.triu(jnp.ones(cosine.shape[1:], bool), 1)
    return jnp.sum(jnp.where(later[None], distances, 0), axis=(1, 2))


def init_centers(key: jax.Array, num_classes: int, centers_per_class: int, dim: int) -> jax.Array:
    """Returns random centers, Kaiming-uniform as in the authors' code.

    The authors' parameter is a `[D, C K]` matrix initialized with a = sqrt(5) and the second axis as the fan: uniform
    in +-1 / sqrt(C K). The loss depends only on the directions of centers; their length sets how fast an optimizer
    turns them.

    Args:
      key: a `jax.random` key.
      num_classes: C >= 1.
      centers_per_class: K >= 1.
      dim: D >= 1.

    Returns:
      `[C, K, D]` float32.

    Raises:
      ValueError: if a size is below 1.
      TypeError: if a size is not a static integer.

    Example:
      >>> import jax
      >>> init_centers(jax.random.key(0), num_classes=100, centers_per_class=10, dim=64).shape
      (100, 10, 64)

    References:
      Q. Qian, L. Shang, B. Sun, J. Hu, H. Li, R. Jin, SoftTriple Loss: Deep Metric Learning Without Triplet Sampling,
      ICCV 2019, arXiv 1909.05235.
    """
    num_classes = checks.check_static_integer("num_classes", num_classes, least=1)
    centers_per_class = checks.check_static_integer("centers_per_class", centers_per_class, least=1)
    dim = checks.check_static_integer("dim", dim, least=1)
    bound = 1 / math.sqrt(num_classes * centers_per_class)
    return jax.random.uniform(key, (num_classes, centers_per_class, dim), jnp.float32, -bound, bound)


def effective_centers(centers: ArrayLike, *, tolerance: float = 0.1) -> jax.Array:
    """Counts the distinct centers of each class: those within `tolerance` of each other, in chains, count as one.

    Args:
      centers: `[C, K, D]`, normalized here.
      tolerance: >= 0, a Euclidean distance between unit vectors (0.1 is an angle of 5.7 degrees).

    Returns:
      `[C]` int32 counts in 1..K.

    Raises:
      ValueError: if the shape is not `[C, K, D]` or the tolerance negative.
      TypeError: if the dtype is not a floating-point one.

    Example:
      >>> import jax.numpy as jnp
      >>> centers = jnp.array([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
      >>> effective_centers(centers).tolist()  # the first two point the same way
      [2]
    """
    tolerance = checks.check_scalar("tolerance", tolerance, least=0)
    centers = safe_normalize(checks.check_class_parameters("centers", centers, 3))
    return jax.lax.map(lambda class_centers: _num_clusters(class_centers, tolerance), centers)


def _num_clusters(centers: jax.Array, tolerance: float) -> jax.Array:
    """Returns the number of chains among `[K, D]` centers, with links no longer than `tolerance`."""
    # Differences instead of 2 - 2 cos: float32 cosines cannot resolve a tolerance of 1e-4.
    squared = jnp.sum(jnp.square(centers[:, None, :] - centers[None, :, :]), axis=-1)
    linked = squared <= tolerance**2
    for _ in range((len(centers) - 1).bit_length()):  # each turn doubles the length of known chains
        linked = jnp.any(linked[:, :, None] & linked[None, :, :], axis=1)
    has_earlier = jnp.any(jnp.tril(linked, -1), axis=1)
    return jnp.sum(~has_earlier, dtype=jnp.int32)
