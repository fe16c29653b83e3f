"""Softmax losses with a margin on the angle to the right class, and P2SGrad, which has none.

Each replaces the logit of the right class in the normalized softmax; `theta` is the angle between an example and a
class vector. None uses an arccos, whose gradient is unbounded near theta = 0: cos(theta + m) comes from the addition
theorem, and cos(m theta) from Chebyshev polynomials.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.class_loss import Column, ColumnResult, check_classes, class_loss, per_example_loss
from jaxmetric.losses._engine.class_shard import gather_class_rows
from jaxmetric.losses._engine.class_softmax import (
    Score,
    cross_entropy,
    dot_product,
    nearest_center,
    normalized_dot_product,
    right_and_others,
    sum_over_classes,
)
from jaxmetric.losses._engine.reduction import LossResult
from jaxmetric.losses._engine.types import (
    ClassCenters,
    ClassLabels,
    ClassProxies,
    ClassWeights,
    LimitedScalar,
    PositiveScalar,
    Reduction,
    ScalarLike,
)
from jaxmetric.numerics import safe_normalize, safe_sqrt


def arcface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 64.0,
    margin: LimitedScalar = 0.5,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""ArcFace: a softmax with an additive margin on the angle between an example and its class vector.

    :math:`-\log \mathrm{softmax}(z)_y` with :math:`z_y = s \cos(\theta_y + m)` and :math:`z_c = s \cos \theta_c` for
    the other classes.

    Beyond :math:`\theta_y = \pi - m`, where the cosine would rise again, :math:`z_y = s (\cos \theta_y - m \sin m)`, as
    in the authors' code: the loss always grows with the angle.

    Args:
      embeddings: `[B, D]` floats. They are normalized here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, or a `ClassShard` of them; a tuple of T for T columns of labels, whose losses add
        up. They are normalized here.
      scale: s > 0.
      margin: m, in radians, from 0 to pi.
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
      >>> loss = arcface_loss(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), scale=1.0, margin=jnp.pi / 2)
      >>> round(float(loss), 4)  # cos(0 + pi/2) against cos(pi/2): log(2)
      0.6931

    References:
      J. Deng, J. Guo, N. Xue, S. Zafeiriou, ArcFace: Additive Angular Margin Loss for Deep Face Recognition, CVPR 2019,
      arXiv 1801.07698.
    """
    scale = checks.check_scalar("scale", scale, above=0)
    margin = checks.check_scalar("margin", margin, least=0, most=math.pi, unit="radians")
    batch = check_classes("proxies", proxies, embeddings, labels, class_weights, where, weights, reduction, has_aux)
    return class_loss(_arcface, batch, scale, margin)


def _arcface(embeddings: jax.Array, column: Column, scale: ScalarLike, margin: ScalarLike) -> ColumnResult:
    return _arcface_of_score(normalized_dot_product, embeddings, column, scale, margin)


