"""VICReg: a loss of two views without labels: invariance, variance and covariance terms."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.losses._engine.reduction import LossResult, LossStats, reduce_stats
from jaxmetric.losses._engine.types import (
    LimitedScalar,
    ReductionToScalar,
    ScalarLike,
)
from jaxmetric.numerics import safe_divide, safe_sqrt


def vicreg_loss(
    embeddings: ArrayLike,
    other: ArrayLike,
    *,
    invariance: LimitedScalar = 25.0,
    variance: LimitedScalar = 25.0,
    covariance: LimitedScalar = 1.0,
    eps: LimitedScalar = 1e-4,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""VICReg: matches two views of each example while coordinates vary over the batch without correlation.

    :math:`\lambda\, s(Z, Z') + \mu\, [v(Z) + v(Z')] + \nu\, [c(Z) + c(Z')]` with

    * invariance :math:`s = \frac{1}{B D} \sum_b |z_b - z'_b|^2`;
    * variance :math:`v = \frac{1}{2 D} \sum_d [1 - \sqrt{C_{dd} + \epsilon}\,]_+`;
    * covariance :math:`c = \frac{1}{D} \sum_{d \ne e} C_{de}^2`,

    C the covariance matrix of a view's coordinates, with divisor B - 1. The paper sums squares in s and has no 2 in v.
    This loss follows the authors' code instead, for which the weights 25, 25 and 1 were chosen.

    Args:
      embeddings: `[B, D]` floats. They are not normalized: Z.
      other: `[B, D]` floats, the other view of the same examples in the same order: Z'.
      invariance: lambda >= 0.
      variance: mu >= 0.
      covariance: nu >= 0.
      eps: epsilon >= 0, in variance.
      where: `[B]` booleans: which examples are valid; all if None. They are valid in both views.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They weight means and
        covariances.
      reduction: `"mean"`, `"mean_active"` or `"sum"`. `"sum"` is the loss times the number of examples, and
        `"mean_active"` is `"mean"`.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0; 0, with zero gradients, if no example is valid. With a single example there is no variance,
      and only s remains.

    Raises:
      ValueError: if a shape does not fit, a number is out of range or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> z = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> round(float(vicreg_loss(z, z, eps=0.0)), 3)  # the second coordinate is constant in both: 25 (1/4 + 1/4)
      12.5

    References:
      A. Bardes, J. Ponce, Y. LeCun, VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning,
      ICLR 2022, arXiv 2105.04906.
    """
    invariance = checks.check_scalar("invariance", invariance, least=0)
    variance = checks.check_scalar("variance", variance, least=0)
    covariance = checks.check_scalar("covariance", covariance, least=0)
    eps = checks.check_scalar("eps", eps, least=0)
    checks.check_result(reduction, has_aux, unreduced=False)
    embeddings, other = checks.check_embeddings(embeddings), checks.check_embeddings(other, "other")
    if other.shape != embeddings.shape:
        raise ValueError(f"other has shape {other.shape}, expected {embeddings.shape} as embeddings")
    where, weights = checks.check_mask_and_weights(embeddings, where, weights)
    hyper = (invariance, variance, covariance, eps)
    loss, stats = _vicreg(embeddings, other, where, weights, hyper, reduction=reduction)
    return (loss, stats) if has_aux else loss


@partial(jax.jit, static_argnames="reduction")
def _vicreg(
    embeddings: jax.Array,
    other: jax.Array,
    where: jax.Array | None,
    weights: jax.Array | None,
    hyper: tuple[ScalarLike, ...],
    *,
    reduction: str,
) -> tuple[jax.Array, LossStats]:
    weights = checks.masked_weights(embeddings, where, weights)
    views = checks.leave_out(embeddings, weights), checks.leave_out(other, weights)
    dtype, count = views[0].dtype, jnp.sum(weights)
    invariance, variance, covariance, eps = (jnp.asarray(value, dtype) for value in hyper)
    squares = jnp.mean(jnp.square(views[0] - views[1].astype(dtype)), axis=1)
    loss = invariance * safe_divide(jnp.sum(weights * squares), count)
    for view in views:
        matrix, exists = _covariances(view.astype(dtype), weights)
        deviations = safe_sqrt(jnp.diagonal(matrix) + eps)
        spread = jnp.mean(jax.nn.relu(1 - deviations)) / 2
        others = jnp.where(jnp.eye(matrix.shape[0], dtype=bool), 0, matrix)
        correlated = jnp.sum(jnp.square(others)) / matrix.shape[0]
        loss += jnp.where(exists, variance * spread + covariance * correlated, 0)
    stats = LossStats(loss * count, count, jnp.where(loss > 0, count, 0))
    return reduce_stats(stats, reduction), stats


def _covariances(view: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the unbiased covariances `[D, D]` of weighted rows `[B, D]`, and whether there are enough rows."""
    shares = safe_divide(weights, jnp.sum(weights))
    centered = view - jnp.sum(shares[:, None] * view, axis=0, keepdims=True)
    # 1 - 1/B for equal weights, which gives the divisor B - 1.
    freedom = 1 - jnp.sum(jnp.square(shares))
    exists = jnp.sum((weights > 0).astype(jnp.int32)) > 1
    products = jnp.matmul((shares[:, None] * centered).T, centered, precision=jax.lax.Precision.HIGHEST)
    return safe_divide(products, jnp.where(exists, freedom, 0)), exists
