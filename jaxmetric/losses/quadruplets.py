"""The quadruplet loss of Proença et al.: pairs that agree on more labels should be closer than others.

For two pairs of examples with disagreements phi(i, j) < phi(p, q) the loss is

    relu(|f_i - f_j|^2 - |f_p - f_q|^2 + alpha).

`quadruplet_hinge` is that formula for four examples. `sampled_quadruplet_loss` averages it over random quadruplets, as
the paper does. `quadruplet_loss` averages it over all quadruplets of the batch, exactly, by sorting the pairs
(`jaxmetric.losses._engine.ordered_hinge`). `anchored_quadruplet_loss` is for batches with too many pairs to sort: it
compares a few anchors with the whole batch, and is unbiased.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.agreement import Disagreement, PairLevels, check_disagreement, disagreement_levels, known_labels
from jaxmetric.distances import pairwise_squared_euclidean
from jaxmetric.losses._engine.anchored_pairs import anchored_stats, draw_anchors
from jaxmetric.losses._engine.class_shard import axis_size
from jaxmetric.losses._engine.comparison import Examples, MaskedExamples, check_examples, masked_examples
from jaxmetric.losses._engine.ordered_hinge import level_sums, ordered_hinge
from jaxmetric.losses._engine.quadruplet_sampling import all_pairs, pair_values, sample_ordered
from jaxmetric.losses._engine.reduction import LossResult, LossStats, each_anchor, reduce_anchors, reduce_stats
from jaxmetric.losses._engine.types import (
    Agreement,
    Balance,
    LabelColumns,
    Reduction,
    ReductionToScalar,
    ScalarLike,
)
from jaxmetric.numerics import safe_divide


def quadruplet_loss(
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    margin: ScalarLike = 0.1,
    agreement: Agreement = "count",
    self_pairs: bool = False,
    balance: Balance = "quadruplets",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | None] | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The quadruplet loss over all quadruplets of a batch.

    The mean of :math:`[\,|f_i - f_j|^2 - |f_p - f_q|^2 + \alpha\,]_+` over all pairs of distinct pairs of examples with
    :math:`\phi(i, j) < \phi(p, q)`, phi the number of labels on which two examples disagree. Value and gradient are
    exact. They take O(P log P) time and O(P) memory for the P = B (B - 1) / 2 pairs of the batch. Beyond B = 5,793 the
    counts of violations exceed 2^24 and are rounded to float32. The gradient is a `custom_vjp`, so forward-mode
    differentiation (`jax.jvp`) is not defined.

    If labels are missing, the disagreement of a pair is an interval: from the known disagreements to those plus the
    unknown columns. A pair comes before another only if its largest disagreement is below the other's smallest.

    Args:
      embeddings: `[B, D]` floats. They need not be normalized.
      labels: `[B]` or `[B, T]` integers.
      margin: alpha, in squared distance.
      agreement: `"count"` orders pairs by how many labels agree. `"any"` only orders pairs that agree on all labels
        before the others, as in the code published with the paper.
      self_pairs: whether to include the pairs (i, i), as that code does. It enumerates ordered pairs, so (i, i) occurs
        once and (i, j) twice. Here (i, i) has the weight one half: the mean equals that code's mean, and the sum is an
        eighth of its sum.
      balance: `"quadruplets"` gives every quadruplet the same weight. `"levels"` gives every pair of different levels
        of disagreement the same weight, so that frequent coarse levels do not outweigh the fine ones.
      label_weights: T static weights > 0 of the columns of labels; 1 if None.
      ordinal: T static entries: 0 or None for a categorical column, and the largest possible |a - b| for an ordinal
        one, whose disagreement is |a - b|.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. The weight of a pair is the
        product of its members' weights, and that of a quadruplet the product of its pairs' weights.
      reduction: `"mean"`, `"mean_active"` or `"sum"`. `"mean_active"` is over quadruplets with a positive loss.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0; 0, with zero gradients, if no quadruplet of the batch has two different disagreements.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[0.0], [0.2], [0.5]])
      >>> labels = jnp.array([[7, 0], [7, 1], [4, 1]])  # identity, gender
      >>> loss, stats = quadruplet_loss(embeddings, labels, margin=0.1, has_aux=True)
      >>> round(float(loss), 6)  # relu(.04-.25+.1), relu(.09-.25+.1): both pairs that agree on one label are closer
      0.0
      >>> float(stats.valid), float(stats.active)
      (2.0, 0.0)

    References:
      H. Proença, E. Yaghoubi, P. Alirezazadeh, A Quadruplet Loss for Enforcing Semantically Coherent Embeddings in
      Multi-output Classification Problems, IEEE TIFS 2020, arXiv 2002.11644.
    """
    checks.check_result(reduction, has_aux, unreduced=False)
    margin = checks.check_scalar("margin", margin)
    checks.check_choice("balance", balance, get_args(Balance))
    checks.check_flag("self_pairs", self_pairs)
    examples = check_examples(embeddings, labels, where, weights, multi_output=True)
    disagreement = check_disagreement(examples.labels.shape[1], agreement, label_weights, ordinal)
    loss, stats = _quadruplet(
        examples, margin, disagreement=disagreement, self_pairs=self_pairs, balance=balance, reduction=reduction
    )
    return (loss, stats) if has_aux else loss