def sub_center_arcface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    centers: ClassCenters,
    *,
    scale: PositiveScalar = 64.0,
    margin: LimitedScalar = 0.5,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""Sub-center ArcFace: ArcFace with several centers per class, of which only the nearest counts.

    :math:`-\log \mathrm{softmax}(z)_y` with :math:`z_y = s \cos(\theta_y + m)`, :math:`z_c = s \cos \theta_c` and
    :math:`\cos \theta_c = \max_k x^\top w_c^k` for vectors of length 1. The noisy examples of a class gather around
    other centers than the dominant one.

    Beyond :math:`\theta_y = \pi - m` it continues as `arcface_loss` does.

    Args:
      embeddings: `[B, D]` floats. They are normalized here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of centers.
      centers: `[C, K, D]` class vectors, K centers of each class, or a `ClassShard` of them; a tuple of T for T columns
        of labels, whose losses add up. They are normalized here. See `init_centers`.
      scale: s > 0.
      margin: m, in radians, from 0 to pi.
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
      >>> loss = sub_center_arcface_loss(jnp.array([[0.0, 1.0]]), jnp.array([0]), centers, scale=1.0, margin=0.0)
      >>> round(float(loss), 4)  # cosines 1, of the second center, and 0: log(1 + exp(-1))
      0.3133

    References:
      J. Deng, J. Guo, T. Liu, M. Gong, S. Zafeiriou, Sub-center ArcFace: Boosting Face Recognition by Large-Scale Noisy
      Web Faces, ECCV 2020.
    """
    scale = checks.check_scalar("scale", scale, above=0)
    margin = checks.check_scalar("margin", margin, least=0, most=math.pi, unit="radians")
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
    return class_loss(_sub_center_arcface, batch, scale, margin)


def _sub_center_arcface(embeddings: jax.Array, column: Column, scale: ScalarLike, margin: ScalarLike) -> ColumnResult:
    return _arcface_of_score(nearest_center, embeddings, column, scale, margin)


def cosface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 64.0,
    margin: ScalarLike = 0.35,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""CosFace: a softmax with an additive margin on the cosine between an example and its class vector.

    :math:`-\log \mathrm{softmax}(z)_y` with :math:`z_y = s (\cos \theta_y - m)` and :math:`z_c = s \cos \theta_c` for
    the other classes. This is `normalized_softmax_loss` of normalized embeddings.

    Args:
      embeddings: `[B, D]` floats. They are normalized here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, or a `ClassShard` of them; a tuple of T for T columns of labels, whose losses add
        up. They are normalized here.
      scale: s > 0.
      margin: m, subtracted from the cosine.
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
      >>> loss = cosface_loss(jnp.eye(2), jnp.array([0, 1]), jnp.eye(2), scale=1.0, margin=1.0)
      >>> round(float(loss), 4)  # 1 - 1 against 0: log(2)
      0.6931

    References:
      H. Wang, Y. Wang, Z. Zhou, X. Ji, D. Gong, J. Zhou, Z. Li, W. Liu, CosFace: Large Margin Cosine Loss for Deep Face
      Recognition, CVPR 2018, arXiv 1801.09414.
    """
    scale = checks.check_scalar("scale", scale, above=0)
    margin = checks.check_scalar("margin", margin)
    batch = check_classes("proxies", proxies, embeddings, labels, class_weights, where, weights, reduction, has_aux)
    return class_loss(_cosface, batch, scale, margin)


def _cosface(embeddings: jax.Array, column: Column, scale: ScalarLike, margin: ScalarLike) -> ColumnResult:
    logits = scale * safe_normalize(embeddings)
    right, others = right_and_others(normalized_dot_product, column.vectors, column.labels, logits)
    return per_example_loss(cross_entropy(right - scale * margin, others), column)


