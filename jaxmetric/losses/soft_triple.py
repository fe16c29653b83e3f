"""SoftTriple of Qian et al.: a softmax with several centres per class, which needs no triplets to be sampled.

`soft_triple_loss` is the paper's loss, `soft_triple_regularizer` the part of it that merges superfluous centres,
`init_centers` makes the parameters and `effective_centers` counts what the merging left of them.
"""

import math

import jax
import jax.numpy as jnp

from jaxmetric.distances import pairwise_dot_product
from jaxmetric.losses import checks
from jaxmetric.losses.proxy import check_class_vectors, class_cross_entropy
from jaxmetric.losses.reduction import LossResult, reduce_each
from jaxmetric.numerics import safe_normalize, safe_sqrt


def soft_triple_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    centers: jax.Array,
    *,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    tau: float = 0.2,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The SoftTriple loss, its regulariser included.

    With :math:`S_{i,c} = \sum_k \mathrm{softmax}_k(x_i^\top w_c^k / \gamma)\, x_i^\top w_c^k`, the similarity of an
    example to the centres of class c, relaxed from the nearest one:

    :math:`-\log \frac{\exp \lambda(S_{i,y} - \delta)}{\exp \lambda(S_{i,y} - \delta) + \sum_{c \ne y} \exp \lambda
    S_{i,c}} + \tau\,` `soft_triple_regularizer(centers)`.

    Args:
      embeddings: `[B, D]` floats, normalised by the network.
      labels: `[B]` or `[B, 1]` integers in [0, C).
      centers: `[C, K, D]`, see `init_centers`; normalised here.
      scale: lambda > 0.
      gamma: > 0, the entropy of the assignment to centres; towards 0 only the nearest centre counts.
      margin: delta, taken off the similarity to the right class.
      tau: >= 0, the weight of the regulariser; 0 leaves it out. It is part of every example's loss, so that `"sum"` and
        `"none"` contain it as often as they contain examples, and every example counts for `"mean_active"`.
      where: `[B]` booleans: which examples are valid.
      weights: `[B]` example weights >= 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"`, or `"none"` for one value per example.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[B]` losses). Under `jit`, a valid label outside [0, C) gives NaN.

    Raises:
      ValueError: if a shape does not fit, an option is unknown, or a concrete label is out of range.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax
      >>> centers = init_centers(jax.random.key(0), num_classes=5, centers_per_class=3, dim=8)
      >>> embeddings = centers[:, 0]  # each class's first centre, as an embedding of that class
      >>> loss = soft_triple_loss(embeddings, jax.numpy.arange(5), centers)
      >>> bool(loss < soft_triple_loss(embeddings, jax.numpy.arange(5)[::-1], centers))
      True

    References:
      Q. Qian, L. Shang, B. Sun, J. Hu, H. Li, R. Jin, SoftTriple Loss: Deep Metric Learning Without Triplet Sampling,
      ICCV 2019, arXiv 1909.05235.
    """
    checks.check_scalar("gamma", gamma, above=0)
    checks.check_scalar("tau", tau, least=0)
    embeddings, labels, centers, weights = check_class_vectors(
        embeddings, labels, centers, where, weights, name="centers", num_axes=3
    )
    scores = _relaxed_similarity(embeddings, centers, gamma)
    losses = class_cross_entropy(scores, labels, scale=scale, margin=margin)
    if isinstance(tau, jax.core.Tracer) or tau > 0:
        losses = losses + tau * soft_triple_regularizer(centers)
    loss, stats = reduce_each(losses, weights, reduction)
    return (loss, stats) if has_aux else loss


@jax.jit
def soft_triple_regularizer(centers: jax.Array) -> jax.Array:
    r"""The distances between the centres of a class, which as a penalty merges them.

    :math:`\frac{1}{C K (K - 1)} \sum_c \sum_{s < t} \sqrt{2 + 10^{-5} - 2\,w_c^{s\top} w_c^t}`: half the mean
    distance of two centres of one class, class by class, in O(C K^2) memory. The 1e-5, which the authors' code has,
    keeps the gradient finite where two centres coincide.

    Args:
      centers: `[C, K, D]`, normalised here.

    Returns:
      A scalar from 0.0016, where all centres of each class coincide, to 1; 0 if K is 1.

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
    centers = checks.check_class_parameters("centers", centers, 3)
    num_classes, num_centers, _ = centers.shape
    if num_centers == 1:
        return jnp.zeros((), centers.dtype)
    distances = safe_sqrt(2 + 1e-5 - 2 * _similarity_within_class(safe_normalize(centers)))
    later = jnp.triu(jnp.ones((num_centers, num_centers), bool), 1)
    return jnp.sum(jnp.where(later, distances, 0)) / (num_classes * num_centers * (num_centers - 1))


