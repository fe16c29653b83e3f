r"""The softmax over classes for losses with learned class vectors, and sums over classes.

A loss of the softmax family consists of a `Score`, which computes the logits of each class for each example, and a
margin, which changes the logit of the right class. `right_and_others` returns for each example the logit of its class
and the log-sum-exp of all others. From these,

:math:`-\log \frac{\exp z_y'}{\exp z_y' + \sum_{c \ne y} \exp z_c} = \mathrm{softplus}(\mathrm{others} - z_y')`

is one line for any margin :math:`z_y \to z_y'`, and accurate for small losses. Losses that are sums over classes use
`sum_over_classes`.

If the `[C, K, B]` scores are large, both engines process the classes in chunks and recompute the scores of a chunk for
its gradient. Memory then holds only one chunk's arrays, including those of the normalization, besides the class vectors
and their gradient. Each chunk, and each device that holds a `ClassShard`, contributes a `SoftmaxPart`. `softmax_part`
computes one, `combine_parts` combines those of two chunks, `combine_shards` those of all devices, and `log_sum_exp`
computes the result.

Scores are class-major, `[C, B]`. Sums over classes and centers then run over whole rows of examples, and the centers of
a class are read in memory order.
"""

from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmetric.losses._engine.class_chunks import (
    Chunk,
    chunk_at,
    chunk_size,
    fold_chunks,
    single_chunk,
    summed_gradients,
)
from jaxmetric.losses._engine.class_shard import (
    ClassShard,
    ClassVectors,
    local_vectors,
    psum_over_shards,
    replace_vectors,
)
from jaxmetric.numerics import equally_varying, excess, safe_divide, softplus

# (class vectors [c, ...], *operands) -> logits [c, B]. Static under jit, so it must be a module-level function.
Score: TypeAlias = Callable[..., jax.Array]


def cross_entropy(right: jax.Array, others: jax.Array) -> jax.Array:
    """Returns `[B]`: minus the log-probability of the right class, from its logit and the others' log-sum-exp."""
    return softplus(others - right)


# --- scores ---------------------------------------------------------------------------------------------------------


def dot_product(vectors: jax.Array, embeddings: jax.Array) -> jax.Array:
    """Returns `[c, B]` inner products of class vectors `[c, D]` and embeddings `[B, D]`."""
    return jnp.matmul(vectors, embeddings.T, precision=jax.lax.Precision.HIGHEST)


def normalized_dot_product(vectors: jax.Array, embeddings: jax.Array) -> jax.Array:
    """Returns `[c, B]` (or `[c, K, B]`) inner products with class vectors `[c, D]` (`[c, K, D]`) scaled to length 1."""
    rows = vectors.reshape(-1, vectors.shape[-1])
    # Scales the products, which fuses with their next use, instead of writing scaled vectors to memory.
    products = dot_product(rows, embeddings) * _inverse_lengths(rows)
    return products.reshape(*vectors.shape[:-1], -1)


def _inverse_lengths(vectors: jax.Array) -> jax.Array:
    """Returns `[c, 1]` inverse Euclidean lengths of `[c, D]` vectors; 0, with gradient 0, for a vector of zeros."""
    # As in `safe_normalize`, the scaling keeps squares from overflow and underflow.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(vectors), axis=1, keepdims=True))
    empty = largest < jnp.finfo(vectors.dtype).tiny
    unit = jnp.where(empty, 1, largest)
    squared = jnp.sum(jnp.square(vectors / unit), axis=1, keepdims=True)
    return jnp.where(empty, 0, jax.lax.rsqrt(jnp.where(empty, 1, squared)) / unit)


def nearest_center(centers: jax.Array, embeddings: jax.Array) -> jax.Array:
    """Returns `[c, B]`: the largest inner product with the K normalized centers of each class."""
    return _nearest(normalized_dot_product(centers, embeddings))


@jax.custom_vjp
def _nearest(similarity: jax.Array) -> jax.Array:
    # One center at a time, which XLA compiles to one loop over the similarities [c, K, B].
    return reduce(jnp.maximum, [similarity[:, k] for k in range(similarity.shape[1])])


def _nearest_fwd(similarity: jax.Array) -> Any:
    nearest = _nearest(similarity)
    return nearest, (similarity, nearest)


def _nearest_bwd(saved: Any, cotangent: jax.Array) -> Any:
    similarity, nearest = saved
    # Centers that are equally near share the gradient.
    counts = sum((similarity[:, k] == nearest).astype(nearest.dtype) for k in range(similarity.shape[1]))
    return (jnp.where(similarity == nearest[:, None], (cotangent / counts)[:, None], 0),)


_nearest.defvjp(_nearest_fwd, _nearest_bwd)


# --- the softmax over classes -----------------------------------------------------------------------------------------


class SoftmaxPart(NamedTuple):
    """The contribution of some of the classes to the softmax of each example.

    Attributes:
      largest: `[B]`: the largest logit of a class other than the example's; -inf if there is none.
      sum_exp: `[B]`: the sum of exp(logit - largest) over these classes.
      right: `[B]`: the logit of the example's class, 0 if it is not among the classes.
    """

    largest: jax.Array
    sum_exp: jax.Array
    right: jax.Array