def sphereface_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 1.0,
    margin: int = 4,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""SphereFace: a softmax with a multiplicative margin m on the angle between an example and its class vector.

    :math:`-\log \mathrm{softmax}(z)_y` with :math:`z_y = s |x| \psi(\theta_y)` and :math:`z_c = s |x| \cos \theta_c`
    for the other classes, where :math:`\psi(\theta) = (-1)^k \cos(m \theta) - 2 k` for :math:`\theta` in :math:`[k \pi
    / m, (k + 1) \pi / m]`: cos(m theta), continued as a decreasing function.

    Args:
      embeddings: `[B, D]` floats. Their lengths are part of the loss.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, or a `ClassShard` of them; a tuple of T for T columns of labels, whose losses add
        up. They are normalized here.
      scale: s > 0; 1 in the paper.
      margin: m >= 1, a static integer; 1 is no margin.
      class_weights: `[C]` weights >= 0 of the classes; 1 if None. A tuple of T for T columns of labels. The weight of
        an example is multiplied by that of its class.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each example.
      has_aux: whether to return `(loss, LossStats)`. The arrays of the stats are `[T]` for a tuple of proxies.

    Returns:
      The scalar loss >= 0 (or `[B]` losses). Under `jit`, a valid label outside [0, C) gives NaN.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or out of range, or a concrete label is out of range.
      TypeError: if a dtype is not the one above, or `margin` is not a static integer.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = sphereface_loss(jnp.array([[0.0, 2.0]]), jnp.array([0]), jnp.eye(2), margin=2)
      >>> round(float(loss), 4)  # psi(90 degrees) = -cos(180 degrees) - 2 = -1; 2 psi against 2: log(1 + exp(4))
      4.0181

    References:
      W. Liu, Y. Wen, Z. Yu, M. Li, B. Raj, L. Song, SphereFace: Deep Hypersphere Embedding for Face Recognition, CVPR
      2017, arXiv 1704.08063.
    """
    scale = checks.check_scalar("scale", scale, above=0)
    margin = checks.check_static_integer("margin", margin, least=1)
    batch = check_classes("proxies", proxies, embeddings, labels, class_weights, where, weights, reduction, has_aux)
    return class_loss(_sphereface, batch, scale, margin=margin)


def _sphereface(embeddings: jax.Array, column: Column, scale: ScalarLike, *, margin: int) -> ColumnResult:
    _, others = right_and_others(normalized_dot_product, column.vectors, column.labels, scale * embeddings)
    right = scale * _length(embeddings) * _psi(_cosines(embeddings, column), margin)
    return per_example_loss(cross_entropy(right, others), column)


def large_margin_softmax_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    scale: PositiveScalar = 1.0,
    margin: int = 4,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The large-margin softmax (L-softmax): SphereFace with unnormalized class vectors.

    :math:`-\log \mathrm{softmax}(z)_y` with :math:`z_y = s |w_y| |x| \psi(\theta_y)` and :math:`z_c = s\, w_c^\top x`
    for the other classes, where :math:`\psi(\theta) = (-1)^k \cos(m \theta) - 2 k` for :math:`\theta` in :math:`[k \pi
    / m, (k + 1) \pi / m]`.

    Args:
      embeddings: `[B, D]` floats. Their lengths are part of the loss.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, or a `ClassShard` of them; a tuple of T for T columns of labels, whose losses add
        up. They are not normalized.
      scale: s > 0; 1 in the paper.
      margin: m >= 1, a static integer; 1 is the ordinary softmax.
      class_weights: `[C]` weights >= 0 of the classes; 1 if None. A tuple of T for T columns of labels. The weight of
        an example is multiplied by that of its class.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each example.
      has_aux: whether to return `(loss, LossStats)`. The arrays of the stats are `[T]` for a tuple of proxies.

    Returns:
      The scalar loss >= 0 (or `[B]` losses). Under `jit`, a valid label outside [0, C) gives NaN.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or out of range, or a concrete label is out of range.
      TypeError: if a dtype is not the one above, or `margin` is not a static integer.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = large_margin_softmax_loss(jnp.array([[0.0, 2.0]]), jnp.array([0]), 3 * jnp.eye(2), margin=2)
      >>> round(float(loss), 4)  # lengths 2 and 3, psi(90 degrees) = -1: -6 against 6: log(1 + exp(12))
      12.0

    References:
      W. Liu, Y. Wen, Z. Yu, M. Yang, Large-Margin Softmax Loss for Convolutional Neural Networks, ICML 2016, arXiv
      1612.02295.
    """
    scale = checks.check_scalar("scale", scale, above=0)
    margin = checks.check_static_integer("margin", margin, least=1)
    batch = check_classes("proxies", proxies, embeddings, labels, class_weights, where, weights, reduction, has_aux)
    return class_loss(_large_margin_softmax, batch, scale, margin=margin)


def _large_margin_softmax(embeddings: jax.Array, column: Column, scale: ScalarLike, *, margin: int) -> ColumnResult:
    _, others = right_and_others(dot_product, column.vectors, column.labels, scale * embeddings)
    length = _length(embeddings) * _length(gather_class_rows(column.vectors, column.labels))
    right = scale * length * _psi(_cosines(embeddings, column), margin)
    return per_example_loss(cross_entropy(right, others), column)


