"""The quadruplet loss of a batch with too many pairs to sort: a few anchors against all of it, exact in expectation.

Of n examples, m random ones are anchors; a pair is anchored by each of its members that is one. Two given examples both
are anchors with probability r = m (m - 1) / (n (n - 1)). A quadruplet of two pairs without a common example is anchored
in 4 ways, by one anchor of each pair, each with probability r. One whose pairs share an example is anchored in 3 such
ways, and once by the shared example alone, with the larger probability m / n. So, with H the sum of the hinges of all
couples of anchored pairs, and H_1 that of the couples with the same anchor,

    E[H - (n - m) / (n - 1) H_1] = 4 r times the sum over all quadruplets.

What this is divided by is no estimate: all pairs of the batch are counted, level by level of disagreement.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmetric import checks
from jaxmetric.agreement import PairLevels, disagreement_levels
from jaxmetric.distances import pairwise_squared_euclidean
from jaxmetric.losses.class_shard import axis_size
from jaxmetric.losses.quadruplet import BALANCES, Disagreement, LabelledBatch, check_disagreement, labelled_batch
from jaxmetric.losses.reduction import LossResult, LossStats, check_reduction, reduce_stats
from jaxmetric.numerics import safe_divide
from jaxmetric.ordering import level_sums, ordered_hinge, ordered_hinge_of_rows, ordered_weight


def anchored_quadruplet_loss(
    key: jax.Array,
    embeddings: jax.Array,
    labels: jax.Array,
    *,
    num_anchors: int,
    margin: float = 0.1,
    agreement: str = "count",
    balance: str = "quadruplets",
    label_weights: Sequence[float] | None = None,
    ordinal: Sequence[int | None] | None = None,
    axis_name: str | None = None,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduction: str = "mean",
    has_aux: bool = False,
) -> LossResult:
    r"""The quadruplet loss, estimated without bias from the pairs of a few random anchors with the whole batch.

    Draws `num_anchors` examples uniformly, without replacement, and compares all pairs that have one of them: its
    expectation over keys, value and gradient, is `quadruplet_loss` (`"mean"` and `"sum"`; `"mean_active"` is a ratio of
    two estimates), and with as many anchors as valid examples it is that loss. For A anchors it takes O(A B log(A B))
    time and O(A B) memory, and O(B^2) time to count the pairs of each level of disagreement; beyond A B = 2^24 the
    counts of violations are rounded to float32.

    On N devices, in a step over the mapped axis `axis_name`, each draws its own `num_anchors` of the gathered batch,
    compares them with it and counts its share of the pairs. All return the same number; a gradient averaged over
    devices is the gradient of that number.

    Args:
      key: a `jax.random` key, the same on all devices.
      embeddings: `[B, D]` floats, normalised or not, the same on all devices.
      labels: `[B]` or `[B, T]` integers.
      num_anchors: A, for each device, static; at least 2, and N A at most B.
      margin: alpha, in squared distance.
      agreement: as in `quadruplet_loss`, like all that follow.
      balance: `"quadruplets"` or `"levels"`.
      label_weights: T static weights > 0.
      ordinal: T static entries: 0 or None for a categorical column, for an ordinal one its largest |a - b|.
      axis_name: the mapped axis of devices whose anchors are taken together; None for one device.
      where: `[B]` or `[B, T]` booleans: which examples, or which single labels, are valid.
      weights: `[B]` example weights >= 0. They do not change which anchors are drawn, save that 0 is a mask.
      reduction: `"mean"`, `"mean_active"` or `"sum"`.
      has_aux: whether to return `(loss, LossStats)`; `total` and `active` are estimates, `valid` is exact.

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
    check_reduction(reduction)
    checks.check_scalar("margin", margin)
    checks.check_choice("balance", balance, BALANCES)
    checks.check_static_integer("num_anchors", num_anchors, least=2)
    batch = labelled_batch(embeddings, labels, where, weights)
    disagreement = check_disagreement(batch, agreement, label_weights, ordinal)
    if batch.size < 2:
        stats = LossStats(*jnp.zeros(3, batch.embeddings.dtype))
    else:
        anchors = _draw_anchors(key, batch.weights > 0, num_anchors, axis_name)
        stats = anchored_stats(batch, anchors, margin, disagreement=disagreement, balance=balance, axis_name=axis_name)
    loss = reduce_stats(stats, reduction)
    return (loss, stats) if has_aux else loss


