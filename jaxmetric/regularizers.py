"""Penalties on embeddings or class vectors, each a scalar to add to a loss.

    loss = contrastive_loss(embeddings, labels) + 0.01 * lp_regularizer(embeddings)

Penalties on embeddings are means over the valid examples, and those on class vectors are means over the classes. The
regularizer of SoftTriple, which merges superfluous centers of a class, is in the module of its loss:
`soft_triple_regularizer`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.distances import check_norm, pairwise_lp
from jaxmetric.losses._engine.reduction import each_anchor, reduce_anchors
from jaxmetric.numerics import safe_abs, safe_normalize

# The number of classes whose similarities to all others are in memory at a time.
_CLASS_BLOCK = 128


def lp_regularizer(
    embeddings: ArrayLike,
    *,
    p: float = 2,
    power: float = 1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> jax.Array:
    r"""Returns the mean Lp norm of the embeddings, to a power: :math:`\frac{1}{B} \sum_i \|x_i\|_p^{\text{power}}`.

    Args:
      embeddings: `[B, D]` floats.
      p: >= 1, static; `math.inf` for the largest coordinate.
      power: > 0, static.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0.

    Returns:
      A scalar >= 0; 0 if no example is valid. A zero embedding has gradient 0.

    Raises:
      ValueError: if a shape does not fit, `p` is below 1 or `power` is not above 0.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> float(lp_regularizer(jnp.array([[3.0, 4.0], [0.0, -1.0]])))  # (5 + 1) / 2
      3.0
    """
    p, power = check_norm(p, power)
    embeddings = checks.check_embeddings(embeddings)
    weights = checks.example_weights(embeddings, where, weights)
    return _mean_norm(checks.leave_out(embeddings, weights), weights, p=p, power=power)


def zero_mean_regularizer(
    embeddings: ArrayLike, *, where: ArrayLike | None = None, weights: ArrayLike | None = None
) -> jax.Array:
    r"""The mean absolute sum of the coordinates of each embedding: :math:`\frac{1}{B} \sum_i |\sum_d x_{id}|`.

    Designed for the signal-to-noise-ratio distance, which uses variances as signals.

    Args:
      embeddings: `[B, D]` floats.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0.

    Returns:
      A scalar >= 0; 0 if no example is valid.

    Raises:
      ValueError: if a shape does not fit.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> float(zero_mean_regularizer(jnp.array([[3.0, -1.0], [0.5, -4.5]])))  # (2 + 4) / 2
      3.0

    References:
      T. Yuan, W. Deng, J. Tang, Y. Tang, B. Chen, Signal-to-Noise Ratio: A Robust Distance Metric for Deep Metric
      Learning, CVPR 2019.
    """
    embeddings = checks.check_embeddings(embeddings)
    weights = checks.example_weights(embeddings, where, weights)
    sums = safe_abs(jnp.sum(checks.leave_out(embeddings, weights), axis=1))
    return reduce_anchors(each_anchor(sums, weights), "mean")[0]


def center_invariant_regularizer(proxies: ArrayLike) -> jax.Array:
    r"""Penalizes unequal lengths of the class vectors: rare classes tend to get short ones.

    :math:`\frac{1}{4C} \sum_c \left(\|w_c\|^2 - \frac{1}{C} \sum_k \|w_k\|^2\right)^2`.

    Args:
      proxies: `[C, D]` class vectors. The loss must depend on their lengths.

    Returns:
      A scalar >= 0.

    Raises:
      ValueError: if the shape is not `[C, D]`.
      TypeError: if the dtype is not a floating-point one.

    Example:
      >>> import jax.numpy as jnp
      >>> float(center_invariant_regularizer(jnp.array([[1.0, 0.0], [0.0, 3.0]])))  # (1 - 5)^2 / 4 and (9 - 5)^2 / 4
      4.0

    References:
      Y. Wu, H. Liu, J. Li, Y. Fu, Deep Face Recognition with Center Invariant Loss, ACM Multimedia Thematic Workshops
      2017.
    """
    return _variance_of_lengths(checks.check_class_parameters("proxies", proxies, 2))


def regular_face_regularizer(proxies: ArrayLike) -> jax.Array:
    r"""The mean cosine of each class vector with its nearest neighbor: pushes classes apart, evenly over the sphere.

    :math:`\frac{1}{C} \sum_c \max_{k \ne c} \cos(w_c, w_k)`, in O(C D) memory: neighbors are found in blocks, and only
    the cosines with them are differentiated.

    Args:
      proxies: `[C, D]` class vectors, normalized here.

    Returns:
      A scalar in [-1, 1]; 0 for a single class. Only the first of equally near neighbors has a gradient.

    Raises:
      ValueError: if the shape is not `[C, D]`.
      TypeError: if the dtype is not a floating-point one.

    Example:
      >>> import jax.numpy as jnp
      >>> float(regular_face_regularizer(jnp.array([[2.0, 0.0], [0.0, 1.0], [-5.0, 0.0]])))
      0.0

    References:
      K. Zhao, J. Xu, M.-M. Cheng, RegularFace: Deep Face Recognition via Exclusive Regularization, CVPR 2019.
    """
    return _mean_nearest_cosine(checks.check_class_parameters("proxies", proxies, 2))


@partial(jax.jit, static_argnames=("p", "power"))
def _mean_norm(embeddings: jax.Array, weights: jax.Array, *, p: float, power: float) -> jax.Array:
    origin = jnp.zeros((1, embeddings.shape[1]), embeddings.dtype)
    norms = pairwise_lp(origin, embeddings, p=p, power=power)
    return reduce_anchors(each_anchor(norms[0], weights), "mean")[0]


@jax.jit
def _variance_of_lengths(proxies: jax.Array) -> jax.Array:
    squared = jnp.sum(jnp.square(proxies), axis=1)
    return jnp.mean(jnp.square(squared - jnp.mean(squared))) / 4


@jax.jit
def _mean_nearest_cosine(proxies: jax.Array) -> jax.Array:
    if len(proxies) == 1:
        return jnp.sum(0 * proxies)
    unit = safe_normalize(proxies)
    fixed = jax.lax.stop_gradient(unit)

    def nearest(vector: jax.Array, own: jax.Array) -> jax.Array:
        cosines = jnp.matmul(fixed, vector, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmax(jnp.where(jnp.arange(len(fixed)) == own, -jnp.inf, cosines))

    index = jax.lax.map(lambda row: nearest(*row), (fixed, jnp.arange(len(fixed))), batch_size=_CLASS_BLOCK)
    return jnp.mean(jnp.sum(unit * unit[index], axis=1))
