"""The centre loss: examples gather around one learned point per class."""

import jax
import jax.numpy as jnp

from jaxmetric.losses.class_columns import Column
from jaxmetric.losses.class_shard import ClassVectors
from jaxmetric.losses.class_vectors import class_vector_loss, of_examples
from jaxmetric.losses.reduction import LossResult, LossStats


def center_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    centers: ClassVectors,
    *,
    class_weights: jax.Array | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The centre loss: an example lies at the centre of its class.

    :math:`\frac{1}{2} |x - c_y|^2`, to be added, with a small weight, to a loss that tells classes apart.

    Args:
      embeddings: `[B, D]` floats.
      labels: `[B]` or `[B, 1]` integers in [0, C); `[B, T]` with a tuple of T arrays of centers.
      centers: `[C, D]` class centres, not normalised, or a `ClassShard` of them; a tuple of T for T columns of labels,
        whose losses add up.
      class_weights: `[C]` weights >= 0, by which those of the examples of a class are multiplied; a tuple of T.
      where: `[B]` booleans, or `[B, T]` for single missing labels: which are valid.
      weights: `[B]` example weights >= 0.
      reduction: `"mean"`, `"mean_active"`, `"sum"`, or `"none"` for one value per example.
      has_aux: whether to return `(loss, LossStats)`; its arrays are `[T]` for a tuple of centers.

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
    return class_vector_loss(
        _center,
        {},
        embeddings,
        labels,
        centers,
        name="centers",
        num_axes=2,
        class_weights=class_weights,
        where=where,
        weights=weights,
        reduction=reduction,
        has_aux=has_aux,
    )


def _center(embeddings: jax.Array, column: Column) -> tuple[jax.Array, LossStats]:
    of_class = column.of_labels(column.vectors)
    return of_examples(jnp.sum(jnp.square(embeddings - of_class), axis=1) / 2, column)