def init_centers(key: jax.Array, num_classes: int, centers_per_class: int, dim: int) -> jax.Array:
    """Random centres, Kaiming-uniform as in the authors' code.

    Their parameter is a `[D, C K]` matrix initialised with a = sqrt(5), which takes its second axis for the fan:
    uniform in +-1 / sqrt(C K). Only the directions matter to the loss; the length sets how fast an optimiser turns
    them.

    Args:
      key: a `jax.random` key.
      num_classes: C >= 1.
      centers_per_class: K >= 1.
      dim: D >= 1.

    Returns:
      `[C, K, D]` float32.

    Raises:
      ValueError: if a size is below 1.

    Example:
      >>> import jax
      >>> init_centers(jax.random.key(0), num_classes=100, centers_per_class=10, dim=64).shape
      (100, 10, 64)

    References:
      Q. Qian, L. Shang, B. Sun, J. Hu, H. Li, R. Jin, SoftTriple Loss: Deep Metric Learning Without Triplet Sampling,
      ICCV 2019, arXiv 1909.05235.
    """
    shape = (num_classes, centers_per_class, dim)
    if min(shape) < 1:
        raise ValueError(f"centres [num_classes, centers_per_class, dim] of {list(shape)}, expected at least 1 of each")
    bound = 1 / math.sqrt(num_classes * centers_per_class)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def effective_centers(centers: jax.Array, *, tolerance: float = 0.1) -> jax.Array:
    """How many distinct centres each class has: those within `tolerance` of each other, in chains, count as one.

    Args:
      centers: `[C, K, D]`, normalised here.
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
    checks.check_scalar("tolerance", tolerance, least=0)
    centers = safe_normalize(checks.check_class_parameters("centers", centers, 3))
    return jax.lax.map(lambda of_class: _num_clusters(of_class, tolerance), centers)


@jax.jit
def _relaxed_similarity(embeddings: jax.Array, centers: jax.Array, gamma: float) -> jax.Array:
    """`[B, C]`: for each class the mean of the similarities to its centres, weighed by their softmax at gamma."""
    num_classes, num_centers, dim = centers.shape
    centers = safe_normalize(centers)
    # Centre-major, so that the softmax over the centres runs along whole rows of classes: twice as fast on a CPU.
    rows = centers.transpose(1, 0, 2).reshape(num_centers * num_classes, dim)
    similarity = pairwise_dot_product(embeddings, rows).reshape(-1, num_centers, num_classes)
    # Relative to the nearest centre, nothing cancels when gamma is small; that the softmax is divided only once saves
    # half of the [B, K, C] arrays.
    nearest = jax.lax.stop_gradient(jnp.max(similarity, axis=1))
    excess = similarity - nearest[:, None, :]
    share = jnp.exp(excess / gamma)
    return nearest + jnp.sum(share * excess, axis=1) / jnp.sum(share, axis=1)


def _num_clusters(centers: jax.Array, tolerance: float) -> jax.Array:
    """The number of chains, of links no longer than `tolerance`, among `[K, D]` centres."""
    # Differences, not 2 - 2 cos: at a tolerance of 1e-4 the cosine in float32 no longer tells.
    squared = jnp.sum(jnp.square(centers[:, None, :] - centers[None, :, :]), axis=-1)
    linked = squared <= tolerance**2
    for _ in range((len(centers) - 1).bit_length()):  # each turn doubles the length of the chains that are seen
        linked = jnp.any(linked[:, :, None] & linked[None, :, :], axis=1)
    has_earlier = jnp.any(jnp.tril(linked, -1), axis=1)
    return jnp.sum(~has_earlier, dtype=jnp.int32)


def _similarity_within_class(centers: jax.Array) -> jax.Array:
    return jnp.einsum("csd,ctd->cst", centers, centers, precision=jax.lax.Precision.HIGHEST)
