"""Classes that are sharded over devices: each device holds some class vectors and passes them as a `ClassShard`.

`psum_over_shards` adds up values that each device computes from its own classes. The gradients follow the convention of
`jaxmetric.parallel`: the sum of the losses of all N devices is differentiated, so the transpose of every sum over
devices is a sum over devices. The average over devices of the gradients of replicated parameters is the gradient of the
loss. The gradients of the class vectors, to which no other device contributes, are N times as large. Inside `shard_map`
with `check_vma=True`, both are N times as large. Differentiating the average of the loss over devices gives the right
gradients there.
"""

import contextlib
import dataclasses
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from jaxmetric import _checks as checks


@partial(jax.tree_util.register_dataclass, data_fields=["vectors"], meta_fields=["axis_name", "num_classes"])
@dataclasses.dataclass(frozen=True)
class ClassShard:
    """The class vectors that one of N devices holds; use it as the `centers` or `proxies` of a loss.

    Device d holds the classes [d S, (d + 1) S) with S = ceil(num_classes / N). Inside `pmap`, `shard_map` or `vmap`
    over the axis, pass the embeddings and labels of the global batch. A loss then returns the same value as with all
    class vectors, equal on all devices. Labels and `class_weights` refer to all classes.

    The gradient with respect to `vectors` is N times that of the loss: divide it by N, and average the gradients of
    replicated parameters over devices. Inside `shard_map` with `check_vma=True`, its default, differentiate the `pmean`
    of the loss instead. All gradients are then those of the loss. The guide shows a whole step.

    Attributes:
      vectors: `[S, D]` or `[S, K, D]`. Rows of classes >= num_classes are padding: they are ignored and have gradient
        zero.
      axis_name: the name of the mapped axis.
      num_classes: C, on all devices together; static.

    Example:
      >>> import jax, jaxmetric
      >>> centers = jaxmetric.init_centers(jax.random.key(0), num_classes=6, centers_per_class=2, dim=4)
      >>> embeddings, labels = centers[:, 0], jax.numpy.arange(6)
      >>> def on_device(vectors):
      ...     shard = jaxmetric.ClassShard(vectors, axis_name="devices", num_classes=6)
      ...     return jaxmetric.soft_triple_loss(embeddings, labels, shard)
      >>> losses = jax.vmap(on_device, axis_name="devices")(centers.reshape(3, 2, 2, 4))  # on three devices
      >>> jax.numpy.allclose(losses, jaxmetric.soft_triple_loss(embeddings, labels, centers)).item()
      True
    """

    vectors: jax.Array
    axis_name: str
    num_classes: int


# The vectors of all classes, or a shard of them.
ClassVectors: TypeAlias = jax.Array | ClassShard


def check_class_vectors(name: str, vectors: Any, num_axes: int, dim: int | None = None) -> ClassVectors:
    """Returns class vectors `[C, D]` or (with three axes) `[C, K, D]`, or a shard of them, in float32 (or float64)."""
    is_shard = isinstance(vectors, ClassShard)
    array = vectors.vectors if is_shard else vectors
    rows = checks.check_class_parameters(f"{name}.vectors" if is_shard else name, array, num_axes)
    if is_shard:
        num_classes = checks.check_static_integer(f"{name}.num_classes", vectors.num_classes, least=1)
        devices = axis_size(vectors.axis_name, f"{name}.axis_name")
        if rows.shape[0] != shard_size(num_classes, devices):
            raise ValueError(
                f"{name}.vectors has {rows.shape[0]} rows, expected {shard_size(num_classes, devices)}: {num_classes} "
                f"classes over {devices} devices"
            )
    if dim is not None and rows.shape[-1] != dim:
        raise ValueError(f"{name} has shape {rows.shape}, expected last axis {dim} as embeddings")
    return dataclasses.replace(vectors, vectors=rows) if is_shard else rows


def axis_size(axis_name: str, name: str = "axis_name") -> int:
    """Returns the number of devices of a mapped axis; raises ValueError if it is not mapped."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    if all(isinstance(each, str) for each in names):  # JAX would take an integer for the axis of an array
        with contextlib.suppress(NameError):
            return jax.lax.axis_size(axis_name)
    raise ValueError(f"{name} is {checks.shown(axis_name)}, expected an axis of the pmap, shard_map or vmap around it")


def shard_size(num_classes: int, devices: int) -> int:
    """Returns S = ceil(C / N)."""
    return -(-num_classes // devices)


def count_classes(classes: ClassVectors) -> int:
    """Returns C, the number of classes on all devices."""
    return classes.num_classes if isinstance(classes, ClassShard) else classes.shape[0]


def local_vectors(classes: ClassVectors) -> jax.Array:
    """Returns the vectors on this device: all of them, or `[S, ...]` of a shard."""
    return classes.vectors if isinstance(classes, ClassShard) else classes


def replace_vectors(classes: ClassVectors, rows: jax.Array) -> ClassVectors:
    """Returns the classes with the vectors on this device replaced by other rows."""
    return dataclasses.replace(classes, vectors=rows) if isinstance(classes, ClassShard) else rows


def first_local_class(classes: ClassVectors) -> Any:
    """Returns the class of the first vector on this device."""
    if not isinstance(classes, ClassShard):
        return 0
    return jax.lax.axis_index(classes.axis_name) * classes.vectors.shape[0]


def real_classes(classes: ClassVectors, index: jax.Array) -> jax.Array:
    """Returns which rows at `index`, numbered over all devices, are classes instead of padding."""
    return index < count_classes(classes) if _has_padding(classes) else jnp.ones(index.shape, bool)


def zero_padding(classes: ClassVectors, rows: jax.Array, index: jax.Array) -> jax.Array:
    """Returns the rows at `index` with padding set to zero, so that it never affects the loss."""
    return _masked_rows(real_classes(classes, index), rows) if _has_padding(classes) else rows


def psum_over_shards(classes: ClassVectors, tree: Any) -> Any:
    """Returns the sum over devices of values from each device's own classes; the tree itself without shards."""
    return jax.lax.psum(tree, classes.axis_name) if isinstance(classes, ClassShard) else tree


def gather_class_rows(classes: ClassVectors, labels: jax.Array) -> jax.Array:
    """Gathers the row `[B, ...]` of each example's class. Rows for labels outside `[0, C)` are undefined."""
    rows = local_vectors(classes)
    row = labels - first_local_class(classes)
    gathered = rows[jnp.clip(row, 0, rows.shape[0] - 1)]
    if not isinstance(classes, ClassShard):
        return gathered
    is_here = (row >= 0) & (row < rows.shape[0]) & real_classes(classes, labels)
    return psum_over_shards(classes, _masked_rows(is_here, gathered))


def _has_padding(classes: ClassVectors) -> bool:
    if not isinstance(classes, ClassShard):
        return False
    return axis_size(classes.axis_name) * classes.vectors.shape[0] > classes.num_classes


def _masked_rows(where: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.where(where.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)