def softmax_part(logits: jax.Array, index: jax.Array, counted: jax.Array, labels: jax.Array) -> SoftmaxPart:
    """Returns the part of the classes `index` `[c]` from `[c, B]` logits, without those not `counted` `[c]`."""
    others = jnp.where(_is_other(index, counted, labels), logits, -jnp.inf)
    largest = jnp.max(others, axis=0)
    sum_exp = jnp.sum(jnp.exp(excess(others, _finite(largest)[None, :])), axis=0)
    row = jnp.clip(labels - index[0], 0, index.size - 1)
    is_here = (index[row] == labels) & counted[row]
    return SoftmaxPart(largest, sum_exp, jnp.where(is_here, logits[row, jnp.arange(labels.size)], 0))


def combine_parts(first: SoftmaxPart, second: SoftmaxPart) -> SoftmaxPart:
    """Returns the part of the classes of both parts."""
    largest = jnp.maximum(first.largest, second.largest)
    sums = [_sum_relative_to(largest, part) for part in (first, second)]
    return SoftmaxPart(largest, sums[0] + sums[1], first.right + second.right)


def combine_shards(classes: ClassVectors, here: SoftmaxPart) -> SoftmaxPart:
    """Returns the part of all classes, from the part of the classes on this device."""
    if not isinstance(classes, ClassShard):
        return here
    largest = jax.lax.pmax(here.largest, classes.axis_name)
    whole = SoftmaxPart(largest, *psum_over_shards(classes, (_sum_relative_to(largest, here), here.right)))
    # Each device has its own cotangent of the result; the rules below add them up.
    return equally_varying((whole, here))[0]


def log_sum_exp(whole: SoftmaxPart) -> jax.Array:
    """Returns `[B]`: the log-sum-exp over the classes other than the example's; -inf if there is none."""
    none = whole.sum_exp == 0
    return jnp.where(none, -jnp.inf, jnp.log(jnp.where(none, 1, whole.sum_exp)) + _finite(whole.largest))


def _sum_relative_to(largest: jax.Array, part: SoftmaxPart) -> jax.Array:
    return part.sum_exp * jnp.exp(excess(part.largest, _finite(largest)))


def _finite(largest: jax.Array) -> jax.Array:
    return jnp.where(largest == -jnp.inf, 0, largest)


def _is_other(index: jax.Array, counted: jax.Array, labels: jax.Array) -> jax.Array:
    return counted[:, None] & (index[:, None] != labels[None, :])


def _logit_cotangents(
    logits: jax.Array,
    index: jax.Array,
    counted: jax.Array,
    labels: jax.Array,
    whole: SoftmaxPart,
    right_cotangent: jax.Array,
    others_cotangent: jax.Array,
) -> jax.Array:
    """Returns the cotangents of `[c, B]` logits, from those of the right logit and of the others' log-sum-exp."""
    is_other = _is_other(index, counted, labels)
    # Not exp(logits - log_sum_exp): if these are large, rounding makes the result inaccurate.
    terms = jnp.exp(excess(jnp.where(is_other, logits, -jnp.inf), _finite(whole.largest)[None, :]))
    term_cotangent = safe_divide(others_cotangent, whole.sum_exp)
    return jnp.where(
        is_other, terms * term_cotangent[None, :], jnp.where(counted[:, None], right_cotangent[None, :], 0)
    )


def right_and_others(
    score: Score, classes: ClassVectors, labels: jax.Array, *operands: Any
) -> tuple[jax.Array, jax.Array]:
    """Returns the logit of each example's class, and the log-sum-exp of all other classes.

    Args:
      score: computes the logits of a chunk's classes; a module-level function.
      classes: `[C, D]` or `[C, K, D]`, or a shard of them.
      labels: `[B]` integers; for a label outside [0, C), all classes count as others.
      *operands: floating-point arrays that the score takes besides the class vectors.

    Returns:
      `[B]` logits (0 for a label outside [0, C)), and `[B]` log-sum-exps (-inf if there is only one class).
    """
    size = chunk_size(classes, labels.shape[0])
    if size == local_vectors(classes).shape[0]:
        logits = score(single_chunk(classes).vectors, *operands)
        return _whole_right_and_others(replace_vectors(classes, logits), labels)
    return _chunked_right_and_others(score, size, classes, labels, operands)