def _draw_anchors(key: jax.Array, valid: jax.Array, num_anchors: int, axis_name: str | None) -> jax.Array:
    """Distinct examples, different ones on each device: uniformly drawn valid ones for as long as there are any."""
    device, devices = _place(axis_name)
    if num_anchors * devices > valid.size:
        raise ValueError(
            f"num_anchors is {num_anchors} on each of {devices} devices, expected at most {valid.size // devices}: "
            f"the batch has {valid.size} examples"
        )
    shuffled = jax.random.permutation(key, valid.size)
    valid_first = shuffled[jnp.argsort(~valid[shuffled], stable=True)]
    return jax.lax.dynamic_slice_in_dim(valid_first, device * num_anchors, num_anchors)


@partial(jax.jit, static_argnames=("disagreement", "balance", "axis_name"))
def anchored_stats(
    batch: LabelledBatch,
    anchors: jax.Array,
    margin: float,
    *,
    disagreement: Disagreement,
    balance: str,
    axis_name: str | None,
) -> LossStats:
    """What the pairs of the anchors `[A]` of this device, and of those of the others, say of a batch."""
    near_sums, far_sums = _sums_of_levels(batch, len(anchors), disagreement, axis_name)
    levels = _levels_of(batch, anchors, batch.labels, batch.known, disagreement)
    itself = anchors[:, None] == jnp.arange(batch.size)[None]
    pair_weights = jnp.where(itself, 0, batch.weights[anchors][:, None] * batch.weights[None])
    near_weights = far_weights = pair_weights
    if balance == "levels":
        near_weights = safe_divide(pair_weights, near_sums[levels.upper])
        far_weights = safe_divide(pair_weights, far_sums[levels.lower])
        near_sums, far_sums = safe_divide(near_sums, near_sums), safe_divide(far_sums, far_sums)

    distances = pairwise_squared_euclidean(batch.embeddings[anchors], batch.embeddings)
    anchored = (distances, levels.lower, levels.upper, near_weights, far_weights)
    every = ordered_hinge(*(each.reshape(-1) for each in anchored), margin=margin, num_levels=levels.num_levels)
    one_anchor = ordered_hinge_of_rows(*anchored, margin=margin, num_levels=levels.num_levels)

    m, n = (jnp.sum(weights > 0).astype(distances.dtype) for weights in (batch.weights[anchors], batch.weights))
    excess = safe_divide(n - m, n - 1)
    total, active, r = _over_devices(
        (
            every.total - excess * jnp.sum(one_anchor.total),
            every.active - excess * jnp.sum(one_anchor.active),
            safe_divide(m * (m - 1), n * (n - 1)),
        ),
        axis_name,
    )
    return LossStats(safe_divide(total, 4 * r), ordered_weight(near_sums, far_sums), safe_divide(active, 4 * r))


class _LevelSums(NamedTuple):
    """`[num_levels]`: the weight of the pairs on each level, which of an interval is the highest and the lowest."""

    near: jax.Array
    far: jax.Array


def _sums_of_levels(
    batch: LabelledBatch, num_rows: int, disagreement: Disagreement, axis_name: str | None
) -> _LevelSums:
    """Counts all pairs of the batch, each device every N-th row, a few rows at a time."""
    device, devices = _place(axis_name)
    # Each row with the half of the batch that follows it in a circle: of an even batch, the opposite row twice.
    half = batch.size // 2
    share = jnp.where(2 * jnp.arange(1, half + 1) == batch.size, 0.5, 1).astype(batch.weights.dtype)
    circle = [jnp.concatenate([x.T, x.T], axis=-1) for x in (batch.labels, batch.known, batch.weights)]

    def of_row(i: jax.Array) -> _LevelSums:
        labels, known, weights = (jax.lax.dynamic_slice_in_dim(x, i + 1, half, axis=-1).T for x in circle)
        levels = _levels_of(batch, i[None], labels, known, disagreement)
        weights = jnp.where(i < batch.size, batch.weights[i] * weights * share, 0)
        return _LevelSums(*(level_sums(weights, x[0], levels.num_levels) for x in (levels.upper, levels.lower)))

    rows = device + devices * jnp.arange(-(-batch.size // devices))
    of_rows = jax.lax.map(of_row, rows, batch_size=num_rows)
    return _LevelSums(*_over_devices([jnp.sum(x, axis=0) for x in of_rows], axis_name))


def _levels_of(
    batch: LabelledBatch, rows: jax.Array, labels: jax.Array, known: jax.Array, disagreement: Disagreement
) -> PairLevels:
    """The levels `[A, R]` of the pairs of A rows of the batch with R rows of labels."""
    return disagreement_levels(
        batch.labels[rows][:, None],
        labels[None],
        first_known=batch.known[rows][:, None],
        second_known=known[None],
        **disagreement._asdict(),
    )


def _place(axis_name: str | None) -> tuple[int | jax.Array, int]:
    """The number of this device, and how many there are."""
    if axis_name is None:
        return 0, 1
    devices = axis_size(axis_name)
    return jax.lax.axis_index(axis_name), devices


def _over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