@partial(jax.jit, static_argnames=("disagreement", "self_pairs", "balance", "reduction"))
def _quadruplet(
    examples: Examples,
    margin: ScalarLike,
    *,
    disagreement: Disagreement,
    self_pairs: bool,
    balance: str,
    reduction: str,
) -> tuple[jax.Array, LossStats]:
    batch = masked_examples(examples)
    lower, upper, num_levels = _pair_levels(batch, disagreement)
    pair_weights = _pair_weights(batch)
    distances = pair_values(pairwise_squared_euclidean(batch.embeddings))
    if self_pairs:  # at distance 0, on level 0
        distances, lower, upper = (jnp.pad(x, (0, batch.size)) for x in (distances, lower, upper))
        pair_weights = jnp.append(pair_weights, jnp.square(batch.weights) / 2)
    near_weights = far_weights = pair_weights
    if balance == "levels":
        near_weights = _share_of_level(pair_weights, upper, num_levels)
        far_weights = _share_of_level(pair_weights, lower, num_levels)
    sums = ordered_hinge(distances, lower, upper, near_weights, far_weights, margin=margin, num_levels=num_levels)
    stats = LossStats(*sums)
    return reduce_stats(stats, reduction), stats


def _share_of_level(weights: jax.Array, levels: jax.Array, num_levels: int) -> jax.Array:
    """Returns the weights divided by the sum over their level, so that each level sums to 1."""
    return safe_divide(weights, level_sums(weights, levels, num_levels)[levels])


