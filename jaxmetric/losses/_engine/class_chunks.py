"""Computes over many classes in chunks, so that memory holds one chunk's arrays besides the class vectors."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmetric.losses._engine.class_shard import (
    ClassVectors,
    first_local_class,
    local_vectors,
    real_classes,
    replace_vectors,
    zero_padding,
)

# Up to this many scores, C K B, all classes are scored at once. Beyond that, a chunk has CHUNK scores, which fit into a
# processor's cache.
WHOLE = 2**21
CHUNK = 2**19


class Chunk(NamedTuple):
    """A chunk of the classes on this device.

    Attributes:
      vectors: `[c, ...]`; zeros in padding rows.
      ids: `[c]`: the class of each row.
      counted: `[c]`: whether a row is a class that was in no earlier chunk.
    """

    vectors: jax.Array
    ids: jax.Array
    counted: jax.Array


def chunk_size(classes: ClassVectors, rows: int) -> int:
    """Returns the number of classes in a chunk: all on this device, or enough for CHUNK scores, at least one."""
    shape = local_vectors(classes).shape
    scores_per_class = max(math.prod(shape[1:-1]) * rows, 1)
    if scores_per_class * shape[0] <= WHOLE:
        return shape[0]
    return min(max(CHUNK // scores_per_class, 1), shape[0])


def single_chunk(classes: ClassVectors) -> Chunk:
    """Returns all classes on this device as one chunk."""
    ids = first_local_class(classes) + jnp.arange(local_vectors(classes).shape[0])
    return Chunk(zero_padding(classes, local_vectors(classes), ids), ids, real_classes(classes, ids))


def fold_chunks(add: Callable[[Any, Chunk], Any], start: Any, classes: ClassVectors, size: int) -> Any:
    """Folds chunks of `size` classes: `start = add(start, chunk)` for each."""
    return jax.lax.fori_loop(
        0, _num_chunks(classes, size), lambda number, total: add(total, chunk_at(classes, number, size)), start
    )


def chunk_at(classes: ClassVectors, number: Any, size: int) -> Chunk:
    """Returns one chunk. The last chunk overlaps the one before it, so that all have the same size."""
    first = _first_row(classes, number, size)
    row = first + jnp.arange(size)
    ids = first_local_class(classes) + row
    vectors = zero_padding(classes, jax.lax.dynamic_slice_in_dim(local_vectors(classes), first, size), ids)
    return Chunk(vectors, ids, (row >= number * size) & real_classes(classes, ids))


def summed_gradients(
    function: Callable[[Chunk, Any], Any],
    cotangents: Callable[[Any, Chunk], Any],
    classes: ClassVectors,
    operands: Any,
    size: int,
    *,
    start: ClassVectors,
) -> tuple[ClassVectors, Any]:
    """Adds up the gradients of `function(chunk, operands)` over chunks.

    Args:
      function: a function of a chunk.
      cotangents: maps `(result, chunk)` to the cotangents of the result.
      classes: the class vectors.
      operands: a pytree.
      size: the size of a chunk.
      start: has the structure of `classes`; the gradients with respect to the vectors are added to it.

    Returns:
      The gradients with respect to the class vectors and the operands.
    """

    def add(number: Any, total: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        d_vectors, d_operands = total
        chunk = chunk_at(classes, number, size)

        def chunk_result(vectors: jax.Array, operands: Any) -> Any:
            return function(chunk._replace(vectors=vectors), operands)

        result, pull_back = jax.vjp(chunk_result, chunk.vectors, operands)
        d_chunk, more = pull_back(cotangents(result, chunk))
        first = _first_row(classes, number, size)
        d_chunk = jax.lax.dynamic_slice_in_dim(d_vectors, first, size) + d_chunk
        d_vectors = jax.lax.dynamic_update_slice_in_dim(d_vectors, d_chunk, first, 0)
        return d_vectors, jax.tree.map(jnp.add, d_operands, more)

    nothing = jax.tree.map(jnp.zeros_like, operands)
    d_vectors, d_operands = jax.lax.fori_loop(0, _num_chunks(classes, size), add, (local_vectors(start), nothing))
    return replace_vectors(classes, d_vectors), d_operands


def _num_chunks(classes: ClassVectors, size: int) -> int:
    return -(-local_vectors(classes).shape[0] // size)


def _first_row(classes: ClassVectors, number: Any, size: int) -> jax.Array:
    return jnp.minimum(number * size, local_vectors(classes).shape[0] - size)
