"""Cross-batch memory: the embeddings of past batches as additional references for the next batch.

`init` creates an empty memory, `update` replaces the oldest examples by a batch, and `as_references` returns the
`references=` of a loss:

    references = as_references(memory, embeddings, labels)
    loss = contrastive_loss(embeddings, labels, references=references)
    memory = update(memory, embeddings, labels)

A memory is a plain tuple of arrays of fixed shapes. It works with `jit`, `scan` and checkpoints, and its buffers can be
donated. With several devices, add the gathered batch, so that every device has the same memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxmetric import _checks as checks
from jaxmetric.agreement import known_labels
from jaxmetric.numerics import as_float, replicated, sharded_like
from jaxmetric.references import References


class Memory(NamedTuple):
    """The newest examples, in a ring buffer.

    Attributes:
      embeddings: `[M, D]`.
      labels: `[M]` or `[M, T]` int32.
      where: booleans of the shape of the labels: which are filled and valid.
      position: the row of the next example, an int32 scalar.
    """

    embeddings: jax.Array
    labels: jax.Array
    where: jax.Array
    position: jax.Array


def init(size: int, dim: int, *, num_labels: int | None = None, dtype: jax.typing.DTypeLike = jnp.float32) -> Memory:
    """Returns an empty memory.

    Args:
      size: M >= 1, the number of examples that it holds.
      dim: D >= 1.
      num_labels: T >= 1 if the labels are `[B, T]`; None if they are `[B]`.
      dtype: the dtype of the embeddings.

    Raises:
      ValueError: if a size is below 1.
      TypeError: if a size is not a static integer, or `dtype` not a floating-point one.

    Example:
      >>> memory = init(4096, 128)
      >>> memory.embeddings.shape, memory.labels.shape, int(memory.where.sum())
      ((4096, 128), (4096,), 0)
    """
    size = checks.check_static_integer("size", size, least=1)
    dim = checks.check_static_integer("dim", dim, least=1)
    shape: tuple[int, ...] = (size,)
    if num_labels is not None:
        shape = size, checks.check_static_integer("num_labels", num_labels, least=1)
    checks.check_floating_dtype("dtype", dtype)
    return Memory(
        jnp.zeros((size, dim), dtype),
        jnp.zeros(shape, checks.label_dtype()),
        jnp.zeros(shape, bool),
        jnp.zeros((), jnp.int32),
    )


def update(memory: Memory, embeddings: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None) -> Memory:
    """Replaces the oldest examples by a batch.

    Args:
      memory: a memory of M examples.
      embeddings: `[B, D]` floats, detached here. If the batch is larger than the memory, its last M rows are kept.
      labels: `[B]`, or `[B, T]` if the memory was created for it, integers of at most 32 bits.
      where: `[B]` booleans, or `[B, T]` for single missing labels. Examples without a valid label are skipped, as if
        they had been deleted.

    Returns:
      The new memory.

    Raises:
      ValueError: if a shape does not fit the memory.
      TypeError: if a dtype is not the one above.

    Example:
      >>> import jax.numpy as jnp
      >>> memory = init(3, 1)
      >>> memory = update(memory, jnp.array([[1.0], [2.0]]), jnp.array([7, 8]))
      >>> memory = update(memory, jnp.array([[3.0], [4.0]]), jnp.array([9, 7]))  # 4 goes where 1 was
      >>> memory.embeddings[:, 0].tolist(), memory.labels.tolist()
      ([4.0, 2.0, 3.0], [7, 8, 9])

    References:
      X. Wang, H. Zhang, W. Huang, M. R. Scott, Cross-Batch Memory for Embedding Learning, CVPR 2020.
    """
    return _put_in(memory, *_check(memory, embeddings, labels, where))


def as_references(
    memory: Memory,
    embeddings: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> References:
    """Returns the memory as references, preceded by the batch itself if that is given.

    Args:
      memory: a memory of M examples; unfilled rows are not valid. A batch that is given must not be in it yet.
      embeddings: `[B, D]`; gradients flow through them.
      labels: `[B]`, or `[B, T]` if the memory was created for it.
      where: `[B]` or `[B, T]` booleans: which examples or labels of the batch are valid.
      weights: `[B]` weights of the batch; the examples of the memory have weight 1.

    Returns:
      References of M rows, or of B + M rows in which `own` is the row of each example of the batch.

    Raises:
      ValueError: if a shape does not fit the memory, or only a part of the batch is given.
      TypeError: if a dtype does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> memory = update(init(3, 1), jnp.array([[1.0], [2.0]]), jnp.array([7, 8]))
      >>> references = as_references(memory, jnp.array([[5.0]]), jnp.array([7]))
      >>> references.labels.tolist(), references.where.tolist(), references.own.tolist()
      ([7, 7, 8, 0], [True, True, True, False], [0])
    """
    if all(part is None for part in (embeddings, labels, where, weights)):
        return References(memory.embeddings, memory.labels, memory.where)
    memory = jax.tree.map(replicated, memory)
    if embeddings is None or labels is None:
        name = "embeddings" if embeddings is None else "labels"
        raise ValueError(f"{name} is None, expected that of the batch, or nothing of the batch at all")
    embeddings, columns, known = _check(memory, embeddings, labels, where)
    if weights is not None:
        weights = as_float(checks.check_array("weights", weights, "numbers"))
        if weights.shape != columns.shape[:1]:
            raise ValueError(f"weights has shape {weights.shape}, expected {columns.shape[:1]} as embeddings")
        weights = _joined(weights, jnp.ones(memory.labels.shape[0], weights.dtype))
    return References(
        _joined(embeddings, memory.embeddings.astype(embeddings.dtype)),
        _joined(columns, memory.labels),
        _joined(known, memory.where),
        weights,
        jnp.arange(columns.shape[0]),
    )


@jax.jit
def _put_in(memory: Memory, embeddings: jax.Array, columns: jax.Array, known: jax.Array) -> Memory:
    size = memory.labels.shape[0]
    valid = jnp.any(known, axis=1)
    count = jnp.sum(valid, dtype=jnp.int32)
    order = jnp.cumsum(valid, dtype=jnp.int32) - 1
    stays = valid & (order >= count - size)
    row = jnp.where(stays, (memory.position + order) % size, size)  # rows out of range are dropped

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        new = new.reshape(-1, *old.shape[1:]).astype(old.dtype)
        return sharded_like(old, replicated(old).at[row].set(new, mode="drop"))

    return Memory(
        put(memory.embeddings, jax.lax.stop_gradient(embeddings)),
        put(memory.labels, columns),
        put(memory.where, known),
        (memory.position + count) % size,
    )


def _joined(batch: jax.Array, rest: jax.Array) -> jax.Array:
    return jnp.concatenate([batch.reshape(-1, *rest.shape[1:]), rest])


def _check(
    memory: Memory, embeddings: ArrayLike, labels: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the embeddings, the labels as `[B, T]` and which of them are valid."""
    embeddings = checks.check_embeddings(embeddings)
    if embeddings.shape[1] != memory.embeddings.shape[1]:
        raise ValueError(
            f"embeddings has shape {embeddings.shape}, expected [B, {memory.embeddings.shape[1]}] as the memory"
        )
    columns, known = known_labels(labels, where)
    if columns.dtype != memory.labels.dtype:
        raise TypeError(f"labels has dtype {columns.dtype}, expected {memory.labels.dtype} as the memory")
    expected = (embeddings.shape[0], *memory.labels.shape[1:])
    if columns.shape != (expected if len(expected) == 2 else (*expected, 1)):
        raise ValueError(f"labels has shape {np.shape(labels)}, expected {expected} as embeddings and the memory")
    return embeddings, columns, known