def sampled_quadruplet_loss(
    key: jax.Array,
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    num_quadruplets: int,
    margin: ScalarLike = 0.1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: Reduction = "mean",
    has_aux: bool = False,
) -> LossResult:
    """The paper's estimator: the mean of `quadruplet_hinge` over random quadruplets of different phi.

    The quadruplets are drawn uniformly, with replacement, from those over which `quadruplet_loss` averages, so the
    expectation is that loss. Every draw is a valid quadruplet, however rare these are in the batch.

    Args:
      key: a `jax.random` key.
      embeddings: `[B, D]` floats.
      labels: `[B]` or `[B, T]` integers.
      num_quadruplets: how many to draw, static, at least 1.
      margin: alpha, in squared distance.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None. An example with
        a missing label is not drawn; `quadruplet_loss` uses its other labels.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. Quadruplets are drawn in
        proportion to the product of their pairs' weights.
      reduction: `"mean"`, `"mean_active"`, `"sum"` or `"none"`. The last returns one value for each quadruplet.
      has_aux: whether to return `(loss, LossStats)`.

    Returns:
      The scalar loss >= 0 (or `[num_quadruplets]` losses); 0 if the batch has no valid quadruplet.

    Raises:
      ValueError: if a shape does not fit or an option is unknown.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax
      >>> embeddings = jax.random.normal(jax.random.key(0), (8, 4))
      >>> labels = jax.numpy.arange(8)[:, None] // jax.numpy.array([1, 2, 4])
      >>> exact = quadruplet_loss(embeddings, labels)
      >>> sampled = sampled_quadruplet_loss(jax.random.key(1), embeddings, labels, num_quadruplets=20_000)
      >>> bool(abs(sampled - exact) < 0.05 * exact)
      True

    References:
      H. Proença, E. Yaghoubi, P. Alirezazadeh, A Quadruplet Loss for Enforcing Semantically Coherent Embeddings in
      Multi-output Classification Problems, IEEE TIFS 2020, arXiv 2002.11644.
    """
    checks.check_result(reduction, has_aux, unreduced=True)
    margin = checks.check_scalar("margin", margin)
    num_quadruplets = checks.check_static_integer("num_quadruplets", num_quadruplets, least=1)
    examples = _check_complete_examples(embeddings, labels, where, weights)
    loss, stats = _sampled_quadruplet(key, examples, margin, num_quadruplets=num_quadruplets, reduction=reduction)
    return (loss, stats) if has_aux else loss


def _check_complete_examples(embeddings: ArrayLike, labels: ArrayLike, where: Any, weights: Any) -> Examples:
    """Checks the arrays of a loss that skips examples with a missing label."""
    examples = check_examples(embeddings, labels, where, None, multi_output=True)
    complete = None if examples.where is None else jnp.all(examples.where, axis=1)
    _, weights = checks.check_mask_and_weights(examples.embeddings, complete, weights)
    return examples._replace(where=None if complete is None else complete[:, None], weights=weights)


@partial(jax.jit, static_argnames=("num_quadruplets", "reduction"))
def _sampled_quadruplet(
    key: jax.Array, examples: Examples, margin: ScalarLike, *, num_quadruplets: int, reduction: str
) -> tuple[jax.Array, LossStats]:
    batch = masked_examples(examples)
    if batch.size < 2:
        losses = weights = jnp.zeros(num_quadruplets, batch.embeddings.dtype)
    else:
        losses, weights = _drawn_losses(key, batch, margin, num_quadruplets)
        # A NaN weight might never be drawn; adding `0 * sum(weights)` keeps it visible.
        losses += 0 * jnp.sum(batch.weights)
    return reduce_anchors(each_anchor(losses, weights), reduction)


