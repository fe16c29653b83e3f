"""Samples the classes of a step: those of the batch, and others at random."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.agreement import known_labels
from jaxmetric.losses._engine.class_shard import axis_size, shard_size


class SampledClasses(NamedTuple):
    """Classes to compute a loss over.

    Attributes:
      rows: `[num_sampled]`, ascending: the class vectors to take; with shards, `[num_sampled / N]` rows per device.
      labels: `[B]`: the index of each example's class among the sampled vectors of all devices; -1 for a label that is
        not a class.
    """

    rows: jax.Array
    labels: jax.Array


def sample_classes(
    key: jax.Array,
    labels: ArrayLike,
    num_classes: int,
    num_sampled: int,
    *,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> SampledClasses:
    """Draws `num_sampled` classes for a step: those of the batch, and others uniformly at random.

    Every loss with class vectors accepts the result: `loss(embeddings, sampled.labels, centers[sampled.rows])` takes
    the time and memory of `num_sampled` classes (Partial FC). Its value is that of a problem with fewer classes, lower
    than with all classes. Only the vectors of sampled classes have a gradient.

    With shards, every device draws `num_sampled / N` of its own classes. A loss then takes
    `ClassShard(vectors[sampled.rows], axis_name=axis_name, num_classes=num_sampled)`.

    Args:
      key: a `jax.random` key, the same on all devices.
      labels: `[B]` or `[B, 1]` integers in [0, C) of the global batch. With several columns, sample for one at a time.
      num_classes: C, static.
      num_sampled: static; a multiple of N, or all C. Every class of the batch is included: each device must draw at
        least B classes, or all that it holds.
      where: `[B]` booleans: which examples are valid. The classes of the other examples need not be included.
      axis_name: the mapped axis over which the classes are sharded, see `ClassShard`.

    Returns:
      The rows, and the labels as indices of the sampled classes.

    Raises:
      ValueError: if `num_sampled` is invalid, a shape does not fit, or a concrete label is out of range.
      TypeError: if a dtype is not the one above, or a number is not static.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmetric
      >>> sampled = sample_classes(jax.random.key(0), jnp.array([70, 5, 70]), num_classes=100, num_sampled=10)
      >>> sampled.rows.shape, sampled.rows[sampled.labels].tolist()
      ((10,), [70, 5, 70])
      >>> embeddings, centers = jnp.ones((3, 8)), jaxmetric.init_centers(jax.random.key(1), 100, 2, 8)
      >>> loss = jaxmetric.soft_triple_loss(embeddings, sampled.labels, centers[sampled.rows])

    References:
      X. An, X. Zhu, Y. Gao, Y. Xiao, Y. Zhao, Z. Feng, L. Wu, B. Qin, M. Zhang, D. Zhang, Y. Fu, Partial FC: Training
      10 Million Identities on a Single Machine, ICCV Workshops 2021. X. An, J. Deng, J. Guo, Z. Feng, X. Zhu, J. Yang,
      T. Liu, Killing Two Birds with One Stone: Efficient and Robust Training of Face Recognition CNNs by Partial FC,
      CVPR 2022.
    """
    labels, where = _check_labels(labels, where, num_classes)
    devices = 1 if axis_name is None else axis_size(axis_name)
    count = _check_count(num_sampled, num_classes, devices, labels.size)
    size, device = shard_size(num_classes, devices), 0 if axis_name is None else jax.lax.axis_index(axis_name)
    if axis_name is not None:
        key = jax.random.fold_in(key, device)
    row = labels - device * size
    is_here = (row >= 0) & (row < size) & (labels < num_classes)
    is_padding = device * size + jnp.arange(size) >= num_classes
    rows = _draw(key, jnp.where(is_here & where, row, size), is_padding, count)
    place = jnp.clip(jnp.searchsorted(rows, row), 0, count - 1)
    # Counted from 1, so that the sum over devices is 0 if no device has drawn the class.
    order = jnp.where(is_here & (rows[place] == row), device * count + place + 1, 0)
    return SampledClasses(rows, (order if axis_name is None else jax.lax.psum(order, axis_name)) - 1)


def _draw(key: jax.Array, kept: jax.Array, is_padding: jax.Array, count: int) -> jax.Array:
    """Draws `[count]` rows, in ascending order: all in `kept`, then random others, then padding if needed."""
    rank = jnp.where(is_padding, -1, jax.random.uniform(key, is_padding.shape, jnp.float32))
    rank = rank.at[kept].set(1, mode="drop")
    return jnp.sort(jax.lax.top_k(rank, count)[1])


def _check_labels(labels: ArrayLike, where: ArrayLike | None, num_classes: int) -> tuple[jax.Array, jax.Array]:
    num_classes = checks.check_static_integer("num_classes", num_classes, least=1)
    columns, valid = known_labels(labels, where)
    if columns.shape[1] != 1:
        raise ValueError(f"labels has shape {columns.shape}, expected one column, [B] or [B, 1]")
    checks.check_class_range(columns, valid, num_classes, "num_classes says")
    column = columns[:, 0]
    return column, valid[:, 0]


def _check_count(num_sampled: int, num_classes: int, devices: int, batch: int) -> int:
    """Returns the number of classes that each device draws."""
    num_sampled = checks.check_static_integer("num_sampled", num_sampled, least=1)
    size = shard_size(num_classes, devices)
    if num_sampled == num_classes:
        return size
    # The last device holds the fewest classes, but may hold as many of the batch's as any other.
    least, most = devices * min(batch, size), devices * max(num_classes - (devices - 1) * size, 0)
    if num_sampled % devices or not least <= num_sampled <= most:
        numbers = "a number" if devices == 1 else f"a multiple of {devices}"
        between = f"{numbers} from {least} to {most}" if least < most else f"{least}"
        some = f"{between}, or " if least <= most and least < num_classes else ""
        holders = "" if devices == 1 else f" by each of {devices} devices, which hold up to {size} classes"
        raise ValueError(
            f"num_sampled is {num_sampled}, expected {some}all {num_classes}: what a batch of {batch} has is kept"
            f"{holders}"
        )
    return num_sampled // devices