def p2sgrad_loss(
    embeddings: ArrayLike,
    labels: ClassLabels,
    proxies: ClassProxies,
    *,
    class_weights: ClassWeights | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""P2SGrad: squared errors of the cosines with class vectors, from 1 for the right class and 0 for others.

    :math:`\frac{1}{2} \sum_c (\cos \theta_c - [c = y])^2`. The paper gives only the gradient of this loss,
    :math:`\sum_c (\cos \theta_c - [c = y])\, \nabla \cos \theta_c`. It has no hyper-parameters.

    Args:
      embeddings: `[B, D]` floats. They are normalized here.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors, or a `ClassShard` of them; a tuple of T for T columns of labels, whose losses add
        up. They are normalized here.
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
      >>> float(p2sgrad_loss(jnp.array([[1.0, 0.0]]), jnp.array([1]), jnp.eye(2)))  # ((1 - 0)^2 + (0 - 1)^2) / 2
      1.0

    References:
      X. Zhang, R. Zhao, J. Yan, M. Gao, Y. Qiao, X. Wang, H. Li, P2SGrad: Refined Gradients for Optimizing Deep Face
      Models, CVPR 2019, arXiv 1905.02479. As a mean square: X. Wang, J. Yamagishi, A Comparative Study on Recent Neural
      Spoofing Countermeasures for Synthetic Speech Detection, Interspeech 2021, arXiv 2103.11326.
    """
    batch = check_classes("proxies", proxies, embeddings, labels, class_weights, where, weights, reduction, has_aux)
    return class_loss(_p2sgrad, batch)


def _p2sgrad(embeddings: jax.Array, column: Column) -> ColumnResult:
    values, _ = sum_over_classes(
        _halved_squares, column.vectors, safe_normalize(embeddings), column.labels, rows=column.labels.size
    )
    return per_example_loss(values, column)


def _halved_squares(vectors: jax.Array, index: jax.Array, embeddings: jax.Array, labels: jax.Array) -> jax.Array:
    cosine = normalized_dot_product(vectors, embeddings)
    return jnp.square(cosine - (index[:, None] == labels[None, :]).astype(cosine.dtype)) / 2


def _arcface_of_score(
    score: Score, embeddings: jax.Array, column: Column, scale: ScalarLike, margin: ScalarLike
) -> ColumnResult:
    right, others = right_and_others(score, column.vectors, column.labels, scale * safe_normalize(embeddings))
    return per_example_loss(cross_entropy(scale * _cos_of_sum(right / scale, margin), others), column)


def _cos_of_sum(cosine: jax.Array, margin: ScalarLike) -> jax.Array:
    """Returns cos(theta + margin), but cos(theta) - margin sin(margin) where it would rise, beyond pi - margin."""
    sine = safe_sqrt((1 - cosine) * (1 + cosine))
    rises = cosine < -jnp.cos(margin)
    return jnp.where(rises, cosine - margin * jnp.sin(margin), cosine * jnp.cos(margin) - sine * jnp.sin(margin))


def _cosines(embeddings: jax.Array, column: Column) -> jax.Array:
    """Returns `[B]` cosines of the angles between embeddings and the vectors of their classes."""
    class_vectors = gather_class_rows(column.vectors, column.labels)
    return jnp.sum(safe_normalize(embeddings) * safe_normalize(class_vectors), axis=1)


def _psi(cosine: jax.Array, m: int) -> jax.Array:
    """Returns (-1)^k cos(m theta) - 2 k with k = floor(m theta / pi): cos(m theta), continued as decreasing."""
    turns = jnp.zeros(cosine.shape, jnp.int32)
    for j in range(1, m):
        turns += (cosine < math.cos(j * math.pi / m)).astype(jnp.int32)
    before, chebyshev = jnp.ones_like(cosine), cosine
    for _ in range(m - 1):
        before, chebyshev = chebyshev, 2 * cosine * chebyshev - before
    return jnp.where(turns % 2 == 0, chebyshev, -chebyshev) - 2 * turns.astype(cosine.dtype)


def _length(vectors: jax.Array) -> jax.Array:
    """Returns `[B]` lengths, scaled so that no square overflows or underflows; gradient 0 at 0."""
    return jnp.sum(vectors * safe_normalize(vectors), axis=-1)