def _drawn_losses(
    key: jax.Array, batch: MaskedExamples, margin: ScalarLike, num_quadruplets: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the losses of the drawn quadruplets, and their weights: 1, or 0 if the batch has no valid quadruplet."""
    embeddings, labels = batch.embeddings, batch.labels
    pairs = all_pairs(batch.size)
    levels = _pair_levels(batch, Disagreement())
    near, far, exists = sample_ordered(
        key,
        levels.lower,
        levels.upper,
        _pair_weights(batch),
        num_samples=num_quadruplets,
        num_levels=levels.num_levels,
    )
    quadruplets = jnp.stack([pairs.first[near], pairs.second[near], pairs.first[far], pairs.second[far]], axis=1)
    losses = jax.vmap(lambda four: quadruplet_hinge(embeddings[four], labels[four], margin=margin))(quadruplets)
    return losses, jnp.broadcast_to(exists, losses.shape).astype(losses.dtype)


def anchored_quadruplet_loss(
    key: jax.Array,
    embeddings: ArrayLike,
    labels: LabelColumns,
    *,
    num_anchors: int,
    margin: ScalarLike = 0.1,
    agreement: Agreement = "count",
    balance: Balance = "quadruplets",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | None] | None = None,
    axis_name: str | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: ReductionToScalar = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""An unbiased estimate of the quadruplet loss, from the pairs of a few random anchors with the whole batch.

    Draws `num_anchors` examples uniformly, without replacement, and compares all pairs that contain one of them. The
    expectation of value and gradient over keys is that of `quadruplet_loss`, for `"mean"` and `"sum"`; `"mean_active"`
    is a ratio of two estimates. With as many anchors as valid examples it equals that loss. For A anchors it takes O(A
    B log(A B)) time and O(A B) memory, and O(B^2) time to count the pairs of each level of disagreement. Beyond A B =
    2^24 the counts of violations are rounded to float32.

    On N devices, in a step over the mapped axis `axis_name`, each device draws its own `num_anchors` anchors from the
    gathered batch, compares them with the batch and counts its share of the pairs. All devices return the same number,
    and the average of their gradients is the gradient of that number.

    Args:
      key: a `jax.random` key, the same on all devices.
      embeddings: `[B, D]` floats. They need not be normalized, and are the same on all devices.
      labels: `[B]` or `[B, T]` integers.
      num_anchors: A, per device, static; at least 2, and N A at most B.
      margin: alpha, in squared distance.
      agreement: as in `quadruplet_loss`, like the next arguments.
      balance: `"quadruplets"` or `"levels"`.
      label_weights: T static weights > 0 of the columns of labels; 1 if None.
      ordinal: T static entries: 0 or None for a categorical column, and the largest possible |a - b| for an ordinal
        one.
      axis_name: the mapped axis of the devices whose anchors are combined; None for one device.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid; all if None.
      weights: `[B]` weights >= 0 of the examples; 1 if None. No gradient flows into them. They do not affect the draw
        of anchors, except that a weight of 0 masks an example.
      reduction: `"mean"`, `"mean_active"` or `"sum"`.
      has_aux: whether to return `(loss, LossStats)`. `total` and `active` are estimates, `valid` is exact.

    Returns:
      The scalar loss >= 0; 0, with zero gradients, if no quadruplet of the batch has two different disagreements.

    Raises:
      ValueError: if a shape does not fit, an option is unknown or there are more anchors than examples.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax
      >>> from jaxmetric import quadruplet_loss
      >>> embeddings = jax.random.normal(jax.random.key(0), (8, 4))
      >>> labels = jax.numpy.arange(8)[:, None] // jax.numpy.array([1, 2, 4])
      >>> exact = quadruplet_loss(embeddings, labels)
      >>> keys = jax.random.split(jax.random.key(1), 1000)
      >>> losses = jax.vmap(lambda key: anchored_quadruplet_loss(key, embeddings, labels, num_anchors=3))(keys)
      >>> bool(abs(losses.mean() - exact) < 0.05 * exact)
      True

    References:
      H. Proença, E. Yaghoubi, P. Alirezazadeh, A Quadruplet Loss for Enforcing Semantically Coherent Embeddings in
      Multi-output Classification Problems, IEEE TIFS 2020, arXiv 2002.11644.
    """
    checks.check_result(reduction, has_aux, unreduced=False)
    margin = checks.check_scalar("margin", margin)
    checks.check_choice("balance", balance, get_args(Balance))
    num_anchors = checks.check_static_integer("num_anchors", num_anchors, least=2)
    if axis_name is not None:
        axis_size(axis_name)  # raises if it is not mapped
    examples = check_examples(embeddings, labels, where, weights, multi_output=True)
    disagreement = check_disagreement(examples.labels.shape[1], agreement, label_weights, ordinal)
    loss, stats = _anchored_quadruplet(
        key,
        examples,
        margin,
        num_anchors=num_anchors,
        disagreement=disagreement,
        balance=balance,
        axis_name=axis_name,
        reduction=reduction,
    )
    return (loss, stats) if has_aux else loss


@partial(jax.jit, static_argnames=("num_anchors", "disagreement", "balance", "axis_name", "reduction"))
def _anchored_quadruplet(
    key: jax.Array,
    examples: Examples,
    margin: ScalarLike,
    *,
    num_anchors: int,
    disagreement: Disagreement,
    balance: str,
    axis_name: str | None,
    reduction: str,
) -> tuple[jax.Array, LossStats]:
    batch = masked_examples(examples)
    if batch.size < 2:
        stats = LossStats(*jnp.zeros(3, batch.embeddings.dtype))
    else:
        anchors = draw_anchors(key, batch.weights > 0, num_anchors, axis_name)
        stats = anchored_stats(batch, anchors, margin, disagreement=disagreement, balance=balance, axis_name=axis_name)
    return reduce_stats(stats, reduction), stats


def quadruplet_hinge(embeddings4: ArrayLike, labels4: ArrayLike, *, margin: ScalarLike = 0.1) -> jax.Array:
    r"""Computes the quadruplet loss of four examples i, j, p, q; use `vmap` for many quadruplets.

    :math:`[\,|f_i - f_j|^2 - |f_p - f_q|^2 + \alpha\,]_+` if :math:`\phi(i, j) < \phi(p, q)`. If
    :math:`\phi(i, j) > \phi(p, q)`, the two pairs are exchanged. The loss is 0 if both pairs disagree on equally many
    labels.

    Args:
      embeddings4: `[4, D]` embeddings of i, j, p, q.
      labels4: `[4, T]` or `[4]` integer labels.
      margin: alpha, in squared distance.

    Returns:
      A scalar >= 0.

    Raises:
      ValueError: if a shape is not one of the above.
      TypeError: if a dtype is not.

    Example:
      >>> import jax.numpy as jnp
      >>> embeddings = jnp.array([[0.0], [1.0], [0.0], [0.5]])
      >>> labels = jnp.array([[7, 0], [7, 0], [7, 0], [4, 0]])  # (i, j) agree on both labels, (p, q) on one
      >>> round(float(quadruplet_hinge(embeddings, labels, margin=0.1)), 6)  # 1 - 0.25 + 0.1
      0.85

    References:
      H. Proença, E. Yaghoubi, P. Alirezazadeh, A Quadruplet Loss for Enforcing Semantically Coherent Embeddings in
      Multi-output Classification Problems, IEEE TIFS 2020, arXiv 2002.11644.
    """
    margin = checks.check_scalar("margin", margin)
    embeddings = checks.check_embeddings(embeddings4, "embeddings4")
    labels, _ = known_labels(labels4, None, "labels4")
    if embeddings.shape[0] != 4 or labels.shape[0] != 4:
        raise ValueError(
            f"embeddings4 and labels4 have {embeddings.shape[0]} and {labels.shape[0]} rows, expected 4 and 4"
        )
    (i, j, p, q), (y_i, y_j, y_p, y_q) = embeddings, labels
    phi_ij, phi_pq = jnp.sum(y_i != y_j), jnp.sum(y_p != y_q)
    difference = jnp.sum(jnp.square(i - j)) - jnp.sum(jnp.square(p - q))
    sign = jnp.sign(phi_pq - phi_ij).astype(difference.dtype)
    return jnp.where(sign == 0, 0, jax.nn.relu(sign * difference + margin))


def _pair_levels(batch: MaskedExamples, disagreement: Disagreement) -> PairLevels:
    lower, upper, num_levels = disagreement_levels(
        batch.labels[:, None],
        batch.labels[None],
        first_known=batch.known[:, None],
        second_known=batch.known[None],
        **disagreement._asdict(),
    )
    return PairLevels(pair_values(lower), pair_values(upper), num_levels)


def _pair_weights(batch: MaskedExamples) -> jax.Array:
    return pair_values(batch.weights[:, None] * batch.weights[None])
