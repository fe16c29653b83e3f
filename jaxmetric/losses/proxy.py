"""Losses against learned class vectors: each scores every class and ends in one softmax cross entropy.

`class_cross_entropy` is what they share; a named loss is the way in which it scores the classes.
"""

import jax
import jax.numpy as jnp

from jaxmetric.distances import pairwise_dot_product
from jaxmetric.losses import checks
from jaxmetric.losses.reduction import LossResult, reduce_each
from jaxmetric.numerics import safe_normalize


def normalized_softmax_loss(
    embeddings: jax.Array,
    labels: jax.Array,
    proxies: jax.Array,
    *,
    scale: float = 20.0,
    margin: float = 0.0,
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
      labels: `[B]` or `[B, 1]` integers in [0, C).
      proxies: `[C, D]` class vectors, normalised here.
      scale: lambda > 0, the inverse temperature.
      margin: delta, taken off the similarity to the right class.
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
      >>> import jax.numpy as jnp
      >>> loss = normalized_softmax_loss(jnp.eye(2), jnp.array([0, 1]), 5 * jnp.eye(2), scale=1.0)
      >>> round(float(loss), 4)  # log(1 + exp(-1))
      0.3133

    References:
      A. Zhai, H.-Y. Wu, Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019, arXiv 1811.12649.
    """
    embeddings, labels, proxies, weights = check_class_vectors(
        embeddings, labels, proxies, where, weights, name="proxies", num_axes=2
    )
    scores = pairwise_dot_product(embeddings, safe_normalize(proxies))
    losses = class_cross_entropy(scores, labels, scale=scale, margin=margin)
    loss, stats = reduce_each(losses, weights, reduction)
    return (loss, stats) if has_aux else loss


def class_cross_entropy(scores: jax.Array, labels: jax.Array, *, scale: float, margin: float) -> jax.Array:
    """Cross entropy of softmax(scale (scores - margin [c = y])) for `[B, C]` scores and `[B]` labels: `[B]`."""
    checks.check_scalar("scale", scale, above=0)
    checks.check_scalar("margin", margin)
    return _class_cross_entropy(scores, labels, scale, margin)


@jax.jit
def _class_cross_entropy(scores: jax.Array, labels: jax.Array, scale: float, margin: float) -> jax.Array:
    right = labels[:, None] == jnp.arange(scores.shape[1])[None, :]
    right_score = jnp.sum(jnp.where(right, scores, 0), axis=1, keepdims=True)
    # Relative to the right class, whose own logit is then exactly 0: small losses keep their digits.
    logits = jnp.where(right, 0, scale * (scores - right_score + margin))
    losses = jax.nn.logsumexp(logits, axis=1)
    return jnp.where((labels >= 0) & (labels < scores.shape[1]), losses, jnp.nan)


def check_class_vectors(
    embeddings: jax.Array,
    labels: jax.Array,
    vectors: jax.Array,
    where: jax.Array | None,
    weights: jax.Array | None,
    *,
    name: str,
    num_axes: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Checks the arguments of a class-vector loss and neutralises masked rows.

    Args:
      embeddings: see the loss.
      labels: see the loss.
      vectors: the class vectors.
      where: see the loss.
      weights: see the loss.
      name: what the loss calls the class vectors.
      num_axes: 2 for `[C, D]` proxies, 3 for `[C, K, D]` centres.

    Returns:
      Embeddings, labels `[B]`, class vectors and weights `[B]`; a masked example has a zero embedding and label 0.
    """
    embeddings = checks.check_embeddings(embeddings)
    labels = checks.check_class_labels(embeddings, labels)
    weights = checks.example_weights(embeddings, where, weights)
    vectors = checks.check_class_parameters(name, vectors, num_axes)
    if vectors.shape[-1] != embeddings.shape[1]:
        raise ValueError(f"{name} has shape {vectors.shape}, expected last axis {embeddings.shape[1]} as embeddings")
    labels = jnp.where(weights > 0, labels, 0)
    if not isinstance(labels, jax.core.Tracer) and labels.size:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= vectors.shape[0]:
            raise ValueError(f"labels span [{low}, {high}], expected classes in [0, {vectors.shape[0]}) as {name}")
    return checks.leave_out(embeddings, weights), labels, vectors, weights
