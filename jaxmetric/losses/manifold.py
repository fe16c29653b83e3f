"""The manifold loss: an N-pair loss of random-walk similarities between embeddings and proxies."""

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.distances import pairwise_cosine_similarity, pairwise_dot_product
from jaxmetric.losses.class_columns import Column
from jaxmetric.losses.class_shard import ClassShard
from jaxmetric.losses.class_vectors import class_vector_loss, of_examples
from jaxmetric.losses.reduction import LossResult, LossStats
from jaxmetric.numerics import as_float, safe_divide, safe_sqrt

# The temperature of the affinities exp(cos / 0.5), of the paper's experiments.
_TEMPERATURE = 0.5


def manifold_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    proxies: jax.Array,
    *,
    context_weight: float = 1.0,
    alpha: float = 0.8,
    margin: float = 5e-4,
    class_weights: jax.Array | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The manifold loss: along the manifold, an embedding is near its proxy, and near what its proxy is near to.

    :math:`F = (1 - \alpha)(I - \alpha\, \bar S)^{-1}` with :math:`\bar S = D^{-1/2} S D^{-1/2}` and
    :math:`S_{ij} = \exp(2 [\cos(z_i, z_j)]_+)`, :math:`S_{ii} = 0`, over all embeddings and proxies z: where random
    walks end up that go on with probability alpha. For the example i of the class y, with the similarities
    :math:`s_{ic}` to proxies c,

    :math:`\log\left(1 + \sum_{c \ne y} [\delta_c \ge 0]\, e^{\delta_c}\right),\quad \delta_c = s_{ic} - s_{iy} + m`,

    once with :math:`s_{ic} = F_{ic}` (intrinsic) plus lambda_C times with :math:`s_{ic} = \cos(F_i, F_c)` (context).

    The classes are meta-classes in the paper: every learner of an ensemble joins the classes of the data at random,
    such as by `jax.random.randint(key, [num_classes], 0, C)[labels]`.

    Args:
      embeddings: `[B, D]` floats.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of proxies.
      proxies: `[C, D]` class vectors.
      context_weight: lambda_C >= 0, of the context loss.
      alpha: in (0, 1), how far the random walks go.
      margin: m, in similarity.
      class_weights: `[C]` weights >= 0 that multiply those of the examples of a class.
      where: `[B]` booleans (`[B, T]` with a tuple): which examples are valid; others are no part of the walks.
      weights: `[B]` example weights >= 0 of the losses; in the walks every valid example counts once.
      reduction: `"mean"`, `"mean_active"`, `"sum"`, or `"none"` for one value per example.
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
    checks.check_scalar("context_weight", context_weight, least=0)
    checks.check_scalar("margin", margin)
    checks.check_scalar("alpha", alpha, above=0, below=1)
    return class_vector_loss(
        _manifold,
        {"context_weight": context_weight, "alpha": alpha, "margin": margin},
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


def _manifold(
    embeddings: jax.Array, column: Column, *, context_weight: jax.Array, alpha: jax.Array, margin: jax.Array
) -> tuple[jax.Array, LossStats]:
    if isinstance(column.vectors, ClassShard):
        raise TypeError("proxies is a ClassShard, expected an array: the walks of manifold_loss go over all proxies")
    count, num_proxies = embeddings.shape[0], column.vectors.shape[0]
    points = jnp.concatenate([embeddings, as_float(column.vectors)])
    valid = jnp.concatenate([column.weights > 0, jnp.ones(num_proxies, bool)])
    walks = (1 - alpha) * _inverse(jnp.eye(len(points), dtype=points.dtype) - alpha * _transitions(points, valid))
    losses = _n_pair(walks[:count, count:], column.labels, margin)
    context = pairwise_cosine_similarity(walks[:count], walks[count:])
    return of_examples(losses + context_weight * _n_pair(context, column.labels, margin), column)


def _transitions(points: jax.Array, valid: jax.Array) -> jax.Array:
    """The normalised affinities of all pairs of valid points; 0 for those of a point with itself and of others."""
    cosines = jax.nn.relu(pairwise_cosine_similarity(points))
    pairs = valid[:, None] & valid[None, :] & ~jnp.eye(valid.size, dtype=bool)
    affinities = jnp.where(pairs, jnp.exp(cosines / _TEMPERATURE), 0)
    scale = safe_divide(jnp.ones_like(points[:, 0]), safe_sqrt(jnp.sum(affinities, axis=1)))
    return affinities * scale[:, None] * scale[None, :]


def _n_pair(similarities: jax.Array, labels: jax.Array, margin: jax.Array) -> jax.Array:
    right = labels[:, None] == jnp.arange(similarities.shape[1])[None, :]
    own = jnp.sum(jnp.where(right, similarities, 0), axis=1, keepdims=True)
    beyond = similarities - own + margin
    # Not `beyond >= 0`, so that a NaN is counted.
    counted = ~right & ~(beyond < 0)
    return jnp.log1p(jnp.sum(jnp.where(counted, jnp.exp(jnp.where(counted, beyond, 0)), 0), axis=1))


@jax.custom_vjp
def _inverse(matrix: jax.Array) -> jax.Array:
    """The inverse of a symmetric positive definite matrix, by its Cholesky decomposition."""
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix, symmetrize_input=False), True), identity)


def _inverse_forward(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = _inverse(matrix)
    return inverse, inverse


def _inverse_backward(inverse: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return (-pairwise_dot_product(pairwise_dot_product(inverse, cotangent.T), inverse),)


_inverse.defvjp(_inverse_forward, _inverse_backward)