@jax.custom_vjp
def _whole_right_and_others(logits: ClassVectors, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _whole_right_and_others_fwd(logits, labels)[0]


def _whole_right_and_others_fwd(logits: ClassVectors, labels: jax.Array) -> Any:
    _, ids, counted = single_chunk(logits)
    whole = combine_shards(logits, softmax_part(local_vectors(logits), ids, counted, labels))
    return (whole.right, log_sum_exp(whole)), (logits, labels, whole)


def _whole_right_and_others_bwd(saved: Any, cotangents: Any) -> Any:
    logits, labels, whole = saved
    _, ids, counted = single_chunk(logits)
    cotangents = psum_over_shards(logits, cotangents)  # the loss of every device depends on the logits of this one
    return replace_vectors(
        logits, _logit_cotangents(local_vectors(logits), ids, counted, labels, whole, *cotangents)
    ), None


_whole_right_and_others.defvjp(_whole_right_and_others_fwd, _whole_right_and_others_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_right_and_others(
    score: Score, size: int, classes: ClassVectors, labels: jax.Array, operands: Any
) -> tuple[jax.Array, jax.Array]:
    return _right_and_others_fwd(score, size, classes, labels, operands)[0]


def _right_and_others_fwd(score: Score, size: int, classes: ClassVectors, labels: jax.Array, operands: Any) -> Any:
    def add(whole: SoftmaxPart, chunk: Chunk) -> SoftmaxPart:
        return combine_parts(whole, softmax_part(score(chunk.vectors, *operands), chunk.ids, chunk.counted, labels))

    dtype = jax.eval_shape(score, local_vectors(classes), *operands).dtype
    nothing = jnp.zeros_like(labels, dtype)
    whole = combine_shards(classes, fold_chunks(add, SoftmaxPart(nothing - jnp.inf, nothing, nothing), classes, size))
    return (whole.right, log_sum_exp(whole)), (classes, labels, operands, whole)


def _right_and_others_bwd(score: Score, size: int, saved: Any, cotangents: Any) -> Any:
    classes, labels, operands, whole = saved
    cotangents = psum_over_shards(classes, cotangents)

    def logits(chunk: Chunk, operands: Any) -> jax.Array:
        return score(chunk.vectors, *operands)

    def logit_cotangents(logits: jax.Array, chunk: Chunk) -> jax.Array:
        return _logit_cotangents(logits, chunk.ids, chunk.counted, labels, whole, *cotangents)

    nothing = jax.tree.map(jnp.zeros_like, classes)
    d_classes, d_operands = summed_gradients(logits, logit_cotangents, classes, operands, size, start=nothing)
    return d_classes, None, d_operands


_chunked_right_and_others.defvjp(_right_and_others_fwd, _right_and_others_bwd)


# --- sums over classes ------------------------------------------------------------------------------------------------


def sum_over_classes(
    terms: Callable[..., Any], classes: ClassVectors, operands: Any, fixed: Any, *, rows: int
) -> tuple[Any, ClassVectors]:
    """Sums the terms of all classes, and also returns the class vectors.

    Compute further losses from the returned vectors: the gradient of the terms is then added to theirs in place. Two
    separate losses of the same vectors would hold two gradients in memory.

    Args:
      terms: maps `(vectors [c, ...], index [c], operands, fixed)` to a pytree of `[c, ...]` arrays; a module-level
        function.
      classes: `[C, D]` or `[C, K, D]`, or a shard of them.
      operands: a pytree of floating-point arrays.
      fixed: a pytree of arrays into which no gradient flows.
      rows: how many numbers `terms` computes per class vector, B for scores.

    Returns:
      The terms, summed over their first axis, and the class vectors.
    """
    size = chunk_size(classes, rows)
    if size == local_vectors(classes).shape[0]:
        return psum_over_shards(classes, _counted_sum(terms, single_chunk(classes), operands, fixed)), classes
    sums, classes = _chunked_sum(terms, size, classes, operands, fixed)
    return psum_over_shards(classes, sums), classes


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_sum(terms: Callable[..., Any], size: int, classes: ClassVectors, operands: Any, fixed: Any) -> Any:
    def add(total: Any, chunk: Chunk) -> Any:
        return jax.tree.map(jnp.add, total, _counted_sum(terms, chunk, operands, fixed))

    shapes = jax.eval_shape(partial(_counted_sum, terms), chunk_at(classes, 0, size), operands, fixed)
    nothing = jax.tree.map(jnp.zeros_like, shapes)
    return fold_chunks(add, nothing, classes, size), classes


def _sum_fwd(terms: Callable[..., Any], size: int, classes: ClassVectors, operands: Any, fixed: Any) -> Any:
    return _chunked_sum(terms, size, classes, operands, fixed), (classes, operands, fixed)


def _sum_bwd(terms: Callable[..., Any], size: int, saved: Any, cotangents: Any) -> Any:
    classes, operands, fixed = saved
    sum_cotangents, class_cotangents = cotangents

    def chunk_sum(chunk: Chunk, operands: Any) -> Any:
        return _counted_sum(terms, chunk, operands, fixed)

    return (
        *summed_gradients(chunk_sum, lambda *_: sum_cotangents, classes, operands, size, start=class_cotangents),
        None,
    )


_chunked_sum.defvjp(_sum_fwd, _sum_bwd)


def _counted_sum(terms: Callable[..., Any], chunk: Chunk, operands: Any, fixed: Any) -> Any:
    def total(term: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(chunk.counted.reshape(-1, *[1] * (term.ndim - 1)), term, 0), axis=0)

    return jax.tree.map(total, terms(chunk.vectors, chunk.ids, operands, fixed))
